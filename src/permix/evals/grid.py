"""Build the grid, answer its cells, and read its results: personas and no persona × questions × samples (× templates × contexts).

Contract: a cell on disk is reused if its messages and seed are the same. A cell with a completion but no verdict is scored again,
not generated again. A cell that could not be answered or scored stays pending. With several templates, or with contexts, each
cell of a persona is asked once per template and context; a cell without a persona has neither and is asked once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from permix.config import FidelityConfig, ModelConfig, StabilityConfig, fidelity_kind
from permix.errors import DataError, EndpointStoppedError
from permix.inference import load_model
from permix.inference.base import CellRequest, Model, collect
from permix.inference.batch_model import BatchModel, pass_over_answered
from permix.inference.cache import cached_model
from permix.inference.cost import RequestGroup, estimate_cost, find_measured, runs_beside
from permix.metrics.sequential import Round, count_cells
from permix.metrics.stability import StabilitySummary
from permix.metrics.statistics import Array
from permix.personas.pool import PersonaPool
from permix.personas.recorded_turns import RecordedTurns, choose_turns
from permix.progress import ProgressBar, print_status, progress_bar
from permix.prompts import build_messages, template_hash, template_id, template_text
from permix.storage.cells import CellIndex, CellSummary, cell_summaries, read_run_cells
from permix.storage.run_dir import RunDir, RunReader, check_cells_unchanged, check_resumable
from permix.tasks.base import read_trained_on
from permix.types import (
    Cell,
    CellKey,
    Completion,
    Estimate,
    Failure,
    Message,
    Persona,
    Question,
    Record,
    RecordedTurn,
    Request,
    Sampling,
    Verdict,
    digest,
    seed_from,
)

Scorer = Callable[[str, str, str], Verdict]
"""(completion, gold, prompt) -> verdict."""


class PromptFormat(NamedTuple):
    """How persona and question become messages.

    `crossed_templates`: if given, every persona is asked once with each of these templates, and `template` is not used.
    `contexts`: if given, every persona is asked once in each of these contexts; those with turns take them from `turns`.
    """

    prompt: Callable[[Question], str]
    template: str
    empty_system_prompt: bool
    crossed_templates: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    turns: RecordedTurns | None = None

    def templates_for(self, persona: Persona | None) -> dict[str, str]:
        """Template id, as cells store it, to template. The id is "" if there is a single template, or without a persona."""
        if persona is None or not self.crossed_templates:
            return {"": self.template}
        return {template_id(template): template for template in self.crossed_templates}

    def contexts_for(self, persona: Persona | None, seed: int) -> dict[str, tuple[RecordedTurn, ...]]:
        """Context, as cells store it, to the recorded turns before the question. "" without contexts or without a persona."""
        if persona is None or not self.contexts:
            return {"": ()}
        return {context: choose_turns(self.turns, persona, context, seed) for context in self.contexts}


def build_grid(
    personas: Sequence[Persona | None], questions: Sequence[Question], prompt_format: PromptFormat, *, samples: int, seed: int
) -> list[Cell]:
    """Build every cell of the grid, unanswered. Personas are the outermost loop; each cell has its own seed."""
    # A grid may have a million cells: equal messages and the set of given fields are one object for all of them, and what comes
    # from checked records is not checked again. That takes less than a third of the memory.
    known: dict[tuple[str, str], Message] = {}

    def messages(
        persona: Persona | None, question: Question, template: str, context: str, turns: tuple[RecordedTurn, ...]
    ) -> tuple[Message, ...]:
        built = build_messages(
            persona,
            prompt_format.prompt(question),
            template=template,
            empty_system_prompt=prompt_format.empty_system_prompt,
            context=context,
            turns=turns,
        )
        return tuple(known.setdefault((one["role"], one["content"]), one) for one in built)

    return [
        Cell.model_construct(
            _fields_set=_BUILT_FIELDS,
            persona_id=persona.id if persona else None,
            question_id=question.id,
            sample=sample,
            template=name,
            context=context,
            seed=_cell_seed(seed, persona, question, sample, name, context),
            messages=messages(persona, question, template, context, turns),
            gold=question.gold or None,
        )
        for persona in personas
        for name, template in prompt_format.templates_for(persona).items()
        for context, turns in prompt_format.contexts_for(persona, seed).items()
        for question in questions
        for sample in range(samples)
    ]


_BUILT_FIELDS = {"persona_id", "question_id", "sample", "template", "context", "seed", "messages", "gold"}


def _cell_seed(seed: int, persona: Persona | None, question: Question, sample: int, template: str, context: str) -> int:
    """The seed of a cell; without a template and a context as in earlier versions."""
    crossed = [*([template] if template else []), *(["context", context] if context else [])]
    return seed_from("cell", seed, persona.id if persona else "", question.id, sample, *crossed)


def warn_trained_personas(model: ModelConfig, pool: PersonaPool) -> None:
    """Print a note if the model was trained with some of the personas. That is allowed, but the run is no held-out evaluation."""
    known = read_trained_on(Path(model.name)).persona_ids & {persona.id for persona in pool.personas}
    if known:
        print_status(f"note: the model was trained with {len(known)} of these {len(pool)} personas, such as {min(known)}")


@contextmanager
def open_evaluated_model(config: StabilityConfig | FidelityConfig, pool: PersonaPool, given: Model | None) -> Iterator[Model]:
    """The given or the configured model, behind the cache if there is one, after a note if it was trained on these personas."""
    warn_trained_personas(config.model, pool)
    loaded = load_model(config.model, config.threads) if given is None else given
    with cached_model(loaded, config.cache, config.out) as model:
        yield model


def describe_grid(
    personas: Sequence[Persona],
    questions: Sequence[Question],
    samples: int,
    templates: Sequence[str] = (),
    contexts: Sequence[str] = (),
) -> dict[str, object]:
    """Content of grid.json: ids, so that missing cells are known, and content hashes, so that changed data are noticed."""
    crossed: dict[str, object] = {"templates": {template_id(one): template_text(one) for one in templates}} if templates else {}
    return (
        crossed
        | ({"contexts": list(contexts)} if contexts else {})
        | {
            "persona_ids": [persona.id for persona in personas],
            "question_ids": [question.id for question in questions],
            "samples": samples,
            "personas": digest(*(persona.model_dump_json() for persona in personas)),
            "questions": digest(*(question.content_hash for question in questions)),
        }
    )


class ExpectedCells(NamedTuple):
    """The cells that a run asks.

    `total` is their number, None if unknown; `n_without_persona` of them have no persona. `personas`, `questions` and `samples`
    restrict the cells, and None means no restriction. `pairs` are the (persona, question) pairs of a run that asks each persona
    its own questions. `templates` are the template ids of cells with a persona, `contexts` their contexts; a cell without a
    persona has "" for both.
    """

    total: int | None = None
    n_without_persona: int = 0
    personas: frozenset[str | None] | None = None
    questions: frozenset[str] | None = None
    pairs: frozenset[tuple[str | None, str]] | None = None
    samples: int | None = None
    templates: tuple[str, ...] = ("",)
    contexts: tuple[str, ...] = ("",)

    @property
    def n_with_persona(self) -> int | None:
        return None if self.total is None else self.total - self.n_without_persona

    def contains(self, key: CellKey) -> bool:
        """Whether the run asks the cell with this key."""
        return (
            (self.personas is None or key.persona_id in self.personas)
            and (self.questions is None or key.question_id in self.questions)
            and (self.pairs is None or (key.persona_id, key.question_id) in self.pairs)
            and (self.samples is None or key.sample < self.samples)
            and key.template in (("",) if key.persona_id is None else self.templates)
            and key.context in (("",) if key.persona_id is None else self.contexts)
        )


def expected_grid_cells(
    persona_ids: Sequence[str],
    question_ids: Sequence[str],
    samples: int,
    templates: Sequence[str] = ("",),
    contexts: Sequence[str] = ("",),
) -> ExpectedCells:
    """Cells of a full grid: every question with every persona, template and context, and without a persona."""
    n_without_persona = len(question_ids) * samples
    return ExpectedCells(
        total=(len(persona_ids) * len(templates) * len(contexts) + 1) * n_without_persona,
        n_without_persona=n_without_persona,
        personas=frozenset([None, *persona_ids]),
        questions=frozenset(question_ids),
        samples=samples,
        templates=tuple(templates),
        contexts=tuple(contexts),
    )


def read_expected_cells(run: RunReader) -> ExpectedCells:
    """The cells that a stability or fidelity run asks, from config.json and grid.json; for other runs they are unknown.

    Raises DataError, KeyError, TypeError or ValueError if the files are invalid.
    """
    grid = run.grid
    if not grid or run.stage not in ("stability", "fidelity"):
        return ExpectedCells()
    return _expected_fidelity_cells(grid, run.config) if run.stage == "fidelity" else _expected_stability_cells(grid)


def _expected_stability_cells(asked: Mapping[str, Any]) -> ExpectedCells:
    samples = int(asked["samples"])
    crossed = asked.get("templates", ("",)), asked.get("contexts", ("",))
    grid = expected_grid_cells(asked["persona_ids"], asked["question_ids"], samples, *crossed)
    if not asked.get("rounds"):
        return grid
    return grid._replace(total=count_cells([Round.model_validate(one) for one in asked["rounds"]], samples))


def _expected_fidelity_cells(asked: Mapping[str, Any], config: Mapping[str, Any]) -> ExpectedCells:
    personas = frozenset[str | None](asked["persona_ids"])
    match fidelity_kind(config):
        case "interview":
            # Includes turns whose question an interviewer model has not asked yet, but not the calls to that model ("ask-03").
            turns = int(config["interview"]["turns"])
            names = frozenset(f"turn-{turn:02}" for turn in range(1, turns + 1))
            return ExpectedCells(
                len(personas) * turns, personas=personas, questions=names | frozenset(asked.get("question_ids", ()))
            )
        case "personagym":
            own = frozenset((one.get("persona_id"), one["id"]) for one in asked.get("questions_asked", ()))
            alone = frozenset((None, id) for id in asked.get("asked_without_persona", ()))
            return ExpectedCells(len(own) + len(alone), len(alone), pairs=own | alone)
        case "open":
            questions, samples = frozenset[str](asked["question_ids"]), int(asked["samples"])
            return ExpectedCells(
                len(personas) * len(questions) * samples, personas=personas, questions=questions, samples=samples
            )


class GridResults(NamedTuple):
    """The cells of a run, and the axes of its grid.

    `selection_persona_ids` and `selection_question_ids` are the candidates and the questions of a persona search. `templates` are
    template ids, and `contexts` contexts, as cells store them.
    """

    cells: Mapping[CellKey, Cell]
    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]
    samples: int
    selection_persona_ids: tuple[str, ...] = ()
    selection_question_ids: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("",)
    contexts: tuple[str, ...] = ("",)

    @property
    def grid_summaries(self) -> dict[CellKey, CellSummary]:
        """Summaries of the recorded cells that belong to the grid; additional cells of a strategy are left out."""
        expected = expected_grid_cells(self.persona_ids, self.question_ids, self.samples, self.templates, self.contexts)
        return {key: summary for key, summary in cell_summaries(self.cells).items() if expected.contains(key)}

    def get_cell(self, persona_id: str | None, question_id: str, sample: int) -> Cell | None:
        """The recorded cell with the template id "" and the context "", or None."""
        return self.cells.get(CellKey(persona_id, question_id, sample))

    def read_cell(self, key: CellKey) -> Cell:
        """Read a cell from disk without keeping it in memory."""
        return self.cells.parse_uncached(key) if isinstance(self.cells, CellIndex) else self.cells[key]

    def scores(self, persona_ids: Sequence[str | None], question_ids: Sequence[str]) -> Array:
        """correct_P_Q_S: 1 right, 0 wrong, NaN without a score.

        With several templates, axis S holds the samples of each template in turn, and with several contexts, within each template
        those of each context in turn. If `persona_ids` contains None, S holds only the cells without a template id and a context.
        """
        summaries, no_record = cell_summaries(self.cells), CellSummary(None, False, None, 0)
        templates, contexts = (("",), ("",)) if None in persona_ids else (self.templates, self.contexts)
        table = [
            summaries.get(CellKey(persona, question, sample, template, context), no_record).reward
            for persona in persona_ids
            for question in question_ids
            for template in templates
            for context in contexts
            for sample in range(self.samples)
        ]
        shape = len(persona_ids), len(question_ids), len(templates) * len(contexts) * self.samples
        return np.array(table, dtype=np.float64).reshape(shape)  # None becomes NaN


def persona_and_baseline_scores(results: GridResults) -> tuple[Array, Array]:
    """The grid's scores: correct_P_Q_S with personas, and baseline_Q_S without a persona."""
    return results.scores(results.persona_ids, results.question_ids), results.scores([None], results.question_ids)[0]


