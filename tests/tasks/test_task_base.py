"""What all tasks share: one verification, sides by content, and a choice that does not depend on file order."""

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import permix
from permix import cli
from permix.config import TaskConfig
from permix.errors import ConfigError, DataError
from permix.evals.stability import measure_stability
from permix.tasks import TASKS, find_task, load_questions
from permix.tasks.base import (
    ALTERNATIVE,
    Task,
    check_contamination,
    dev_or_train,
    select_questions,
    split_of_content,
    verify_completion,
)
from permix.types import SPLITS, Question, Verdict
from tests.cell_files import read_cells
from tests.sample_runs import asked_as, asked_what, stability_values, toml
from tests.servers import openai_server

TEN = [Question(id=f"q{i}", task="gsm8k", text=f"Question {i}?", gold=str(i)) for i in range(10)]


def gsm8k(**fields: object) -> TaskConfig:
    return TaskConfig.model_validate({"name": "gsm8k", **fields})


def offered_tasks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The values of --task.name that `permix stability --help` lists."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.run_cli(["stability", "--help"])
    listed = re.search(r"--task\.name\{(.*?)\}", re.sub(r"[\s│]+", "", capsys.readouterr().out))
    assert listed is not None
    return listed[1].split(",")


def test_the_registry_holds_every_task_that_a_config_can_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offered_tasks(capsys, monkeypatch) == list(TASKS)
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize(("name", "words"), [("gsm9k", "; did you mean gsm8k?"), ("zzz", "own-choice")])
def test_an_unknown_name_is_refused_with_the_nearest_one_that_there_is(name: str, words: str) -> None:
    for look_up in (lambda: find_task(name), lambda: load_questions(TaskConfig(name=name))):
        with pytest.raises(ConfigError) as caught:
            look_up()
        assert str(caught.value).startswith(f"task.name = '{name}': must be one of arithmetic, gsm8k, math500, ")
        assert str(caught.value).endswith(words)


def test_load_questions_gives_the_task_and_its_questions() -> None:
    task, questions = load_questions(TaskConfig(n=3))
    assert task == TASKS["arithmetic"]
    assert len(questions) == 3


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_holds_the_question_and_changes_with_the_wording_alone(name: str) -> None:
    task = TASKS[name]
    text = "What is {x} in $\\frac{1}{2}$?"
    assert text in task.prompt(Question(id="a", task=name, text=text, gold="1"))
    assert "{question}" not in task.prompt(TEN[0])
    assert len(task.prompt_hash) == 16


def test_verify_extracts_then_checks() -> None:
    assert verify_completion(TASKS["arithmetic"], "7 + 5 is 12.", "12") == Verdict(correct=True, extracted="12")
    assert verify_completion(TASKS["arithmetic"], "Perhaps 13?", "12") == Verdict(correct=False, extracted="13")
    assert verify_completion(TASKS["arithmetic"], "Who knows", "12") == Verdict(correct=False, extracted=None)
    assert verify_completion(TASKS["math"], "\\boxed{\\frac{1}{2}}", "0.5").reward == 1.0


@given(st.text())
def test_a_side_is_one_of_three(content: str) -> None:
    assert split_of_content(content) in SPLITS
    assert dev_or_train(content, one_in=1) == "dev"


def test_one_in_four_is_held_out_and_one_in_eight_of_the_others_dev() -> None:
    counts = Counter(split_of_content(f"question {i}") for i in range(10_000))
    assert 2300 < counts["heldout"] < 2700  # 2500 expected, standard deviation 43
    assert 820 < counts["dev"] < 1055  # 937.5 expected, standard deviation 29
    assert [i for i in range(30) if split_of_content(f"question {i}") == "heldout"] == [
        0,
        2,
        4,
        7,
        11,
        15,
        24,
        27,
        29,
    ]  # for ever


@given(order=st.permutations(TEN), n=st.integers(1, 10), seed=st.integers(0, 5))
def test_the_choice_does_not_depend_on_order_and_grows_with_n(order: list[Question], n: int, seed: int) -> None:
    chosen = select_questions(order, gsm8k(n=n, seed=seed))
    assert len(chosen) == n
    assert chosen == select_questions(TEN, gsm8k(n=10, seed=seed))[:n]


