"""The files of several workers of one run: how readers merge them, what is damaged, copied together, and written at once."""

import json
import multiprocessing
import random
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from permix.config import ModelConfig, ReportConfig, StabilityConfig
from permix.errors import ConfigError, DataError
from permix.inference.base import REQUEST_CHANGES_FILE, remember_request_changes
from permix.inference.cost import find_measured
from permix.report.builder import run_report
from permix.storage import run_dir
from permix.storage.cells import conflicting_answers_note, has_records, read_run_cells, record_files
from permix.storage.files import encode_line, jsonl_lines, write_json
from permix.storage.run_dir import UNTIMED, RunDir, RunReader, last_start, revisions_text
from permix.storage.workers import hold_shared_files, worker_file, worker_files
from permix.types import Cell, CellKey, Failure, Shard
from tests.cell_files import read_cells
from tests.sample_runs import answered, cell

CONFIG, IDENTITY = StabilityConfig(label="base"), {"model": "abc", "seed": 0}
KEY = CellKey(None, "q1", 0)
FAILED = cell("q1", failure=Failure(type="TimeoutError", message="too slow"))
UNSCORED, RIGHT, WRONG = answered("q1", correct=None), answered("q1"), answered("q1", "13", False)


def write(run: Path, name: str, *cells: Cell) -> None:
    run.mkdir(exist_ok=True)
    (run / name).write_bytes(b"".join(map(encode_line, cells)))


def write_all(run: Path, *files: Sequence[Cell]) -> None:
    for number, cells in enumerate(files, start=1):
        write(run, f"records-{number}of{len(files)}.jsonl", *cells)


# Which record counts


@pytest.mark.parametrize(
    ("records", "counts"),
    [
        ((FAILED, UNSCORED), UNSCORED),
        ((FAILED, WRONG), WRONG),
        ((UNSCORED, WRONG), WRONG),  # a wrong answer is scored
        ((FAILED, UNSCORED, WRONG), WRONG),
        ((UNSCORED, UNSCORED), UNSCORED),
    ],
)
def test_a_scored_record_counts_before_others(records: Sequence[Cell], counts: Cell, tmp_path: Path) -> None:
    for place, ordered in enumerate(permutations(records)):
        write_all(tmp_path / str(place), *([one] for one in ordered))
        assert dict(read_run_cells(tmp_path / str(place))) == {KEY: counts}


def test_of_two_scored_records_the_hash_decides_and_not_the_files(tmp_path: Path) -> None:
    found = []
    for place, (one, other) in enumerate(((RIGHT, WRONG), (WRONG, RIGHT))):
        run = tmp_path / str(place)
        write_all(run, [one, answered("q2")], [answered("q3"), other])
        cells = read_run_cells(run)
        assert set(cells) == {KEY, CellKey(None, "q2", 0), CellKey(None, "q3", 0)}
        assert cells.n_conflicting == 1
        note = conflicting_answers_note(cells)
        assert note is not None
        assert note.startswith("1 of 3 cells were answered by several workers, differently")
        found.append(cells[KEY])
    assert found[0] == found[1]
    # Over many cells the hash prefers neither answer.
    many = [(answered(f"q{n}"), answered(f"q{n}", "13", False)) for n in range(200)]
    write_all(tmp_path / "many", [one for one, _ in many], [other for _, other in many])
    rewards = [one.reward for one in read_run_cells(tmp_path / "many").summaries.values()]
    assert 60 < sum(reward == 1.0 for reward in rewards) < 140


def test_the_same_answer_twice_is_no_choice(tmp_path: Path) -> None:
    write_all(tmp_path, [UNSCORED], [RIGHT], [RIGHT])  # scored again by another worker, and a file that was copied
    cells = read_run_cells(tmp_path)
    assert (cells[KEY], cells.n_conflicting, conflicting_answers_note(cells)) == (RIGHT, 0, None)


