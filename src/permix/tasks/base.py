"""What a task is: questions with gold answers, a wording, and one verification that training and evaluation share.

A task is one file that ends in one `Task(...)`, and one line of the registry in `permix.tasks`. `questions` gives exactly
`config.n` distinct questions, the same ones for the same config on any machine, or raises ConfigError that names how many there
are. Which side of a split a question falls on depends on its content alone, never on a seed or on file order, so what one run
trains on is never what another run holds out.

A question to train on carries a solution: an answer put as the wording asks for it. Supervised training learns from those that
`verify_completion` finds right.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from permix.config import TaskConfig
from permix.errors import ConfigError, DataError, closest_match
from permix.types import Question, Split, Verdict, digest, require_unique
from permix.verification.math_verifier import Verifier, extract_boxed, numbers_equal


@dataclass(frozen=True)
class Task:
    """`prompt_template` holds `{question}`; `extract_unboxed` finds the answer of a completion in which nothing is boxed, or
    gives None.

    `numeric_answers`: answers are plain numbers, so a box that holds an expression holds no answer. The symbolic engine
    would work
    `12*13` out, and a model could earn 156 by boxing the question. `answers_match` compares answer and gold where that is not the
    verifier's to judge: texts and letters.

    `scorer` is for answers that are not said but done, such as programs: it gives the verdict on answer and gold, and nothing is
    looked for in boxes. What it needs beside the gold, `questions` has loaded into this process. `check_environment` raises
    ConfigError where nothing could be judged.
    """

    name: str
    prompt_template: str
    questions: Callable[[TaskConfig], tuple[Question, ...]]
    extract_unboxed: Callable[[str], str | None]
    numeric_answers: bool = False
    answers_match: Callable[[str, str], bool] | None = None
    scorer: Callable[[str, str], Verdict] | None = None
    check_environment: Callable[[], None] | None = None

    @property
    def prompt_hash(self) -> str:
        """Identity of the wording: runs are compared only when they asked in the same words."""
        return digest(self.prompt_template)

    def prompt(self, question: Question) -> str:
        # str.format would choke on the braces of LaTeX.
        return self.prompt_template.replace("{question}", question.text)

    def extract_answer(self, completion: str) -> str | None:
        """The answer in a completion: its last box if that holds anything, else the task's own extraction. None: no answer."""
        if self.scorer is not None:
            return self.extract_unboxed(completion)
        boxed = extract_boxed(completion)
        if boxed is None or not boxed.strip() or (self.numeric_answers and numbers_equal(boxed, boxed) is None):
            return self.extract_unboxed(completion)
        return boxed


def verify_completion(task: Task, completion: str, gold: str, verifier: Verifier) -> Verdict:
    """The one judgement of a completion: the training reward and the evaluation's score are both this."""
    answer = task.extract_answer(completion)
    if task.scorer is not None:
        return Verdict(correct=False) if answer is None else task.scorer(answer, gold)
    if task.answers_match is not None:
        return Verdict(correct=answer is not None and task.answers_match(answer, gold), extracted=answer)
    return verifier.check(answer, gold)


def split_of_content(content: str) -> Split:
    """The side a question's content falls on, for every seed: one in four is held out, one in eight of the others is dev."""
    return "heldout" if int(digest("side", content), 16) % 4 == 0 else dev_or_train(content, one_in=8)


def dev_or_train(content: str, one_in: int) -> Split:
    """The side of content that is not held out, by a hash of its own: one in `one_in` is dev."""
    return "dev" if int(digest("dev", content), 16) % one_in == 0 else "train"


def select_questions(questions: Iterable[Question], config: TaskConfig) -> tuple[Question, ...]:
    """`config.n` of the distinct questions, shuffled by `config.seed`, whatever order they came in.

    A larger n begins with the questions of a smaller one. Questions with equal content are one; the one with the smallest gold
    stands for it. Raises ConfigError, naming how many there are, when n is more.
    """
    distinct: dict[str, Question] = {}
    for question in sorted(questions, key=lambda one: (one.gold, one.id, one.tags, one.solution or "")):
        distinct.setdefault(question.content_hash, question)
    _check_unique_ids(distinct.values(), config)
    if config.n > len(distinct):
        of_levels = f" of the levels {', '.join(config.levels)}" if config.levels else ""
        raise ConfigError(
            f"task.n = {config.n}: {config.name} has {len(distinct)} distinct questions{of_levels} on the {config.split} side; "
            f"give task.n = {len(distinct)} or less"
        )
    order = sorted(distinct, key=lambda content: digest("choose", str(config.seed), content))
    return tuple(distinct[content] for content in order[: config.n])


def _check_unique_ids(questions: Iterable[Question], config: TaskConfig) -> None:
    try:
        require_unique([question.id for question in questions], "question")
    except ValueError as error:
        raise DataError(f"{config.path or config.name}: {error}") from error


def check_known_levels(levels: Sequence[str], known: Collection[str], task: str) -> None:
    """Raise ConfigError for the first level that the task does not have, naming the nearest one that it has."""
    for level in levels:
        if level not in known:
            near = closest_match(level, known, cutoff=0.5)
            hint = f"did you mean {near}? " if near else ""
            raise ConfigError(f"task.levels: {task} has no level {level!r}; {hint}levels: {', '.join(known) or 'none'}")