def test_the_seed_chooses() -> None:
    assert len({select_questions(TEN, gsm8k(n=3, seed=seed)) for seed in range(20)}) > 10


def test_equal_content_is_one_question_whatever_the_order() -> None:
    again = Question(id="zz", task="gsm8k", text="  question\n3? ", gold="99")
    for questions in ([*TEN, again], [again, *TEN]):
        assert set(select_questions(questions, gsm8k(n=10))) == set(TEN)


def test_of_equal_questions_the_solution_does_not_depend_on_the_order_either() -> None:
    twins = [TEN[3].model_copy(update={"solution": text}) for text in ("by counting", "by adding", None)]
    for questions in ([*TEN, *twins], [*twins[::-1], *TEN]):
        assert next(one for one in select_questions(questions, gsm8k(n=10)) if one.id == "q3").solution is None
    for questions in (twins[:2], twins[1::-1]):
        assert select_questions(questions, gsm8k(n=1))[0].solution == "by adding"


def test_more_than_there_are_is_refused_with_the_number_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"task.n = 11: gsm8k has 10 distinct questions in the heldout split; give task.n = 10 or"
    ):
        select_questions(TEN, gsm8k(n=11))


def test_two_questions_of_one_id_are_refused() -> None:
    with pytest.raises(DataError, match="question id 'q1' occurs twice"):
        select_questions([*TEN, TEN[1].model_copy(update={"text": "Another?"})], gsm8k(n=5))


def test_overlap_names_how_many_the_first_and_what_to_do() -> None:
    seen = {TEN[4].content_hash, TEN[7].content_hash}
    with pytest.raises(ConfigError, match=r"2 of 10 questions .* first q4: 'Question 4\?'; evaluate with task.split"):
        check_contamination(TEN, seen)
    check_contamination(TEN[:4], seen)
    check_contamination(TEN, ())


def test_overlap_sees_the_same_question_under_another_task_and_id() -> None:
    other = Question(id="math:1", task="math", text=f" {TEN[0].text.upper()}\n", gold="0")
    with pytest.raises(ConfigError, match="1 of 1"):
        check_contamination([other], random.Random(0).sample([one.content_hash for one in TEN], 10))


def test_importing_tasks_imports_no_heavy_library() -> None:
    code = "import sys, permix.tasks; print([m for m in ('datasets', 'pyarrow', 'torch', 'sympy', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k"])
@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("\\boxed{12*13}", False),  # the question's own expression is no answer
        ("\\boxed{100 + 56}", False),
        ("\\boxed{156}", True),
        ("\\boxed{\\$156.00}", True),
        ("\\boxed{x = 156}", True),  # no plain number, so the completion's last number counts
    ],
)
def test_where_answers_are_numbers_an_expression_in_the_box_earns_nothing(name: str, completion: str, right: bool) -> None:
    assert verify_completion(TASKS[name], completion, "156").correct is right


@pytest.mark.parametrize("question", ["What is $156/12$?", "What is 156/12?", "He shares 156 / 12 cakes."])
@pytest.mark.parametrize("name", ["own-number", "own-math", "gsm8k", "arithmetic"])
@pytest.mark.parametrize(
    ("completion", "right"),
    [(r"\boxed{156/12}", False), (r"\boxed{\frac{156}{12}}", False), ("It is 156/12.", False), (r"\boxed{13}", True)],
)
def test_a_division_of_the_question_is_no_answer(name: str, question: str, completion: str, right: bool) -> None:
    assert verify_completion(TASKS[name], completion, "13", question).correct is right


@pytest.mark.parametrize(
    ("question", "completion", "gold", "right"),
    [
        ("Was ist 5/2?", r"\boxed{2,5}", "2.5", True),
        ("Was ist 5/2?", r"\boxed{5/2}", "2.5", False),
        ("Was ist 5/2?", r"\boxed{5/2}", f"2.5{ALTERNATIVE}5/2", True),  # an accepted answer as it stands
        ("Which is larger, 3/4 or 0.5?", r"\boxed{3/4}", "3/4", True),
        ("There are 13 of 156/12.", r"\boxed{13}", "13", True),
        ("How much is 12 % of it?", r"\boxed{12\%}", "0.12", True),
        ("How much is 12 % of it?", r"\boxed{12\%}", r"\$12", False),
    ],
)
def test_a_number_that_the_question_holds_as_the_gold_has_it_is_right(
    question: str, completion: str, gold: str, right: bool
) -> None:
    assert verify_completion(TASKS["own-number"], completion, gold, question).correct is right


