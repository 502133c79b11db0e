"""The recorded runs that are shipped, and the gallery made from them: complete, small, and silent about where they were made."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from bench.gallery import MAX_HEIGHT, RUNS, compress_screenshot
from bench.record import record, shorten_platform
from permix.report.builder import build_report

ROOT = Path(__file__).resolve().parents[1]
RECORDED, GALLERY = ROOT / "docs/recorded", ROOT / "docs/gallery"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recorded") / "report"
    build_report([ROOT / run for run in RUNS], out)
    return out


@pytest.mark.slow
def test_a_report_reads_the_recorded_runs(report: Path) -> None:
    rows = json.loads((report / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [row["label"] for row in rows] == ["base", "RLVR", "PerMix-RLVR"]
    for row in rows:
        assert (row["n_scored"], row["n_asked"], row["n_answers"], row["n_answers_asked"]) == (80, 80, 40, 40)
        assert (row["train_tokens"] is None) == (row["label"] == "base")


def test_every_recorded_run_is_shown(report: Path) -> None:
    there = {path.parent.relative_to(ROOT) for path in RECORDED.glob("*/*/config.json")}
    assert there == set(RUNS)


def test_the_gallery_holds_every_figure_of_the_report_and_shows_every_picture_it_holds(report: Path) -> None:
    held = {path.name for path in GALLERY.glob("*.png")}
    assert {path.name for path in report.glob("*.png")} == {name for name in held if not name.startswith("page-")}
    shown = re.findall(r"!\[[^\]]+\]\(gallery/([^)]+)\)", (ROOT / "docs/gallery.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(held)


def test_what_is_shipped_is_small() -> None:
    for folder, megabytes in (
        (RECORDED / "quickstart", 1),
        (RECORDED / "study", 12),
        (RECORDED / "study-second", 1),
        (GALLERY, 2),
    ):
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < megabytes * 1e6


def test_no_recorded_file_names_a_machine() -> None:
    for path in RECORDED.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'(?<![\w.])/(?:work|tmp|root|home|mnt|usr)/|"platform": "[^"]*\d\.', text), path


def test_recording_leaves_out_weights_and_the_kernel_and_refuses_paths(tmp_path: Path) -> None:
    source = tmp_path / "somewhere" / "runs"
    shutil.copytree(RECORDED / "quickstart" / "rlvr-train", source / "rlvr-train")
    born = source / "rlvr-train" / "provenance.json"
    before = json.loads(born.read_text())
    born.write_text(json.dumps(before | {"platform": "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36"}))
    (source / "rlvr-train" / "model" / "model.safetensors").write_bytes(b"0" * 1000)
    (source / "rlvr-train" / "model" / "tokenizer.json").write_text(str(source))  # of no consequence: it is not copied

    copied = record(source, tmp_path / "copy")
    assert copied == sum(path.stat().st_size for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert not list((tmp_path / "copy").rglob("*.safetensors"))
    assert json.loads((tmp_path / "copy/rlvr-train/provenance.json").read_text()) == before | {"platform": "Linux-x86_64"}
    assert (tmp_path / "copy/rlvr-train/log.jsonl").read_bytes() == (source / "rlvr-train/log.jsonl").read_bytes()

    (source / "rlvr-train" / "config.json").write_text(json.dumps({"out": str(source / "rlvr-train")}))
    with pytest.raises(SystemExit, match=r"rlvr-train/config\.json: names .*/somewhere, a path of this machine"):
        record(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_platform_without_a_known_processor_is_its_system_alone() -> None:
    assert [shorten_platform(one) for one in ("macOS-14.2-arm64-arm-64bit", "Plan9-4")] == ["macOS-arm64", "Plan9"]


def test_a_screenshot_is_cut_where_it_grows_too_tall() -> None:
    assert compress_screenshot(Image.new("RGB", (3, MAX_HEIGHT + 5), "white")).size == (3, MAX_HEIGHT)
