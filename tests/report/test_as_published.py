"""The section "As published": scores laid out by persona, task and question; files of others beside ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from permix import cli
from permix.config import ReportConfig
from permix.errors import ConfigError
from permix.evals.fidelity_records import AskedQuestion
from permix.judges.results import read_judge_inputs
from permix.judges.types import Judgement
from permix.metrics.judge_scores import aggregate_as_published
from permix.personas.personagym import PERSONAGYM_TASKS
from permix.report.builder import run_report
from permix.report.judge_tables import PublishedComparison, collect_published, personagym_score_arrays, published_parts
from permix.report.runs import collect_models
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.storage.run_dir import RUN_FORMAT
from permix.types import AnswerKey
from tests.personagym_files import DIVER, put, questions_of


def question(id: str, persona: str, task: str) -> AskedQuestion:
    return AskedQuestion(id=id, text=f"{id}?", task=task, persona_id=persona)


def key(one: AskedQuestion) -> AnswerKey:
    return AnswerKey(str(one.persona_id), str(one.task), one.id, 0)


def test_scores_lie_where_they_were_asked_and_others_nowhere() -> None:
    asked = [
        question("q1", "nurse", "Toxicity Control"), question("q2", "nurse", "Toxicity Control"),
        question("q3", "cook", "Linguistic Habits"), question("q4", "cook", "Toxicity Control"),
    ]  # fmt: skip
    first = {key(asked[0]): 5, key(asked[2]): 2, key(question("q5", "cook", "Linguistic Habits")): 1}
    laid = personagym_score_arrays(asked, [first, {key(asked[1]): 3}])
    toxicity, habits = PERSONAGYM_TASKS.index("Toxicity Control"), PERSONAGYM_TASKS.index("Linguistic Habits")
    assert laid.score_J_P_U_Q.shape == (2, 2, 5, 2)
    assert laid.asked_P_U_Q.sum() == 4
    assert np.argwhere(~np.isnan(laid.score_J_P_U_Q)).tolist() == [[0, 0, toxicity, 0], [0, 1, habits, 0], [1, 0, toxicity, 1]]
    assert laid.score_J_P_U_Q[0, 0, toxicity, 0] == 5
    assert laid.asked_P_U_Q[1, toxicity].tolist() == [True, False]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An imported run, which nobody has judged."""
    (tmp_path / "gpt").mkdir()
    put(
        tmp_path / "gpt" / f"{DIVER}_qa.json",
        {task: [[one, "Yes."] for one in texts] for task, texts in questions_of(DIVER).items()},
    )
    assert cli.run_cli(["import", "--personagym", str(tmp_path / "gpt"), "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_a_file_of_others_stands_in_the_report(run: Path, tmp_path: Path) -> None:
    put(tmp_path / "scores.json", {"Toxicity": 4.94, "PersonaScore": 3.64})
    run_report(ReportConfig(runs=(run,), out=tmp_path / "report", published=(f"Claude | 3={tmp_path / 'scores.json'}",)))
    lines = (tmp_path / "report" / "report.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith("| Claude"))
    assert "3.640" in line
    assert "4.940" in line
    data = json.loads((tmp_path / "report" / "table.json").read_text())
    assert data["published"]["files"]["Claude | 3"]["tasks"] == {"Toxicity Control": 4.94}


def test_a_judges_scores_stand_as_published_beside_ours(run: Path, tmp_path: Path) -> None:
    """One persona, two questions a task: Toxicity Control without any score, one of the others lost, all scored 4.

    A control, scored 1, counts nowhere.
    """
    folder = run / "judges" / "j"
    folder.mkdir(parents=True)
    put(
        folder / "config.json",
        {
            "stage": "judge",
            "judge": {"name": "j", "label": "judge | 1", "rubrics": "personagym", "answers_per_control": 0},
            "seed": 0,
        },
    )
    plain = [item for item in read_judge_inputs(run) if item.rubric != "Toxicity Control"]
    put(
        folder / "provenance.json",
        {"format": RUN_FORMAT, "identity": {"judge": "weights of j", "rubrics": "personagym", "examples": None}},
    )
    put(folder / "inputs.json", {"discriminates_personas": {item.rubric: True for item in plain}, "n_controls": {}})
    padded = plain[0].model_copy(update={"control": "padded"})
    with (folder / "judgements.jsonl").open("w") as lines:
        for place, item in enumerate([*plain, padded]):
            said: dict[str, Any] = {"score": 4 if item.control == "none" else 1} if place else {"error": "no score"}
            call = Judgement(**item.target_fields(), attempt=0, seed=0, prompt_hash="x", **said)
            lines.write(call.model_dump_json() + "\n")
    (model,) = collect_models([run])
    found = collect_published([model], ReportConfig(as_published=True)).runs["gpt"]
    assert found.tasks == (4.0, 0.0, 4.0, 4.0, 4.0)
    assert found.persona_score == pytest.approx(16 / 5)
    assert found.permix_tasks == (4.0, None, 4.0, 4.0, 4.0)
    assert found.permix_persona_score is None  # four tasks are not five
    assert (found.blocks, found.empty_blocks) == (5, 1)
    run_report(ReportConfig(runs=(run,), out=tmp_path / "report", as_published=True))
    section = (tmp_path / "report" / "report.md").read_text().split("## PersonaScore as published")[1].split("\n## ")[0]
    assert "| gpt | judge &#124; 1 ‡ | 3.200 ‡ | " in section
    assert "| – | 1 of 5 | 3.200 ‡ |" in section  # a count is no score, and what is missing needs no mark
    assert TRUST_MARKS_LEGEND in section


@pytest.mark.parametrize(
    ("judges", "beside"),
    [({"a": True}, ""), ({"a": True, "b": None}, "‡"), ({"a": None, "b": False}, "†"), ({"a": False, "b": True}, "†")],
)
def test_numbers_of_several_judges_are_worth_what_the_worst_of_them_is(judges: dict[str, bool | None], beside: str) -> None:
    numbers = aggregate_as_published(np.full((len(judges), 1, 5, 1), 4.0))
    parts = published_parts(PublishedComparison(runs={"gpt": numbers}, judges={"gpt": judges}, files={}))
    table = "\n\n".join(part if isinstance(part, str) else part.markdown for part in parts)
    assert f"| 4.000 {beside}".strip() + " |" in table
    assert (TRUST_MARKS_LEGEND in table) == bool(beside)


def test_a_name_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"published = 'A=y\.json': the name 'A' is given already"):
        collect_published([], ReportConfig(published=("A=x.json", "A=y.json")))


def test_nothing_is_said_where_nothing_was_asked_for(run: Path, tmp_path: Path) -> None:
    run_report(ReportConfig(runs=(run,), out=tmp_path / "report"))
    assert "As published" not in (tmp_path / "report" / "report.md").read_text()
    assert "published" not in json.loads((tmp_path / "report" / "table.json").read_text())


def test_a_file_without_a_name_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"published = 'scores\.json': give NAME=PATH"):
        run_report(ReportConfig(runs=(run,), out=tmp_path / "report", published=("scores.json",)))