NOTABLE_CUT_OFF_SHARE = 0.05
"""Share of answers cut off at the token limit above which a warning is shown."""


class CutOffCounts(Record):
    """How many answers of a grid were cut off at the token limit, or never ended their thinking.

    Counts are over answers with a known end. `by_persona` has the share of each persona ("" is no persona).
    `accuracy_of_others` is the mean score of the answers that were not cut off; None without any.
    """

    n_known: int
    n_cut_off: int
    n_thinking_unclosed: int
    by_persona: dict[str, float]
    accuracy_of_others: float | None

    @property
    def is_notable(self) -> bool:
        """Whether more than 5 % were cut off in all, or some persona's share is 10 points above another's."""
        shares = self.by_persona.values()
        return bool(self.n_cut_off) and (self.n_cut_off > NOTABLE_CUT_OFF_SHARE * self.n_known or max(shares) - min(shares) > 0.1)

    def describe(self, max_new_tokens: int | None) -> str:
        """One sentence on the counts, and what to do. `max_new_tokens` is None if the limit is not recorded."""
        unclosed = f", {self.n_thinking_unclosed} of them within their thinking" if self.n_thinking_unclosed else ""
        others = "" if self.accuracy_of_others is None else f"; accuracy of the others {self.accuracy_of_others:.3f}"
        low, high = min(self.by_persona.values()), max(self.by_persona.values())
        return (
            f"{self.n_cut_off} of {self.n_known} answers were cut off at {token_limit_text(max_new_tokens)}{unclosed} "
            f"({low:.0%} to {high:.0%} by persona){others}. A longer limit may change the accuracies and their differences"
        )


