"""A user's own questions: rows read with their errors, answers compared as the file's owner says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import TaskConfig, build_config
from permix.errors import ConfigError, DataError
from permix.tasks import TASKS, load_questions
from permix.tasks.base import ALTERNATIVE, verify_completion
from permix.types import Question
from tests.cell_files import read_cells
from tests.sample_runs import endpoint, stability_values, toml
from tests.servers import openai_server

CAPITALS = [
    {"question": f"What is the capital of land {n}?", "answer": f"Town {n}", "split": "heldout" if n % 2 else "train"}
    for n in range(20)
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own(path: Path, answer: str = "exact", **fields: Any) -> tuple[Question, ...]:
    return load_questions(build_config(TaskConfig, {"path": str(path), "answer": answer, "n": 1, **fields}, source="test"))[1]


def test_answer_names_the_task(tmp_path: Path) -> None:
    path = str(write(tmp_path / "qa.jsonl", CAPITALS))
    for values in ({"answer": "exact"}, {"name": "own-exact"}, {"name": "own-exact", "answer": "exact"}):
        config = build_config(TaskConfig, {"path": path, **values}, source="test")
        assert config.name == "own-exact"
        assert build_config(TaskConfig, config.model_dump(mode="json"), source="test") == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"answer": "exact"}, 'path is missing: name = "own-exact"'),
        ({"name": "own-math"}, "path is missing"),
        ({"name": "gsm8k", "answer": "exact", "path": "x"}, 'answer = "exact": applies to your own questions only'),
        ({"name": "own-math", "answer": "exact", "path": "x"}, 'answer = "exact": applies to your own questions only'),
        ({"answer": "regex", "path": "x"}, "must be"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config(TaskConfig, values, source="test")


def test_sides_are_the_files_own(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", CAPITALS)
    held, trained = own(path, n=10), own(path, n=10, split="train")
    assert {one.text for one in held} == {row["question"] for row in CAPITALS[1::2]}
    assert not {one.id for one in held} & {one.id for one in trained}
    assert {one.solution for one in trained} == {f"\\boxed{{Town {n}}}" for n in range(0, 20, 2)}
    with pytest.raises(ConfigError, match=r"task\.n = 11: own-exact has 10 distinct questions in the heldout split"):
        own(path, n=11)


def test_sides_are_by_content_where_the_file_has_none(tmp_path: Path) -> None:
    rows = [{"question": f"Number {n}?", "answer": n} for n in range(400)]
    path = write(tmp_path / "qa.jsonl", rows)
    counts: Counter[str] = Counter()
    for split in ("train", "dev", "heldout"):
        with pytest.raises(ConfigError, match="distinct questions") as told:
            own(path, "number", n=400, split=split)
        counts[split] = int(str(told.value).split("own-number has ")[1].split()[0])
    assert sum(counts.values()) == 400
    assert 70 < counts["heldout"] < 130
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert own(path, "number", n=5) == own(write(tmp_path / "again.jsonl", rows), "number", n=5)


def test_levels_choose(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}?", "answer": n, "split": "heldout", "level": "easy" if n < 3 else 2} for n in range(5)]
    path = write(tmp_path / "qa.jsonl", rows)
    assert {one.gold for one in own(path, "number", n=3, levels=["easy"])} == {"0", "1", "2"}
    assert {one.gold for one in own(path, "number", n=2, levels=["2"])} == {"3", "4"}
    with pytest.raises(ConfigError, match="has no level 'hard'; levels: 2, easy"):
        own(path, "number", levels=["hard"])


@pytest.mark.parametrize(
    ("row", "answer", "words"),
    [
        ({"answer": "3"}, "exact", r"qa\.jsonl:2: field 'question' is missing"),
        ({"question": "Q?"}, "exact", r"qa\.jsonl:2: field 'answer' is missing"),
        ({"question": "Q?", "answer": True}, "exact", "answer = True: must be a text that is not blank"),
        ({"question": "Q?", "answer": " "}, "exact", "must be a text that is not blank"),
        ({"question": "Q?", "answer": [True]}, "exact", "must be a text, a number, or a list of these"),
        ({"question": "Q?", "answer": []}, "exact", "must be a text, a number, or a list of these that is not empty"),
        ({"question": "Q?", "answer": float("nan")}, "number", "answer = nan: must be a text that is not blank, or a number"),
        ({"question": "Q?", "answer": ["1", "2"]}, "number", "has 2 answers, and it is not clear whether all or any"),
        ({"question": "Q?", "answer": "He has 9 apples"}, "number", "must be a number; for other answers"),
        ({"question": "Q?", "answer": "blue"}, "number", "answer = 'blue': must be a number"),
        ({"question": "Q?", "answer": "A"}, "choice", "field 'choices' is missing"),
        ({"question": "Q?", "answer": "A", "choices": "ab"}, "choice", "must be a list of texts"),
        ({"question": "Q?", "answer": "A", "choices": ["x"]}, "choice", "must be 2 to 26 texts"),
        ({"question": "Q?", "answer": "A", "choices": ["x", "X."]}, "choice", "all different"),
        ({"question": "Q?", "answer": "C", "choices": ["x", "y"]}, "choice", "must be a letter, A to B, or the text of one"),
        ({"question": "Q?", "answer": "z", "split": "test"}, "exact", "split = 'test': must be one of"),
    ],
)
def test_bad_rows_are_told_with_file_and_line(row: dict[str, Any], answer: str, words: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {"question": "Fine?", "answer": "3", "choices": ["3", "4"]}
    if "split" in row:
        good["split"] = "heldout"
    with pytest.raises(DataError, match=words):
        own(write(tmp_path / "qa.jsonl", [good, row]), answer)


def test_a_side_for_some_rows_alone_is_refused(tmp_path: Path) -> None:
    rows = [{"question": "A?", "answer": "a", "split": "train"}, {"question": "B?", "answer": "b"}]
    with pytest.raises(DataError, match=r"qa\.jsonl:2: has no split, but .*qa\.jsonl:1 has one"):
        own(write(tmp_path / "qa.jsonl", rows))


def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    for name, words in (("none.jsonl", "no such file"), ("qa.txt", "must end in"), ("empty.jsonl", "contains no rows")):
        if name != "none.jsonl":
            (tmp_path / name).write_text("")
        with pytest.raises(DataError, match=words):
            own(tmp_path / name)


def test_choices_stand_in_the_question_and_the_gold_is_a_letter(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Which is prime?", "answer": "5", "choices": ["4", "5", "6"]},
        {"question": "Which is even?", "answer": "c", "choices": ["3", "5", "6"]},
        {"question": "Which letter comes second?", "answer": 0, "choices": ["B", "A"]},
    ]  # fmt: skip
    for row in rows:
        row["split"] = "heldout"
    asked = {one.text.split("\n")[0]: one for one in own(write(tmp_path / "qa.jsonl", rows), "choice", n=3)}
    assert asked["Which is prime?"].text == "Which is prime?\nA) 4\nB) 5\nC) 6"
    golds = {text: one.gold for text, one in asked.items()}
    assert golds == {"Which is prime?": "B", "Which is even?": "C", "Which letter comes second?": "A"}


def one(tmp_path: Path, row: dict[str, Any], answer: str, **fields: Any) -> Question:
    return own(write(tmp_path / "qa.jsonl", [row]), answer, split="all", **fields)[0]


USER = [{"role": "user", "content": "What is 3+4?"}]


@pytest.mark.parametrize(
    ("row", "answer", "gold"),
    [
        ({"question": "What is 3+4?", "answer": ["7"]}, "number", "7"),
        ({"question": "What is 3+4?", "answer": "3+4 = <<3+4=7>>7\n#### 7"}, "number", "7"),
        ({"question": "What is 3+4?", "answer": "thus \\boxed{7}."}, "number", "7"),
        ({"problem": "What is 3+4?", "solution": "\\boxed{7}", "answer": "7", "messages": USER}, "math", "7"),
        ({"problem": "What is 3+4?", "solution": "It is \\boxed{7}."}, "math", "7"),
        ({"question": "What is 3+4?", "solution": ["Add."], "final_answer": ["7, 8"]}, "math", "7, 8"),
        ({"prompt": USER, "reward_model": {"ground_truth": "7", "style": "rule"}, "extra_info": {"index": 0}}, "math", "7"),
        ({"prompt": USER, "reward_model": {"ground_truth": '["\\\\frac{7}{1}"]'}}, "math", "\\frac{7}{1}"),
        ({"messages": [*USER, {"role": "assistant", "content": "7"}], "ground_truth": 7}, "number", "7"),
        ({"Question": "What is 3+4?", "Answer": "7"}, "exact", "7"),
        ({"input": "What is 3+4?", "target": "7"}, "exact", "7"),
    ],
)
def test_rows_as_published_are_read_without_an_option(row: dict[str, Any], answer: str, gold: str, tmp_path: Path) -> None:
    question = one(tmp_path, row, answer)
    assert (question.text, question.gold) == ("What is 3+4?", gold)
    assert verify_completion(TASKS[f"own-{answer}"], question.solution or "", gold).correct or answer == "math"


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"choices": ["a", "b", "c"], "answer": 0}, "A"),
        ({"choices": ["a", "b", "c"], "answer": 2.0}, "C"),
        ({"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
        ({"choices": {"text": ["2", "1"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
        ({"choices": [{"label": "A", "text": "a"}, {"label": "B", "text": "b"}], "answerKey": "B"}, "B"),
        ({"endings": ["a", "b", "c", "d"], "label": "3"}, "D"),
        ({"options": {"A": "a", "B": "b"}, "answer": "b"}, "B"),
        ({"A": "a", "B": "b", "C": "c", "answer": "C"}, "C"),
        ({"options": ["A)21", "B) 22"], "correct": "B"}, "B"),
        ({"choices": ["1", "2", "3", "4"], "answer": "2"}, "B"),
        ({"choices": ["4", "5", "6"], "answer": 5}, "B"),
        ({"choices": ["0", "1", "2"], "answer": 1}, "B"),
        ({"choices": "['a', 'b']", "answer": "(b)"}, "B"),
    ],
)
def test_the_right_choice_is_a_letter_a_label_a_text_or_an_index(row: dict[str, Any], gold: str, tmp_path: Path) -> None:
    assert one(tmp_path, {"question": "Which?", **row}, "choice").gold == gold


def test_an_integer_that_is_an_index_and_a_choice_is_never_guessed(tmp_path: Path) -> None:
    sides: dict[str, Any] = {"question": "How many sides has a triangle?", "choices": ["1", "2", "3", "4"], "answer": 2}
    with pytest.raises(DataError, match=r"qa\.jsonl:1: answer = 2: may be the index of choice C .* or the text of choice B"):
        one(tmp_path, sides, "choice")
    for other, gold in (({"choices": ["a", "b"], "answer": 1}, "C"), ({"choices": ["7", "8"], "answer": 8}, "B")):
        rows = [sides, {"question": "Other?", **other}]
        asked = own(write(tmp_path / "qa.jsonl", rows), "choice", split="all", n=2)
        assert {one.text.split("\n")[0]: one.gold for one in asked}[sides["question"]] == gold
    assert one(tmp_path, {**sides, "answer": "C"}, "choice").gold == "C"


@pytest.mark.parametrize(
    ("choices", "answer", "readings"),
    [
        (["1 cm", "2 cm", "3 cm"], 2, r"choice C \(from 0\) or the text of choice B \(2 cm\)"),
        (["1.0", "2.0", "3.0"], 2, "choice C .* choice B"),
        (["$1", "$2", "$3"], 1, "choice B .* choice A"),
        (["$x=1$", "$x=2$"], 1, "choice B .* choice A"),
    ],
)
def test_an_integer_that_is_an_index_and_the_number_of_a_choice_is_never_guessed(
    choices: list[str], answer: int, readings: str, tmp_path: Path
) -> None:
    row = {"question": "Which?", "choices": choices, "answer": answer}
    with pytest.raises(DataError, match=readings):
        one(tmp_path, row, "choice")
    index = {"question": "Other?", "choices": ["a", "b"], "answer": 1}
    asked = own(write(tmp_path / "qa.jsonl", [row, index]), "choice", split="all", n=2)
    assert {one.text.split("\n")[0]: one.gold for one in asked}["Which?"] == "ABC"[answer]
    text = {"question": "Other?", "choices": ["7", "8"], "answer": 8}
    with pytest.raises(DataError, match="give the letter"):  # "2 cm" is not the text "2"
        own(write(tmp_path / "qa.jsonl", [row, text]), "choice", split="all", n=2)


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"choices": ["World War 1", "World War 2"], "answer": 1}, "B"),
        ({"choices": ["0 cm", "1 cm", "2 cm"], "answer": 2}, "C"),
        ({"endings": ["2 men run past the 5.", "3 of them see the house.", "b", "c"], "label": "3"}, "D"),
    ],
)
def test_a_name_or_a_sentence_is_no_number(row: dict[str, Any], gold: str, tmp_path: Path) -> None:
    assert one(tmp_path, {"question": "Which?", **row}, "choice").gold == gold


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ("1,5", "must be a number, in English notation: write 1.5; for other"),
        ("1.234,50", "write 1234.5;"),
        ("five", "must be a number; for other"),
        ("1,5 km", "must be a number; for other"),
    ],
)
def test_a_number_in_another_notation_is_refused_with_how_to_write_it(answer: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=hint):
        one(tmp_path, {"question": "How many?", "answer": answer}, "number")


def test_a_letter_that_is_the_text_of_another_choice_is_never_guessed(tmp_path: Path) -> None:
    blood: dict[str, Any] = {"question": "Which group?", "choices": ["O", "A", "B", "AB"], "answer": "B"}
    second = {"question": "Which letter comes second?", "choices": ["B", "A"], "answer": "A"}
    readings = r"qa\.jsonl:1: answer = 'B': may be the letter B \(A\) or the text of choice C, and no other row shows which"
    for rows in ([blood], [blood, second], [blood, {**blood, "question": "And now?", "answer": 2}]):
        with pytest.raises(DataError, match=readings):
            own(write(tmp_path / "qa.jsonl", rows), "choice", split="all")
    text, letter = {**blood, "question": "And now?", "answer": "AB"}, {"question": "Other?", "choices": ["7", "8"], "answer": "B"}
    for other, gold in ((text, "C"), (letter, "B")):
        asked = own(write(tmp_path / "qa.jsonl", [blood, other]), "choice", split="all", n=2)
        assert {one.text.split("\n")[0]: one.gold for one in asked}["Which group?"] == gold
    with pytest.raises(DataError, match=readings):
        own(write(tmp_path / "qa.jsonl", [blood, text, letter]), "choice", split="all")
    with pytest.raises(DataError, match=r"answer = 'A': may be the letter A \(B\) or the text of choice B"):
        one(tmp_path, second, "choice")
    assert one(tmp_path, {**blood, "answer": 1}, "choice").gold == "B"
    assert one(tmp_path, {**blood, "answer": "O"}, "choice").gold == "A"
    assert one(tmp_path, {**second, "choices": ["A", "B"]}, "choice").gold == "A"


@pytest.mark.parametrize("gold", ["*", "!", "...", ".", "_", "{}", '"', "**", "'", "\\boxed{x}", "$\\boxed{*}$", "-"])
@pytest.mark.parametrize("way", ["\\boxed{%s}", "<answer>%s</answer>", "%s", '<answer>"%s"</answer>'])
def test_a_gold_of_marks_alone_can_be_right(gold: str, way: str, tmp_path: Path) -> None:
    question = one(tmp_path, {"question": "Which mark?", "answer": gold}, "exact")
    said = gold.strip("$").removeprefix("\\boxed{").removesuffix("}") if "boxed" in gold else gold
    if said in "\"'" and '"' in way:
        return  # a quotation mark in quotation marks
    assert verify_completion(TASKS["own-exact"], way % said, question.gold).correct
    for other in ("+", "y*", "????"):
        assert verify_completion(TASKS["own-exact"], way % other, question.gold).correct is False


@pytest.mark.parametrize(
    "choices", [["f", "f'"], ["AT", "AT*"], [".", ","], ["*", "**"], ["+", "-"], ["f", "f'", "f''"], ['"', "'"]]
)
def test_choices_that_differ_in_marks_are_distinct(choices: list[str], tmp_path: Path) -> None:
    for place, text in enumerate(choices):
        question = one(tmp_path, {"question": "Which?", "choices": choices, "answer": text}, "choice")
        assert question.gold == "ABC"[place]
        verdict = verify_completion(TASKS["own-choice"], f"\\boxed{{{text}}}", question.gold, question.text)
        assert verdict.correct


@pytest.mark.parametrize("choices", [["x", '"x"'], ["x", "*x*"], ["x", "X. "], ["*", "*"], ["`a`", "'a'"]])
def test_choices_that_differ_in_type_alone_are_refused(choices: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be 2 to 26 texts, all different"):
        one(tmp_path, {"question": "Which?", "choices": choices, "answer": "A"}, "choice")


def test_an_answer_that_no_completion_can_give_is_refused(tmp_path: Path) -> None:
    words = r'qa\.jsonl:1: answer = .<think>.: a completion that gives this answer would be wrong by task\.answer = "exact"'
    with pytest.raises(DataError, match=words):
        one(tmp_path, {"question": "Which tag opens it?", "answer": "<think>"}, "exact")


@pytest.mark.parametrize("others", [["0.5"], ["3.14"], ["1,234.5"], ["0.125"], ["-12.25"]])
def test_a_number_that_another_notation_reads_otherwise_is_refused(others: list[str], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"How much is {text}?", "answer": text} for text in ("1.500", "7", "12,000")]
    with pytest.raises(DataError, match=r"qa\.jsonl:1: answer = '1\.500': may be a decimal fraction or 1500, .*; write 1500, or"):
        own(write(tmp_path / "qa.jsonl", rows), "number", split="all", n=3)
    rows += [{"question": f"And {text}?", "answer": text} for text in others]
    assert "1.500" in {one.gold for one in own(write(tmp_path / "qa.jsonl", rows), "number", split="all", n=4)}
    assert one(tmp_path, {"question": "How much?", "answer": 1.125}, "number").gold == "1.125"


def test_what_a_csv_cannot_say_is_told(tmp_path: Path) -> None:
    (tmp_path / "qa.csv").write_text('question,choices,answer\nWhich?,"[""a"", ""b""]",1\n')
    with pytest.raises(DataError, match="its index from 0; in CSV every cell is a text, so give letters or texts there"):
        own(tmp_path / "qa.csv", "choice")
    (tmp_path / "qa.csv").write_text("question,answer\nWhich?,\nWhy?, \n")
    with pytest.raises(DataError, match="field 'answer' is missing or blank in every row"):
        own(tmp_path / "qa.csv", "exact")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"choices": ["a", "b"], "answer": "1"}, "must be a letter, A to B, or the text of one of the choices, or as an integer"),
        ({"choices": ["a", "b"], "answer": 2}, "must be a letter"),
        ({"choices": ["a", "b"], "answer": True}, "must be a text that is not blank, or a number"),
        ({"choices": ["a", "b"], "answer": ["a", "b"]}, "must be a text"),
        ({"endings": ["1", "2", "3"], "label": "2"}, "may be the index of choice C"),
    ],
)
def test_an_unclear_choice_is_refused(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        one(tmp_path, {"question": "Which?", **row}, "choice")


def test_of_several_accepted_texts_any_is_right(tmp_path: Path) -> None:
    gold = one(tmp_path, {"question": "Capital?", "answer": ["Paris", "Lutetia", "Paris"]}, "exact").gold
    right = {text: verify_completion(TASKS["own-exact"], text, gold).correct for text in ("paris.", "Lutetia", "Rome")}
    assert right == {"paris.": True, "Lutetia": True, "Rome": False}


def test_columns_are_named(tmp_path: Path) -> None:
    row = {"meta": {"q": "What is 3+4?"}, "a": 7, "opts": ["6", "7"], "answer": "6"}
    columns = {"question_column": "meta.q", "answer_column": "a"}
    assert one(tmp_path, row, "number", **columns).gold == "7"
    assert one(tmp_path, row, "choice", **columns, choices_column="opts").gold == "B"
    with pytest.raises(DataError, match=r"field 'q' is missing in every row; .*--task.question-column NAME\); columns: meta, a"):
        one(tmp_path, row, "number", question_column="q")
    with pytest.raises(ConfigError, match="question_column: applies to your own questions only"):
        build_config(TaskConfig, {"question_column": "q"}, source="test")


def test_the_text_that_a_question_is_about_is_put_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SVAMP has the story in `Body`; without it nobody can answer the question."""
    row = {"Body": "Ann has 3 hats and buys 4.", "Question": "How many hats has she?", "Answer": 7}
    assert one(tmp_path, row, "number").text == "Ann has 3 hats and buys 4.\nHow many hats has she?"
    assert "the text in the column Body is put before the question" in capsys.readouterr().err
    named = {"q": "How many?", "a": 7, "notes": "Ann has 7 hats.", "Body": "not this"}
    columns = {"question_column": "q", "answer_column": "a"}
    assert one(tmp_path, named, "number", **columns).text == "How many?"
    assert one(tmp_path, named, "number", **columns, context_column="notes").text == "Ann has 7 hats.\nHow many?"
    assert one(tmp_path, row | {"Body": ""}, "number").text == "How many hats has she?"
    with pytest.raises(DataError, match=r"Body = 3: must be a text that is not blank"):
        own(write(tmp_path / "qa.jsonl", [row, row | {"Body": 3, "Question": "And now?"}]), split="all")


