"""What tests of the report share: one report on a world that means harm."""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import pytest

from permix.config import ReportStage
from permix.report.build import report_stage
from tests.hostile import hostile_runs


class Reported(NamedTuple):
    """The folder of a report, which a test may read but not change, and what the terminal was told."""

    out: Path
    terminal: str


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder, told = tmp_path_factory.mktemp("hostile"), io.StringIO()
    runs = hostile_runs(folder)
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        report_stage(ReportStage(runs=tuple(runs), out=folder / "report"))
    return Reported(folder / "report", told.getvalue())
