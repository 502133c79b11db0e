"""The page of a study's completions, from three small runs of four parts."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.study_completions import PARTS, choose_personas, page_lines, read_answers

PERSONAS = ("cook", "judge", "sailor")


def write_part(folder: Path, context: str, personas: Sequence[str | None], *, is_open: bool) -> None:
    folder.mkdir(parents=True)
    lines = []
    for persona in (*personas, None):
        system = [{"role": "system", "content": f"You are a {persona}."}] if persona else []
        for number in range(4):
            cell = {
                "persona_id": persona, "question_id": f"q{number}", "seed": 1,
                "messages": [*system, {"role": "user", "content": f"What is {number} + 1? Answer with a number only.\n\nStay."}],
                "completion": {
                    "text": f"{number} | {persona}", "prompt_tokens": 1, "completion_tokens": 1,
                    "finish": "length" if is_open else "stop",
                },
            }  # fmt: skip
            if context:
                cell["context"] = context
            if not is_open:
                cell |= {"gold": "1", "verdict": {"correct": number == 0, "extracted": str(number)}}
            lines.append(json.dumps(cell))
    (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for unit in ("base", "rlvr-1"):
        for part in PARTS:
            missing = 1 if (unit, part.evaluation) == ("rlvr-1", "voice") else 0
            write_part(
                tmp_path / unit / part.evaluation, part.context, PERSONAS[missing:], is_open=part.evaluation == "character"
            )
    return tmp_path


def test_each_persona_has_a_table_for_each_part_with_a_row_for_each_model(study: Path) -> None:
    lines = list(page_lines(study, ["base", "rlvr-1"], 2, seed=0))
    assert [line for line in lines if line.startswith("## ")] == ["## judge", "## sailor"]  # the cook lacks answers of one model
    assert "You are a judge." in lines
    assert sum(line.startswith("| base |") for line in lines) == 2 * len(PARTS)
    assert sum(line.startswith("| rlvr-1 |") for line in lines) == 2 * len(PARTS)
    assert all("None" not in line for line in lines)  # answers without a persona are not shown
    header = next(line for line in lines if line.startswith("| | What"))
    assert "Answer with a number only" not in header
    assert "Stay" not in header
    assert lines == list(page_lines(study, ["base", "rlvr-1"], 2, seed=0))


def test_an_answer_has_its_verdict_or_the_mark_of_the_limit(study: Path) -> None:
    rows = [line for line in page_lines(study, ["base", "rlvr-1"], 2, seed=0) if line.startswith("| base |")]
    sums, turns, voice, questions = rows[:4]
    assert all("(right)" in row or "(wrong)" in row for row in (sums, turns, voice))
    assert "0 &#124; judge (right)" in "".join(rows)  # question 0 alone is right; "|" does not part cells
    assert questions.count(" …") == 2
    assert "right" not in questions


def test_too_few_common_personas_are_an_error(study: Path) -> None:
    answers = [read_answers(study, ["base", "rlvr-1"], part) for part in PARTS]
    with pytest.raises(SystemExit, match="--personas = 3: all parts and models have 2 personas in common"):
        choose_personas(answers, 3, seed=0)
