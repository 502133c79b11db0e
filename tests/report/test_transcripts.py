"""Transcripts beside the page: every cell is found again by the address that the page computes, and text stays text."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from permix.metrics.sequential import Round
from permix.report.html import transcripts
from permix.report.html.transcripts import Tiling, choose_tiling, write_tile, write_transcripts
from permix.report.html.values import unique_display_names
from permix.report.runs import collect_models
from permix.types import Cell, Completion, Failure, Message, Verdict
from tests.report.test_build import fidelity_run, stability_run, strong, weak, write_run

HOSTILE = "</script><script>alert(1)</script> \x1b[31m \u202e\u200b ]]> \u2028 \"'&"
CONFIG: dict[str, Any] = {"stage": "stability", "label": "m", "model": {"name": "tiny"}, "seed": 3, "resamples": 100}


def unpack(packed: str) -> bytes:
    return gzip.decompress(base64.b64decode(packed))


def tile(out: Path, name: str) -> dict[str, Any]:
    """What the page's script of this name hands over."""
    found = re.fullmatch(
        r'permix\.cells\("([a-z0-9-]+)","([A-Za-z0-9+/=]+)"\);\n', (out / "cells" / f"{name}.js").read_text("ascii")
    )
    assert found
    assert found[1] == name
    return dict(json.loads(unpack(found[2])))


def cells_at(out: Path, sheet: dict[str, Any], row: int, column: int) -> list[dict[str, Any]]:
    """As `permix.cellsAt` of cells.js does."""
    rows, columns = sheet["tile"]
    held = tile(out, f"{sheet['key']}-{row // rows}-{column // columns}")
    assert held["stamp"] == sheet["stamp"]
    questions = json.loads(unpack(sheet["questions"]))
    asked = questions[row] if isinstance(questions[0], list) else questions
    return [
        cell | {"messages": [[role, held["texts"][at]] for role, at in cell["messages"]]}
        for cell in held["cells"]
        if (cell["persona"], cell["question"]) == (sheet["personas"][row], asked[column])
    ]


def answered(persona: str | None, question: str, text: str, correct: bool | None = True, **fields: Any) -> Cell:
    system = [] if persona is None else [Message(role="system", content=f"You are {persona}.")]
    values: dict[str, Any] = {
        "persona_id": persona,
        "question_id": question,
        "seed": 1,
        "gold": "4",
        "messages": (*system, Message(role="user", content=f"What is {question}?")),
        "completion": Completion(text=text, prompt_tokens=9, completion_tokens=2, finish="stop"),
        "verdict": Verdict(correct=correct, extracted=text, error=None if correct is not None else "timed out"),
    }
    return Cell(**values | fields)