def test_within_a_file_the_last_record_counts_and_plain_records_are_merged_too(tmp_path: Path) -> None:
    write(tmp_path, "records.jsonl", WRONG, UNSCORED)
    write(tmp_path, "records-1of2.jsonl", FAILED, answered("q2"))
    cells = read_run_cells(tmp_path)
    assert list(cells.values()) == [UNSCORED, answered("q2")]
    assert [one.file for one in cells.summaries.values()] == [0, 1]
    assert read_cells(tmp_path / "records.jsonl")[KEY] == UNSCORED


def test_other_messages_of_a_cell_are_files_of_two_runs(tmp_path: Path) -> None:
    write_all(tmp_path, [RIGHT], [RIGHT.model_copy(update={"messages": ({"role": "user", "content": "Else?"},)})])
    with pytest.raises(DataError, match=r"records-2of2\.jsonl: asked cell .*'q1'.* with other messages than records-1of2\.jsonl"):
        read_run_cells(tmp_path)


def test_merging_many_files_equals_a_merge_by_hand(tmp_path: Path) -> None:
    rng = random.Random(0)
    kinds = {"failed": 2, "unscored": 1, "scored": 0}
    files: list[list[Cell]] = [[] for _ in range(5)]
    best: dict[str, int] = {}
    for n in range(100):
        for place in rng.sample(range(5), rng.randint(1, 3)):
            kind = rng.choice(list(kinds))
            made = {"failed": FAILED, "unscored": UNSCORED, "scored": RIGHT}[kind]
            messages = ({"role": "user", "content": f"What is q{n}?"},)
            files[place].append(made.model_copy(update={"question_id": f"q{n}", "messages": messages}))
            best[f"q{n}"] = min(best.get(f"q{n}", 2), kinds[kind])
    write_all(tmp_path, *files)
    found = read_run_cells(tmp_path).summaries
    assert {key.question_id: (one.reward is None) + (not one.has_completion) for key, one in found.items()} == best


# Files and their names


def test_only_the_files_of_workers_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["records-10of12.jsonl", "records-2of12.jsonl", "records-1of2.jsonl"]
    others = ["records-0of2.jsonl", "records-1of0.jsonl", "records-a.jsonl", "records-1of2.jsonl.bak", "my-records-1of2.jsonl"]
    for name in names + others:
        write(tmp_path, name, RIGHT)
    assert [path.name for path in record_files(tmp_path)] == ["records.jsonl", *reversed(names)]
    assert RunReader(tmp_path).record_paths == [tmp_path / name for name in reversed(names)]
    assert worker_file(tmp_path / "records.jsonl", Shard(2, 4)).name == "records-2of4.jsonl"
    assert has_records(tmp_path)
    assert not has_records(tmp_path / "none")
    assert worker_files(tmp_path / "none" / "usage.json") == [tmp_path / "none" / "usage.json"]
    assert read_run_cells(tmp_path / "none").summaries == {}


def test_a_damaged_file_of_a_worker_is_named(tmp_path: Path) -> None:
    write_all(tmp_path, [RIGHT], [answered("q2"), answered("q3")])
    with (tmp_path / "records-2of2.jsonl").open("ab") as file:
        file.write(b'{"half": \n')
    with pytest.raises(DataError, match=r"records-2of2\.jsonl:3: not a cell record"):
        read_run_cells(tmp_path)
    with RunDir.open(tmp_path, CONFIG, IDENTITY, shard=Shard(1, 2)), pytest.raises(DataError, match=r"records-2of2\.jsonl:3:"):
        RunReader(tmp_path).cells  # noqa: B018
    with pytest.raises(DataError, match=r"records-2of2\.jsonl:3:"), RunDir.open(tmp_path, CONFIG, IDENTITY):
        pass  # the run is resumed, so its records are compared with the cells


