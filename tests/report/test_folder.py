"""A report's folder: what an earlier report left, and runs that have just begun."""

from pathlib import Path

import pytest

from permix.report.builder import build_report
from tests.seeded import fidelity_run, stability_run, torn


@pytest.mark.slow
def test_a_report_in_the_same_folder_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    """Figures and tables that only the earlier report had are gone; other files stay."""
    study, out = tmp_path / "study", tmp_path / "out"
    stability_run(study / "one", "one", "x", torn)
    stability_run(study / "two", "two", "x", torn)
    fidelity_run(study / "told", "one", "x")
    build_report([study], out)
    (out / "mine.png").write_bytes(b"mine")
    (out / "tables" / "mine.csv").write_text("mine")
    before = {path.name for path in out.rglob("*") if path.is_file()}
    assert {"heatmap-2.png", "heatmap-2.svg", "confusion-1.png", "identifiability.csv"} <= before
    build_report([study / "one"], out)
    after = {path.name for path in out.rglob("*") if path.is_file()}
    assert not {"heatmap-2.png", "heatmap-2.svg", "confusion-1.png", "identifiability.csv"} & after
    assert {"mine.png", "mine.csv", "heatmap-1.png", "heatmap-1.svg", "models.csv"} <= after


def test_a_fidelity_run_that_has_just_begun_is_left_out_and_named(tmp_path: Path) -> None:
    stability_run(tmp_path / "one", "one", "x", torn)
    begun = fidelity_run(tmp_path / "told", "one", "x")
    records = begun / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:1]))
    build_report([tmp_path / "one", begun], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "> **Not measured**: " in report
    assert "identifiability needs" in report.partition("**Not measured**: ")[2].partition("\n")[0]
