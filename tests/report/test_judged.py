"""Fidelity by judges in the report: what is shown, what is marked, and what is said first."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permix.config import ReportConfig, fidelity_kind
from permix.judges import results
from permix.judges.types import JudgeInput
from permix.report import judges as report_judged
from permix.report.builder import build_report, run_report
from permix.report.claim import build_claim
from permix.report.judges import INTERVIEW_KIND, OPEN_ENDED_KIND, PERSONAGYM_KIND, RUN_KIND_OF_FIDELITY
from permix.report.methods import group_methods
from permix.report.runs import collect_models
from permix.types import Cell, Completion, Message, seed_from
from tests.verdicts import GYM as TASKS
from tests.verdicts import gym_items, read_items, write_items, write_judge

Score = Callable[[JudgeInput], int | None]


@pytest.fixture(autouse=True, scope="module")
def by_hand() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for module in (results, report_judged):
            patch.setattr(module, "read_judge_inputs", read_items)
        yield


def level(item: JudgeInput) -> int:
    return seed_from(item.question_id, item.sample) % 3


def keen(item: JudgeInput) -> int:
    """3 to 5 for the own persona, 1 to 3 for any other."""
    return level(item) + (3 if item.control not in ("wrong-persona", "no-persona") or item.rubric == TASKS[1] else 1)


def keener(item: JudgeInput) -> int:
    return min(5, keen(item) + 1)


def fives(_: JudgeInput) -> int:
    return 5


def judged_run(path: Path, label: str, judges: dict[str, Score], gym: bool = True, *, said: str = "", **settings: Any) -> Path:
    """`said`: what stands before each question, as what was said before does in an interview."""
    items = gym_items(8, TASKS if gym else ("In Character",), 3)
    write_items(path, items)
    config = {"stage": "fidelity", "label": label, "model": {"name": "tiny"}, "seed": 3, "resamples": 100, "folds": 3}
    config |= {"personagym": {"path": "data/personagym", "hub": None}} if gym else {}
    (path / "config.json").write_text(json.dumps(config | settings))
    cells = [
        Cell(
            persona_id=item.answered_by, question_id=item.question_id, seed=1,
            messages=(
                Message(role="system", content=f"You are {item.persona}."), Message(role="user", content=f"{said}{item.question}")
            ),
            completion=Completion(text=item.answer, prompt_tokens=10, completion_tokens=5, finish="stop"),
        )
        for item in items if item.control == "none"
    ]  # fmt: skip
    (path / "records.jsonl").write_text("".join(cell.model_dump_json() + "\n" for cell in cells))
    for name, score in judges.items():
        write_judge(path, name, items, score, answers_per_control=40)
    return path


TALK, SCRIPT = {"turns": 3, "order": "balanced"}, {"name": "script"}


def interviewed(run: Path) -> Path:
    """The run with an grid.json by which each persona's questions were the turns of its interview."""
    items = [JudgeInput.model_validate_json(line) for line in (run / "items.jsonl").read_text().splitlines()]
    turns: dict[str, list[str]] = {item.persona_id: [] for item in items}
    for item in items:
        if item.control == "none":
            turns[item.persona_id].append(item.question_id)
    asked = {
        "persona_ids": list(turns), "question_ids": [one for own in turns.values() for one in own], "samples": 1,
        "persona_texts": {item.persona_id: item.persona for item in items}, "turns_asked": turns,
    }  # fmt: skip
    (run / "grid.json").write_text(json.dumps(asked))
    return run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, by_hand: None) -> Path:
    """The report on two models, each judged by one that can tell and one that cannot."""
    folder = tmp_path_factory.mktemp("judged")
    judged_run(folder / "base", "base", {"qwen": keen, "lazy": fives})
    judged_run(folder / "trained", "trained", {"qwen": keener, "lazy": fives})
    build_report([folder / "base", folder / "trained"], folder / "out")
    return folder / "out"


def judge_lines(report: Path) -> list[str]:
    """The sentences with numbers on judges."""
    return [line for line in (report / "report.md").read_text().splitlines() if re.match(r"- \*\*\w+\*\*, judge ", line)]