def test_a_wording_of_ones_own_changes_the_prompt_its_identity_and_nothing_else() -> None:
    plain, questions = load_questions(TaskConfig(n=3))
    task, same = load_questions(TaskConfig(n=3, prompt_template="Think aloud. {question} {x}"))
    assert same == questions
    assert task.prompt(questions[0]) == f"Think aloud. {questions[0].text} {{x}}"
    assert task.prompt_hash != plain.prompt_hash
    assert (task.extract_answer("so it is 12"), task.name) == ("12", plain.name)
    with pytest.raises(ValidationError, match=r"prompt_template = 'What\?': must contain \{question\}"):
        TaskConfig(prompt_template="What?")


# A task of one's own, added as CONTRIBUTING.md says: its file, and its line in `TASKS`


def parity_questions(config: TaskConfig) -> tuple[Question, ...]:
    numbers = [Question(id=f"parity:{n}", task="parity", text=f"Is {n} odd?", gold="yes" if n % 2 else "no") for n in range(40)]
    return select_questions((one for one in numbers if split_of_content(one.content_hash) == config.split), config)


PARITY = Task(
    name="parity",
    prompt_template="{question} Say yes or no.",
    questions=parity_questions,
    extract=lambda completion, question: completion.strip(". ").lower() or None,
    answers_match=lambda answer, gold: answer == gold,
)


def say_parity(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    """Right without persona, and "Yes." under any."""
    number = int(re.findall(r"\d+", asked_what(body))[0])
    return "Yes." if asked_as(body) or number % 2 else "No."


def test_a_new_task_is_one_file_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(TASKS, "parity", PARITY)
    assert offered_tasks(capsys, monkeypatch) == list(TASKS)
    path = tmp_path / "config.toml"
    with openai_server(say_parity) as server:
        path.write_text(toml(stability_values(tmp_path, server.base_url, task={"name": "parity", "n": 8})))
        assert cli.run_cli(["check", str(path)]) == 0
        assert cli.run_cli(["stability", str(path)]) == 0
        assert len(server.asked) == 4 * 8
        path.write_text(toml(stability_values(tmp_path, server.base_url, out=str(tmp_path / "flagged"))))
        assert cli.run_cli(["stability", str(path), "--task.name", "parity", "--task.levels", "--task.n", "8"]) == 0
    n_odd = sum(question.gold == "yes" for question in parity_questions(TaskConfig(name="parity", n=8)))
    for run in ("run", "flagged"):
        found = measure_stability(tmp_path / run)
        assert (found.baseline.value, found.mean.value) == (1.0, n_odd / 8)
        assert {cell.messages[-1]["content"][-15:] for cell in read_cells(tmp_path / run / "records.jsonl").values()} == {
            " Say yes or no."
        }
    path.write_text(toml(stability_values(tmp_path, "http://127.0.0.1:1/v1", task={"name": "partiy"})))
    assert cli.run_cli(["stability", str(path)]) == 2
    assert f"{path}: task.name = 'partiy': must be one of arithmetic," in capsys.readouterr().err


def _without_docstrings(path: Path) -> str:
    return re.sub(r'""".*?"""', "", path.read_text("utf-8"), flags=re.DOTALL)


def test_no_other_folder_names_a_task() -> None:
    """Names that are words of other things too are left out; "arithmetic" is the default of `TaskConfig`."""
    names = set(TASKS) - {"arithmetic", "math", "code"}
    quoted = re.compile("|".join(f"[\"']{name}[\"']" for name in names))
    source = Path(permix.__file__).parent
    found = {path.relative_to(source).parts[0] for path in source.rglob("*.py") if quoted.search(_without_docstrings(path))}
    assert found == {"tasks"}