def test_messages_are_a_question_if_the_user_speaks_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = [{"role": "system", "content": "Be brief."}, *USER]
    assert one(tmp_path, {"prompt": system, "answer": "7"}, "number").text == "What is 3+4?"
    assert "1 of 1 questions have a system message, which is left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="chat messages with one user message, not 2"):
        one(tmp_path, {"prompt": [*USER, *USER], "answer": "7"}, "number")


def test_two_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": "1"}, {"question": "q?", "answer": "2"}]
    with pytest.raises(DataError, match=r"qa\.jsonl:2: asks the question of .*qa\.jsonl:1, but the answer is '2' and not '1'"):
        own(write(tmp_path / "qa.jsonl", rows), split="all")
    rows[1]["answer"] = "1"
    assert len(own(write(tmp_path / "qa.jsonl", rows), split="all")) == 1


def test_all_questions_of_a_small_file_are_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", [{"question": f"Q{n}?", "answer": n} for n in range(5)])
    assert len(own(path, "number", n=5, split="all")) == 5
    with pytest.raises(ConfigError, match=r'in the heldout split; .*task\.split = "all" asks all 5 questions of the file'):
        own(path, "number", n=5, split="heldout")
    assert len(own(write(tmp_path / "qa.jsonl", [{**CAPITALS[0], "split": "test"}]), split="all")) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.csv", "question;answer\r\nWhat is 3+4?;7\r\n".encode("utf-16")),
        ("q.tsv", b"question\tanswer\nWhat is 3+4?\t7\n"),
        ("q.json", b'{"data": [{"question": "What is 3+4?", "answer": 7}]}'),
        ("q.json", b'[{"question": "What is 3+4?", "answer": 7}]'),
        ("q.json", b'{"question": "What is 3+4?", "answer": 7}'),
        ("q.jsonl", '{"question": "What is 3+4?", "answer": 7}'.encode("utf-16")),
    ],
)
def test_kinds_of_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [one.gold for one in own(tmp_path / name, "number", split="all")] == ["7"]


