"""The grid: every persona and no persona × every question × every sample, asked once, kept for ever.

Where personas are brought in by several templates, these are one factor more; no persona has no wording and is asked once.

A cell on disk is used again when it was asked in the same words with the same seed. A cell whose completion is there but whose
verdict is missing is judged again, not generated again. What could not be answered or judged stays owed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from permix.config import ModelConfig
from permix.inference.base import Model
from permix.inference.collect import CellRequest, collect
from permix.metrics.statistics import Array
from permix.personas.pool import PersonaPool
from permix.progress import ProgressBar, print_status, progress_bar
from permix.prompts import build_messages, template_id, template_text
from permix.storage.cells import CellIndex, CellSummary, cell_summaries
from permix.storage.run_dir import RunDir, RunReader, check_cells_unchanged
from permix.tasks.base import read_trained_on
from permix.types import Cell, CellKey, Persona, Question, Sampling, Verdict, digest, seed_from

Scorer = Callable[[str, str], Verdict]
"""(completion, gold) -> verdict."""


class PromptFormat(NamedTuple):
    """How questions are put. `crossed`: templates that every persona is brought in by in turn, in place of `template`."""

    prompt: Callable[[Question], str]
    template: str
    empty_system_prompt: bool
    crossed_templates: tuple[str, ...] = ()

    def templates_for(self, persona: Persona | None) -> dict[str, str]:
        """What a persona is brought in by, under what stands for it in the records."""
        if persona is None or not self.crossed_templates:
            return {"": self.template}
        return {template_id(template): template for template in self.crossed_templates}


def build_grid(
    personas: Sequence[Persona | None], questions: Sequence[Question], prompt_format: PromptFormat, *, samples: int, seed: int
) -> list[Cell]:
    """Every cell of the grid, unanswered, personas outermost, each with a seed of its own."""
    return [
        Cell(
            persona_id=persona.id if persona else None,
            question_id=question.id,
            sample=sample,
            template=name,
            seed=seed_from("cell", seed, persona.id if persona else "", question.id, sample, *([name] if name else [])),
            messages=build_messages(
                persona, prompt_format.prompt(question), template=template, empty_system_prompt=prompt_format.empty_system_prompt
            ),
            gold=question.gold or None,
        )
        for persona in personas
        for name, template in prompt_format.templates_for(persona).items()
        for question in questions
        for sample in range(samples)
    ]


def warn_trained_personas(model: ModelConfig, pool: PersonaPool) -> None:
    """Say when some of the personas are not held out: allowed, but another measurement."""
    known = read_trained_on(Path(model.name)).persona_ids & {persona.id for persona in pool.personas}
    if known:
        print_status(f"note: the model was trained under {len(known)} of these {len(pool)} personas, such as {min(known)}")


def describe_grid(
    personas: Sequence[Persona], questions: Sequence[Question], samples: int, templates: Sequence[str] = ()
) -> dict[str, object]:
    """What was asked, by id and by content: cells without a record are known to be missing, and data can be told apart."""
    crossed = {"templates": {template_id(one): template_text(one) for one in templates}} if templates else {}
    return crossed | {
        "persona_ids": [persona.id for persona in personas],
        "question_ids": [question.id for question in questions],
        "samples": samples,
        "personas": digest(*(persona.model_dump_json() for persona in personas)),
        "questions": digest(*(question.content_hash for question in questions)),
    }


class ExpectedCells(NamedTuple):
    """Which cells a run asks for. `total`: how many, `n_without_persona` of them without a persona; None where it does not say.

    `personas`, `questions` and `samples` are None where any belongs. `pairs`: (persona, question) of a run that asks each persona
    its own questions. `templates`: by what personas are brought in; a cell without persona has none.
    """

    total: int | None = None
    n_without_persona: int = 0
    personas: frozenset[str | None] | None = None
    questions: frozenset[str] | None = None
    pairs: frozenset[tuple[str | None, str]] | None = None
    samples: int | None = None
    templates: tuple[str, ...] = ("",)

    @property
    def n_with_persona(self) -> int | None:
        return None if self.total is None else self.total - self.n_without_persona

    def contains(self, key: CellKey) -> bool:
        """Whether a recorded cell is one of them."""
        return (
            (self.personas is None or key.persona_id in self.personas)
            and (self.questions is None or key.question_id in self.questions)
            and (self.pairs is None or (key.persona_id, key.question_id) in self.pairs)
            and (self.samples is None or key.sample < self.samples)
            and key.template in (("",) if key.persona_id is None else self.templates)
        )


def expected_grid_cells(
    persona_ids: Sequence[str], question_ids: Sequence[str], samples: int, templates: Sequence[str] = ("",)
) -> ExpectedCells:
    """Every question under every persona, by every template, and under none."""
    alone = len(question_ids) * samples
    return ExpectedCells(
        total=(len(persona_ids) * len(templates) + 1) * alone,
        n_without_persona=alone,
        personas=frozenset([None, *persona_ids]),
        questions=frozenset(question_ids),
        samples=samples,
        templates=tuple(templates),
    )


class GridResults(NamedTuple):
    """The records of a run, and which of them are its grid. `selection_...`: whom and by what a persona was searched for.

    `templates`: what personas were brought in by, as their cells name it.
    """

    cells: Mapping[CellKey, Cell]
    persona_ids: tuple[str, ...]
    question_ids: tuple[str, ...]
    samples: int
    selection_persona_ids: tuple[str, ...] = ()
    selection_question_ids: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("",)

    @property
    def grid_summaries(self) -> dict[CellKey, CellSummary]:
        """The summaries of the recorded cells of the grid, without those that a strategy asks beside it."""
        expected = expected_grid_cells(self.persona_ids, self.question_ids, self.samples, self.templates)
        return {key: summary for key, summary in cell_summaries(self.cells).items() if expected.contains(key)}

    def get_cell(self, persona_id: str | None, question_id: str, sample: int) -> Cell | None:
        return self.cells.get(CellKey(persona_id, question_id, sample))

    def read_cell(self, key: CellKey) -> Cell:
        """A cell that is not kept in memory."""
        return self.cells.parse_uncached(key) if isinstance(self.cells, CellIndex) else self.cells[key]

    def scores(self, persona_ids: Sequence[str | None], question_ids: Sequence[str]) -> Array:
        """correct_P_Q_S: 1 right, 0 wrong, NaN without a score.

        Several templates make as many times the samples, template by template; no persona has none of them.
        """
        briefs, unknown = cell_summaries(self.cells), CellSummary(None, False, None, 0)
        templates = ("",) if None in persona_ids else self.templates
        table = [
            briefs.get(CellKey(persona, question, sample, template), unknown).reward
            for persona in persona_ids
            for question in question_ids
            for template in templates
            for sample in range(self.samples)
        ]
        shape = len(persona_ids), len(question_ids), len(templates) * self.samples
        return np.array(table, dtype=np.float64).reshape(shape)  # None becomes NaN


def persona_and_baseline_scores(results: GridResults) -> tuple[Array, Array]:
    """The grid's scores, with personas [P, Q, S] and without [Q, S]."""
    return results.scores(results.persona_ids, results.question_ids), results.scores([None], results.question_ids)[0]