def token_limit_text(max_new_tokens: int | None) -> str:
    """The limit at which answers were cut off, by the name of its setting."""
    return "a token limit that is not recorded" if max_new_tokens is None else f"sampling.max_new_tokens = {max_new_tokens}"


def count_cut_off(results: GridResults) -> CutOffCounts:
    """Count the answers of the grid that were cut off; additional cells of a strategy are left out."""
    known_by_persona, cut_by_persona, other_scores, n_unclosed = Counter[str](), Counter[str](), list[float](), 0
    for key, one in results.grid_summaries.items():
        if one.cut_off is None:
            continue
        persona = key.persona_id or ""
        known_by_persona[persona] += 1
        cut_by_persona[persona] += one.cut_off
        n_unclosed += one.thinking_unclosed
        if not one.cut_off and one.reward is not None:
            other_scores.append(one.reward)
    return CutOffCounts(
        n_known=known_by_persona.total(),
        n_cut_off=cut_by_persona.total(),
        n_thinking_unclosed=n_unclosed,
        by_persona={persona: cut_by_persona[persona] / n for persona, n in known_by_persona.items()},
        accuracy_of_others=sum(other_scores) / len(other_scores) if other_scores else None,
    )


def cut_off_warning(
    run: RunReader, results: GridResults, *, is_judged: bool = False, counts: CutOffCounts | None = None
) -> str | None:
    """One sentence on the answers of a stability or fidelity run that the token limit cut off; None if they are few.

    `counts` are the `count_cut_off` of a stability run's answers, where they are known already. In a fidelity run only answers
    with a persona count. Of answers to open questions that no judge scored there is no warning: identifiability compares the
    beginnings of answers, as many tokens of each.
    """
    if run.stage == "stability":
        counts = counts or count_cut_off(results)
        return counts.describe(_token_limit(run)) if counts.is_notable else None
    if fidelity_kind(run.config) == "open" and not is_judged:
        return None
    ends = [one.cut_off for key, one in results.grid_summaries.items() if key.persona_id is not None and one.cut_off is not None]
    if sum(ends) <= NOTABLE_CUT_OFF_SHARE * len(ends):
        return None
    return (
        f"{sum(ends) / len(ends):.0%} of the answers were cut off at {token_limit_text(_token_limit(run))}. What is measured of "
        "them, and what judges score, is the incomplete answer"
    )