def written(folder: Path, *cells: Cell, asked: dict[str, Any] | None = None, **config: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of the report on a run of these cells, and what its page carries."""
    run = write_run(folder / "run", CONFIG | config, (), {"default_system": "Be kind."})
    lines = "".join(one.model_dump_json() + "\n" for one in cells)
    (run / "records.jsonl").write_text(lines)
    if asked is not None:
        (run / "grid.json").write_text(json.dumps(asked))
    return folder / "out", write_transcripts(collect_models([run]), folder / "out")


@pytest.mark.parametrize("most", [1, 3000, 10**9])
def test_every_cell_is_found_by_its_address_whatever_the_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(transcripts, "choose_tiling", lambda bytes_R_C: choose_tiling(bytes_R_C, most))
    cells = [answered(p, f"q{q}", f"{p} {q}", q % 2 == 0) for p in (None, "a", "b", "c") for q in range(7)]
    out, data = written(tmp_path, *cells)
    (sheet,) = data["sheets"]
    assert sheet["personas"] == [None, "a", "b", "c"]
    files = len(list((out / "cells").iterdir()))
    assert files == {1: 28, 10**9: 1}.get(most, files)
    assert 1 < files < 28 or most != 3000
    for row, persona in enumerate(sheet["personas"]):
        for column in range(7):
            (found,) = cells_at(out, sheet, row, column)
            assert found["text"] == f"{persona} {column}"
            assert found["correct"] == (column % 2 == 0)
            assert found["messages"][-1] == ["user", f"What is q{column}?"]


def test_a_tile_is_halved_until_the_fullest_fits() -> None:
    even = np.full((4, 8), 10)
    assert choose_tiling(even, 320) == Tiling(4, 8)
    assert choose_tiling(even, 319) == Tiling(4, 4)
    assert choose_tiling(even, 80) == Tiling(2, 4)
    uneven = even.copy()
    uneven[3, 7] = 200
    assert choose_tiling(uneven, 80) == Tiling(1, 1)  # a place is never cut
    assert choose_tiling(np.zeros((0, 0), dtype=int), 5) == Tiling(1, 1)


def test_a_grid_tells_means_from_no_score_and_from_not_asked(tmp_path: Path) -> None:
    cells = [
        answered("a", "q0", "x", True), answered("a", "q0", "x", False, sample=1),
        answered("a", "q1", "x", None), answered("a", "q1", "x", True, sample=1),
        answered("b", "q0", "x", False), answered("b", "q0", "x", False, sample=1),
        answered(None, "q0", "x", None), answered(None, "q1", "x", True),
    ]  # fmt: skip
    first, then = Round(until=1, personas=("a", "b")), Round(until=2, personas=("a",))
    asked = {
        "persona_ids": ["a", "b"],
        "question_ids": ["q0", "q1"],
        "samples": 2,
        "rounds": [first.model_dump(), then.model_dump()],
    }
    _, data = written(tmp_path, *cells, asked=asked, samples=2)
    grid = data["grids"]["m"]
    assert list(unpack(grid["mean"])) == [120, 240, 0, 254]
    assert list(unpack(grid["baseline"])) == [255, 240]
    assert grid["opening"] == 1


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 6, 8, 10, 12, 15])
def test_a_mean_of_a_few_samples_is_exact(samples: int) -> None:
    mean = np.arange(samples + 1) / samples
    assert (transcripts._means_to_bytes(mean) / transcripts.FULL_SCORE_BYTE).tolist() == mean.tolist()


def test_samples_templates_failures_and_missing_cells(tmp_path: Path) -> None:
    lost = Failure(type="TimeoutError", message="too slow")
    cells = [
        answered("a", "q0", "one", template="t1"), answered("a", "q0", "two", template="t1", sample=1),
        answered("a", "q0", "three", template="t2"), answered(None, "q0", "four"),
        answered("a", "q1", "", None, template="t1", completion=None, verdict=None, failure=lost),
    ]  # fmt: skip
    asked = {
        "persona_ids": ["a"],
        "question_ids": ["q0", "q1"],
        "samples": 2,
        "templates": {"t1": "You are {persona}.", "t2": "Be {persona}."},
    }
    out, data = written(tmp_path, *cells, asked=asked, samples=2, templates=["you_are", "Be {persona}."])
    (sheet,) = data["sheets"]
    found = cells_at(out, sheet, 1, 0)
    assert [(one["template"], one["sample"], one["text"]) for one in found] == [
        ("t1", 0, "one"),
        ("t1", 1, "two"),
        ("t2", 0, "three"),
    ]
    (failed,) = cells_at(out, sheet, 1, 1)
    assert failed["failure"] == ["TimeoutError", "too slow"]
    assert not {"text", "correct", "judged"} & failed.keys()
    (plain,) = cells_at(out, sheet, 0, 0)
    assert "template" not in plain
    assert cells_at(out, sheet, 0, 1) == []
    assert sheet["templates"]["t2"] == "Be {persona}."
    assert sheet["without_system"].endswith("“Be kind.”")


def test_hostile_text_is_visible_text_in_a_file_that_holds_none_of_it(tmp_path: Path) -> None:
    cell = answered("a", "q0", HOSTILE, None, gold=HOSTILE, messages=(Message(role="user", content=HOSTILE),))
    verdict = Verdict(correct=None, extracted=HOSTILE, error=HOSTILE)
    named = cell.model_copy(update={"persona_id": HOSTILE, "question_id": HOSTILE, "verdict": verdict})
    out, data = written(tmp_path, named, label=HOSTILE)
    (found,) = cells_at(out, data["sheets"][0], 1, 0)
    shown = "</script><script>alert(1)</script> \\x1b[31m \\u202e\\u200b ]]> \\u2028 \"'&"
    for name in ("persona", "question", "text", "gold", "extracted", "error"):
        assert found[name] == shown
    assert found["messages"] == [["user", shown]]
    assert "correct" not in found
    assert found["judged"] is True
    assert list(data["grids"]) == [shown] == [data["sheets"][0]["label"]]


def test_models_are_called_as_everywhere_on_the_page(tmp_path: Path) -> None:
    labels = ["x" * 100 + "1", "x" * 100 + "2", "a\x1b", "a\\x1b"]
    models = collect_models([stability_run(tmp_path / str(n), label, weak) for n, label in enumerate(labels)])
    data = write_transcripts(models, tmp_path / "out")
    called = list(unique_display_names(model.label for model in models).values())
    assert called == ["x" * 79 + "…", "x" * 73 + "… (2)", "a\\x1b", "a\\x1b (2)"]
    assert [sheet["label"] for sheet in data["sheets"]] == list(data["grids"]) == called
    assert [grid["sheet"] for grid in data["grids"].values()] == [0, 1, 2, 3]


def test_a_lone_surrogate_cannot_break_a_file(tmp_path: Path) -> None:
    told = transcripts._cell_json(answered("a\ud800", "q\udfff", "x\ud800"), {})
    assert (told["persona"], told["question"], told["text"]) == ("a\\ud800", "q\\udfff", "x\\ud800")
    assert write_tile(tmp_path, "open-0-0-0", told) > 0


def test_a_very_long_text_says_how_much_was_cut(tmp_path: Path) -> None:
    out, data = written(tmp_path, answered("a", "q0", "é" * 1_000_000), answered("a", "q1", "y" * 20_000))
    (long,) = cells_at(out, data["sheets"][0], 1, 0)
    assert long["text"] == ["é" * 20_000, 980_000]
    (whole,) = cells_at(out, data["sheets"][0], 1, 1)
    assert whole["text"] == "y" * 20_000
    assert data["sheets"][0]["records"] == str(tmp_path / "run" / "records.jsonl")


def test_the_same_records_give_the_same_bytes_and_what_is_stale_goes(tmp_path: Path) -> None:
    models = collect_models([stability_run(tmp_path / "s", "m", weak), fidelity_run(tmp_path / "f", "m")])
    first = write_transcripts(models, tmp_path / "one")
    kept = tmp_path / "two" / "cells"
    kept.mkdir(parents=True)
    (kept / "stability-9-0-0.js").write_text("of an earlier report")
    (kept / "notes.js").write_text("mine")
    assert write_transcripts(models, tmp_path / "two") == first
    ours = {path.name: path.read_bytes() for path in (tmp_path / "one" / "cells").iterdir()}
    assert set(ours) == {"stability-0-0-0.js", "open-0-0-0.js"}
    assert {path.name for path in kept.iterdir()} == {*ours, "notes.js"}
    assert all((kept / name).read_bytes() == held for name, held in ours.items())


def test_other_records_have_another_stamp(tmp_path: Path) -> None:
    one = collect_models([stability_run(tmp_path / "s", "m", weak)])
    two = collect_models([stability_run(tmp_path / "t", "m", strong)])
    stamps = [write_transcripts(models, tmp_path / "out")["sheets"][0]["stamp"] for models in (one, two)]
    assert stamps[0] != stamps[1]


def test_each_persona_may_have_questions_of_its_own(tmp_path: Path) -> None:
    own = (("a", "q1"), ("a", "q2"), ("b", "q3"))
    cells = [answered(p, q, q, gold=None, verdict=None) for p, q in (*own, (None, "q3"))]
    asked = {
        "persona_ids": ["a", "b"], "question_ids": ["q1", "q2", "q3"], "samples": 1, "asked_without_persona": ["q3"],
        "persona_texts": {"a": "a", "b": "b"},
        "questions_asked": [{"id": q, "text": q, "task": "Expected Action", "persona_id": p} for p, q in own],
    }  # fmt: skip
    out, data = written(tmp_path, *cells, asked=asked, stage="fidelity", folds=2, personagym={"path": "x"})
    (sheet,) = data["sheets"]
    assert (sheet["kind"], sheet["personas"]) == ("gym", [None, "a", "b"])
    assert json.loads(unpack(sheet["questions"])) == [["q3"], ["q1", "q2"], ["q3"]]
    (found,) = cells_at(out, sheet, 2, 0)
    assert (found["text"], "judged" in found) == ("q3", False)
    assert data["grids"] == {}


def test_no_transcript_stays_in_memory(tmp_path: Path) -> None:
    models = collect_models([stability_run(tmp_path / "s", "m", weak)])
    records: Any = models[0].runs["stability"].cells
    records._parsed.clear()
    write_transcripts(models, tmp_path / "out")
    assert records._parsed == {}


def test_a_stamp_is_made_once_for_all_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def digest(*parts: str) -> str:
        made.append(parts)
        return "stamp"

    monkeypatch.setattr(transcripts, "choose_tiling", lambda bytes_R_C: Tiling(1, 1))
    monkeypatch.setattr(transcripts, "digest", digest)
    out, data = written(tmp_path, *(answered(p, f"q{q}", "x") for p in (None, "a") for q in range(3)))
    assert len(list((out / "cells").iterdir())) == 6
    assert tile(out, "stability-0-1-2")["stamp"] == data["sheets"][0]["stamp"] == "stamp"
    assert len(made) == 1