def test_the_line_that_another_worker_is_writing_is_no_cell_yet_and_stays(tmp_path: Path) -> None:
    write_all(tmp_path, [RIGHT], [answered("q2"), answered("q3")])
    path = tmp_path / "records-2of2.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert set(read_run_cells(tmp_path)) == {KEY, CellKey(None, "q2", 0)}
    with RunDir.open(tmp_path, CONFIG, IDENTITY, shard=Shard(1, 2)) as run:
        run.append([answered("q4")])
        assert path.read_bytes() == whole[:-30]
    with RunDir.open(tmp_path, CONFIG, IDENTITY):  # alone: whoever wrote it is gone
        assert path.read_bytes() == encode_line(answered("q2"))


def test_a_line_that_is_finished_while_it_is_read_is_no_long_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b"')
    lines = jsonl_lines(path)
    assert next(lines) == (1, b'{"a": 1}\n')
    with path.open("ab") as file:
        file.write(b': 2}\n{"c": 3}\n')
    assert [line for _, line in lines] in ([], [b'{"b": 2}\n', b'{"c": 3}\n'])


@pytest.mark.parametrize("name", ["records-1of2.jsonl", "usage-1of2.json", "provenance-1of2.json"])
def test_odd_files_of_a_worker_are_errors_that_name_them(name: str, tmp_path: Path) -> None:
    with RunDir.open(tmp_path, CONFIG, IDENTITY, shard=Shard(2, 2)) as run:
        run.append([RIGHT])
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"{name}: is a folder"):
        _ = (reader := RunReader(tmp_path)).usage, reader.cells


# Runs that were copied together


def test_the_folders_of_two_machines_become_one_run(tmp_path: Path) -> None:
    for number, cells in ((1, [RIGHT, answered("q2")]), (2, [answered("q3")])):
        opened = RunDir.open(tmp_path / f"machine-{number}", CONFIG, IDENTITY, shard=Shard(number, 2), grid={"samples": 1})
        with opened as run, run.track_usage():
            run.append(cells)
    together = tmp_path / "machine-1"
    for path in (tmp_path / "machine-2").iterdir():
        (together / path.name).write_bytes(path.read_bytes())
    reader = RunReader(together)
    assert [key.question_id for key in reader.cells] == ["q1", "q2", "q3"]
    assert reader.usage["starts"] == 2
    assert (reader.config["label"], reader.config["shard"]) == ("base", None)


@pytest.mark.parametrize(
    ("files", "answers"),
    [
        ({"usage-1of2": 3, "usage-2of2": 4}, 7),
        ({"usage-1of2": 3, "usage-2of2": -1}, UNTIMED),
        ({"usage": -1, "usage-1of2": 3, "usage-2of2": 4}, UNTIMED),
        ({"usage": 5, "usage-1of2": 3}, 8),
        ({"usage": 5}, 5),
        ({"usage-1of2": 3, "usage-2of2": None}, None),  # a worker of an earlier version
        ({"usage-1of2": None, "usage-2of2": -1}, None),
    ],
)
def test_the_answers_that_took_the_seconds_of_all_workers(
    files: dict[str, int | None], answers: int | None, tmp_path: Path
) -> None:
    for name, n in files.items():
        own = {"wall_seconds": 10.0, "cpu_seconds": 1.5, "starts": 1, "peak_mb": 5} | ({} if n is None else {"answers": n})
        write_json(tmp_path / f"{name}.json", own)
    usage, n_files = RunReader(tmp_path).usage, len(files)
    assert usage.get("answers") == answers
    assert {name: usage[name] for name in usage if name != "answers"} == {
        "wall_seconds": 10.0 * n_files, "cpu_seconds": 1.5 * n_files, "starts": n_files, "peak_mb": 5,
    }  # fmt: skip


def test_a_run_without_usage_has_none(tmp_path: Path) -> None:
    assert RunReader(tmp_path).usage == {}


