"""Every command that reads a run directory, on one with a damaged or odd file: one line that names the file, no traceback."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from permix import cli
from permix.report import builder
from tests.sample_runs import asked_as, asked_what, endpoint, fidelity_values, solve, stability_values, toml
from tests.servers import openai_server
from tests.storage.test_odd_files import put_odd, room, within


def answer(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    chosen = zlib.crc32(json.dumps(body["messages"]).encode())
    if "Score" in asked_what(body) or "score" in asked_what(body):
        return json.dumps({"reason": "as it is", "score": 1 + chosen % 5})
    return f"It is {solve(asked_what(body))}." if "What is" in asked_what(body) else f"As {asked_as(body)}: {chosen} waves."


class World(NamedTuple):
    """A stability run "stab", and a fidelity run "fid" with a judge "j", whose commands go on from a copy of `runs`."""

    folder: Path
    commands: Mapping[str, list[str]]

    def fresh(self) -> Path:
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        shutil.copytree(self.folder / "good", self.folder / "runs")
        return self.folder / "runs"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with openai_server(answer) as server:
        values = {
            "stability": stability_values(folder, server.base_url, out=str(folder / "runs" / "stab"), label="m"),
            "fidelity": fidelity_values(folder, server.base_url, out=str(folder / "runs" / "fid"), label="m"),
            "judge": {
                "stage": "judge", "run": str(folder / "runs" / "fid"), "resamples": 100,
                "judge": endpoint(server.base_url, label="j", answers_per_control=20),
            },
        }  # fmt: skip
        for stage, content in values.items():
            (folder / f"{stage}.toml").write_text(toml(content))
        commands = {stage: [stage, str(folder / f"{stage}.toml")] for stage in values}
        assert [cli.run_cli(argv) for argv in commands.values()] == [0, 0, 0]
        shutil.move(folder / "runs", folder / "good")
        for run in ("stab", "fid"):
            commands[f"report {run}"] = ["report", str(folder / "runs" / run), "--out", str(folder / "report")]
        yield World(folder, commands)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "draw_report_figures", lambda *_: builder.ReportFigures({}, frozenset()))


def put(content: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content if isinstance(content, str) else json.dumps(content))


def odd(kind: str) -> Callable[[Path], Any]:
    return lambda path: put_odd(path, kind)


def without(field: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != field}))


def with_field(**fields: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | fields))


RESUMES_STAB, RESUMES_FID = ("stability",), ("fidelity",)
READS_STAB, READS_FID = ("report stab",), ("report fid", "judge")

CASES: list[tuple[str, Callable[[Path], Any], tuple[str, ...]]] = [
    *((name, odd(kind), commands)
      for name, commands in (
          ("stab/.lock", RESUMES_STAB), ("stab/grid.json", READS_STAB), ("stab/records.jsonl", RESUMES_STAB + READS_STAB),
          ("stab/usage.json", RESUMES_STAB + READS_STAB), ("stab/provenance.json", RESUMES_STAB + READS_STAB),
      )
      for kind in ("folder", "pipe", "device")),
    ("stab/grid.json", odd("folder"), RESUMES_STAB),  # a pipe in its place is replaced
    *((f"fid/{name}", odd("folder"), RESUMES_FID + READS_FID) for name in ("records.jsonl", "provenance.json", "grid.json")),
    *(("stab/config.json", odd(kind), READS_STAB) for kind in ("pipe", "device")),
    ("stab/usage.json", put("{"), RESUMES_STAB + READS_STAB),
    ("stab/usage.json", put([]), RESUMES_STAB + READS_STAB),
    ("stab/usage.json", put({"cpu_seconds": "3"}), RESUMES_STAB + READS_STAB),
    ("stab/provenance.json", without("identity"), RESUMES_STAB),
    ("fid/provenance.json", without("identity"), RESUMES_FID),
    ("stab/provenance.json", with_field(identity=[]), RESUMES_STAB + READS_STAB),
    ("stab/provenance.json", with_field(packages=3, command="x"), RESUMES_STAB + READS_STAB),
    *(("stab/addresses.json", odd(kind), RESUMES_STAB + READS_STAB) for kind in ("folder", "pipe", "device")),
    ("stab/addresses.json", with_field(model=3), RESUMES_STAB + READS_STAB),
    ("fid/judges/j/addresses.json", put("[" * 50_000), ("report fid", "judge")),
    ("stab/config.json", put("[" * 50_000), READS_STAB),
    ("stab/config.json", with_field(resamples=-1), READS_STAB),
    ("stab/config.json", without("seed"), READS_STAB),
    ("stab", lambda run: with_field(persona_ids=[])(run / "grid.json"), READS_STAB),
    ("stab/grid.json", with_field(samples=10**12), READS_STAB),
    ("stab/grid.json", without("samples"), READS_STAB),
    ("stab/records.jsonl", put("[" * 50_000 + "\n"), RESUMES_STAB + READS_STAB),
    ("stab/records.jsonl", put("\0" * 4096 + "\n{}\n"), RESUMES_STAB + READS_STAB),
    ("fid/judges/j/provenance.json", without("identity"), ("report fid", "judge")),
    ("fid/judges/j/judgements.jsonl", odd("folder"), ("report fid", "judge")),
    ("fid/judges/j/judgements.jsonl", put("{}\n"), ("report fid", "judge")),
    ("fid/judges/j/inputs.json", put({}), ("report fid",)),
    ("fid/judges/j/inputs.json", put({"discriminates_personas": 3, "n_controls": {}}), ("report fid",)),
    ("fid/judges/j/config.json", with_field(judge=None), ("report fid",)),
    ("fid/judges/j/usage.json", put("\0"), ("judge",)),
    ("fid/judges/j/.lock", odd("pipe"), ("judge",)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "command"),
    [(name, damage, command) for name, damage, commands in CASES for command in commands],
    ids=[f"{place}-{name}-{command}" for place, (name, _, commands) in enumerate(CASES) for command in commands],
)
def test_a_damaged_file_is_one_line_that_names_it(
    name: str, damage: Callable[[Path], Any], command: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(world.fresh() / name)
    codes: list[int] = []
    assert within(lambda: codes.append(cli.run_cli(world.commands[command])), 60) is None
    told = capsys.readouterr().err.strip().splitlines()
    assert codes[0] in (1, 2)
    assert len(told) == 1
    assert told[0].startswith(f"permix {command.split()[0]}: ")
    assert str(world.folder / "runs" / name) in told[0]


@pytest.mark.parametrize("command", ["stability", "fidelity", "judge"])
def test_a_report_that_is_a_file_is_named_and_the_result_is_kept(
    command: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run = world.fresh() / ("stab" if command == "stability" else "fid")
    shutil.rmtree(run / "report", ignore_errors=True)
    (run / "report").write_text("notes of mine")
    assert cli.run_cli(world.commands[command]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{run / 'report'}: cannot be written: " in told
    assert "move away the file" in told
    assert (run / "report").read_text() == "notes of mine"
    (run / "report").unlink()
    assert cli.run_cli(world.commands[command]) == 0
    assert (run / "report" / "index.html").is_file()


def test_a_report_with_files_and_folders_exchanged_is_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.fresh()
    exchanged: dict[str, Callable[[Path], Any]] = {
        "tables": Path.touch, "cells": Path.touch, "index.html": Path.mkdir, "table.json": Path.mkdir,
    }  # fmt: skip
    for name, make in exchanged.items():
        out = world.folder / f"out-{name}"
        out.mkdir()
        make(out / name)
        assert cli.run_cli(["report", str(world.folder / "runs" / "stab"), "--out", str(out)]) == 1
        assert f"{out / name}: cannot be written: " in capsys.readouterr().err


@pytest.mark.slow
def test_without_room_every_command_names_a_file_and_goes_on_later(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for command, run in (("stability", "stab"), ("fidelity", "fid"), ("judge", "fid"), ("report stab", "stab")):
        for n_bytes in (0, 100, 1000, 3000, 20_000):
            records = world.fresh() / run / "records.jsonl"
            whole = records.read_bytes()
            if command in ("stability", "fidelity"):
                os.truncate(records, len(whole) // 2)
            kept = records.read_bytes().rpartition(b"\n")[0]
            with room(n_bytes):
                code = cli.run_cli(world.commands[command])
            told = capsys.readouterr().err
            assert "Traceback" not in told
            if code:
                assert code == 1
                assert "cannot be written: File too large; make room" in told
                assert str(world.folder) in told.strip().splitlines()[-1]
            assert records.read_bytes().startswith(kept)
            assert cli.run_cli(world.commands[command]) == 0
            capsys.readouterr()
            assert sorted(records.read_bytes().splitlines()) == sorted(whole.splitlines())
