import json
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permix.dashboard.folder import RunFolder
from permix.dashboard.live_metrics import LiveMeasures, measure_live, newest_completions
from permix.dashboard.run_monitor import LockHolder, ProgressRate, RunMonitor, lock_holders, read_locks
from permix.judges import results as judge_results
from permix.report import judges as report_judges
from permix.report.judges import read_judged_run
from permix.sanitize import redact_command
from permix.storage.files import FileState, last_lines, read_file_state
from permix.storage.run_dir import RUN_FORMAT
from permix.types import Completion, Failure, Verdict
from tests.dashboard.fake_runs import COMMAND, append, held, line, looked, put, stability_run, whole
from tests.killable import Moment, command
from tests.sample_runs import answered, asked_what, cell, solve, stability_values, toml
from tests.servers import openai_server
from tests.verdicts import GYM, gym_items, read_items, write_items, write_judge

# Is it going?


def test_a_run_that_another_process_holds_goes_on_and_when_let_go_has_stopped(tmp_path: Path) -> None:
    watched = RunMonitor(stability_run(tmp_path / "run", whole()[:4]), "run")
    assert looked(watched)["state"] == "stopped"
    with held(tmp_path / "run") as process:
        found = looked(watched)
        assert (found["state"], found["said"]) == ("going", f"going on (process {process})")
    assert looked(watched)["said"] == "stopped, 5 cells pending: run the same command again"


def test_looking_takes_no_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    stability_run(tmp_path / "run")
    folder.rescan()
    folder.poll()
    with held(tmp_path / "run") as process:
        assert process > 0


def test_a_run_with_nothing_owed_has_finished(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole(), ended=True)
    assert looked(RunMonitor(run, "run"))["said"] == "finished"
    append(run, cell("q1", failure=Failure(type="Timeout", message="too late")))
    found = looked(RunMonitor(run, "run"))
    assert (found["state"], found["pending"], found["failures"]) == ("stopped", 1, 1)


def test_without_its_result_a_whole_run_has_still_something_to_do(tmp_path: Path) -> None:
    watched = RunMonitor(stability_run(tmp_path / "run", whole()), "run")
    assert looked(watched)["said"] == "stopped before its result was written: run the same command again"


def test_growth_without_a_lock_that_is_seen_is_another_machines(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole()[:2])
    watched = RunMonitor(run, "run")
    assert looked(watched, now=0)["state"] == "stopped"
    append(run, whole()[2])
    assert looked(watched, now=1)["state"] == "going"
    assert looked(watched, now=80)["state"] == "going"
    assert looked(watched, now=100)["state"] == "stopped"


def test_what_a_holder_wrote_just_before_it_died_is_not_another_machines(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole()[:2])
    watched = RunMonitor(run, "run")
    with held(run):
        assert looked(watched, now=0)["state"] == "going"
        append(run, whole()[2])
    assert looked(watched, now=1)["state"] == "stopped"


def test_without_a_table_of_locks_a_fresh_record_counts(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole()[:2])
    os.utime(run / "records.jsonl", (1000, 1000))
    watched = RunMonitor(run, "run")
    watched.poll(None, 0, wall_time=1089)
    assert watched.summary()["state"] == "going"
    watched.poll(None, 1, wall_time=1091)
    assert watched.summary()["state"] == "stopped"


