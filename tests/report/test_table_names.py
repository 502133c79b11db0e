"""Every table of a report has a name by which a later report knows that it is one of ours."""

import re
from pathlib import Path

import pytest

import permix.report
from permix.report.builder import REPORT_TABLE_NAMES, build_report
from tests.seeded import write_study


@pytest.mark.slow
def test_every_table_is_known_by_its_name(tmp_path: Path) -> None:
    build_report([write_study(tmp_path / "study")], tmp_path / "out")
    names = [path.stem for path in (tmp_path / "out" / "tables").glob("*.csv")]
    assert len(names) > 5
    assert all(REPORT_TABLE_NAMES.fullmatch(name) for name in names)


def test_every_name_in_the_code_is_one_of_them() -> None:
    """Also of tables that few reports have, such as that of addresses."""
    sources = [path.read_text(encoding="utf-8") for path in Path(permix.report.__path__[0]).glob("*.py")]
    names = {name for text in sources for name in re.findall(r'tabulate\(\s*"([^"]+)"', text)}
    assert "addresses" in names
    assert [name for name in sorted(names) if not REPORT_TABLE_NAMES.fullmatch(name)] == []