def test_a_run_names_the_newest_start_and_the_code_of_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(revision: str, shard: Shard | None, minute: int) -> None:
        now = {"revision": revision, "command": ["permix", revision], "created": f"2026-11-30T10:{minute:02}:00+00:00"}
        monkeypatch.setattr(run_dir, "collect_provenance", lambda: born | now)
        with RunDir.open(tmp_path, CONFIG, IDENTITY, shard=shard):
            pass

    def found() -> tuple[str, list[str]]:
        provenance = RunReader(tmp_path).provenance
        return revisions_text(provenance), last_start(provenance)["command"]

    born = run_dir.collect_provenance()
    start("aaa", Shard(1, 2), 1)
    assert found() == ("aaa", ["permix", "aaa"])
    start("bbb", Shard(2, 2), 1)
    start("ccc", Shard(1, 2), 2)
    assert found() == ("aaa, bbb, ccc", ["permix", "ccc"])
    start("ddd", None, 3)
    start("eee", Shard(2, 2), 4)
    assert found() == ("aaa, bbb, ccc, ddd, eee", ["permix", "eee"])
    files = [tmp_path / name for name in ("provenance.json", "provenance-1of2.json", "provenance-2of2.json")]
    assert [json.loads(file.read_text())["revisions"] for file in files] == [["aaa", "ddd"], ["aaa", "ccc"], ["bbb", "eee"]]
    assert RunReader(tmp_path).provenance["created"] == "2026-11-30T10:01:00+00:00"


