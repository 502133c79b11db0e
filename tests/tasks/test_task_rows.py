"""Rows from files and folders as published, and errors that name file, line and what would be valid."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from permix.errors import ConfigError, DataError
from permix.tasks.datasets import HubDataset, PublishedSplit, read_published_rows

ROWS = [{"question": "1 + 1?", "answer": "#### 2"}, {"question": "Line\u2028separator?", "answer": "#### 3"}]
JSONL = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
NOWHERE = HubDataset("nobody/nothing")


def read(path: Path, published: PublishedSplit = "test") -> list[dict[str, object]]:
    return [row.fields for row in read_published_rows(NOWHERE, published, path)]


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", JSONL),
        ("rows.jsonl", "\ufeff" + JSONL.replace("\n", "\r\n")),
        ("rows.jsonl", JSONL.replace("\n", "\n\n").strip()),
        ("rows.json", JSONL),
        ("rows.json", json.dumps(ROWS, indent=2)),
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read(tmp_path / name) == ROWS


def test_parquet_and_folders(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-00000-of-00002.parquet", ROWS[:1])
    write_parquet(tmp_path / "test-00001-of-00002.parquet", ROWS[1:])
    assert read(tmp_path) == ROWS
    assert read(tmp_path / "test-00001-of-00002.parquet") == ROWS[1:]
    (tmp_path / "train.jsonl").write_text(JSONL)
    assert read(tmp_path, "train") == ROWS


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + JSONL)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    assert [row.where for row in read_published_rows(NOWHERE, "test", tmp_path / "a.jsonl")] == [
        f"{tmp_path}/a.jsonl:{n}" for n in (2, 3)
    ]
    assert [row.where for row in read_published_rows(NOWHERE, "test", tmp_path / "a.json")] == [
        f"{tmp_path}/a.json: row {n}" for n in (1, 2)
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "1?"}\n{"question": \n', r"a\.jsonl:2: not JSON: Expecting value \(column 14\)"),
        ("a.jsonl", b'{"question": "1?"}\n{"question": "\xff"}\n', r"a\.jsonl:2: not UTF-8"),
        ("a.jsonl", b'{"question": "1?"}\n["1?"]\n', r"a\.jsonl:2: must be a JSON object with named fields, not list"),
        ("a.jsonl", b"\n \n", r"a\.jsonl: contains no rows"),
        ("a.jsonl", b'{"level": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: cannot be read as JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: cannot be read as JSON"),
        ("a.json", b"[]", r"a\.json: contains no rows"),
        ("a.json", b'[{"question": "1?"},\n {"question": }]', r"a\.json:2: not JSON"),
        ("a.json", b"[\n\n\xff]", r"a\.json:3: not UTF-8"),
        ("a.json", b'[{"question": "1?"}, 7]', r"a\.json: row 2: must be a JSON object with named fields, not int"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet: not a Parquet file"),
        ("a.csv", b"question,answer\n", r"a\.csv: a file must end in \.jsonl, \.json, \.parquet"),
        (
            "train.jsonl",
            JSONL.encode(),
            r"train\.jsonl: has the name of the published split train, .* published split test",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_missing_file_and_a_folder_without_the_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nope: no such file or folder"):
        read(tmp_path / "nope")
    with pytest.raises(DataError, match=r"no test\.jsonl, \.json or \.parquet in this folder; it contains nothing"):
        read(tmp_path)
    (tmp_path / "readme.md").touch()
    with pytest.raises(DataError, match=r"it contains readme\.md"):
        read(tmp_path)


def test_the_hub_is_read_through_datasets_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text(JSONL)
    rows = list(read_published_rows(HubDataset(str(tmp_path / "set")), "test", None))
    assert [row.fields for row in rows] == ROWS
    assert rows[1].where.endswith("set/test:2")
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_a_hub_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read from the hub: .*; give task\.path"):
        list(read_published_rows(HubDataset(str(tmp_path / "nothing here")), "test", None))


def test_without_datasets_the_hub_asks_for_the_extra_and_a_file_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError, match=r"nobody/nothing from the hub needs datasets, which is not .*\[local\]'; or give task\.path"
    ):
        list(read_published_rows(NOWHERE, "test", None))
    (tmp_path / "test.jsonl").write_text(JSONL)
    assert read(tmp_path) == ROWS