def test_a_sentence_on_each_judge_says_whether_it_tells_personas_apart(built: Path) -> None:
    lines = judge_lines(built)
    assert [line.partition(":")[0] for line in lines] == [
        f"- **{model}**, judge {judge}" for model in ("base", "trained") for judge in ("lazy", "qwen")
    ]
    assert all("it does not distinguish personas (AUC 0.500 [0.50, 0.50])" in line for line in lines if "judge lazy" in line)
    assert all("it distinguishes personas (AUC " in line for line in lines if "judge qwen" in line)
    report = (built / "report.md").read_text()
    assert "## Differences" not in report  # nothing but judges' scores was compared


def test_a_number_that_means_nothing_is_shown_and_marked_everywhere(built: Path) -> None:
    report = (built / "report.md").read_text()
    lines = [line for line in report.splitlines() if line.startswith("| lazy |")]
    assert len(lines) == 6  # PersonaScore and five tasks
    assert all(line.count("5.000 [5.00, 5.00] †") == 2 for line in lines)
    main = next(line for line in report.splitlines() if line.startswith("| base | "))
    assert "| 5.000 [5.00, 5.00] † |" in main
    heading = next(line for line in report.splitlines() if line.startswith("| model | "))
    assert (
        "PersonaScore, judge lazy<br><sub>n = 8 personas, 120 of 120 scored, means nothing&#58; judge not trusted</sub>"
        in heading
    )
    assert "| trained against base | lazy | +0.000 [+0.00, +0.00] †" in report
    assert not any("†" in line for line in report.splitlines() if line.startswith("| qwen |"))


def test_the_numbers_come_from_the_ledger(built: Path) -> None:
    data = json.loads((built / "table.json").read_text())
    found = data["judged"]["base"][PERSONAGYM_KIND]["judges"]["qwen"]
    items = [item for item in gym_items(8, TASKS, 3) if item.control == "none"]
    expected = sum(map(keen, items)) / len(items)
    assert found["persona_score"]["value"] == pytest.approx(expected)
    assert (found["n_scored"], found["n_asked"], found["discriminates_persona"]) == (120, 120, True)
    assert data["rows"][0]["judged"][1]["persona_score"] == found["persona_score"]
    change = next(one for one in data["comparisons"][0]["judged"] if one["scores"]["judge"] == "qwen")
    gained = sum(keener(item) - keen(item) for item in items) / len(items)
    assert change["scores"]["persona_score"]["value"] == pytest.approx(gained)
    assert change["scores"]["p"] < 0.05
    assert data["judged"]["base"][PERSONAGYM_KIND]["agreement"]["pairs"][0]["n_answers"] == 120


