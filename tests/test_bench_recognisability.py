"""The agreement of recognisability with the classifier and with judges: formulas by hand, and the recorded judged runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench.recognisability import auc, kappa, main, read_verdicts

RECORDED = Path(__file__).parents[1] / "docs" / "recorded" / "quickstart" / "base-fidelity"


def test_the_auc_counts_ties_half_and_leaves_out_answers_without_a_score() -> None:
    # Recognised: 5, 3. Not recognised: 5, 1. Pairs: tie, win, loss, win.
    assert auc(np.array([[5.0, 3.0, 5.0, 1.0, np.nan]]), np.array([[1.0, 1.0, 0.0, 0.0, 1.0]])) == 0.625
    assert math.isnan(auc(np.array([[5.0, 3.0]]), np.array([[1.0, 1.0]])))


def test_kappa_by_hand() -> None:
    # Three of four agree; by chance .5 × .75 + .5 × .25 = .5.
    assert kappa(np.array([[1.0, 1.0, 0.0, 0.0]]), np.array([[1.0, 1.0, 1.0, 0.0]])) == pytest.approx(0.5)


def test_a_judged_run_shows_how_its_judge_agrees(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["recognisability", str(RECORDED), "--resamples", "20"])
    main()
    figures = {line["figure"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert figures["scored_answers"]["scores"] == {"1": 2, "4": 4, "5": 34}
    assert figures["recognised"]["value"] == 0.6
    assert figures["auc_of_score_for_recognised, Qwen2.5-Coder-0.5B-Instruct"]["value"] == pytest.approx(0.4245)
    assert read_verdicts(RECORDED).recognised_P_Q.shape == (4, 10)
