"""Ensemble of persona and neutral answer, after "Persona is a Double-edged Sword" (Jekyll & Hyde, arXiv 2408.08631).

Every question is answered with each persona and without one (neutral). If the two answers are equal by the task's
`answer_comparison`, this is the answer of the pair. If only one of the two replies contains an answer, that answer counts. If the
answers differ, the model itself, without a persona, sees the question and both replies, in an order that the cell's seed decides,
and says which is right. If its choice cannot be read, the neutral answer counts, and this is reported.

So there is one answer per persona, question and sample, and all stability measures apply. A pair has no score while one of its
calls is pending. Differences from the paper: the personas come from the pool (in the paper a model writes one per question), and
the choice is asked once (in the paper it is asked in both orders).
"""

import json
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from permix.evals.grid import GridResults
from permix.evals.strategies.base import (
    AnswerCalls,
    AnswerComparison,
    CellsByKey,
    EvalSetup,
    Strategy,
    StrategySummary,
    mean_token_cost,
    recorded_answer,
    recorded_score,
)
from permix.metrics import statistics
from permix.metrics.stability import StabilitySummary, stability_differences, summarize_stability
from permix.prompts import build_messages, pairwise_choice_prompt
from permix.types import Cell, CellKey, Estimate, Question, seed_from
from permix.verification.extraction import extract_boxed
from permix.verification.math_verifier import same_answer

EnsembleMember = Literal["persona", "neutral"]


class EnsembleSummary(StrategySummary):
    """Measures of the ensemble.

    `ensemble` holds the stability measures on the answers of the pairs; `pss_gain`, `worst_gain` and `mean_gain` are the
    differences from the plain grid, ensemble − plain. Of the complete pairs, `n_agreed` had equal answers, `n_one_sided` had at
    most one answer, and `n_disagreed` were shown to the model. The model chose the persona's reply in `n_persona_chosen` of these
    pairs, and its choice could not be read in `n_unreadable` pairs.
    """

    strategy: Literal["persona-ensemble"] = "persona-ensemble"
    ensemble: StabilitySummary
    pss_gain: Estimate | None
    worst_gain: Estimate | None
    mean_gain: Estimate | None
    n_agreed: int
    n_one_sided: int
    n_disagreed: int
    n_persona_chosen: int
    n_unreadable: int

    @property
    def details_text(self) -> str:
        pss, worst = ("–" if one is None else one.format_difference() for one in (self.pss_gain, self.worst_gain))
        pairs = self.n_agreed + self.n_one_sided + self.n_disagreed
        return (
            f"PSS {self.ensemble.pss} ({pss} against the plain grid), worst persona {self.ensemble.worst} ({worst}); "
            f"{self.n_disagreed} of {pairs} pairs differed; of these choices {self.n_persona_chosen} were the persona's answer, "
            f"and {self.n_unreadable} could not be read"
        )


def is_persona_first(seed: int) -> bool:
    """Whether the persona's reply is shown first, given the seed of the choice cell."""
    return seed % 2 == 0


_LETTER = r"[*_`'\"(\[{]*\b([AB])\b[*_`'\")\]}]*"

_LETTER_ALONE = re.compile(r"\W*(?:text\w*\W*)?([ABab])\W*")

_LETTER_FIRST = re.compile(
    rf"\s*(?:(?i:the\s+)?(?i:right\s+|correct\s+)?(?i:answer|option|choice)\s*(?i:is)?:?\s*)?{_LETTER}\s*(?:[.,;)\n]|$)"
)

_LETTER_CALLED_CORRECT = re.compile(
    rf"{_LETTER}\s+(?i:is|was)\s+(?i:indeed\s+|clearly\s+)?(?i:the\s+)?(?i:right|correct)\b"
    rf"|\b(?i:answer|choice|option|one|right|correct)\s+(?i:is)\s*:?\s*(?i:indeed\s+)?(?i:answer\s+|option\s+)?{_LETTER}"
    r"(?!\s+(?!because\b|since\b|as\b)[a-z])"
    rf"|\b(?i:choose|pick|prefer|select)\s+(?i:answer\s+|option\s+)?{_LETTER}"
    rf"|\b(?i:so|thus|hence|therefore),?\s+(?i:answer\s+|option\s+)?{_LETTER}\s*(?:[.!]|$)"
)