def read_grid_results(run: Path) -> GridResults:
    """The records of a run directory; cells that were asked but have no record lie in its grid all the same."""
    return grid_results(RunReader(run))


def grid_results(run: RunReader) -> GridResults:
    """`read_grid_results` of a run that is open already. Without grid.json the grid is spanned by the cells that there are."""
    cells, asked = run.cells, run.grid
    if not asked:
        return GridResults(
            cells,
            tuple(dict.fromkeys(key.persona_id for key in cells if key.persona_id is not None)),
            tuple(dict.fromkeys(key.question_id for key in cells)),
            1 + max((key.sample for key in cells), default=0),
            templates=tuple(dict.fromkeys(key.template for key in cells if key.persona_id is not None)) or ("",),
        )
    return GridResults(
        cells,
        tuple(asked.get("persona_ids", ())),
        tuple(asked.get("question_ids", ())),
        asked["samples"],
        tuple(asked.get("choosing_persona_ids", ())),
        tuple(asked.get("choosing_question_ids", ())),
        tuple(asked.get("templates", ("",))),
    )


def run_cells(
    model: Model, cells: Sequence[Cell], sampling: Sampling, run: RunDir, scorer: Scorer | None, description: str
) -> int:
    """Generate and score what is pending of `cells`; returns how many of them are pending at the end.

    Each is asked for once. A cell without gold, or any with `scorer=None`, is open-ended: its completion is its result, without
    a verdict. Raises ConfigError when the run on disk asked a cell in other words.
    """
    known = run.cells()
    check_cells_unchanged(known, cells)
    pending = [cell for cell in cells if not _is_done(known.get(cell.key), scorer)]
    unscored = [known[cell.key] for cell in pending if _has_completion(known.get(cell.key))]
    requests = [CellRequest.for_cell(cell) for cell in pending if not _has_completion(known.get(cell.key))]
    finished = failed = 0

    def score_and_append(cell: Cell, bar: ProgressBar) -> None:
        nonlocal finished, failed
        scored = _score(cell, scorer)
        run.append([scored])
        finished += _is_done(scored, scorer)
        failed += not _is_done(scored, scorer)
        bar.advance(status=f"{failed} without a result" if failed else "")

    with progress_bar(description, len(cells), "cells") as bar:
        bar.start_at(len(cells) - len(pending))
        for cell in unscored:
            score_and_append(cell, bar)
        collect(
            model,
            sampling,
            lambda: requests,
            lambda one, result, bar: score_and_append(one.cell_with(result), bar),
            lambda _: nullcontext(bar),
            max_rounds=1,
        )
    return len(pending) - finished


def _has_completion(cell: Cell | None) -> bool:
    return cell is not None and cell.completion is not None


def _is_done(cell: Cell | None, scorer: Scorer | None) -> bool:
    if cell is None or cell.completion is None:
        return False
    return scorer is None or cell.gold is None or (cell.verdict is not None and cell.verdict.correct is not None)


def _score(cell: Cell, scorer: Scorer | None) -> Cell:
    if scorer is None or cell.gold is None or cell.completion is None:
        return cell
    return cell.model_copy(update={"verdict": scorer(cell.completion.text, cell.gold)})
