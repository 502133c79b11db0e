"""Sections of the report that stand on a training log."""

import json
from pathlib import Path

from permix.report.excerpts import step_time_table
from permix.report.runs import collect_models


def train_run(path: Path, label: str, steps: list[dict[str, object]]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"stage": "train", "label": label}))
    (path / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return path


def step(number: int, generation: float, training: float, **more: object) -> dict[str, object]:
    wall = {"generation": generation, "training": training}
    return {"step": number, "seconds": wall, "cpu_seconds": {part: 2 * value for part, value in wall.items()}} | more


def test_step_times_are_means_of_wall_and_cpu_seconds_by_part(tmp_path: Path) -> None:
    run = train_run(tmp_path / "a", "RLVR", [step(1, 4.0, 10.0), step(2, 2.0, 5.0)])
    timed = step_time_table(collect_models([run]))
    assert timed is not None
    table = timed.markdown.split("\n")
    assert table[0] == "| seconds a step &#91;CPU&#93; | generation | training | steps |"
    assert table[2] == "| RLVR | 3.00 [6.00] | 7.50 [15.00] | 2 |"


def test_a_log_without_times_has_no_such_table(tmp_path: Path) -> None:
    assert step_time_table(collect_models([train_run(tmp_path / "a", "old", [{"step": 1, "reward": 0.5}])])) is None
