"""The tables for programs: one row a cell, one row a model and persona, as CSV and Parquet."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from permix.rendering import table
from permix.rendering.table import write_rows
from permix.report.builder import build_report
from permix.report.tables import TIDY_CELL_COLUMNS, TIDY_PERSONA_COLUMNS
from permix.storage.run_dir import RunReader
from permix.types import CellKey
from tests.seeded import fidelity_run, stability_run, torn


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_cell_of_the_runs_is_a_row(tmp_path: Path) -> None:
    stable, distinct = stability_run(tmp_path / "s", "one", "x", torn), fidelity_run(tmp_path / "f", "one", "x")
    build_report([stable, distinct], tmp_path / "out")
    rows = read(tmp_path / "out" / "tables" / "cells.csv")
    cells = {"stability": RunReader(stable).cells, "fidelity": RunReader(distinct).cells}
    assert len(rows) == sum(map(len, cells.values()))
    assert list(rows[0]) == list(TIDY_CELL_COLUMNS)
    for row in rows:
        key = CellKey(row["persona_id"] or None, row["question_id"], int(row["sample"]))
        cell = cells[row["kind"]][key]
        expected = "" if cell.verdict is None or cell.verdict.correct is None else str(int(cell.verdict.correct))
        assert (row["model"], row["correct"], row["gold"]) == ("one", expected, cell.gold or "")
    typed = pyarrow.parquet.read_table(tmp_path / "out" / "tables" / "cells.parquet").to_pylist()
    assert [one["correct"] for one in typed] == [int(row["correct"]) if row["correct"] else None for row in rows]
    assert {one["persona_id"] for one in typed if one["kind"] == "stability"} == {None, "p0", "p1", "p2", "p3"}


def test_every_persona_is_a_row_of_numbers(tmp_path: Path) -> None:
    runs = [stability_run(tmp_path / name, name, "x", torn) for name in ("one", "two")]
    build_report(runs, tmp_path / "out")
    rows = read(tmp_path / "out" / "tables" / "personas_tidy.csv")
    ids = ["", "p0", "p1", "p2", "p3"]
    assert [(row["model"], row["persona_id"]) for row in rows] == [(name, id) for name in ("one", "two") for id in ids]
    assert list(rows[0]) == list(TIDY_PERSONA_COLUMNS)
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) <= 1
        assert (row["difference"] == "") == (row["persona_id"] == "")
    baseline, first = rows[:2]
    assert float(first["difference"]) == pytest.approx(float(first["accuracy"]) - float(baseline["accuracy"]))


ROWS: list[dict[str, Any]] = [
    {"name": "=1+1", "n": 3, "share": 0.1},
    {"name": "+a\x1b[2J\u202e", "n": None, "share": None},
    {"name": 'two\nlines, "quoted"', "n": True, "share": 2.5},
    {"name": None, "n": 10**30, "share": 0.0},
]


def test_texts_are_harmless_and_numbers_exact(tmp_path: Path) -> None:
    columns = {"name": str, "n": int, "share": float}
    assert write_rows(tmp_path / "t.csv", columns, ROWS) == [tmp_path / "t.csv", tmp_path / "t.parquet"]
    assert [tuple(row.values()) for row in read(tmp_path / "t.csv")] == [
        ("'=1+1", "3", "0.1"), ("'+a\\x1b[2J\\u202e", "", ""), ('two\nlines, "quoted"', "1", "2.5"), ("", "", "0.0"),
    ]  # fmt: skip
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"name": "=1+1", "n": 3, "share": 0.1}, {"name": "+a\\x1b[2J\\u202e", "n": None, "share": None},
        {"name": 'two\nlines, "quoted"', "n": 1, "share": 2.5}, {"name": None, "n": None, "share": 0.0},
    ]  # fmt: skip


def test_rows_are_written_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large run is never whole in memory: of the rows read, no more than a batch is waiting to be written."""
    monkeypatch.setattr(table, "BATCH_ROWS", 10)
    scratch, sizes = tmp_path / ".t.csv.part", []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(100):
            sizes.append(scratch.stat().st_size)
            yield {"text": "x" * 5000, "n": number}

    write_rows(tmp_path / "t.csv", {"text": str, "n": int}, rows())
    assert all(sizes[number] > 5000 * (number - 20) for number in range(100))
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet")["n"].to_pylist() == list(range(100))


def test_without_pyarrow_there_is_csv_and_no_old_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stability_run(tmp_path / "s", "one", "x", torn)
    build_report([run], tmp_path / "out")
    first = (tmp_path / "out" / "tables" / "cells.csv").read_bytes()
    parquet = (tmp_path / "out" / "tables" / "cells.parquet").read_bytes()
    build_report([run], tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "cells.parquet").read_bytes() == parquet
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    build_report([run], tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "cells.csv").read_bytes() == first
    assert list((tmp_path / "out").rglob("*.parquet")) == []


def test_a_table_without_rows_is_not_there_and_an_old_one_goes(tmp_path: Path) -> None:
    build_report([stability_run(tmp_path / "s", "one", "x", torn)], tmp_path / "out")
    build_report([fidelity_run(tmp_path / "f", "one", "x")], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert {"cells.csv", "cells.parquet"} <= names
    assert not {"personas_tidy.csv", "personas_tidy.parquet"} & names