# Before a colon the letter is a heading quoted from the prompt, not a choice.
_LETTER_MENTIONED = re.compile(rf"\b(?i:answer|option|choice)\s+{_LETTER}(?!\s*:)")


def parse_choice(reply: str) -> str | None:
    """Read the choice, "A" or "B", out of a reply; None if the reply names neither, or names both without deciding.

    Tried in this order: a box or a whole reply that is only the letter; a reply that begins with the letter; the only letter that
    is called right or chosen; the only letter that is named as an answer. The patterns exclude "A" as an article.
    """
    text = extract_boxed(reply) or reply
    if found := _LETTER_ALONE.fullmatch(text) or _LETTER_FIRST.match(text):
        return found[1].upper()
    for pattern in (_LETTER_CALLED_CORRECT, _LETTER_MENTIONED):
        letters = {letter for match in pattern.finditer(text) for letter in match.groups() if letter}
        if len(letters) == 1:
            return letters.pop()
    return None


def resolve_pair(
    persona: Cell | None, neutral: Cell | None, compare_answers: AnswerComparison = same_answer
) -> EnsembleMember | Literal["ask"] | None:
    """Which member's answer counts, or "ask" if the model has to choose; None while one of the two cells is pending."""
    (known_p, answer_p), (known_n, answer_n) = recorded_answer(persona), recorded_answer(neutral)
    if not (known_p and known_n):
        return None
    if answer_p is None:
        return "neutral"
    if answer_n is None:
        return "persona"
    return "neutral" if compare_answers(answer_p, answer_n) else "ask"


def choice_key(persona_id: str, question_id: str, sample: int) -> CellKey:
    """The key of a choice cell. It is asked without a persona, so its question id contains the persona's id."""
    return CellKey(None, f"choice:{json.dumps([persona_id, question_id], ensure_ascii=False)}", sample)


def build_choice_cell(question: Question, persona: Cell, neutral: Cell, setup: EvalSetup) -> Cell:
    """Build the cell that shows both replies to the model, in the order that the cell's seed decides."""
    key = choice_key(persona.persona_id or "", question.id, persona.sample)
    seed = seed_from("choice", setup.seed, *key[1:])
    replies = [cell.completion.answer if cell.completion else "" for cell in (persona, neutral)]
    first, second = replies if is_persona_first(seed) else replies[::-1]
    messages = build_messages(
        None, pairwise_choice_prompt(question.text, first, second), empty_system_prompt=setup.prompt_format.empty_system_prompt
    )
    return Cell(persona_id=None, question_id=key.question_id, sample=key.sample, seed=seed, messages=messages)


def build_choice_cells(setup: EvalSetup, cells: CellsByKey) -> list[Cell]:
    """Build a choice cell for every pair whose answers differ."""
    pairs = (
        (question, cells.get(CellKey(persona.id, question.id, sample)), cells.get(CellKey(None, question.id, sample)))
        for persona in setup.pool.personas
        for question in setup.questions
        for sample in range(setup.samples)
    )
    return [
        build_choice_cell(question, persona, neutral, setup)
        for question, persona, neutral in pairs
        if persona is not None and neutral is not None and resolve_pair(persona, neutral, setup.compare_answers) == "ask"
    ]


def _max_choices(setup: EvalSetup) -> int:
    return len(setup.pool) * len(setup.questions) * setup.samples