def _token_limit(run: RunReader) -> int | None:
    limit = (run.config.get("sampling") or {}).get("max_new_tokens")
    return None if limit is None else int(limit)


def cell_row(cell: Cell, *, with_texts: bool = True) -> dict[str, Any]:
    """The cell as one row of a table. `persona_id` is None without persona; `correct` is None without a score.

    `with_texts`: with the columns that hold the completion's text and its parts.
    """
    completion, verdict, failure = cell.completion, cell.verdict, cell.failure
    texts = {} if not with_texts else {
        "text": None if completion is None else completion.text,
        "answer": None if completion is None else completion.answer,
        "thinking": None if completion is None else completion.thinking,
    }  # fmt: skip
    return {
        "persona_id": cell.persona_id,
        "question_id": cell.question_id,
        "sample": cell.sample,
        "template": cell.template,
        "context": cell.context,
        "correct": None if verdict is None else verdict.correct,
        "extracted": None if verdict is None else verdict.extracted,
        "gold": cell.gold,
        **texts,
        "error": f"{failure.type}: {failure.message}" if failure is not None else None if verdict is None else verdict.error,
        "prompt_tokens": None if completion is None else completion.prompt_tokens,
        "completion_tokens": None if completion is None else completion.completion_tokens,
        "finish": None if completion is None else completion.finish,
    }


