"""How far judges agree on the same answers, on plain arrays.

Contract and axes as in `permix.judging.scores`; J judges, N anything, C score classes. Judges who agree need not be right: two
that give every answer a 4 or a 5 agree within one, which is why Krippendorff's alpha stands beside the shares.
"""

import numpy as np

from permix.evals.stats import Array
from permix.judging.scores import SCORES, ratio


def coincidences(score_J_P_N: Array) -> Array:
    """count_P_C_C: o_ck = Σ_u (pairs of different judges that gave unit u scores c and k) / (m_u − 1), for each persona.

    m_u judges scored unit u; a unit with fewer than two is left out.
    """
    judges_P_N_C = (score_J_P_N[..., None] == SCORES).sum(axis=0).astype(float)
    weight_P_N = ratio(np.ones(judges_P_N_C.shape[:2]), judges_P_N_C.sum(axis=2) - 1)
    weighted_P_N_C = judges_P_N_C * np.nan_to_num(weight_P_N)[..., None]
    own_P_C = weighted_P_N_C.sum(axis=1)
    return np.asarray(np.einsum("pnc,pnk->pck", weighted_P_N_C, judges_P_N_C) - own_P_C[:, :, None] * np.eye(len(SCORES)))


def alpha(count_P_C_C: Array, counts_R_P: Array) -> Array:
    """Krippendorff's alpha for ordinal scores, value_R; any number of judges, missing scores allowed.

    α = 1 − (n − 1) Σ_ck o_ck δ²_ck / Σ_ck n_c n_k δ²_ck, with δ_ck = Σ_{g=c}^{k} n_g − (n_c + n_k) / 2. 1 is agreement, 0 what
    chance would give. NaN where all scores are the same: nothing varies, so nothing can be agreed on.
    Source: Krippendorff (2011), Computing Krippendorff's alpha-reliability.
    """
    o_R_C_C = np.tensordot(counts_R_P, count_P_C_C, axes=1)
    n_R_C = o_R_C_C.sum(axis=2)
    middle_R_C = np.cumsum(n_R_C, axis=1) - n_R_C / 2
    square_R_C_C = (middle_R_C[:, :, None] - middle_R_C[:, None, :]) ** 2
    observed_R = (o_R_C_C * square_R_C_C).sum(axis=(1, 2))
    expected_R = (n_R_C[:, :, None] * n_R_C[:, None, :] * square_R_C_C).sum(axis=(1, 2))
    return 1 - ratio((n_R_C.sum(axis=1) - 1) * observed_R, expected_R)


def within(one_P_N: Array, two_P_N: Array, tolerance: int) -> Array:
    """1 where two judges are at most `tolerance` apart, 0 where they are not, NaN where one has no score."""
    apart_P_N = np.abs(one_P_N - two_P_N)
    return np.where(np.isnan(apart_P_N), np.nan, (apart_P_N <= tolerance).astype(float))