@pytest.mark.parametrize(
    ("answer", "completion", "gold", "extracted", "correct"),
    [
        ("number", "It is \\boxed{1,234.0}.", "1234", "1,234.0", True),
        ("number", "So 7, or rather 8.", "8", "8", True),
        ("number", "No idea", "8", None, False),
        ("math", "Thus \\boxed{\\frac{2}{4}}.", "1/2", "\\frac{2}{4}", True),
        ("exact", "The answer is Town 3.", "town 3", "Town 3", True),
        ("exact", "Well.\n  New   york\n", "New York", "New   york", True),
        ("exact", "\\boxed{New York City}", "New York", "New York City", False),
        ("exact", "", "New York", None, False),
        ("choice", "\\boxed{B}", "B", "B", True),
        ("choice", "\\boxed{(b)}", "B", "B", True),
        ("choice", "The answer is (C), since A is wrong.", "C", "C", True),
        ("choice", "A and B are wrong, so C", "C", "C", True),
        ("choice", "CAB", "C", None, False),
        ("choice", "\\boxed{BC}", "B", "BC", False),
    ],
)
def test_answers_are_compared_as_the_owner_says(
    answer: str, completion: str, gold: str, extracted: str | None, correct: bool
) -> None:
    found = verify_completion(TASKS[f"own-{answer}"], completion, gold)
    assert (found.extracted, found.correct) == (extracted, correct)