def persona_rows(summary: StabilitySummary, cut_off: CutOffCounts | None) -> list[dict[str, Any]]:
    """One row of numbers for the baseline (`persona_id` None) and for each persona. `cut_off`: the share of its answers that were
    cut off; None if it is unknown. Differences are persona − baseline.
    """
    shares = {} if cut_off is None else cut_off.by_persona
    baseline = summary.measures.get("baseline")
    rows = [] if baseline is None or baseline.value is None else [_persona_row(None, baseline, None, None, None, shares.get(""))]
    return rows + [
        _persona_row(one.id, one.accuracy, one.difference, one.mcnemar_p, one.holm_p, shares.get(one.id))
        for one in summary.personas
    ]


def _persona_row(
    persona_id: str | None,
    accuracy: Estimate,
    difference: Estimate | None,
    p: float | None,
    holm_p: float | None,
    cut_off: float | None,
) -> dict[str, Any]:
    change = Estimate(value=None, low=None, high=None, n=0) if difference is None else difference
    return {
        "persona_id": persona_id,
        "n": accuracy.n,
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "difference": change.value,
        "difference_low": change.low,
        "difference_high": change.high,
        "p": p,
        "holm_p": holm_p,
        "cut_off": cut_off,
    }


def read_grid_results(run: Path) -> GridResults:
    """Read the cells of a run directory. The grid includes cells that were asked but have no record."""
    return grid_results(RunReader(run))


def grid_results(run: RunReader) -> GridResults:
    """Like `read_grid_results`, for an open run. Without grid.json the recorded cells determine the axes of the grid."""
    cells, grid = run.cells, run.grid
    if not grid:
        return GridResults(
            cells,
            tuple(dict.fromkeys(key.persona_id for key in cells if key.persona_id is not None)),
            tuple(dict.fromkeys(key.question_id for key in cells)),
            1 + max((key.sample for key in cells), default=0),
            templates=tuple(dict.fromkeys(key.template for key in cells if key.persona_id is not None)) or ("",),
            contexts=tuple(dict.fromkeys(key.context for key in cells if key.persona_id is not None)) or ("",),
        )
    found = GridResults(
        cells,
        tuple(grid.get("persona_ids", ())),
        tuple(grid.get("question_ids", ())),
        grid["samples"],
        tuple(grid.get("choosing_persona_ids", ())),
        tuple(grid.get("choosing_question_ids", ())),
        tuple(grid.get("templates", ("",))),
        tuple(grid.get("contexts", ("",))),
    )
    crossed = len(found.templates) * len(found.contexts)
    asked = (len(found.persona_ids) + 1) * len(found.question_ids) * crossed * found.samples
    if asked > MAX_GRID_CELLS:
        raise DataError(f"{run.path / 'grid.json'}: asks for {asked} cells, above {MAX_GRID_CELLS}; the file is damaged")
    return found


