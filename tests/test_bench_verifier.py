"""The figures of the verifier: no policy earns more than guessing, and labelled files are read and counted right."""

import json
from pathlib import Path

import pytest

from bench.reward_hacks import figures, formulas_of, most_questions, policies
from bench.verifier import Labelled, by_permix, figure, read
from permix.storage.files import write_jsonl
from permix.types import Question
from tests.seeded import PERSONAS, share, stability_run

MATH = [
    (r"What is the value of $\log_4 32$? Give a common fraction.", r"\frac{5}{2}"),
    (r"Simplify $\sqrt{180}$.", r"6\sqrt{5}"),
    (r"Factor $ab + 5b + 2a + 10$.", "(a+5)(b+2)"),
    (r"Compute $\dbinom{10}{3}$.", "120"),
    (r"Evaluate $\lfloor 3.7 \rfloor$.", "3"),
    (r"Write $0.\overline{3}$ as a common fraction.", r"\frac{1}{3}"),
    (r"What is $\sin 60^\circ$?", r"\frac{\sqrt{3}}{2}"),
    (r"Find $\sum_{k=1}^{100} k$.", "5050"),
    (r"Compute $\int_0^1 x^2 \, dx$.", r"\frac{1}{3}"),
    (r"What is $(3+4i)(1-2i)$?", "11-2i"),
    (r"Expand $(x+1)^2$.", "x^2+2x+1"),
    (r"What is $3!$?", "6"),
]


def questions() -> list[Question]:
    return [Question(id=f"q{place}", task="math", text=text, gold=gold) for place, (text, gold) in enumerate(MATH)]


def test_no_policy_earns_on_questions_that_state_their_answer_in_another_form() -> None:
    found = list(figures("math", "all", questions()))
    assert {one["policy"] for one in found} == set(policies())
    assert {one["earned"] for one in found} == {0}
    assert {one["n"] for one in found} == {len(MATH)}


def test_the_golds_themselves_and_usual_forms_of_them_are_right() -> None:
    forms = {
        "q0": ["2.5", r"\dfrac52"], "q1": [r"6√5", r"\sqrt5 \cdot 6"], "q2": ["(b+2)(a+5)"],
        "q6": [r"\frac12\sqrt3", r"\sqrt3/2"], "q9": ["-2i+11"], "q10": ["1 + 2x + x^2"],
    }  # fmt: skip
    cases = [
        Labelled("math", one.text, rf"\boxed{{{form}}}", one.gold, right=True)
        for one in questions()
        for form in (one.gold, *forms.get(one.id, []))
    ]
    assert [one for one, verdict in zip(cases, by_permix(cases), strict=True) if not verdict] == []


@pytest.mark.parametrize("level", ["add-1", "mul-1", "mul-2x1", "sub-1"])
def test_no_policy_earns_in_arithmetic(level: str) -> None:
    asked = most_questions("arithmetic", None, "heldout", [level], n=40)
    assert all(len(formulas_of(one.text)) == 1 for one in asked)
    assert {one["earned"] for one in figures("arithmetic", level, asked)} == {0}


def test_labelled_files(tmp_path: Path) -> None:
    gsm = {"question": "1+1?", "ground_truth": "two\nA: 1,002", "6b": {"solution": "so 1002", "is_correct": True}}
    (tmp_path / "gsm.jsonl").write_text(json.dumps(gsm))
    assert list(read(tmp_path / "gsm.jsonl")) == [Labelled("gsm8k", "1+1?", "so 1002", "1002", right=True)]
    qwen = {"question": "1+1?", "gt": "2", "code": [r"\boxed{2}", r"\boxed{3}"], "score": [True, False]}
    (tmp_path / "qwen.jsonl").write_text(json.dumps(qwen))
    cases = list(read(tmp_path / "qwen.jsonl"))
    assert by_permix(cases) == [True, False]
    (tmp_path / "odd.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"odd\.jsonl:1: fields : not a format"):
        list(read(tmp_path / "odd.jsonl"))


def test_the_figure_by_hand() -> None:
    cases = [Labelled("math", "", "", "", right=right) for right in (True, True, False, False)]
    found = figure("set", "arm", cases, [True, False, True, None], 1.0)
    assert found["false_positives"][:2] == [1, 2]  # type: ignore[index]
    assert found["false_negatives"][:2] == [1, 2]  # type: ignore[index]
    assert found["no_verdict"] == 1


def test_recorded_verdicts_of_a_run_are_compared(tmp_path: Path) -> None:
    """All answers are 4, the gold too, and half of the recorded verdicts call them wrong."""
    run = stability_run(tmp_path / "run", "plain", "tiny", share(2), task={"name": "arithmetic"})
    cells = [json.loads(line) | {"gold": "4"} for line in (run / "records.jsonl").read_text("utf-8").splitlines()]
    write_jsonl(run / "records.jsonl", cells)
    cases = list(read(run))
    assert len(cases) == 20 * (PERSONAS + 1)
    recorded = [one.right for one in cases]
    assert 0 < sum(recorded) < len(recorded)
    counts = figure("run", "permix", cases, by_permix(cases), 0.0)
    assert counts["false_positives"][:2] == [recorded.count(False)] * 2  # type: ignore[index]
    assert counts["false_negatives"][:2] == [0, recorded.count(True)]  # type: ignore[index]
