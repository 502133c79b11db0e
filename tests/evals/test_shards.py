"""Several workers share one run by --shard i/n: who asks what, at once, killed, changed, and what the readers make of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import permix
from permix import cli
from permix.config import FidelityConfig, StabilityConfig, build_config
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.evals.shards import assign_personas, assign_shards, end_run
from permix.evals.stability import run_stability
from permix.inference.scripted import ScriptedModel
from permix.storage.cells import read_run_cells
from permix.storage.run_dir import RunDir, RunReader
from permix.types import CellKey, Message, Shard
from tests.cell_files import read_cells
from tests.sample_runs import OPEN_QUESTIONS, asked_as, asked_what, fidelity_values, solve, stability_values, toml
from tests.servers import OpenAIServer, Raw, error, openai_server

WAIT_S = 60.0


def answer(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    """Right, but for the troll, who is wrong in questions with a 3."""
    what, wrong = asked_what(body), asked_as(body) == "troll" and "3" in asked_what(body)
    return f"It is {solve(what) + wrong}." if any(char.isdigit() for char in what) else f"{asked_as(body)} says: {what[::-1]}"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server(answer) as server:
        yield server


def write_config(folder: Path, values: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.toml").write_text(toml(values))
    return folder / "run.toml"


def stability(folder: Path, server: OpenAIServer, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    values = stability_values(folder, server.base_url, **fields)
    values["model"]["same_weights"] = True  # some workers have an endpoint of their own
    return write_config(folder, values)


def run(config: Path, *flags: str, command: str = "stability") -> int:
    return cli.run_cli([command, str(config), *flags])


def records(run: Path) -> set[str]:
    """Every record of a run as text, of whichever worker."""
    return {cell.model_dump_json() for cell in read_run_cells(run).values()}


def metrics(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "metrics.json").read_text()))


# Who asks what


KEYS = [CellKey(persona, question, 0) for persona in (None, "clerk", "sailor") for question in ("q1", "q2", "q3", "q4")]


def test_the_parts_of_a_small_grid_are_these() -> None:
    # The hashes put the personas into the order clerk, sailor, none, and the questions into the order q2, q3, q4, q1.
    found = assign_shards(KEYS, 2)
    assert [(key.persona_id, key.question_id) for key in KEYS if found[key] == 1] == [
        *(("clerk", question) for question in ("q1", "q2", "q3", "q4")), ("sailor", "q2"), ("sailor", "q3"),
    ]  # fmt: skip
    assert [found[CellKey("clerk", question, 0)] for question in ("q2", "q3", "q4", "q1")] == [1] * 4
    of_five = assign_shards(KEYS, 5)
    assert [of_five[CellKey("sailor", question, 0)] for question in ("q2", "q3", "q4", "q1")] == [2, 3, 3, 3]
    assert Counter(of_five.values()) == {1: 3, 2: 2, 3: 3, 4: 2, 5: 2}
    assert assign_personas(["clerk", "nurse", "sailor", "troll"], 3) == {"clerk": 1, "nurse": 2, "sailor": 1, "troll": 3}


@pytest.mark.parametrize("personas", [3, 8, 24])
@pytest.mark.parametrize("total", [1, 2, 3, 5, 8, 16])
def test_parts_are_equal_and_keep_a_persona_together(personas: int, total: int) -> None:
    ids: list[str | None] = [None, *(f"persona-{one}" for one in range(personas))]
    keys = [CellKey(one, f"q{question}", sample) for one in ids for question in range(50) for sample in range(2)]
    found = assign_shards(keys, total)
    assert found == assign_shards(keys[::-1], total)  # whatever the order
    sizes = Counter(found.values())
    assert sorted(sizes) == list(range(1, total + 1))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    pairs = {(key.persona_id, number) for key, number in found.items()}
    assert len(pairs) <= len(ids) + total - 1


def test_templates_of_a_persona_are_told_apart_and_more_workers_than_cells_leave_some_without_work() -> None:
    keys = [CellKey("clerk", "q1", 0, template) for template in ("aa", "bb")] + [CellKey(None, "q1", 0)]
    assert Counter(assign_shards(keys, 3).values()) == {1: 1, 2: 1, 3: 1}
    assert len(set(assign_shards(keys, 7).values())) == 3
    assert assign_shards([], 4) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0/8", "workers count from 1 to 8; give the tasks of a job array the numbers 1 to 8, as with --array=1-8"),
        ("9/8", "workers count from 1 to 8"),
        ("1/0", "must name 1 to 10000 workers"),
        ("1/99999", "must name 1 to 10000 workers"),
        ("2", 'must be like "2/4": worker 2 of 4'),
        ("2 of 4", 'must be like "2/4"'),
        ("-1/4", 'must be like "2/4"'),
        ("1/4/2", 'must be like "2/4"'),
        ("²/4", 'must be like "2/4"'),
        ("", 'must be like "2/4"'),
    ],
)
def test_a_shard_that_is_none_is_refused_with_what_is_valid(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_config(StabilityConfig, {"shard": text}, source="test")
    assert f"shard = {text!r}: {words}" in str(refused.value)


@pytest.mark.parametrize("value", [(2, 4), [2, 4], "2/4", "02/004"])
def test_a_shard_may_be_two_numbers(value: object) -> None:
    config = build_config(StabilityConfig, {"shard": value}, source="test")
    assert (config.shard, config.worker_shard) == ("2/4", Shard(2, 4))


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        (StabilityConfig, {"strategy": "persona-search"}, 'strategy = "persona-search" chooses further cells'),
        (StabilityConfig, {"strategy": "persona-ensemble"}, 'strategy = "persona-ensemble" chooses further cells'),
        (StabilityConfig, {"budget": 500}, "budget plans each round"),
        (StabilityConfig, {"precision": 0.1}, "precision plans each round"),
        (StabilityConfig, {"plan_power": 0.1}, "plan_power asks nothing"),
        (FidelityConfig, {"judge": {"name": "j"}}, 'judge.name = "j" needs the answers of all workers'),
        (
            FidelityConfig,
            {"interview": {"turns": 3}, "interviewer": {"name": "bundled"}},
            'interviewer.name = "bundled" makes up while it asks',
        ),
    ],
)
def test_what_needs_all_answers_is_refused(config: type[Any], values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_config(config, {"shard": "2/4"} | values, source="test")
    start = "grid.json lists the questions, which " if "interviewer" in values else ""
    assert f'shard = "2/4": {start}{words}' in str(refused.value)
    assert build_config(config, {"shard": "2/4"}, source="test").shard == "2/4"


# One after the other


def test_two_workers_end_with_the_records_and_metrics_of_one(
    server: OpenAIServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = stability(tmp_path / "one", server), stability(tmp_path / "two", server)
    assert run(one) == 0
    assert run(two, "--shard", "1/2") == 0
    folder = tmp_path / "two" / "run"
    said = capsys.readouterr().err
    assert (
        f"{folder}: shard 1/2 is finished (12 cells); 12 cells of others are pending: 2/2 (12). The last worker computes" in said
    )
    assert not (folder / "metrics.json").exists()
    assert not (folder / "report").exists()
    assert len(read_cells(folder / "records-1of2.jsonl")) == 12
    assert run(two, "--shard", "2/2") == 0
    assert f"{folder}: shard 2/2 is finished (12 cells), and so are all others" in capsys.readouterr().err
    assert sorted(path.name for path in folder.glob("records*")) == ["records-1of2.jsonl", "records-2of2.jsonl"]
    assert records(folder) == records(tmp_path / "one" / "run")
    assert metrics(folder) == metrics(tmp_path / "one" / "run")
    assert (folder / "report" / "index.html").exists()
    assert len(server.asked) == 48
    for name in ("config.json", "grid.json"):
        first, second = (json.loads((tmp_path / run / "run" / name).read_text()) for run in ("one", "two"))
        differing = {key for key in first if first[key] != second[key]}
        assert differing <= {"out", "personas"}  # the paths of the two folders


def test_usage_and_starts_are_summed_over_the_workers(server: OpenAIServer, tmp_path: Path) -> None:
    config, folder = stability(tmp_path, server), tmp_path / "run"
    for shard in ("1/2", "2/2", "2/2"):
        assert run(config, "--shard", shard) == 0
    one, two = (json.loads((folder / f"usage-{number}of2.json").read_text()) for number in (1, 2))
    usage = RunReader(folder).usage
    assert (one["starts"], two["starts"], usage["starts"]) == (1, 2, 3)
    assert usage["cpu_seconds"] == pytest.approx(one["cpu_seconds"] + two["cpu_seconds"], abs=0.01)
    assert usage["wall_seconds"] == pytest.approx(one["wall_seconds"] + two["wall_seconds"], abs=0.01)
    assert usage["peak_mb"] == max(one["peak_mb"], two["peak_mb"])
    commands = [json.loads((folder / f"provenance-{number}of2.json").read_text()) for number in (1, 2)]
    assert commands[0]["identity"] == commands[1]["identity"] == RunReader(folder).identity


@pytest.mark.slow
def test_another_number_of_workers_and_then_none_ask_no_cell_twice(server: OpenAIServer, tmp_path: Path) -> None:
    config = stability(tmp_path, server)
    assert run(config, "--shard", "1/3") == 0  # 8 cells
    assert run(config, "--shard", "2/2") == 0  # the second half of the same order: none of the first third is in it
    assert len(server.asked) == 20
    assert run(config, "--shard", "1/2") == 0
    assert len(server.asked) == 24
    assert len(metrics(tmp_path / "run")["personas"]) == 3
    assert run(config) == 0
    assert len(server.asked) == 24
    assert not (tmp_path / "run" / "records.jsonl").exists()


def test_a_start_without_a_shard_asks_what_is_pending_and_measures(server: OpenAIServer, tmp_path: Path) -> None:
    one, two = stability(tmp_path / "one", server), stability(tmp_path / "two", server)
    assert run(one) == 0
    assert run(two, "--shard", "3/4") == 0
    assert run(two) == 0
    assert len(server.asked) == 48
    assert len(read_cells(tmp_path / "two" / "run" / "records.jsonl")) == 18
    assert records(tmp_path / "two" / "run") == records(tmp_path / "one" / "run")
    assert metrics(tmp_path / "two" / "run") == metrics(tmp_path / "one" / "run")


def test_pending_cells_of_the_own_part_are_an_error_and_those_of_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cured = threading.Event()

    def script(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str | Raw:
        return answer(body) if cured.is_set() or asked_as(body) != "clerk" or nth % 2 else error(500)

    with openai_server(script) as server:
        config = stability(tmp_path, server)
        parts = assign_shards(
            [CellKey(persona, f"q{n}", 0) for persona in (None, "clerk", "sailor", "troll") for n in range(6)], 4
        )
        clerk = next(number for key, number in parts.items() if key.persona_id == "clerk")  # 24 cells: a persona a part
        other = next(number for number in range(1, 5) if number != clerk)
        assert run(config, "--shard", f"{clerk}/4") == 3
        assert f"3 of 6 cells of shard {clerk}/4, with or without a persona, have no score" in capsys.readouterr().err
        assert run(config, "--shard", f"{other}/4") == 0
        assert "15 cells of others are pending: " in capsys.readouterr().err
        cured.set()
        assert run(config, "--shard", f"{clerk}/4") == 0
        assert "12 cells of others are pending: " in capsys.readouterr().err


def test_json_says_what_is_pending_in_each_part(server: OpenAIServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = stability(tmp_path, server)
    assert run(config, "--shard", "2/3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["shard"], found["pending"], found["pending_by_shard"]) == ("2/3", 16, {"1": 8, "3": 8})
    assert found["paths"] == {"run": str(tmp_path / "run")}
    assert run(config, "--shard", "1/3") == 0
    capsys.readouterr()
    assert run(config, "--shard", "3/3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pending"] == 0


def test_a_dry_run_estimates_the_own_part(server: OpenAIServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = stability(tmp_path, server)
    assert run(config, "--shard", "2/3", "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["cells"] == "24"
    assert found["facts"]["shard"] == "2/3, 8 of 24 cells"
    assert found["estimates"]["model"]["requests"] == 8
    assert not (tmp_path / "run").exists()
    assert [run(config, "--shard", shard) for shard in ("1/3", "4/6")] == [0, 0]  # 4/6 is the second half of 2/3
    capsys.readouterr()
    assert run(config, "--shard", "2/3", "--dry-run", "--json") == 0
    estimates = json.loads(capsys.readouterr().out)["estimates"]["model"]
    assert (estimates["requests"], estimates["requests_recorded"]) == (4, 4)


def test_more_workers_than_cells_is_no_error(server: OpenAIServer, tmp_path: Path) -> None:
    config = stability(tmp_path, server, task={"name": "arithmetic", "levels": ["add-1"], "n": 1})
    assert [run(config, "--shard", f"{number}/6") for number in range(1, 7)] == [0] * 6
    assert len(server.asked) == 4
    assert metrics(tmp_path / "run")["n_scored"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"strategy": "persona-vote"}, {"templates": ["you_are", "adopt"]}], ids=["vote", "templates"])
def test_votes_and_templates_are_shared_like_the_plain_grid(fields: dict[str, Any], tmp_path: Path) -> None:
    with openai_server(lambda body, nth, headers: f"It is {solve(asked_what(body))}.") as server:
        one, two = stability(tmp_path / "one", server, **fields), stability(tmp_path / "two", server, **fields)
        assert run(one) == 0
        assert [run(two, "--shard", f"{number}/3") for number in (3, 1, 2)] == [0] * 3
    assert metrics(tmp_path / "two" / "run") == metrics(tmp_path / "one" / "run")
    assert records(tmp_path / "two" / "run") == records(tmp_path / "one" / "run")


def test_python_asks_a_part(tmp_path: Path) -> None:
    asked = []

    def adder(messages: list[Message]) -> str:
        asked.append(messages)
        return str(sum(int(word) for word in messages[-1]["content"].split() if word.isdigit()))

    sums = [{"question": f"Add {n} to 5 .", "answer": n + 5} for n in range(1, 9)]
    options: dict[str, Any] = {
        "name": "adder", "task": sums, "answer": "number", "personas": ["a poet", "a sailor"], "out": tmp_path / "run",
    }  # fmt: skip
    part = permix.evaluate_stability(adder, shard=(1, 2), **options)
    assert (len(asked), len(part.rows())) == (12, 12)
    assert part.summary.n_asked == 16
    assert 0 < part.summary.n_scored < 16  # the other worker's cells are missing
    whole = permix.evaluate_stability(adder, shard="2/2", **options)
    assert (len(asked), len(whole.rows()), whole.summary.n_scored) == (24, 24, 16)
    opened = permix.open_run(tmp_path / "run")
    assert isinstance(opened, permix.StabilityRun)
    assert len(opened.rows()) == 24


# Fidelity


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, {"interview": {"turns": 4}, "sampling": {"max_new_tokens": 20}}], ids=["open", "interview"]
)
def test_a_fidelity_run_of_several_workers_measures_as_of_one(
    fields: dict[str, Any], server: OpenAIServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    assert run(write_config(reference, fidelity_values(reference, server.base_url)), command="fidelity") == 0
    more = fields | ({"reference": str(reference / "run")} if fields else {})
    configs = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        configs[name] = write_config(tmp_path / name, fidelity_values(tmp_path / name, server.base_url, **more))
    n_before = len(server.asked)
    assert run(configs["one"], command="fidelity") == 0
    n_one = len(server.asked) - n_before
    assert run(configs["two"], "--shard", "2/2", command="fidelity") == 0
    assert "of others are pending: 1/2 (" in capsys.readouterr().err
    assert not (tmp_path / "two" / "run" / "metrics.json").exists()
    assert run(configs["two"], "--shard", "1/2", command="fidelity") == 0
    assert len(server.asked) - n_before == 2 * n_one == (2 * 12 if fields else 2 * 3 * len(OPEN_QUESTIONS))
    assert records(tmp_path / "two" / "run") == records(tmp_path / "one" / "run")
    assert metrics(tmp_path / "two" / "run") == metrics(tmp_path / "one" / "run")
    assert json.loads((tmp_path / "two" / "run" / "grid.json").read_text()) == json.loads(
        (tmp_path / "one" / "run" / "grid.json").read_text()
    )


def test_the_dry_run_of_an_interview_counts_its_own_conversations(
    server: OpenAIServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, fidelity_values(tmp_path, server.base_url, interview={"turns": 4}))
    requests = []
    for number in range(1, 5):
        assert run(config, "--shard", f"{number}/4", "--dry-run", "--json", command="fidelity") == 0
        requests.append(json.loads(capsys.readouterr().out)["estimates"]["model"]["requests"])
    assert sorted(requests) == [0, 4, 4, 4]  # three personas


# At once


def started(*argv: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "permix", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not reached() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert reached()


@pytest.mark.slow
def test_two_processes_at_once_each_with_its_own_endpoint(server: OpenAIServer, tmp_path: Path) -> None:
    both_ask = threading.Barrier(2, timeout=WAIT_S)

    def meet(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        if nth == 0:
            both_ask.wait()  # neither goes on before the other has started, too
        return answer(body)

    one, two = stability(tmp_path / "one", server), stability(tmp_path / "two", server)
    assert started("stability", str(one)).wait(WAIT_S) == 0  # in a process too: the tests' own makes fewer draws
    with openai_server(meet) as first, openai_server(meet) as second:
        workers = [
            started("stability", str(two), "--shard", f"{number}/2", "--model.base-url", one.base_url)
            for number, one in enumerate((first, second), start=1)
        ]
        said = [worker.communicate(timeout=WAIT_S)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], said
        assert (len(first.asked), len(second.asked)) == (12, 12)
    folder = tmp_path / "two" / "run"
    assert sum("and so are all others" in one for one in said) >= 1
    assert records(folder) == records(tmp_path / "one" / "run")
    assert metrics(folder) == metrics(tmp_path / "one" / "run")
    assert not list(folder.glob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_worker_goes_on_and_asks_none_twice(torn: bool, server: OpenAIServer, tmp_path: Path) -> None:
    one, two = stability(tmp_path / "one", server), stability(tmp_path / "two", server)
    assert run(one) == 0
    folder, pressed = tmp_path / "two" / "run", threading.Event()

    def pause(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        if nth == 5:
            pressed.wait(WAIT_S)
        return answer(body)

    with openai_server(pause) as slow:
        worker = started("stability", str(two), "--shard", "1/2", "--model.base-url", slow.base_url)
        wait_until(worker, lambda: len(slow.asked) == 6)
        assert run(two, "--shard", "2/2") == 0  # meanwhile the other worker does its part
        worker.send_signal(signal.SIGKILL)
        worker.communicate(timeout=WAIT_S)
        pressed.set()
        kept = len(read_cells(folder / "records-1of2.jsonl"))
        assert kept == 5
        if torn:
            with (folder / "records-1of2.jsonl").open("ab") as file:
                file.write(b'{"persona_id": "clerk", "ques')
        n_before = len(server.asked)
        assert run(two, "--shard", "1/2") == 0
        assert len(server.asked) - n_before == 12 - kept
    assert records(folder) == records(tmp_path / "one" / "run")
    assert metrics(folder) == metrics(tmp_path / "one" / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("press", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_one_worker_which_goes_on(press: signal.Signals, code: int, server: OpenAIServer, tmp_path: Path) -> None:
    config, pressed = stability(tmp_path, server), threading.Event()

    def pause(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        if nth == 3:
            pressed.wait(WAIT_S)
        return answer(body)

    with openai_server(pause) as slow:
        worker = started("stability", str(config), "--shard", "2/2", "--model.base-url", slow.base_url)
        wait_until(worker, lambda: len(slow.asked) == 4)
        worker.send_signal(press)
        pressed.set()
        said = worker.communicate(timeout=WAIT_S)[1]
    assert (worker.returncode, "Traceback" in said) == (code, False)
    assert json.loads((tmp_path / "run" / "usage-2of2.json").read_text())["starts"] == 1
    kept = len(read_run_cells(tmp_path / "run"))
    assert 2 <= kept < 12  # the answers before the third; the fourth may have been on its way
    assert run(config, "--shard", "2/2") == 0
    assert len(server.asked) == 12 - kept


def test_locks_keep_out_who_would_ask_the_same(server: OpenAIServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = stability(tmp_path, server), tmp_path / "run"
    assert run(config, "--shard", "1/2") == 0
    values, identity = RunReader(folder).config, RunReader(folder).identity
    settings = build_config(StabilityConfig, values, source="test")
    grid = dict(RunReader(folder).grid)
    with RunDir.open(folder, settings, identity, shard=Shard(2, 2), grid=grid):
        capsys.readouterr()
        assert run(config, "--shard", "2/2") == 2
        assert f"shard = 2/2: process {os.getpid()} is asking this part of {folder}; wait for it" in capsys.readouterr().err
        assert run(config) == 2
        assert (
            f"out = {folder}: workers with --shard are writing this run (1/2 is process {os.getpid()}, 2/2 is "
            in capsys.readouterr().err
        )
        assert run(config, "--shard", "1/2") == 0  # its own part
        assert run(config, "--shard", "1/2", "--resamples", "200") == 2
        said = capsys.readouterr().err
        assert f"out = {folder}: the workers that are writing this run have resamples = 100, not 200; all shards need" in said
        assert run(config, "--shard", "1/2", "--model.concurrency", "3", "--threads", "1") == 0
        assert run(config, "--shard", "1/2", "--seed", "7") == 2
        assert "this run was made with seed = 0, not 7" in capsys.readouterr().err
    with RunDir.open(folder, settings, identity):
        assert run(config, "--shard", "2/2") == 2
        assert f"out = {folder}: process {os.getpid()} is writing this run" in capsys.readouterr().err
    assert len(server.asked) == 12


def test_another_grid_is_refused_while_others_work_and_taken_over_by_who_is_alone(
    server: OpenAIServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = stability(tmp_path, server), tmp_path / "run"
    assert run(config, "--shard", "1/2") == 0
    settings = build_config(StabilityConfig, RunReader(folder).config, source="test")
    pool = Path(RunReader(folder).config["personas"]["pool"])
    with RunDir.open(folder, settings, RunReader(folder).identity, shard=Shard(2, 2), grid=dict(RunReader(folder).grid)):
        whole = pool.read_text()
        pool.write_text(whole.replace("a careful clerk", "a careless clerk"))
        assert run(config, "--shard", "1/2") == 2
        assert "the workers that are writing this run have personas of grid.json differs; all shards" in capsys.readouterr().err
        pool.write_text(whole)
    more = {"name": "arithmetic", "levels": ["add-1"], "n": 8}
    larger = stability(tmp_path, server, task=more)
    assert run(larger, "--shard", "1/1") == 0
    assert len(server.asked) == 32
    assert len(RunReader(folder).grid["question_ids"]) == 8


# How a run ends


def unmeasurable() -> None:
    raise DataError("too little to measure")


def test_a_run_that_lacks_cells_and_cannot_be_measured_is_incomplete(tmp_path: Path) -> None:
    """As a stability run too; a run that lacks none names what is wrong with its data."""
    settings = StabilityConfig(out=tmp_path / "run")
    with RunDir.open(settings.out, settings, {}) as opened:
        with pytest.raises(IncompleteRunError, match="2 of 3 cells are missing") as caught:
            end_run(opened, ScriptedModel({}), 2, "2 of 3 cells are missing", None, unmeasurable)
        assert (caught.value.pending, str(caught.value.__cause__)) == (2, "too little to measure")
        with pytest.raises(DataError, match="too little to measure"):
            end_run(opened, ScriptedModel({}), 0, "", None, unmeasurable)


def test_a_stability_run_that_lacks_scores_and_cannot_be_measured_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("permix.evals.stability.measure_stability", lambda *given: unmeasurable())
    with openai_server(lambda body, nth, headers: error(400, "no") if nth == 7 else answer(body)) as partly:
        config = build_config(StabilityConfig, stability_values(tmp_path, partly.base_url), source="test")
        with pytest.raises(IncompleteRunError, match="1 of 24 cells, with or without a persona, have no score"):
            run_stability(config)
