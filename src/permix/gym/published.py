"""What PersonaGym's released code would have made of the same scores.

Its arithmetic, beside ours (`as_published` gives both):

- Five answers travel in one call to a judge, so scores are averaged by blocks of five, and blocks are averaged with equal weight,
  whatever number of scores each holds. Ours: every score counts alike.
- A verdict that cannot be read is a 0. A block's mean leaves zeros out, so such answers vanish without being counted; but where a
  whole block could not be read its mean is 0, which lies below the lowest score there is. Ours: no score, never lowers a mean.
- Judges are averaged block by block, so a judge's failure moves the score by itself. Ours: each judge is kept apart.
- No interval, and no count of what was scored.
- Of all personas the scores of the last one alone are kept for the file. (As released they are not even that: the file is to be
  written into a folder that nothing makes.) Published tables are means over personas, made elsewhere.

Beyond arithmetic: a judge is shown one character of each score example, since a text is taken for a list of texts; the second
judge is called with an argument that its function does not take; and no score of a single answer is kept. None of that is here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from permix.evals.stats import Array, mean_along
from permix.types import Record

BLOCK = 5
"""Answers that the released code has judged in one call."""


class AsPublished(Record):
    """Scores of one model. `tasks`: in the order of the array. None where there is nothing to average.

    `persona_score`, `tasks`: the released code's, as a mean over personas; `last_...`: of the last persona, which is all that the
    code means to save. `ours_...`: the same scores by our arithmetic, a mean over judges. `difference`: published − ours.
    `empty_blocks` of `blocks`: those that a judge left without any score, each counted as a score of 0.
    """

    persona_score: float | None
    tasks: tuple[float | None, ...]
    last_persona_score: float | None
    last_tasks: tuple[float | None, ...]
    ours_persona_score: float | None
    ours_tasks: tuple[float | None, ...]
    difference: float | None
    blocks: int
    empty_blocks: int


def as_published(score_J_P_T_Q: Array, asked_P_T_Q: NDArray[np.bool_] | None = None) -> AsPublished:
    """The released arithmetic of judges' scores 1 to 5, NaN where a judge gave none; personas and questions in the order asked.

    `asked_P_T_Q`: which questions there are, where not all personas have as many of each task; all when not given. For persona p,
    task t and block b of five questions: m_jptb = the mean of judge j's scores in the block, or 0 where it has none; the score of
    (p, t) is mean_b mean_j m_jptb, and a persona's PersonaScore the mean over its tasks. Ours: for judge j and task t the mean of
    all its scores, then the mean over judges, then over tasks; None where a task has no score.
    """
    asked = np.ones(score_J_P_T_Q.shape[1:], dtype=bool) if asked_P_T_Q is None else asked_P_T_Q
    mean_J_P_T_B, is_block_P_T_B = _blocks(score_J_P_T_Q, asked)
    task_P_T = mean_along(np.where(is_block_P_T_B, mean_J_P_T_B.mean(axis=0), np.nan), axis=-1)
    overall_P = mean_along(task_P_T, axis=-1)
    ours_T = mean_along(mean_along(np.concatenate(list(np.moveaxis(score_J_P_T_Q, 1, 0)), axis=-1), axis=-1), axis=0)
    published, ours = mean_along(overall_P, axis=0), ours_T[asked.any(axis=(0, 2))].mean()
    return AsPublished(
        persona_score=_number(published),
        tasks=_numbers(mean_along(task_P_T, axis=0)),
        last_persona_score=_number(overall_P[-1]),
        last_tasks=_numbers(task_P_T[-1]),
        ours_persona_score=_number(ours),
        ours_tasks=_numbers(ours_T),
        difference=_number(published - ours),
        blocks=int(is_block_P_T_B.sum()) * len(score_J_P_T_Q),
        empty_blocks=int((is_block_P_T_B & (mean_J_P_T_B == 0)).sum()),
    )


def _blocks(score_J_P_T_Q: Array, asked_P_T_Q: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """mean_J_P_T_B, 0 where a block has no score; and is_block_P_T_B, which blocks hold a question."""
    blocks = [slice(start, start + BLOCK) for start in range(0, score_J_P_T_Q.shape[-1], BLOCK)]
    mean_J_P_T_B = np.stack([mean_along(score_J_P_T_Q[..., block], axis=-1) for block in blocks], axis=-1)
    return np.nan_to_num(mean_J_P_T_B), np.stack([asked_P_T_Q[..., block].any(axis=-1) for block in blocks], axis=-1)


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _numbers(values: Array) -> tuple[float | None, ...]:
    return tuple(_number(value) for value in values)
