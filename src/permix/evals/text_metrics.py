"""Text metrics of a fidelity run, computed without a judge: character breaks, distinct-n, length, repetition, echo.

They are computed from the records of any kind of fidelity run; answers without a persona are left out. No metric says whether an
answer fits its persona. `metrics.text_stats` documents what each metric does not measure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from permix.config import fidelity_kind
from permix.evals.fidelity_records import read_persona_cells
from permix.evals.grid import read_expected_cells
from permix.metrics import text_stats
from permix.metrics.statistics import Array
from permix.metrics.text_stats import (
    CharacterBreak,
    clustered_mean,
    clustered_rate,
    distinct_n_overall,
    distinct_n_per_persona,
    find_character_breaks,
)
from permix.prompts import persona_prompt
from permix.storage.run_dir import RunReader
from permix.types import Cell, Estimate, Record, seed_from

DISTINCT_NGRAMS, DISTINCT_NGRAMS_PER_PERSONA = 1000, 200
"""Number of n-grams that distinct-n is computed at, of a run and of one persona. It is fixed so that runs are comparable."""

MAX_BREAK_EXAMPLES = 5

CONTEXT_CHARS = 60  # characters of the answer on each side of a hit


ResamplingUnit = Literal["questions", "personas"]


class BreakExample(Record):
    """A break of character in an answer: `quote` is the text that matched `rule`; `before` and `after` surround it."""

    persona_id: str
    question_id: str
    rule: str
    before: str
    quote: str
    after: str


class TextMetrics(Record):
    """Text metrics of the answers of one run. Intervals are over `resampling_unit`, and `n` of an estimate counts these units.

    `break_rate`: share of answers that break character by the rules in metrics/breaks.toml.
    `breaks_by_rule`: number of answers by rule; an answer can match several rules.
    `words`, `characters`: mean length of an answer.
    `truncated_share`: share of answers that ended at the token limit.
    `repetition_rate`: share of answers that repeat a sequence of four words.
    `distinct_1`, `distinct_2`: distinct-n of all answers together, at `DISTINCT_NGRAMS` n-grams.
    `distinct_1_per_persona`, `distinct_2_per_persona`: mean over personas of their own distinct-n, at
    `DISTINCT_NGRAMS_PER_PERSONA` n-grams; the interval is always over personas.
    `echo_own`, `echo_others`: share of answers that contain a content word of their own persona's text, and of another persona's
    text; `echo` is the difference.
    """

    break_rate: Estimate
    breaks_by_rule: dict[str, int]
    break_examples: tuple[BreakExample, ...]
    words: Estimate
    characters: Estimate
    truncated_share: Estimate
    repetition_rate: Estimate
    distinct_1: Estimate
    distinct_2: Estimate
    distinct_1_per_persona: Estimate
    distinct_2_per_persona: Estimate
    echo_own: Estimate
    echo_others: Estimate
    echo: Estimate
    resampling_unit: ResamplingUnit
    n_personas: int
    n_answers: int
    n_asked: int


class PersonaAnswer(NamedTuple):
    """One answer of a persona."""

    persona_id: str
    question_id: str
    text: str
    truncated: bool | None


class ClusterBootstrap(NamedTuple):
    """Bootstrap over units; `unit_N` is the unit of each answer. Every measure uses the same resamples."""

    unit_N: Sequence[str]
    seed: int
    resamples: int

    def mean(self, values: Iterable[float | None]) -> Estimate:
        """Mean of the values, None left out."""
        return clustered_mean(_to_array(values), self.unit_N, np.random.default_rng(self.seed), self.resamples)

    def rate(self, values: Iterable[bool | float | None]) -> Estimate:
        """Mean of values that are 0 or 1, None left out."""
        return clustered_rate(_to_array(values), self.unit_N, np.random.default_rng(self.seed), self.resamples)


def _to_array(values: Iterable[float | None]) -> Array:
    return np.array(list(values), dtype=float)  # None becomes NaN


def measure_text_metrics(run: Path, resamples: int | None = None) -> TextMetrics:
    """Compute the text metrics of a fidelity run of any kind. `resamples` replaces the number in the run's configuration."""
    reader, cells = RunReader(run), read_persona_cells(run)
    config = reader.config
    answers = [
        PersonaAnswer(cell.persona_id or "", cell.question_id, cell.completion.answer, _is_truncated(cell))
        for cell in cells
        if cell.completion is not None
    ]
    return compute_text_metrics(
        answers,
        read_persona_texts(run, cells),
        unit=resampling_unit(config),
        n_asked=read_expected_cells(reader).n_with_persona or len(cells),
        seed=config["seed"],
        resamples=resamples or config["resamples"],
    )


