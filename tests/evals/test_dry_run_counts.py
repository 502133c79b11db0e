"""A dry run counts what the command would ask, whatever else the folder has."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from permix.config import StabilityConfig, build_config
from permix.errors import IncompleteRunError
from permix.evals.stability import preflight_stability, run_stability
from permix.inference.cost import find_measured
from permix.inference.scripted import ScriptedModel
from permix.report.runs import Run, collect_models
from permix.report.tables import models_table
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import UNTIMED, RunDir, RunReader
from permix.types import Failure, Request

GIVEN: dict[str, Any] = {
    "model": {"name": "scripted", "backend": "openai", "base_url": "http://127.0.0.1:9/v1"},
    "task": {"levels": ["add-1"], "n": 6},
    "personas": {"n": 3},
    "sampling": {"max_new_tokens": 16},
    "resamples": 100,
}


class Counted:
    """A model that counts what it is asked, and fails from the call `until` on."""

    def __init__(self, until: int | None = None) -> None:
        self.asked, self.until = 0, until
        self.model = ScriptedModel(self.reply)

    def reply(self, request: Request) -> Any:
        if self.until is not None and self.asked >= self.until:
            return Failure(type="x", message="x")
        self.asked += 1
        return f"{request.seed}"


def config(folder: Path, **values: Any) -> StabilityConfig:
    task = GIVEN["task"] | values.pop("task", {})
    return build_config(StabilityConfig, GIVEN | {"out": folder / "run", "task": task} | values, source="x")


def counts(settings: StabilityConfig) -> tuple[int, int, int]:
    """(requests, how many more at most, how many are recorded), as the dry run prints them."""
    words = preflight_stability(settings)["requests"].replace("; ", ", ").split(", ")
    later = next((int(one.split()[3]) for one in words if one.startswith("then at most")), 0)
    recorded = next((int(one.split()[0]) for one in words if one.endswith("recorded already")), 0)
    return int(words[0]), later, recorded


@pytest.mark.parametrize(
    "values",
    [{}, {"strategy": "persona-search", "strategy_questions": 5}, {"strategy": "persona-ensemble"}, {"budget": 24}],
    ids=str,
)
def test_of_a_folder_that_has_cells_of_other_questions(values: dict[str, Any], tmp_path: Path) -> None:
    fresh = counts(config(tmp_path / "none", task={"seed": 5}, **values))
    if "budget" not in values:  # whose rounds are of one list of questions
        run_stability(config(tmp_path, **values), Counted().model)
        others = counts(config(tmp_path, task={"seed": 5}, **values))
        assert sum(others) == sum(fresh)
        assert others[0] + others[2] >= fresh[0]  # more, where the answers of questions of both decide on further cells
        shutil.rmtree(tmp_path / "run")
    asked = Counted()
    run_stability(config(tmp_path, task={"seed": 5}, **values), asked.model)
    assert fresh[0] <= asked.asked <= fresh[0] + fresh[1]
    done = counts(config(tmp_path, task={"seed": 5}, **values))
    assert (done[0], done[2]) == (0, asked.asked)


@pytest.mark.parametrize(
    "values", [{"strategy": "persona-search", "strategy_questions": 5}, {"strategy": "persona-ensemble"}], ids=str
)
@pytest.mark.parametrize("until", [3, 22, 25])
def test_of_a_run_that_was_stopped(until: int, values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IncompleteRunError):
        run_stability(config(tmp_path, **values), Counted(until).model)
    most, later, recorded = counts(config(tmp_path, **values))
    assert recorded == until
    asked = Counted()
    run_stability(config(tmp_path, **values), asked.model)
    assert most <= asked.asked <= most + later


def test_fewer_questions_than_the_folder_has(tmp_path: Path) -> None:
    run_stability(config(tmp_path), Counted().model)
    assert counts(config(tmp_path, task={"n": 2})) == (0, 0, 8)


# Rates


def test_the_rate_of_a_run_is_that_of_the_answers_that_its_seconds_took(tmp_path: Path) -> None:
    run_stability(config(tmp_path), Counted().model)
    usage = read_json(tmp_path / "run" / "usage.json")
    assert usage["answers"] == 24
    # Killed after 20 answers, and resumed: the seconds are those of the last four.
    write_json(tmp_path / "run" / "usage.json", usage | {"answers": 4, "wall_seconds": 2.0})
    model = config(tmp_path).model
    measured = find_measured([tmp_path / "run"], "stability", model, 16)
    assert measured is not None
    assert (measured.n, measured.per_second) == (24, 2.0)
    assert Run(tmp_path / "run").n_timed_answers == 4
    run_stability(config(tmp_path, task={"n": 7}), Counted().model)
    assert read_json(tmp_path / "run" / "usage.json")["answers"] == 8  # four more cells were asked


def test_a_run_that_files_have_answered_tells_no_rate(tmp_path: Path) -> None:
    run_stability(config(tmp_path), Counted().model)
    run = tmp_path / "run"
    with RunDir.open(run, config(tmp_path), RunReader(run).identity) as opened, opened.track_usage():
        opened.count_answers(3)
        opened.count_answers(None)
        opened.count_answers(2)
    run_stability(config(tmp_path, task={"n": 7}), Counted().model)
    assert read_json(run / "usage.json")["answers"] == UNTIMED
    measured = find_measured([run], "stability", config(tmp_path).model, 16)
    assert measured is not None
    assert measured.per_second is None
    assert Run(run).n_timed_answers is None


def test_a_report_on_batch_files_shows_no_cpu_seconds(tmp_path: Path) -> None:
    run_stability(config(tmp_path), Counted().model)
    run = tmp_path / "run"
    settings = read_json(run / "config.json")
    write_json(run / "config.json", settings | {"model": settings["model"] | {"backend": "batch", "base_url": None}})
    write_json(run / "usage.json", {"cpu_seconds": 12.0, "wall_seconds": 30.0, "starts": 2, "answers": UNTIMED, "peak_mb": 9})
    (model,) = collect_models([run])
    assert (model.row.eval_wall_s, model.row.eval_requests) == (30.0, None)
    headings = models_table([model.row]).headings
    assert "evaluation CPU s" not in headings
    assert "evaluation wall s" in headings


def test_a_training_says_nothing_of_answers(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, config(tmp_path), {}) as opened, opened.track_usage(counts_answers=False):
        opened.count_answers(3)  # of its teacher
    assert "answers" not in read_json(tmp_path / "usage.json")


def test_a_run_of_an_earlier_version_keeps_its_rate(tmp_path: Path) -> None:
    run_stability(config(tmp_path), Counted().model)
    write_json(tmp_path / "run" / "usage.json", {"wall_seconds": 2.0, "starts": 1})
    measured = find_measured([tmp_path / "run"], "stability", config(tmp_path).model, 16)
    assert measured is not None
    assert measured.per_second == 12
    run_stability(config(tmp_path, task={"n": 7}), Counted().model)
    assert "answers" not in read_json(tmp_path / "run" / "usage.json")
