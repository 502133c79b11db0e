"""What tests of the report share: one report on a world that means harm."""

import contextlib
import io

import pytest

from permix.config import ReportConfig
from permix.report.builder import run_report
from tests.hostile_text import Reported, hostile_runs


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """The report, which a test may read but not change."""
    folder, told = tmp_path_factory.mktemp("hostile"), io.StringIO()
    runs = hostile_runs(folder)
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        run_report(ReportConfig(runs=tuple(runs), out=folder / "report"))
    return Reported(folder / "report", told.getvalue())
