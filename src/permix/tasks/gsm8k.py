r"""GSM8K (openai/gsm8k, MIT): grade-school word problems with whole-number answers.

A row, as published (7,473 train, 1,319 test):

    {"question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she
     earn?", "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 =
     $<<0.2*50=10>>10.\n#### 10"}

The gold is the number after the last `####`, without commas. The solution is the text before it, without the calculator's notes
(`<<12/60=0.2>>`), followed by the gold in a box, as the prompt asks. The published test split is heldout. Of the published train
split one question in ten, by content, is dev (716); the others are train (6,757). The answer of a completion is its last box,
else the number after its first `####` (a heading of Markdown is none), else what `<answer>` tags hold or its last "answer is"
names, else its last number.
"""

import re

from permix.config import TaskConfig
from permix.tasks.answers import extract_marked_number
from permix.tasks.base import Task, check_known_levels, dev_or_train, select_questions
from permix.tasks.datasets import DatasetRow, HubDataset, read_published_rows
from permix.types import Question, canonical_text, digest

GSM8K_HUB = HubDataset("openai/gsm8k", "main")

_CALCULATOR_NOTE = re.compile(r"<<[^<>\n]*>>")


def gsm8k_questions(config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of a configuration. Raises ConfigError or DataError."""
    check_known_levels(config.levels, (), "gsm8k")
    if config.split == "heldout":
        return select_questions(map(gsm8k_question, read_published_rows(GSM8K_HUB, "test", config.path)), config)
    known = map(gsm8k_question, read_published_rows(GSM8K_HUB, "train", config.path))
    return select_questions((one for one in known if dev_or_train(one.content_hash, one_in=10) == config.split), config)


def gsm8k_question(row: DatasetRow) -> Question:
    """The question of a row. Raises DataError naming the row's file and line."""
    text = row.text("question")
    marked = split_marked_answer(row.text("answer"))
    if marked is None:
        raise row.error("answer", "must end in a line such as '#### 72'")
    gold, solution = marked
    return Question(id=f"gsm8k:{digest(canonical_text(text))}", task="gsm8k", text=text, gold=gold, solution=solution)


def split_marked_answer(answer: str) -> tuple[str, str] | None:
    """The gold and the solution of a worked answer that ends in "#### 72"; None for any other answer."""
    worked, mark, gold = answer.rpartition("####")
    gold = gold.replace(",", "").strip()
    if not mark or not re.fullmatch(r"-?\d+(\.\d+)?", gold):
        return None
    return gold, f"{_CALCULATOR_NOTE.sub('', worked).strip()}\nThe answer is \\boxed{{{gold}}}.".strip()


GSM8K = Task(
    name="gsm8k",
    prompt_template="{question}\n\nSolve this step by step. End with the final number inside \\boxed{}.",
    questions=gsm8k_questions,
    extract=extract_marked_number,
    max_new_tokens=512,
)