@pytest.mark.slow
def test_a_run_asks_them(tmp_path: Path) -> None:
    """From the command line, with nothing but the file and how its answers are compared."""
    write(tmp_path / "qa.jsonl", CAPITALS)
    with openai_server(lambda body, *_: f"\\boxed{{Town {body['messages'][-1]['content'].split()[6].strip('?')}}}") as server:
        values = stability_values(tmp_path, server.base_url, model=endpoint(server.base_url), task={"n": 4})
        (tmp_path / "run.toml").write_text(toml(values))
        task = ["--task.path", str(tmp_path / "qa.jsonl"), "--task.answer", "exact"]
        assert cli.run_cli(["stability", str(tmp_path / "run.toml"), *task]) == 0
    cells = read_cells(tmp_path / "run" / "records.jsonl").values()
    assert len(cells) == 16
    assert all(cell.verdict is not None and cell.verdict.correct for cell in cells)


@pytest.mark.parametrize(
    ("answer", "row", "gold", "right", "wrong"),
    [
        ("number", {"answers": [3, "4"]}, ["3", "4"], ["3", "It is \\boxed{4}.", "4.0"], ["5", "34", "none"]),
        ("number", {"answer": 3, "answers": [4, 3]}, ["3", "4"], ["3", "4"], ["7"]),
        ("number", {"answers": '["3", "4"]'}, ["3", "4"], ["4"], ["5"]),
        ("number", {"answers": 3}, ["3"], ["3"], ["4"]),
        ("number", {"answer": "1 + 2 = 3\n#### 3", "answers": ["4"]}, ["3", "4"], ["3", "4"], ["1"]),
        (
            "math",
            {"answers": ["x + 1", "\\frac{1}{2}"]},
            ["x + 1", "\\frac{1}{2}"],
            ["\\boxed{1+x}", "\\boxed{0.5}"],
            ["\\boxed{x}"],
        ),
        ("exact", {"answers": ["New York", "NYC"]}, ["New York", "NYC"], ["nyc", "new york."], ["York"]),
        ("exact", {"answers": {"text": ["in Rome", "Rome"], "answer_start": [1, 4]}}, ["in Rome", "Rome"], ["rome"], ["Paris"]),
    ],
)
def test_any_of_the_accepted_answers_is_right(
    tmp_path: Path, answer: str, row: dict[str, Any], gold: list[str], right: list[str], wrong: list[str]
) -> None:
    [question] = own(write(tmp_path / "qa.jsonl", [{"question": "Which?", **row}]), answer)
    assert question.gold.split(ALTERNATIVE) == gold
    task = TASKS[f"own-{answer}"]
    assert [verify_completion(task, one, question.gold).correct for one in right] == [True] * len(right)
    assert [verify_completion(task, one, question.gold).correct for one in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("answer", "row", "words"),
    [
        ("number", {"answers": []}, "answers = .*must be a list of texts or numbers that is not empty"),
        ("number", {"answers": [3, None]}, "must be a list of texts or numbers"),
        ("number", {"answers": ["three"]}, "answers = 'three': must be a number"),
        ("number", {"answer": [3, 4]}, "if any is, name the column answers; if all are, write one text"),
    ],
)
def test_accepted_answers_that_are_none_are_refused(tmp_path: Path, answer: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        own(write(tmp_path / "qa.jsonl", [{"question": "Which?", **row}]), answer)


def test_rows_may_have_one_answer_or_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"question": "One?", "answer": 1}, {"question": "Two?", "answers": [2, 22]}]
    found = {one.text: one.gold for one in own(write(tmp_path / "qa.jsonl", rows), "number", n=2)}
    assert found == {"One?": "1", "Two?": f"2{ALTERNATIVE}22"}
    assert "note: any of the answers in the column answers is right" in " ".join(capsys.readouterr().err.split())
    given = own(write(tmp_path / "qa.jsonl", [{"question": "One?", "sum": 1, "answers": [1, 2]}]), "number", answer_column="sum")
    assert [one.gold for one in given] == ["1"]  # only the column that is named counts
    choice = {"question": "Which?", "choices": ["x", "y"], "answer": "A", "answers": ["x", "y"]}
    assert [one.gold for one in own(write(tmp_path / "qa.jsonl", [choice]), "choice")] == ["A"]