def test_the_table_of_locks_is_read_by_inode_and_by_device_or_process(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("77")
    inode = (tmp_path / ".lock").stat().st_ino
    table = tmp_path / "locks"
    table.write_text(
        f"1: FLOCK  ADVISORY  WRITE 77 ff:7f:{inode} 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 78 00:01:5 0 EOF\nnot a lock\n"
    )
    found = read_locks(table)
    assert found == {inode: (LockHolder("ff:7f", 77),)}
    assert lock_holders(tmp_path, found) == (77,)
    (tmp_path / ".lock").write_text("8")  # the same inode, but of another device and another process
    assert lock_holders(tmp_path, found) == ()
    assert read_locks(tmp_path / "none") is None


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_a_run_that_was_killed_says_what_it_owes_and_how_to_go_on(tmp_path: Path, torn: bool) -> None:
    def answer(body: dict[str, object], nth: int, headers: object) -> str:
        return f"It is {solve(asked_what(body))}."

    with openai_server(answer) as server:
        (tmp_path / "run.toml").write_text(toml(stability_values(tmp_path, server.base_url)))
        moment = Moment("permix.storage.run_dir:RunDir.append", 10)
        assert command("stability", str(tmp_path / "run.toml"), dies=moment) == -9
        if torn:
            os.truncate(tmp_path / "run" / "records.jsonl", (tmp_path / "run" / "records.jsonl").stat().st_size - 20)
        watched = RunMonitor(tmp_path / "run", "run")
        found = looked(watched)
        assert (found["state"], found["done"], found["asked"], found["pending"]) == (
            ("stopped", 9, 24, 15) if torn else ("stopped", 10, 24, 14)
        )
        assert "run the same command again" in found["said"]
        assert found["troubles"] == []
        assert command("stability", str(tmp_path / "run.toml")) == 0
    assert looked(watched)["state"] == "finished"
    assert watched.summary()["done"] == 24


# How far


def test_cells_are_counted_as_they_come_and_the_last_record_of_one_counts(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run")
    watched = RunMonitor(run, "run")
    found = looked(watched)
    assert (found["done"], found["asked"], found["pending"]) == (0, 9, 9)
    append(run, cell("q1", failure=Failure(type="HTTPError", message="500")), *whole()[1:3])
    found = looked(watched)
    assert (found["done"], found["pending"], found["failures"]) == (2, 7, 1)
    assert watched.detail()["errors"] == [{"type": "HTTPError", "count": 1, "message": "500"}]
    append(run, answered("q1"))
    assert (looked(watched)["done"], watched.detail()["errors"]) == (3, [])


def test_an_answer_that_could_not_be_judged_is_owed(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", [answered("q1", correct=None), answered("q2")])
    found = looked(RunMonitor(run, "run"))
    assert (found["done"], found["failures"]) == (1, 1)


def test_cells_beside_the_grid_are_not_of_it(tmp_path: Path) -> None:
    run = stability_run(
        tmp_path / "run", [*whole()[:2], answered("other"), answered("q1", sample=1), answered("q1", persona_id="x")]
    )
    watched = RunMonitor(run, "run")
    assert looked(watched)["done"] == 2
    assert watched.detail()["beside"] == 3


def test_more_questions_are_counted_anew(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", [*whole(), answered("q4")], ended=True)
    watched = RunMonitor(run, "run")
    assert looked(watched)["said"] == "finished"
    put(run, "grid.json", {"persona_ids": ["clerk", "troll"], "question_ids": ["q1", "q2", "q3", "q4"], "samples": 1})
    found = looked(watched)
    assert (found["state"], found["done"], found["asked"]) == ("stopped", 10, 12)


def test_rounds_ask_fewer_than_the_whole_grid(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run")
    rounds = [{"until": 2, "personas": ["clerk", "troll"]}, {"until": 3, "personas": ["troll"]}]
    put(run, "grid.json", json.loads((run / "grid.json").read_text()) | {"rounds": rounds})
    assert looked(RunMonitor(run, "run"))["asked"] == 2 * 3 + 1 * 2


@pytest.mark.parametrize(
    ("config", "asked", "cells"),
    [
        ({}, {"persona_ids": ["a", "b"], "question_ids": ["q1", "q2"], "samples": 1}, 4),
        ({"interview": {"turns": 5}}, {"persona_ids": ["a", "b"], "question_ids": ["q1"], "samples": 1}, 10),
        (
            {"personagym": {"path": "x"}},
            {
                "persona_ids": ["a", "b"], "question_ids": ["q1", "q2"], "asked_without_persona": ["q2"],
                "questions_asked": [{"id": "q1", "persona_id": "a"}, {"id": "q2", "persona_id": "b"}],
            },
            3,
        ),
    ],
)  # fmt: skip
def test_each_kind_of_fidelity_run_says_how_much_it_asks(tmp_path: Path, config: object, asked: object, cells: int) -> None:
    assert isinstance(config, dict)
    put(tmp_path / "run", "config.json", {"stage": "fidelity", "model": {"name": "m"}} | config)
    put(tmp_path / "run", "grid.json", asked)
    assert looked(RunMonitor(tmp_path / "run", "run"))["asked"] == cells


def train_run(run: Path, steps: int, **config: object) -> Path:
    settings = {"stage": "train", "method": "permix", "plan": {"steps": 4}, "train": {"updates_per_rollout": 2, "epochs": 1}}
    put(run, "config.json", settings | config)
    put(run, "provenance.json", {"format": RUN_FORMAT, "command": ["permix", "train", "t.toml"]})
    (run / "log.jsonl").write_text(
        "".join(json.dumps({"step": n, "reward": n / 10, "unscored": 1}) + "\n" for n in range(1, steps + 1))
    )
    return run


def test_a_training_counts_optimizer_steps_and_ends_with_its_model(tmp_path: Path) -> None:
    watched = RunMonitor(train_run(tmp_path / "run", 3), "run")
    found = looked(watched)
    assert (found["done"], found["asked"], found["unit"], found["failures"]) == (3, 8, "steps", 3)
    assert found["said"] == "stopped, 5 steps pending: run the same command again"
    assert [point["reward"] for point in watched.detail()["curve"]] == [0.1, 0.2, 0.3]
    put(tmp_path / "run" / "model", "config.json", {})
    assert looked(watched)["state"] == "finished"


def test_a_log_that_a_resume_cut_back_is_read_anew(tmp_path: Path) -> None:
    watched = RunMonitor(train_run(tmp_path / "run", 5), "run")
    assert looked(watched)["done"] == 5
    other = train_run(tmp_path / "other", 2)
    os.replace(other / "log.jsonl", tmp_path / "run" / "log.jsonl")
    assert looked(watched)["done"] == 2


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    watched = RunMonitor(train_run(tmp_path / "run", 2001), "run")
    looked(watched)
    steps = [point["step"] for point in watched.detail()["curve"]]
    assert len(steps) <= 401
    assert (steps[0], steps[-1]) == (1, 2001)


def test_a_judge_counts_items_with_a_score(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "judges" / "j"
    put(folder, "config.json", {"stage": "judge", "judge": {"name": "m", "label": "strict"}})
    key = {"persona_id": "a", "answered_by": "a", "question_id": "q1", "rubric": "R"}
    call = key | {"attempt": 0, "seed": 1, "prompt_hash": "p", "score": None, "error": "no score in it"}
    calls = [call, call | {"score": 3}, call, call | {"question_id": "q2"}]
    (folder / "judgements.jsonl").write_text("".join(json.dumps(one) + "\n" for one in calls))
    watched = RunMonitor(folder, "judges/j")
    found = looked(watched)
    assert (found["label"], found["done"], found["unit"], found["failures"]) == ("strict", 1, "scores", 1)
    assert watched.detail()["errors"] == [{"type": "no score", "count": 1, "message": "no score in it"}]


# How fast


def test_a_rate_is_of_the_last_minute_and_of_what_was_seen() -> None:
    rate = ProgressRate()
    rate.update(0, 500)
    assert rate.per_second() is None
    rate.update(10, 500)
    assert rate.per_second() is None
    rate.update(20, 540)
    assert rate.per_second() == 2.0  # 40 in 20 s
    rate.update(80, 540)
    assert rate.per_second() == 0.0
    rate.update(81, 3)  # begun anew
    assert rate.per_second() is None


def test_time_left_follows_from_the_rate(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole()[:2])
    watched = RunMonitor(run, "run")
    with held(run):
        assert looked(watched, now=0)["rate"] is None
        append(run, *whole()[2:5])
        found = looked(watched, now=6)
    assert (found["rate"], found["left_s"]) == (0.5, 8)  # 3 in 6 s; 4 of 9 are left


# What is broken


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", "{half"), ("config.json", "[]"), ("config.json", '{"stage": "dance"}'), ("config.json", "\xff")],
)
def test_a_broken_configuration_is_shown_as_such(tmp_path: Path, name: str, text: str) -> None:
    run = stability_run(tmp_path / "run", whole())
    (run / name).write_text(text, encoding="latin-1")
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    (found,) = folder.state()["runs"]
    assert found["state"] == "broken"
    assert name in found["troubles"][0]
    assert folder.detail(found["id"]) is not None


@pytest.mark.parametrize(
    "text", ["{half", '{"persona_ids": 3}', "[1]", '{"persona_ids": [{}], "question_ids": [], "samples": 1}']
)
def test_a_broken_account_of_what_was_asked_leaves_the_count(tmp_path: Path, text: str) -> None:
    run = stability_run(tmp_path / "run", whole())
    (run / "grid.json").write_text(text)
    found = looked(RunMonitor(run, "run"))
    assert (found["done"], found["asked"], found["state"]) == (9, None, "stopped")
    assert len(found["troubles"]) == 1


def test_broken_lines_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run")
    (run / "records.jsonl").write_bytes(line(whole()[0]) + b"{half\n[]\n\xff\n" + line(whole()[1]) + b'{"torn')
    found = looked(RunMonitor(run, "run"))
    assert found["done"] == 2
    assert found["troubles"][0].startswith("records.jsonl:2: not a record:")
    assert found["troubles"][0].endswith("(and 2 more lines)")


def test_a_folder_where_a_file_should_be_takes_nothing_down(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run")
    for name in ("records.jsonl", "grid.json"):
        (run / name).unlink()
        (run / name).mkdir()
    watched = RunMonitor(run, "run")
    assert looked(watched)["done"] == 0
    assert watched.detail()["newest"] == []


def refused(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def deleted(path: Path) -> FileState | None:
    """Its file is gone as soon as it was seen."""
    seen = read_file_state(path)
    if path.name == "records.jsonl":
        path.unlink()
    return seen


@pytest.mark.parametrize(
    ("patched", "by", "error"),
    [
        ("permix.storage.files.JsonlTail._read_whole_lines", refused, "PermissionError: [Errno 13] Permission denied"),
        ("permix.storage.files.read_file_state", deleted, "FileNotFoundError: [Errno 2] No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_its_own_runs_trouble_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patched: str, by: Callable[..., Any], error: str
) -> None:
    run = stability_run(tmp_path / "run", whole()[:4])
    watched = RunMonitor(run, "run")
    with monkeypatch.context() as patch:
        patch.setattr(patched, by)
        found = looked(watched)
    assert (found["state"], found["read"]) == ("broken", None)
    assert found["troubles"][0].startswith(error)
    stability_run(tmp_path / "run", whole()[:4])
    found = looked(watched)
    assert (found["state"], found["done"], found["troubles"]) == ("stopped", 4, [])


@pytest.mark.parametrize("step", ["Infinity", "NaN", "-1", "1" + "0" * 400])
def test_a_step_that_is_none_is_a_broken_line(tmp_path: Path, step: str) -> None:
    run = train_run(tmp_path / "run", 2)
    with (run / "log.jsonl").open("a") as file:
        file.write(f'{{"step": {step}}}\n')
    found = looked(RunMonitor(run, "run"))
    assert found["done"] == 2
    assert found["troubles"][0].startswith("log.jsonl:3: not a record: ")


def test_a_figure_that_is_not_finite_is_none(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", 0)
    (run / "log.jsonl").write_text(f'{{"step": 1, "reward": NaN, "loss": -Infinity, "lr": 1{"0" * 400}, "entropy": 0.5}}\n')
    watched = RunMonitor(run, "run")
    looked(watched)
    (point,) = watched.detail()["curve"]
    assert [point[name] for name in ("reward", "loss", "lr", "entropy")] == [None, None, None, 0.5]
    json.dumps(watched.detail(), allow_nan=False)


@pytest.mark.parametrize("text", ['{"persona_ids": [], "question_ids": [], "samples": Infinity}', "[" * 100_000])
def test_one_broken_run_holds_up_no_other(tmp_path: Path, text: str) -> None:
    (stability_run(tmp_path / "a") / "grid.json").write_text(text)
    stability_run(tmp_path / "b", whole()[:4])
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    one, other = sorted(folder.state()["runs"], key=lambda run: str(run["name"]))
    assert len(one["troubles"]) == 1
    assert (other["done"], other["troubles"]) == (4, [])


def test_a_run_that_breaks_its_measure_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(run: Path, stage: str, *, live: bool) -> LiveMeasures:
        if run.name == "a":
            raise OverflowError("cannot convert float infinity to integer")
        return measure_live(run, stage, live=live)

    monkeypatch.setattr("permix.dashboard.folder.measure_live", measured)
    for name in ("a", "b"):
        stability_run(tmp_path / name, whole(), ended=True)
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    assert [folder.measure_next() for _ in range(3)] == [True, True, False]
    one, other = sorted(folder.state()["runs"], key=lambda run: str(run["name"]))
    assert one["troubles"] == ["not measured: OverflowError: cannot convert float infinity to integer"]
    assert other["troubles"] == []
    found = folder.detail(other["id"])
    assert found is not None
    assert found["measured"]["lines"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead: queue.Queue[threading.Thread] = queue.Queue()

    def dies() -> None:
        dead.put(threading.current_thread())
        raise MemoryError

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(folder, "poll", dies)
    assert folder.state()["watching"]
    folder.start()
    dead.get(timeout=30).join()
    assert not folder.state()["watching"]
    folder.stop()


# Which runs there are


def test_runs_are_found_at_any_depth_also_later_and_forgotten_when_gone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.rescan()
    assert folder.state()["runs"] == []
    one = stability_run(tmp_path / "a" / "b" / "one")
    stability_run(one / "judges" / "j")
    stability_run(one / "model" / "x")  # a model holds no runs
    put(tmp_path / "llama", "config.json", {"stage": "stability"})  # nor is a model folder one
    (tmp_path / "link").symlink_to(tmp_path / "a")
    folder.rescan()
    folder.poll()
    assert sorted(run["name"] for run in folder.state()["runs"]) == ["a/b/one", "a/b/one/judges/j"]
    os.rename(one, tmp_path / ".gone")
    folder.rescan()
    assert folder.state()["runs"] == []


def test_running_runs_come_first_in_the_order_of_their_starts_and_then_the_newest_records(tmp_path: Path) -> None:
    for name, started, written in (("a", 10, 500), ("b", 20, 400), ("c", 30, 100), ("d", 40, 200), ("e", 300, None)):
        run = stability_run(tmp_path / name, whole(), ended=True)
        os.utime(run / "config.json", (started,) * 2)
        if written is None:
            (run / "records.jsonl").unlink()
        else:
            os.utime(run / "records.jsonl", (written,) * 2)
    folder = RunFolder(tmp_path)
    folder.rescan()
    with held(tmp_path / "c"), held(tmp_path / "d"):
        folder.poll()
        assert [run["name"] for run in folder.state()["runs"]] == ["d", "c", "a", "b", "e"]
    folder.poll()
    assert [run["name"] for run in folder.state()["runs"]] == ["a", "b", "e", "d", "c"]


def test_the_folder_itself_may_be_a_run(tmp_path: Path) -> None:
    stability_run(tmp_path, label="alone")
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    assert [(run["name"], run["label"]) for run in folder.state()["runs"]] == [(".", "alone")]


# What it measures


def test_a_run_is_measured_once_for_each_state_of_its_records(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole(), ended=True)
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    assert folder.measure_next()
    assert not folder.measure_next()
    found = folder.detail(folder.state()["runs"][0]["id"])
    assert found is not None
    values = {one["name"]: one["value"] for one in found["measured"]["lines"]}
    assert (values["no persona"], values["mean over personas"]) == (1.0, 0.5)
    assert [one["id"] for one in found["measured"]["personas"]] == ["troll", "clerk"]
    append(run, answered("q1"))
    folder.poll()
    assert folder.measure_next()


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run")
    (run / "records.jsonl").write_text("{half\n")
    assert measure_live(run, "stability", live=False).note.startswith("not measured: ")
    assert measure_live(tmp_path / "none", "fidelity", live=True).note.startswith("not measured: ")


def test_answers_cut_off_and_the_reason_of_no_pss_are_among_the_measures(tmp_path: Path) -> None:
    """Of nine answers the troll's three are cut off; three are right, all of them without a persona."""
    cells = [
        one.model_copy(
            update={
                "verdict": Verdict(correct=one.persona_id is None, extracted="12"),
                "completion": Completion(
                    text="so", prompt_tokens=1, completion_tokens=2, finish="length" if one.persona_id == "troll" else "stop"
                ),
            }
        )
        for one in whole()
    ]
    lines = {one.name: one for one in measure_live(stability_run(tmp_path / "run", cells), "stability", live=False).lines}
    cut_off = lines["cut off, of answered"]
    assert cut_off.estimate.value == pytest.approx(1 / 3)
    assert (cut_off.estimate.n, cut_off.context) == (9, "accuracy of the others 0.500")
    pss = next(one for name, one in lines.items() if name.startswith("PSS"))
    assert (pss.estimate.value, pss.context) == (None, "no answer was right under any persona, so PSS has no value")


def test_live_intervals_say_that_they_stand_on_fewer_resamples(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole())
    assert "300 resamples" in measure_live(run, "stability", live=True).note
    assert "resamples" not in measure_live(run, "stability", live=False).note


@pytest.mark.parametrize(
    ("kind", "rubrics", "names"),
    [
        ("fidelity, personagym", ("Expected Action",), ["PersonaScore"]),
        ("fidelity, personagym", GYM[:2], ["PersonaScore", *GYM[:2]]),
        ("fidelity", ("In Character",), ["in-character score"]),
        ("fidelity", GYM[:2], ["mean over rubrics", *GYM[:2]]),
        ("fidelity, interview", ("In Character",), ["in-character score of interviews"]),
    ],
)
def test_scores_of_a_judge_have_the_names_and_the_intervals_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rubrics: tuple[str, ...], names: list[str]
) -> None:
    for module in (judge_results, report_judges):
        monkeypatch.setattr(module, "read_judge_inputs", read_items)
    items = gym_items(8, rubrics, 3)
    write_items(tmp_path, items)
    settings = {"personagym": {"path": "data", "hub": None}} if "gym" in kind else {"interview": {"turns": 2 * ("view" in kind)}}
    put(tmp_path, "config.json", {"stage": "fidelity", "label": "base", "seed": 3, "resamples": 100} | settings)
    folder = write_judge(
        tmp_path, "strict", items, lambda item: 1 + sum(map(ord, f"{item.question_id} {item.control} {item.persona_id}")) % 5
    )
    put(folder, "config.json", json.loads((folder / "config.json").read_text()) | {"resamples": 77})
    reported = read_judged_run(tmp_path, kind, {"seed": 3, "resamples": 100})
    assert reported is not None
    score, auc, *tasks = measure_live(folder, "judge", live=False).lines
    assert [score.name, *(one.name for one in tasks)] == names
    assert (score.estimate, auc.estimate) == (reported.judges["strict"].persona_score, reported.judges["strict"].reliability.auc)


# What may be shown

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\ud800"


def test_completions_are_clipped_and_visible_newest_first(tmp_path: Path) -> None:
    run = stability_run(
        tmp_path / "run", [answered("q1", text="first"), answered("q2", text="<b>\x1b[31m\u202e" + "x" * 100_000)]
    )
    found = newest_completions(run, "stability")
    assert found[1]["said"] == "first"
    assert found[0]["said"].startswith(r"<b>\x1b[31m\u202exxx")
    assert len(found[0]["said"]) == 1500
    with (run / "records.jsonl").open("ab") as file:
        file.write(b'["not a cell"]\n{"torn')
    assert len(newest_completions(run, "stability")) == 2
    assert len(last_lines(run / "records.jsonl", 9)) == 3


def test_no_control_character_leaves_a_configuration(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", [], label=HOSTILE, model={"name": "http://user:pw@host/" + HOSTILE}, strategy=HOSTILE)
    put(run, "provenance.json", {"format": RUN_FORMAT, "command": ["permix", HOSTILE]})
    watched = RunMonitor(run, HOSTILE.encode("utf-8", "replace").decode())
    looked(watched)
    text = json.dumps(watched.detail(), ensure_ascii=False)
    assert not {"\x1b", "\u202e", "\ud800"} & set(text)
    assert "pw" not in watched.detail()["model"]


def test_secrets_are_left_out_of_a_command() -> None:
    typed = [
        "permix",
        "stability",
        "--model.api-key",
        "abc",
        "--token=abc",
        "--judge.max-new-tokens",
        "16",
        "http://me:abc@host/v1",
    ]
    said = redact_command(typed)
    assert "abc" not in said
    assert "--judge.max-new-tokens 16" in said
    assert redact_command(["permix", "x", "sk-" + "a" * 30]).endswith("'(hidden)'")
    assert redact_command(["permix", "--model.api-key-env", "MY_KEY"]).endswith("MY_KEY")
    assert redact_command(COMMAND) == "permix stability mine.toml"


def test_looking_does_not_change_a_run(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole(), ended=True)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}
    time.sleep(0.01)
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    folder.measure_next()
    folder.detail(folder.state()["runs"][0]["id"])
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()} == before
