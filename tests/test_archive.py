"""Recorded units: what is packed is what comes back, only what is finished is packed, and nothing is replaced."""

import errno
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bench import archive
from permix.errors import PermixError


def run(folder: Path, stage: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"stage": stage}))
    command = ["permix", "study", "/somewhere/else/study.json", "--unit", "rlvr-1"]
    born = {"platform": "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36", "command": command}
    (folder / "provenance.json").write_text(json.dumps(born))
    return folder


def unit(folder: Path, *, finished: tuple[str, ...] = ("train", "stability")) -> Path:
    """A trained unit of a study with one evaluation."""
    run(folder / "train", "train")
    run(folder / "stability", "stability")
    (folder / "unit.json").write_text(json.dumps({"parts": {}, "finished": list(finished)}))
    (folder / "log.txt").write_text(str(folder.resolve()))
    (folder / ".lock-unit").write_text("17")
    (folder / "train" / "model").mkdir()
    (folder / "train" / "model" / "config.json").write_text("{}")
    (folder / "stability" / "records.jsonl").write_text('{"text": "Arr, é"}\n')
    (folder.parent / "study.json").write_text(json.dumps({"evaluations": {"stability": {}}}))
    return folder


def pack_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["archive", "pack", str(tmp_path / "study"), str(tmp_path / "packed")])
    archive.main()
    return sorted(path.name for path in (tmp_path / "packed").iterdir())


def test_what_is_packed_comes_back_without_model_and_log(tmp_path: Path) -> None:
    unit(tmp_path / "study" / "rlvr-1")
    size = archive.pack(tmp_path / "study" / "rlvr-1", tmp_path / "packed" / "rlvr-1.tar.xz")
    assert size == (tmp_path / "packed" / "rlvr-1.tar.xz").stat().st_size
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["rlvr-1", "study.json"]
    assert archive.unpack(tmp_path / "packed" / "rlvr-1.tar.xz", tmp_path / "again")
    back = tmp_path / "again" / "rlvr-1"
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()) == [
        "stability/config.json", "stability/provenance.json", "stability/records.jsonl",
        "train/config.json", "train/provenance.json", "unit.json",
    ]  # fmt: skip
    assert (back / "stability" / "records.jsonl").read_text() == '{"text": "Arr, é"}\n'
    born = json.loads((back / "train" / "provenance.json").read_text())
    assert born == {"platform": "Linux-x86_64", "command": ["permix", "study", "study.json", "--unit", "rlvr-1"]}


def test_equal_runs_have_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        unit(tmp_path / name / "rlvr-1")
        archive.pack(tmp_path / name / "rlvr-1", tmp_path / f"{name}.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()


def test_a_unit_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    unit(tmp_path / "study" / "rlvr-1")
    archive.pack(tmp_path / "study" / "rlvr-1", tmp_path / "rlvr-1.tar.xz")
    records = tmp_path / "study" / "rlvr-1" / "stability" / "records.jsonl"
    records.write_text("newer")
    assert not archive.unpack(tmp_path / "rlvr-1.tar.xz", tmp_path / "study")
    assert records.read_text() == "newer"


def test_only_what_is_finished_is_packed_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unit(tmp_path / "study" / "done-1")
    unit(tmp_path / "study" / "half-1", finished=("train",))
    unit(tmp_path / "study" / "untrained-1", finished=("stability",))
    run(tmp_path / "study" / "turns", "fidelity").joinpath("metrics.json").write_text("{}")
    run(tmp_path / "study" / "turns-half", "fidelity")
    assert pack_all(tmp_path, monkeypatch) == ["done-1.tar.xz", "turns.tar.xz"]
    capsys.readouterr()
    (tmp_path / "study" / "report").mkdir()
    pack_all(tmp_path, monkeypatch)
    assert capsys.readouterr().out.replace(f"{tmp_path}/study/", "").splitlines() == [
        "half-1: left out: not finished: stability",
        "turns-half: left out: has no metrics.json",
        "untrained-1: left out: not finished: train",
    ]


def test_an_interrupted_unpack_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit(tmp_path / "study" / "rlvr-1")
    packed = tmp_path / "rlvr-1.tar.xz"
    archive.pack(tmp_path / "study" / "rlvr-1", packed)
    write, written = tarfile.TarFile.makefile, 0

    def interrupted(*given: Any) -> None:
        nonlocal written
        written += 1
        if written == 4:
            raise KeyboardInterrupt
        write(*given)

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "makefile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            archive.unpack(packed, tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []
    assert archive.unpack(packed, tmp_path / "again")
    assert len([path for path in (tmp_path / "again").rglob("*") if path.is_file()]) == 6


def test_a_file_that_was_packed_in_part_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit(tmp_path / "study" / "rlvr-1")
    write = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(PermixError, match="No space left"):
            pack_all(tmp_path, monkeypatch)
    assert pack_all(tmp_path, monkeypatch) == ["rlvr-1.tar.xz"]
    assert archive.unpack(tmp_path / "packed" / "rlvr-1.tar.xz", tmp_path / "again")


def test_the_base_unit_has_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit(tmp_path / "study" / "rlvr-1", finished=("train",))
    run(tmp_path / "study" / "base" / "stability", "stability")
    (tmp_path / "study" / "base" / "unit.json").write_text(json.dumps({"parts": {}, "finished": ["stability"]}))
    assert pack_all(tmp_path, monkeypatch) == ["base.tar.xz"]


def test_a_run_that_names_a_path_of_this_machine_is_refused(tmp_path: Path) -> None:
    folder = unit(tmp_path / "study" / "rlvr-1")
    (folder / "stability" / "records.jsonl").write_text(json.dumps({"path": str(Path.home())}))
    with pytest.raises(SystemExit, match=r"records\.jsonl: names"):
        archive.pack(folder, tmp_path / "rlvr-1.tar.xz")


def test_the_folder_of_a_model_is_packed_under_the_models_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "models" / 'an "é" model'
    weights.mkdir(parents=True)
    folder = unit(tmp_path / "study" / "rlvr-1")
    settings = {"base": {"name": str(weights)}, "note": f"{weights}/more"}
    (folder / "train" / "config.json").write_text(json.dumps(settings, ensure_ascii=False))
    command = ["permix", "--base.name", str(weights)]
    (folder / "train" / "provenance.json").write_text(json.dumps({"platform": "Linux", "command": command}))
    with pytest.raises(SystemExit, match=r"config\.json: names .*, a path of this machine"):
        archive.pack(folder, tmp_path / "rlvr-1.tar.xz")
    arguments = ["pack", str(tmp_path / "study"), str(tmp_path / "packed"), "--model", str(weights), "maker/model"]
    monkeypatch.setattr(sys, "argv", ["archive", *arguments])
    archive.main()
    assert archive.unpack(tmp_path / "packed" / "rlvr-1.tar.xz", tmp_path / "again")
    back = tmp_path / "again" / "rlvr-1"
    assert json.loads((back / "train" / "config.json").read_text()) == settings | {"base": {"name": "maker/model"}}
    assert json.loads((back / "train" / "provenance.json").read_text())["command"] == ["permix", "--base.name", "maker/model"]
    # The study itself keeps the folder that it was started with.
    assert json.loads((folder / "train" / "config.json").read_text()) == settings


def test_an_entry_that_leads_outside_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as packed:
        packed.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.FilterError):
        archive.unpack(tmp_path / "bad.tar.xz", tmp_path / "study")