def test_figures_are_drawn_and_named(built: Path) -> None:
    for name in ("judged-personagym.png", "trial-personagym.png"):
        assert f"]({name})" in (built / "report.md").read_text()
        assert (built / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_without_judges_says_nothing_of_them(tmp_path: Path) -> None:
    judged_run(tmp_path / "run", "base", {})
    build_report([tmp_path / "run"], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Fidelity by judges" not in report
    assert "no difference shown" not in report
    assert json.loads((tmp_path / "out" / "table.json").read_text())["identifiability"] == {}


def test_one_model_alone_and_its_table_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged_run(tmp_path / "run", "base", {"qwen": keen})
    run_report(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "out"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "PersonaScore" in shown
    assert "120 of" in shown
    (line,) = judge_lines(tmp_path / "out")
    assert line.startswith("- **base**, judge qwen: PersonaScore 4.")
    assert "it distinguishes personas" in line


def test_another_judge_of_the_same_name_is_not_compared(tmp_path: Path) -> None:
    one = judged_run(tmp_path / "one", "base", {"qwen": keen})
    two = judged_run(tmp_path / "two", "trained", {"qwen": keener})
    path = two / "judges" / "qwen" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"judge": config["judge"] | {"temperature": 0.7}}))
    build_report([one, two], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert (
        "Not the same judge qwen (temperature = 0.0; temperature = 0.7): do not compare** trained with base in judges' scores"
        in report
    )
    assert "trained against base |" not in report


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    one = judged_run(tmp_path / "one", "base", {"qwen": keen})
    two = judged_run(tmp_path / "two", "trained", {"qwen": keener})
    lines = (two / "records.jsonl").read_text().splitlines(keepends=True)
    (two / "records.jsonl").write_text("".join(lines[:-1]))
    build_report([one, two], tmp_path / "out")
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    assert data["comparisons"][0]["judged"] == []
    assert any(reason.startswith("Not the same questions (") for reason in data["comparisons"][0]["judged_reasons"])


@pytest.mark.slow
def test_interviews_are_compared_although_each_model_said_its_own(tmp_path: Path) -> None:
    runs = [
        interviewed(judged_run(tmp_path / name, name, {"qwen": score}, gym=False, said=name, interview=TALK, interviewer=SCRIPT))
        for name, score in (("base", keen), ("trained", keener))
    ]
    gym = judged_run(tmp_path / "gym", "base", {"qwen": keen}, said="base")
    other_words = judged_run(tmp_path / "gym-trained", "trained", {"qwen": keen}, said="trained")
    build_report([*runs, gym, other_words], tmp_path / "out")
    found = json.loads((tmp_path / "out" / "table.json").read_text())["comparisons"][0]
    assert [one["kind"] for one in found["judged"]] == [INTERVIEW_KIND]
    assert found["judged_reasons"] == ["Not asked in the same words"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**trained is better than base in character.**" in report
    assert "### Interviews" in report
    assert "### PersonaGym's questions" in report


def test_a_judge_that_was_not_validated_differs_from_one_that_failed(tmp_path: Path) -> None:
    judged_run(tmp_path / "run", "base", {"qwen": lambda item: 4 if item.control == "none" else None})
    build_report([tmp_path / "run"], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    (line,) = judge_lines(tmp_path / "out")
    assert line.startswith("- **base**, judge qwen: PersonaScore 4.000 [4.00, 4.00] ‡")
    assert "it was not validated" in line
    assert "4.000 [4.00, 4.00] ‡" in report


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, OPEN_ENDED_KIND),
        ({"personagym": {"path": None, "hub": None}, "interview": {"turns": 0}}, OPEN_ENDED_KIND),
        ({"personagym": {"path": "data", "hub": None}}, PERSONAGYM_KIND),
        ({"personagym": {"path": None, "hub": "some/data"}, "interview": {"turns": 0}}, PERSONAGYM_KIND),
        ({"interview": {"turns": 4}}, INTERVIEW_KIND),
    ],
)
def test_kinds_of_fidelity_runs(config: dict[str, Any], kind: str) -> None:
    assert RUN_KIND_OF_FIDELITY[fidelity_kind(config)] == kind


def test_hostile_names_of_judges_are_text(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run", "base", {})
    write_judge(run, "b-x-1234", read_items(run), fives, label="<b>|x")
    build_report([run], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "<b>" not in report
    assert "| &#60;b&#62;&#124;x |" in report


def test_the_claim_says_what_a_trusted_judge_gave_and_leaves_out_another(tmp_path: Path) -> None:
    judged_run(tmp_path / "one", "one", {"fair": keen, "kind": fives})
    judged_run(tmp_path / "two", "two", {"fair": keener, "kind": fives})
    left_out = "cores of judge kind are left out, since it does not tell right from wrong persona"
    said, basis, cards = build_claim(group_methods(collect_models([tmp_path])))
    assert said == "two is better than one in character."
    assert basis.startswith("two against one: higher PersonaScore by judge fair (1 to 5, +")
    assert basis.endswith(f"). PersonaScore by judge fair: 8 personas, intervals over personas; s{left_out}.")
    assert [card.outcome for card in cards] == ["not measured", "better", "not measured"]
    assert cards[1].meaning == "1 to 5, by judge fair"
    assert cards[1].limits == (1.0, 5.0)
    said, basis, single = build_claim(group_methods(collect_models([tmp_path / "one"])))
    assert re.fullmatch(r"A trusted judge gives the personas of one \d\.\d+ of 5\.", said)
    assert basis.startswith("one: PersonaScore by judge fair ")
    assert basis.endswith(f" of 5. S{left_out}; judge fair: 8 personas, intervals over personas.")
    assert [card.outcome for card in single] == ["not measured", "scored by a trusted judge", "not measured"]
