"""Records read: in brief at once, whole when asked for, and never wrong about which line is a cell's."""

import json
from pathlib import Path

import pytest

from permix.config import StabilityConfig
from permix.errors import DataError
from permix.storage.cells import cell_summaries
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Failure
from tests.cell_files import read_cells
from tests.sample_runs import answered, cell


def write(path: Path, *cells: Cell) -> Path:
    with RunDir.open(path, StabilityConfig(), {"model": "x"}) as run:
        run.append(cells)
    return path / "records.jsonl"


def test_a_brief_says_what_the_cell_says(tmp_path: Path) -> None:
    failed = cell("q4", failure=Failure(type="TimeoutError", message="too slow"))
    cells = [answered("q1"), answered("q2", correct=False), answered("q3", correct=None), failed]
    found = read_cells(write(tmp_path, *cells))
    written = [None if one.completion is None else one.completion.completion_tokens for one in cells]
    assert [one.reward for one in found.summaries.values()] == [1.0, 0.0, None, None]
    assert [one.has_completion for one in found.summaries.values()] == [True, True, True, False]
    assert [one.completion_tokens for one in found.summaries.values()] == written
    assert list(found.values()) == cells
    of_memory = cell_summaries({one.key: one for one in cells})
    assert [one[:4] for one in of_memory.values()] == [one[:4] for one in found.summaries.values()]


def test_words_are_the_messages(tmp_path: Path) -> None:
    one, same, other = answered("q1"), answered("q2"), answered("q3")
    same = same.model_copy(update={"messages": one.messages, "seed": 7})
    first, second, third = read_cells(write(tmp_path, one, same, other)).summaries.values()
    assert first.messages_hash == second.messages_hash != third.messages_hash


def test_the_last_record_of_a_cell_counts_and_stands_where_it_first_stood(tmp_path: Path) -> None:
    path = write(tmp_path, answered("q1", "é no", False), answered("q2"), answered("q1", "yes"))
    found = read_cells(path)
    assert [key.question_id for key in found] == ["q1", "q2"]
    assert found[CellKey(None, "q1", 0)].completion.text == "yes"  # type: ignore[union-attr]
    assert found.summaries[CellKey(None, "q1", 0)].reward == 1


def test_what_was_read_stays_while_the_file_grows(tmp_path: Path) -> None:
    path = write(tmp_path, answered("q1"))
    found = read_cells(path)
    write(tmp_path, answered("q1", "later"), answered("q2"))
    assert len(found) == 1
    assert list(found.values()) == [answered("q1")]


def test_a_cell_is_parsed_only_when_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, answered("q1"), answered("q2"))
    found = read_cells(path)
    path.unlink()
    assert len(found) == 2
    assert CellKey(None, "q1", 0) in found
    assert CellKey(None, "q3", 0) not in found
    with pytest.raises(FileNotFoundError):
        found[CellKey(None, "q1", 0)]


def test_a_line_that_only_looks_like_a_cell_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, answered("q1"), answered("q2"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | {"colour": "red"})]) + "\n")
    found = read_cells(path)
    assert found[CellKey(None, "q1", 0)] == answered("q1")
    with pytest.raises(DataError, match=r"records\.jsonl:2: not a cell record: Extra inputs"):
        found[CellKey(None, "q2", 0)]


@pytest.mark.parametrize("line", ["[]", "{}", '{"persona_id": 3}', "x"])
def test_a_line_that_is_no_cell_is_named_at_once(line: str, tmp_path: Path) -> None:
    path = write(tmp_path, answered("q1"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"records\.jsonl:2: not a cell record: "):
        read_cells(path)