def compute_text_metrics(
    answers: Sequence[PersonaAnswer],
    persona_texts: Mapping[str, str],
    *,
    unit: ResamplingUnit = "questions",
    n_asked: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> TextMetrics:
    """Compute the text metrics of answers; `persona_texts` is by persona id. The order of the answers does not matter."""
    answers = sorted(answers, key=lambda one: (one.persona_id, one.question_id, one.text))
    text_N, persona_N = [one.text for one in answers], [one.persona_id for one in answers]
    unit_N = persona_N if unit == "personas" else [one.question_id for one in answers]
    ids = sorted(set(persona_N))
    bootstrap = ClusterBootstrap(unit_N, seed_from(seed, "unjudged"), resamples)
    each_1, each_2 = (distinct_n_per_persona(text_N, persona_N, n, DISTINCT_NGRAMS_PER_PERSONA) for n in (1, 2))
    persona_bootstrap = bootstrap._replace(unit_N=list(each_1))
    breaks_N = [find_character_breaks(one.text, persona_texts[one.persona_id]) for one in answers]
    echo_N_P = text_stats.persona_word_echoes(text_N, [persona_texts[id] for id in ids])
    own_N, others_N = text_stats.own_and_other_echoes(echo_N_P, [ids.index(id) for id in persona_N])
    return TextMetrics(
        break_rate=bootstrap.rate([bool(found) for found in breaks_N]),
        breaks_by_rule=_count_by_rule(breaks_N),
        break_examples=_pick_break_examples(answers, breaks_N),
        words=bootstrap.mean([len(text_stats.tokenize_words(text)) for text in text_N]),
        characters=bootstrap.mean([len(text) for text in text_N]),
        truncated_share=bootstrap.rate([one.truncated for one in answers]),
        repetition_rate=bootstrap.rate([text_stats.has_repeated_ngram(text) for text in text_N]),
        distinct_1=distinct_n_overall(text_N, unit_N, 1, DISTINCT_NGRAMS),
        distinct_2=distinct_n_overall(text_N, unit_N, 2, DISTINCT_NGRAMS),
        distinct_1_per_persona=persona_bootstrap.mean(each_1.values()),
        distinct_2_per_persona=persona_bootstrap.mean(each_2.values()),
        echo_own=bootstrap.rate(own_N),
        echo_others=bootstrap.mean(others_N),
        echo=bootstrap.mean(own_N - others_N),
        resampling_unit=unit,
        n_personas=len(ids),
        n_answers=len(answers),
        n_asked=len(answers) if n_asked is None else n_asked,
    )


def read_persona_texts(run: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Persona texts by id, from grid.json, or from the messages of a persona's first cell if grid.json lacks the text."""
    grid_texts: dict[str, str] = RunReader(run).grid.get("persona_texts", {})
    texts: dict[str, str] = {}
    for cell in cells:
        if cell.persona_id is not None and cell.persona_id not in texts:
            texts[cell.persona_id] = grid_texts.get(cell.persona_id) or persona_prompt(cell.messages)
    return texts


def resampling_unit(config: Mapping[str, Any]) -> ResamplingUnit:
    """ "questions" if all personas share them; "personas" if each has its own questions, or if turns depend on each other."""
    return "questions" if fidelity_kind(config) == "open" else "personas"


def _is_truncated(cell: Cell) -> bool | None:
    """Whether the answer ended at the token limit; None if the finish reason is unknown."""
    assert cell.completion is not None
    return cell.completion.is_cut_off


def _count_by_rule(breaks_N: Sequence[Sequence[CharacterBreak]]) -> dict[str, int]:
    counts = Counter(rule for found in breaks_N for rule in {one.rule for one in found})
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _pick_break_examples(
    answers: Sequence[PersonaAnswer], breaks_N: Sequence[Sequence[CharacterBreak]]
) -> tuple[BreakExample, ...]:
    """The first break of up to `MAX_BREAK_EXAMPLES` answers, evenly spread over the answers with a break."""
    with_break = [(one, found[0]) for one, found in zip(answers, breaks_N, strict=True) if found]
    step = max(1, -(-len(with_break) // MAX_BREAK_EXAMPLES))
    return tuple(_to_break_example(one, first) for one, first in with_break[::step])


def _to_break_example(answer: PersonaAnswer, character_break: CharacterBreak) -> BreakExample:
    return BreakExample(
        persona_id=answer.persona_id,
        question_id=answer.question_id,
        rule=character_break.rule,
        before=answer.text[max(0, character_break.start - CONTEXT_CHARS) : character_break.start],
        quote=answer.text[character_break.start : character_break.end],
        after=answer.text[character_break.end : character_break.end + CONTEXT_CHARS],
    )