class EnsemblePair(NamedTuple):
    """The persona's cell, the neutral cell and the choice cell, None if not recorded yet; and the result of `resolve_pair`."""

    persona: Cell | None
    neutral: Cell | None
    choice: Cell | None
    resolution: EnsembleMember | Literal["ask"] | None

    @property
    def chosen_letter(self) -> str | None:
        """The chosen letter; None if there is no choice yet or it cannot be read."""
        return parse_choice(self.choice.completion.answer) if self.choice and self.choice.completion else None

    @property
    def winner(self) -> EnsembleMember | None:
        """The member whose answer counts; None while a call is pending."""
        if self.resolution != "ask":
            return self.resolution
        if self.choice is None or self.choice.completion is None:
            return None
        letter_of_persona = "A" if is_persona_first(self.choice.seed) else "B"
        return "persona" if self.chosen_letter == letter_of_persona else "neutral"

    @property
    def score(self) -> float:
        """Score of the winner's answer: 1 right, 0 wrong, NaN without a score."""
        winner = self.winner
        return float("nan") if winner is None else recorded_score(self.persona if winner == "persona" else self.neutral)

    @property
    def calls(self) -> AnswerCalls:
        """All calls for this pair's answer, and the neutral cell as baseline."""
        choice = [self.choice] if self.resolution == "ask" else []
        return AnswerCalls([self.persona, self.neutral, *choice], self.neutral)


def ensemble_pairs(results: GridResults, compare_answers: AnswerComparison = same_answer) -> Iterator[EnsemblePair]:
    """Yield every pair of the grid; personas are the outermost loop, then questions, then samples."""
    for persona in results.persona_ids:
        for question in results.question_ids:
            for sample in range(results.samples):
                own, neutral = (results.get_cell(asked_as, question, sample) for asked_as in (persona, None))
                choice = results.cells.get(choice_key(persona, question, sample))
                yield EnsemblePair(own, neutral, choice, resolve_pair(own, neutral, compare_answers))


def measure_persona_ensemble(
    results: GridResults, seed: int, resamples: int, compare_answers: AnswerComparison = same_answer
) -> EnsembleSummary:
    """Measure gain and cost of the ensemble from the cells of a run."""
    pairs = list(ensemble_pairs(results, compare_answers))
    plain_P_Q_S = results.scores(results.persona_ids, results.question_ids)
    baseline_Q_S = results.scores([None], results.question_ids)[0]
    correct_P_Q_S = np.array([pair.score for pair in pairs]).reshape(plain_P_Q_S.shape)
    ensemble = summarize_stability(correct_P_Q_S, baseline_Q_S, persona_ids=results.persona_ids, seed=seed, resamples=resamples)
    plain, paired = (
        (statistics.mean_over_samples(one_P_Q_S), statistics.mean_over_samples(baseline_Q_S))
        for one_P_Q_S in (plain_P_Q_S, correct_P_Q_S)
    )
    gains = stability_differences([paired], [plain], seed, resamples)
    complete = [pair for pair in pairs if pair.winner is not None]
    disagreed = [pair for pair in complete if pair.resolution == "ask"]
    one_sided = [pair for pair in complete if None in (recorded_answer(pair.persona)[1], recorded_answer(pair.neutral)[1])]
    return EnsembleSummary(
        accuracy=ensemble.mean,
        baseline=ensemble.baseline,
        gain=ensemble.mean_minus_baseline,
        **mean_token_cost(pair.calls for pair in pairs)._asdict(),
        ensemble=ensemble,
        pss_gain=gains.get("pss"),
        worst_gain=gains.get("worst"),
        mean_gain=gains.get("mean"),
        n_agreed=len(complete) - len(disagreed) - len(one_sided),
        n_one_sided=len(one_sided),
        n_disagreed=len(disagreed),
        n_persona_chosen=sum(pair.winner == "persona" for pair in disagreed),
        n_unreadable=sum(pair.chosen_letter is None for pair in disagreed),
        n_scored=ensemble.n_scored,
        n_asked=ensemble.n_asked,
    )


PERSONA_ENSEMBLE = Strategy(measure=measure_persona_ensemble, followup_cells=build_choice_cells, max_followups=_max_choices)