MAX_GRID_CELLS = 100_000_000
"""Largest grid that is read. A larger one would fill the memory; no run has answered as many cells."""


def run_cells(
    model: Model, cells: Sequence[Cell], sampling: Sampling, run: RunDir, scorer: Scorer | None, description: str
) -> int:
    """Generate and score the pending cells; returns the number of cells that are still pending at the end.

    Each pending cell is requested once. Without gold or without a scorer a cell is open-ended: it is done once it has a
    completion. If the endpoint stops answering, `run.stop_reason` says so, and no cell is requested any more. Raises ConfigError
    if a cell on disk has other messages than the same cell in `cells`.
    """
    known = run.cells()
    check_cells_unchanged(known, cells)
    pending = [cell for cell in cells if not _is_done(known.get(cell.key), scorer)]
    unscored = [known[cell.key] for cell in pending if _has_completion(known.get(cell.key))]
    requests = [CellRequest.for_cell(cell) for cell in pending if not _has_completion(known.get(cell.key))]
    pass_over_answered(model, lambda: _answered_requests(cells, known), sampling)
    finished = failed = 0
    if isinstance(model, BatchModel):
        run.count_answers(None)

    def score_and_append(cell: Cell, bar: ProgressBar) -> None:
        nonlocal finished, failed
        scored = run.append_result(_score(cell, scorer))
        finished += _is_done(scored, scorer)
        failed += not _is_done(scored, scorer)
        bar.advance(status=f"{failed} without a result" if failed else "")

    def record_answer(one: CellRequest, result: Completion | Failure, bar: ProgressBar) -> None:
        run.count_answers(isinstance(result, Completion))
        score_and_append(one.cell_with(result), bar)

    with progress_bar(description, len(cells), "cells") as bar:
        bar.start_at(len(cells) - len(pending))
        for cell in unscored:
            score_and_append(cell, bar)
        try:
            collect(
                model,
                sampling,
                lambda: [] if run.stop_reason else requests,
                record_answer,
                lambda _: nullcontext(bar),
                run.path,
                max_rounds=1,
                has_answers=any(map(_has_completion, known.values())),
            )
        except EndpointStoppedError as error:
            run.stop_reason = error.stop_reason
    return len(pending) - finished


def estimate_cells(
    stage: str, config: StabilityConfig | FidelityConfig, cells: Sequence[Cell], n_later: int = 0
) -> dict[str, str]:
    """The cost of the cells that a run has not answered yet, and of at most `n_later` further ones (see `estimate_cost`).

    Raises ConfigError if the run in `config.out` asked one of these cells with other messages or another seed.
    """
    if isinstance(config, FidelityConfig):
        check_resumable(config.out, config, fidelity_identity(config))
    recorded = read_run_cells(config.out)
    check_cells_unchanged(recorded, cells)
    limit = config.sampling.max_new_tokens
    pending = [cell.messages for cell in cells if not recorded.has_completion(cell.key)]
    groups = [RequestGroup(pending, limit, n_later)]
    measured = find_measured(runs_beside(config.out), stage, config.model, limit)
    return estimate_cost(groups, config.model, measured, n_recorded=len(cells) - len(pending))


def fidelity_identity(config: FidelityConfig) -> dict[str, Any]:
    """The part of a fidelity run's identity that needs no model."""
    return {
        "template": template_hash(config.personas.template),
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
    }


def _answered_requests(cells: Sequence[Cell], known: CellIndex) -> Iterator[Request]:
    return (CellRequest.for_cell(one).request for one in cells if known.has_completion(one.key))


def _has_completion(cell: Cell | None) -> bool:
    return cell is not None and cell.completion is not None


def _is_done(cell: Cell | None, scorer: Scorer | None) -> bool:
    if cell is None or cell.completion is None:
        return False
    return scorer is None or cell.gold is None or (cell.verdict is not None and cell.verdict.correct is not None)


def _score(cell: Cell, scorer: Scorer | None) -> Cell:
    if scorer is None or cell.gold is None or cell.completion is None:
        return cell
    return cell.model_copy(update={"verdict": scorer(cell.completion.text, cell.gold, cell.prompt)})
