"""`permix questions` through batch files: situations, questions and examples are three rounds of batches."""

import json
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import QuestionsConfig, build_config
from permix.inference.scripted import ScriptedModel
from permix.question_writer.generator import build_writing_job, run_writing_job
from permix.types import Cell, Message, Request
from tests.batch_runner import completed, requests_in, run_batch
from tests.cell_files import read_cells
from tests.question_writer.test_writing import author
from tests.sample_runs import write_pool


def test_each_part_is_a_batch_and_equal_to_a_run_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {
        "personas": {"pool": str(write_pool(tmp_path / "pool.toml", "clerk", "sailor"))}, "tasks": ["Expected Action"], "n": 2,
    }  # fmt: skip
    config = build_config(QuestionsConfig, values | {"out": str(tmp_path / "direct")}, source="test")
    run_writing_job(ScriptedModel(author), config, build_writing_job(config))

    pool, run = values["personas"]["pool"], tmp_path / "run"
    options = ["--personas.pool", pool, "--tasks", "Expected Action", "--n", "2", "--out", str(run), "--model.name", "served"]

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        messages = tuple(Message(role=one["role"], content=one["content"]) for one in body["messages"])
        return completed(str(author(Request(messages, body["seed"], body["response_format"]["json_schema"]["schema"]))))

    batches = 0
    assert cli.run_cli(["questions", *options, "--batch-out", str(tmp_path / "0")]) == 0
    while (folder := tmp_path / str(batches)).exists():
        run_batch(folder, answer)
        batches += 1
        following = ["--batch-out", str(tmp_path / str(batches))]
        assert cli.run_cli(["questions", *options, "--batch-in", str(folder), *following]) == 0
    assert batches == 2  # situations, questions
    assert "nothing was written, since nothing is pending" in capsys.readouterr().err
    assert cells(run) == cells(tmp_path / "direct")
    assert (run / "questions.jsonl").read_text() == (tmp_path / "direct" / "questions.jsonl").read_text()
    assert len((run / "questions.jsonl").read_text().splitlines()) == 4
    assert all(json.dumps(one["body"]["temperature"]) == "0.9" for one in requests_in(tmp_path / "0"))


def cells(run: Path) -> list[Cell]:
    """Without counts of tokens, which a scripted model makes up."""
    found = read_cells(run / "records.jsonl")
    unknown = {"prompt_tokens": None, "completion_tokens": None}
    return [
        cell.model_copy(update={"completion": cell.completion and cell.completion.model_copy(update=unknown)})
        for cell in map(found.__getitem__, sorted(found, key=str))
    ]
