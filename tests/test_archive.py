"""Recorded units: what is packed is what comes back, only what is measured is packed, and nothing is replaced."""

import json
import sys
import tarfile
from pathlib import Path

import pytest

from bench import archive


def unit(folder: Path, *, metrics: bool = True) -> Path:
    for name, stage in (("train", "train"), ("stability", "stability")):
        run = folder / name
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"stage": stage}))
        (run / "provenance.json").write_text(json.dumps({"platform": "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36"}))
    (folder / "train" / "usage.json").write_text("{}")
    (folder / "train" / "model").mkdir()
    (folder / "train" / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "stability" / "records.jsonl").write_text('{"text": "Arr, é"}\n')
    if metrics:
        (folder / "stability" / "metrics.json").write_text('{"pss": 0.5}')
    return folder


def test_what_is_packed_comes_back_without_weights(tmp_path: Path) -> None:
    unit(tmp_path / "study" / "rlvr-1")
    size = archive.pack(tmp_path / "study" / "rlvr-1", tmp_path / "packed" / "rlvr-1.tar.xz")
    assert size == (tmp_path / "packed" / "rlvr-1.tar.xz").stat().st_size
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["rlvr-1"]
    assert archive.unpack(tmp_path / "packed" / "rlvr-1.tar.xz", tmp_path / "again")
    back = tmp_path / "again" / "rlvr-1"
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()) == [
        "stability/config.json", "stability/metrics.json", "stability/provenance.json", "stability/records.jsonl",
        "train/config.json", "train/provenance.json", "train/usage.json",
    ]  # fmt: skip
    assert (back / "stability" / "records.jsonl").read_text() == '{"text": "Arr, é"}\n'
    assert json.loads((back / "train" / "provenance.json").read_text())["platform"] == "Linux-x86_64"


def test_equal_runs_have_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        unit(tmp_path / name / "rlvr-1")
        archive.pack(tmp_path / name / "rlvr-1", tmp_path / f"{name}.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()


def test_a_unit_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    unit(tmp_path / "study" / "rlvr-1")
    archive.pack(tmp_path / "study" / "rlvr-1", tmp_path / "rlvr-1.tar.xz")
    metrics = tmp_path / "study" / "rlvr-1" / "stability" / "metrics.json"
    metrics.write_text("newer")
    assert not archive.unpack(tmp_path / "rlvr-1.tar.xz", tmp_path / "study")
    assert metrics.read_text() == "newer"


def test_only_measured_units_are_packed_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unit(tmp_path / "study" / "done-1")
    unit(tmp_path / "study" / "half-1", metrics=False)
    (tmp_path / "study" / "only-train").mkdir()
    monkeypatch.setattr(sys, "argv", ["archive", "pack", str(tmp_path / "study"), str(tmp_path / "packed")])
    archive.main()
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["done-1.tar.xz"]
    capsys.readouterr()
    archive.main()
    assert capsys.readouterr().out == ""


def test_a_run_that_names_a_path_of_this_machine_is_refused(tmp_path: Path) -> None:
    folder = unit(tmp_path / "study" / "rlvr-1")
    (folder / "stability" / "records.jsonl").write_text(json.dumps({"path": str(tmp_path / "study")}))
    with pytest.raises(SystemExit, match=r"records\.jsonl: names"):
        archive.pack(folder, tmp_path / "rlvr-1.tar.xz")


def test_an_entry_that_leads_outside_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as packed:
        packed.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.FilterError):
        archive.unpack(tmp_path / "bad.tar.xz", tmp_path / "study")
