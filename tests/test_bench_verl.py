"""The benchmark of verl's rollouts: what it expects of a plan, and the comparison of advantages, by hand-checkable rewards."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from bench.verl_rollouts import (
    UNREADABLE,
    compare,
    epsilon_factor,
    expected_reward,
    group_deviations,
    is_right,
    parser,
    planned,
    scripted_reply,
    write_export,
)
from permix.plan import read_plan
from permix.types import seed_from

pytest.importorskip("trl")


def test_the_scorer_fails_where_the_server_says_so() -> None:
    assert [is_right(scripted_reply(seed, "4"), "4") for seed in range(4)] == [True, False, True, False]
    assert scripted_reply(4, "4") == UNREADABLE
    with pytest.raises(MemoryError):
        is_right(UNREADABLE, "4")


@pytest.mark.parametrize("scope", ["group", "rollout"])
def test_every_rollout_of_the_plan_is_expected_once(tmp_path: Path, scope: str) -> None:
    plan = read_plan(write_export(tmp_path, scope, steps=2) / "plan.parquet")
    found = [(row.group, place) for row, _, place in planned(plan, 1)]
    assert found == [(group, place) for group in range(3) for place in range(4)]
    row, number, _ = next(planned(plan, 0))
    expected = {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0, 4: None}[seed_from(row.seed, number) % 5]
    assert expected_reward(row, number) == expected


def rollout(group: int, reward: float | None, advantage: float | None) -> dict[str, Any]:
    return {"step": 0, "group": group, "reward": reward, "advantage": advantage}


def test_deviations_are_those_of_the_scored_rollouts_of_a_group() -> None:
    rollouts = [rollout(0, 1.0, 0), rollout(0, 0.0, 0), rollout(0, None, None), rollout(1, 1.0, 1), rollout(1, None, None)]
    found = group_deviations(rollouts)
    assert [deviation for deviation, _ in found[:3]] == pytest.approx([0.5**0.5] * 3)
    assert [count for _, count in found] == [2, 2, 2, 1, 1]
    assert all(math.isnan(deviation) for deviation, _ in found[3:])
    assert epsilon_factor(0.0) == pytest.approx(0.01)
    assert epsilon_factor(0.5) == pytest.approx((0.500001) / 0.5001)


@pytest.mark.slow
def test_the_comparison_finds_a_wrong_advantage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_export(tmp_path, "group", steps=1)
    rewards = [1.0, 0.0, 1.0, None, 1.0, 1.0, 1.0, 1.0, None, None, None, 1.0]
    # Two of three: mean 2/3, sd 0.5774. All equal: 0. One of four scored: verl gives its reward.
    verl = [(1 / 3) / (1 / 3**0.5 + 1e-6), (-2 / 3) / (1 / 3**0.5 + 1e-6), (1 / 3) / (1 / 3**0.5 + 1e-6), None]
    verl += [0.0, 0.0, 0.0, 0.0, None, None, None, 1.0]
    for wrong in (0.0, 0.25):
        lines = [
            rollout(place // 4, reward, advantage if place or advantage is None else advantage + wrong)
            for place, (reward, advantage) in enumerate(zip(rewards, verl, strict=True))
        ]
        (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        compare(Namespace(folder=tmp_path))
        figures = {
            one["figure"]: one["value"] for one in map(json.loads, capsys.readouterr().out.splitlines()) if "figure" in one
        }
        assert figures["rollouts compared"] == 7
        assert figures["rollouts that are the only ones of their group with a score"] == 1
        assert figures["largest advantage without a score in permix"] == 0
        assert figures["largest difference"] == pytest.approx(wrong, abs=1e-3 if wrong else 1e-6)
    assert parser().parse_args(["run", "x"]).scope == "group"
