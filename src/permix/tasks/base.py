"""The task: questions with gold answers, a prompt template, and the scoring that training and evaluation share.

A task is a module that ends in `Task(...)`, with an entry in `permix.tasks.TASKS`. `questions` returns exactly `config.n`
distinct questions, the same ones for the same configuration on every machine, or raises ConfigError naming how many there are.
The split of a question depends only on its content, not on a seed or on the order of a file, so a question that one run trains
on is never held out in another run.

A training question has a solution: an answer in the form that the prompt template asks for. Supervised training uses the
solutions that `verify_completion` finds correct.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from permix.config import TaskConfig, ThinkingSwitch
from permix.errors import ConfigError, DataError, closest_match
from permix.sanitize import escape_control, truncate
from permix.storage.files import read_json, write_json
from permix.thinking import answer_of
from permix.types import Question, Split, Verdict, digest, require_unique
from permix.verification.math_verifier import check_answer, repeats_fraction

ALTERNATIVE = "\n— or —\n"
"""Separates the accepted answers in the gold of a question of the user's own that has several."""

MAX_COMPLETION_CHARS = 100_000
"""Characters at the end of a completion in which its answer is looked for."""


@dataclass(frozen=True)
class Task:
    """A task's questions, prompt template and scoring.

    prompt_template: contains `{question}`.
    questions: loads the questions that a configuration asks for.
    extract: finds the final answer in a completion without its thinking, given the question's text (which may be empty); returns
        None if there is no answer. `permix.tasks.answers` has one for each kind of answer.
    answers_match: compares an answer with the gold, for texts and letters; the default is the mathematical verifier.
    scorer: returns the verdict on an answer and a gold, for answers that must be run, such as programs.
        `questions` has loaded what the scorer needs besides the gold into this process.
    check_environment: raises ConfigError if answers cannot be scored on this machine.
    max_new_tokens: the limit of a completion's tokens where the user gives none; one that a model can finish an answer in.
        With thinking switched on it is larger (`answer_token_limit`).
    source: digest of the Python source of a task or scorer of the user's own, part of a run's identity; None for permix's own.
    """

    name: str
    prompt_template: str
    questions: Callable[[TaskConfig], tuple[Question, ...]]
    extract: Callable[[str, str], str | None]
    answers_match: Callable[[str, str], bool] | None = None
    scorer: Callable[[str, str], Verdict] | None = None
    check_environment: Callable[[], None] | None = None
    max_new_tokens: int = 512
    source: str | None = None

    @property
    def prompt_hash(self) -> str:
        """Hash of the prompt template; only runs with the same template are compared."""
        return digest(self.prompt_template)

    def require_environment(self) -> None:
        """Raise ConfigError if answers cannot be scored on this machine."""
        if self.check_environment is not None:
            self.check_environment()

    def prompt(self, question: Question) -> str:
        """The question in the prompt template."""
        # str.format fails on the braces of LaTeX.
        return self.prompt_template.replace("{question}", question.text)

    def extract_answer(self, completion: str, question: str = "") -> str | None:
        """The final answer in a completion, or None. Thinking is no answer, and thinking that never ends leaves none."""
        return self.extract(answer_of(completion)[-MAX_COMPLETION_CHARS:], question)


def verify_completion(task: Task, completion: str, gold: str, question: str = "") -> Verdict:
    """Score a completion. The training reward and the evaluation's score both come from here.

    A task of the user's own that raises, or returns something else than True or False, gives a verdict without a score.

    question: the question's text, or the prompt that holds it. Its formulas, repeated, are no answers, and its choices are the
        letters that count. Without it neither is known.
    """
    if task.source is None:
        return _verify(task, completion, gold, question)
    try:
        verdict = _verify(task, completion, gold, question)
        if not isinstance(verdict, Verdict) or not isinstance(verdict.correct, bool | None):
            raise TypeError(f"the scorer returned {truncate(repr(verdict), MAX_SHOWN_ERROR_CHARS)}, not a permix Verdict")
        return verdict
    except Exception as error:  # a task of the user's own may raise anything; only this completion has no score
        text = truncate(escape_control(f"{type(error).__name__}: {error}"), MAX_SHOWN_ERROR_CHARS)
        return Verdict(correct=None, error=f"{task.name}: {text}")


MAX_SHOWN_ERROR_CHARS = 300

_WAYS_TO_SAY = ("\\boxed{{{}}}", "<answer>{}</answer>", "{}")


def can_be_right(task: Task, gold: str) -> bool:
    """Whether a completion that states the gold as its answer is right, or whether the verifier fails on it.

    Otherwise every completion would be wrong.
    """
    said = gold.split(ALTERNATIVE)[0]
    return any(verify_completion(task, way.format(said), gold).correct is not False for way in _WAYS_TO_SAY)


def _verify(task: Task, completion: str, gold: str, question: str) -> Verdict:
    answer = task.extract_answer(completion, question)
    if task.scorer is not None:
        return Verdict(correct=False) if answer is None else task.scorer(answer, gold)
    if task.answers_match is not None:
        correct = require_bool(answer is not None and task.answers_match(answer, gold), "answers_match")
        if correct and answer is not None and task.source is None:
            correct = not all(repeats_fraction(answer, one, question) for one in gold.split(ALTERNATIVE))
        return Verdict(correct=correct, extracted=answer)
    if ALTERNATIVE not in gold:
        return check_answer(answer, gold, question)
    return _best_verdict([check_answer(answer, one, question) for one in gold.split(ALTERNATIVE)])


def require_bool(value: object, name: str) -> bool:
    """The value, True or False, also one of numpy's. Raises TypeError for anything else that the function `name` returned."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{name} returned {truncate(repr(value), 80)}, not True or False")


def _best_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on an answer of which any gold is enough: a right one, else one that the verifier failed on, else the first."""
    return min(verdicts, key=lambda one: (True, None, False).index(one.correct))


