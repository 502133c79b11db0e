"""The benchmark of batch files, of few lines: what it handles comes back, and its figures are all there."""

import json
import sys
from pathlib import Path

import pytest

from bench import bench_batch_files
from permix.inference.batch_model import BatchFlags
from tests.cell_files import read_cells


def test_what_is_written_is_answered_and_read(tmp_path: Path) -> None:
    for name, handle in (("lines", bench_batch_files.handle_lines), ("cells", bench_batch_files.handle_cells)):
        folder = tmp_path / name
        assert handle(folder, BatchFlags(batch_out=folder / "batch"), 20) == 0
        bench_batch_files.answer_requests(folder / "batch")
        assert handle(folder, BatchFlags(batch_in=folder / "batch"), 20) == 20
    assert len(read_cells(tmp_path / "cells" / "run" / "records.jsonl")) == 20


def test_its_figures_are_those_of_a_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_batch_files", "--lines", "10"])
    bench_batch_files.main()
    figures = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert {one["figure"] for one in figures} == {"imports_mb"} | {
        f"{work}_{figure}"
        for work in ("lines", "cells")
        for figure in ("write_cpu_us", "read_cpu_us", "write_peak_mb", "read_peak_mb", "bytes_of_a_request", "wall_s")
    }
    assert all(one["value"] > 0 for one in figures)