def test_the_files_of_another_run_are_refused(tmp_path: Path) -> None:
    for name, identity in (("one", IDENTITY), ("two", IDENTITY | {"model": "xyz"})):
        with RunDir.open(tmp_path / name, CONFIG, identity, shard=Shard(1 + (name == "two"), 2)) as run:
            run.append([RIGHT])
    for name in ("records-2of2.jsonl", "provenance-2of2.json"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(DataError, match=r"provenance-2of2\.json: the worker asked with other settings than"):
        RunReader(tmp_path / "one")
    with pytest.raises(ConfigError, match="this run was made with"), RunDir.open(tmp_path / "one", CONFIG, IDENTITY):
        pass


def test_an_identity_in_new_words_is_written_for_every_worker(tmp_path: Path) -> None:
    for number in (1, 2):
        with RunDir.open(tmp_path, CONFIG, {"model": "old"}, shard=Shard(number, 2)):
            pass
    now, recorded = {"model": "new", "strategy": "persona-vote"}, []

    class Moved:
        identity_key, fingerprint = "model", "new"

        def record(self, folder: Path) -> None:
            recorded.append(folder)

    with RunDir.open(tmp_path, CONFIG, now, new_identity_keys=("strategy",), endpoints=[Moved()], shard=Shard(1, 2)):
        assert recorded == [tmp_path]
    names = ("provenance.json", "provenance-1of2.json", "provenance-2of2.json")
    assert [json.loads((tmp_path / name).read_text())["identity"] for name in names] == [now] * 3
    assert RunReader(tmp_path).identity == now


def test_a_report_says_that_answers_were_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = [None, "clerk", "sailor"]
    cells = [answered(f"q{n}", persona_id=persona) for persona in people for n in range(8)]
    other = answered("q3", "13", False, persona_id="clerk")
    grid: dict[str, Any] = {"persona_ids": ["clerk", "sailor"], "question_ids": [f"q{n}" for n in range(8)], "samples": 1}
    config = CONFIG.model_copy(update={"resamples": 100})
    for number, own in ((1, cells), (2, [other])):
        with RunDir.open(tmp_path / "run", config, IDENTITY, shard=Shard(number, 2), grid=grid) as run:
            run.append(own)
    capsys.readouterr()
    with RunDir.open(tmp_path / "run", config, IDENTITY, shard=Shard(1, 2), grid=grid):
        assert "note: " + str(tmp_path / "run") + ": 1 of 24 cells were answered by several workers" in capsys.readouterr().err
    run_report(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report"))
    report = (tmp_path / "report" / "report.md").read_text()
    assert "**Answered twice**: base" in report
    assert "1 of 24 cells were answered by several workers, differently" in report


def test_a_dry_run_knows_what_all_workers_measured(tmp_path: Path) -> None:
    run, model = tmp_path / "run", ModelConfig(name="test", backend="openai", base_url="http://127.0.0.1:1/v1")
    config = StabilityConfig(out=run, model=model)
    for number in (1, 2):
        with RunDir.open(run, config, IDENTITY, shard=Shard(number, 2)) as opened, opened.track_usage():
            opened.append([answered(f"q{number}")])
    measured = find_measured([run], "stability", model, 16)
    assert measured is not None
    assert (measured.n, measured.mean_new_tokens) == (2, 1.0)


# Written at once


class Endpoint:
    """What a model behind an endpoint shows of itself to `remember_request_changes`."""

    def __init__(self, address: str) -> None:
        self.address, self.request_changes = address, dict[str, str]()


def test_workers_that_learn_about_endpoints_lose_nothing(tmp_path: Path) -> None:
    one, same, other = Endpoint("http://a"), Endpoint("http://a"), Endpoint("http://b")
    with remember_request_changes(one, tmp_path), remember_request_changes(same, tmp_path):  # type: ignore[arg-type]
        with remember_request_changes(other, tmp_path):  # type: ignore[arg-type]
            other.request_changes["seed"] = "no seed"
        one.request_changes["seed"] = "unknown"
        same.request_changes["temperature"] = "only 1"
    found = json.loads((tmp_path / REQUEST_CHANGES_FILE).read_text())
    assert found == {"http://a": {"seed": "unknown", "temperature": "only 1"}, "http://b": {"seed": "no seed"}}


def _learn(folder: Path, number: int) -> None:
    for step in range(20):
        with hold_shared_files(folder):
            path = folder / "shared.json"
            known = json.loads(path.read_text()) if path.exists() else []
            path.write_text(json.dumps([*known, [number, step]]))


@pytest.mark.slow
def test_processes_take_turns_with_a_shared_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_learn, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(json.loads((tmp_path / "shared.json").read_text())) == [[n, step] for n in range(3) for step in range(20)]


def _open_shard(folder: Path, number: int) -> None:
    grid = {"persona_ids": ["a"], "question_ids": ["q"], "samples": 1}
    with RunDir.open(folder, CONFIG, IDENTITY, shard=Shard(number, 4), grid=grid) as run:
        run.append([answered(f"q{number}")])


@pytest.mark.slow
def test_workers_that_start_at_the_same_moment_all_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_open_shard, args=(tmp_path / "run", number)) for number in range(1, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(read_run_cells(tmp_path / "run")) == 4
    assert RunReader(tmp_path / "run").identity == IDENTITY
    assert not list((tmp_path / "run").glob(".*.part"))


def test_a_lock_of_a_process_that_is_gone_keeps_nobody_out(tmp_path: Path) -> None:
    for name in (".lock", ".lock-1of2", ".lock-shared"):
        (tmp_path / name).write_text("999999999")
    with RunDir.open(tmp_path, CONFIG, IDENTITY, shard=Shard(1, 2)) as run:
        run.append([RIGHT])
    with RunDir.open(tmp_path, CONFIG, IDENTITY):
        pass


@pytest.mark.parametrize("name", [".lock-1of2", ".lock-shared"])
def test_locks_of_workers_follow_no_link(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{name}: is a link"), RunDir.open(run, CONFIG, IDENTITY, shard=Shard(1, 2)):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_usage_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "usage-2of2.json").write_text('{"cpu_seconds": "many"}')
    with (
        pytest.raises(DataError, match=r"usage-2of2\.json: cpu_seconds"),
        RunDir.open(tmp_path, CONFIG, IDENTITY, shard=Shard(1, 2)),
    ):
        pass