THINKING_TOKENS_FACTOR = 8

MIN_THINKING_TOKENS, MAX_THINKING_TOKENS = 4096, 32768


def answer_token_limit(task: Task, thinking: ThinkingSwitch = "default", thinking_budget: int | None = None) -> int:
    """The limit of a completion's tokens where the user gives none.

    It is the task's own. A thinking budget is added to it. Without a budget, thinking that is switched on takes 8 times the
    task's own limit, 4096 at least and 32768 at most.
    """
    if thinking_budget is not None:
        return task.max_new_tokens + thinking_budget
    if thinking != "on":
        return task.max_new_tokens
    return max(
        task.max_new_tokens, min(max(task.max_new_tokens * THINKING_TOKENS_FACTOR, MIN_THINKING_TOKENS), MAX_THINKING_TOKENS)
    )


def split_of_content(content: str) -> Split:
    """The split of a question, by a hash of its content: one in four is held out, and one in eight of the others is dev."""
    return "heldout" if int(digest("side", content), 16) % 4 == 0 else dev_or_train(content, one_in=8)


def dev_or_train(content: str, one_in: int) -> Split:
    """The split of content that is not held out, by a second hash of it: one in `one_in` is dev."""
    return "dev" if int(digest("dev", content), 16) % one_in == 0 else "train"


def select_questions(questions: Iterable[Question], config: TaskConfig, hint: str = "") -> tuple[Question, ...]:
    """Choose `config.n` distinct questions, in an order that depends on `config.seed` and not on the input's order.

    Of your own file all questions are chosen if `n` is not given. The questions of a smaller n are the first ones of a larger n.
    Of questions with equal content, the one with the smallest gold is kept. Raises ConfigError, ending in `hint`, if there are
    fewer than n questions, and DataError if two have the same id.
    """
    distinct: dict[str, Question] = {}
    for question in sorted(questions, key=lambda one: (one.gold, one.id, one.tags, one.solution or "")):
        distinct.setdefault(question.content_hash, question)
    _check_unique_ids(distinct.values(), config)
    n = len(distinct) if distinct and config.reads_own_file and "n" not in config.model_fields_set else config.n
    if n > len(distinct):
        levels = f" of the levels {', '.join(config.levels)}" if config.levels else ""
        raise ConfigError(
            f"task.n = {n}: {config.name} has {len(distinct)} distinct questions{levels} in "
            f"{'all splits' if config.split == 'all' else f'the {config.split} split'}"
            f"{f'; give task.n = {len(distinct)} or less' if distinct else ''}{hint}"
        )
    order = sorted(distinct, key=lambda content: digest("choose", str(config.seed), content))
    return tuple(distinct[content] for content in order[:n])


def _check_unique_ids(questions: Iterable[Question], config: TaskConfig) -> None:
    try:
        require_unique([question.id for question in questions], "question")
    except ValueError as error:
        raise DataError(f"{config.path or config.name}: {error}") from error


def check_known_levels(levels: Sequence[str], known: Collection[str], task: str) -> None:
    """Raise ConfigError for the first level that the task does not have, naming the nearest level that it has."""
    for level in levels:
        if level not in known:
            near = closest_match(level, known, cutoff=0.5)
            hint = f"did you mean {near}? " if near else ""
            raise ConfigError(f"task.levels: {task} has no level {level!r}; {hint}levels: {', '.join(known) or 'none'}")


def check_contamination(evaluation: Sequence[Question], trained_hashes: Collection[str]) -> None:
    """Raise ConfigError if the content hash of a question is in `trained_hashes`; the message has their number and the first."""
    seen = set(trained_hashes)
    shared = [question for question in evaluation if question.content_hash in seen]
    if not shared:
        return
    first = shared[0]
    text = first.text if len(first.text) <= 120 else f"{first.text[:117]}..."
    raise ConfigError(
        f"{len(shared)} of {len(evaluation)} questions of this evaluation were seen in training, the first {first.id}: {text!r}; "
        f'evaluate with task.split = "heldout" or with another task, or train from a plan without these questions'
    )


TRAINED_ON_FILE = "permix_seen_questions.json"


class TrainedOn(NamedTuple):
    """The training data of a model: content hashes of its questions, and ids of its personas."""

    question_hashes: frozenset[str] = frozenset()
    persona_ids: frozenset[str] = frozenset()

    def __or__(self, other: "TrainedOn") -> "TrainedOn":
        return TrainedOn(self.question_hashes | other.question_hashes, self.persona_ids | other.persona_ids)


def write_trained_on(folder: Path, trained_on: TrainedOn) -> None:
    """Write `TRAINED_ON_FILE` into a model's folder, or into the folder that contains its checkpoints."""
    write_json(
        folder / TRAINED_ON_FILE,
        {"content_hashes": sorted(trained_on.question_hashes), "persona_ids": sorted(trained_on.persona_ids)},
    )


def read_trained_on(folder: Path) -> TrainedOn:
    """The training data of the model in a folder; empty for a model that permix did not train.

    The file of a checkpoint is in the folder above it. Raises DataError if the file is malformed.
    """
    trained_on = TrainedOn()
    for place in (folder / TRAINED_ON_FILE, folder.parent / TRAINED_ON_FILE):
        if place.exists():
            content = read_json(place)
            lists = [content.get("content_hashes"), content.get("persona_ids", [])]
            if not all(isinstance(one, list) for one in lists):
                raise DataError(
                    f"{place}: content_hashes and persona_ids must be lists; train the model again or remove the file"
                )
            trained_on |= TrainedOn(*map(frozenset, lists))
    return trained_on
