"""Every table of a report has a name by which a later report knows that it is one of ours."""

from pathlib import Path

import pytest

from permix.report.builder import REPORT_TABLE_NAMES, build_report
from tests.seeded import write_study


@pytest.mark.slow
def test_every_table_is_known_by_its_name(tmp_path: Path) -> None:
    build_report([write_study(tmp_path / "study")], tmp_path / "out")
    names = [path.stem for path in (tmp_path / "out" / "tables").glob("*.csv")]
    assert len(names) > 5
    assert all(REPORT_TABLE_NAMES.fullmatch(name) for name in names)
