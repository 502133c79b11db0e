"""Read what a verl training left: the plan that it followed, its rollouts with the row of the plan behind each, and its metrics.

The plan comes from the folder that `permix export --format verl` wrote, or from the plan file. The folder says more: the settings
of the training, its model, the release of verl that it was written for, and the dev questions of the validations.

verl writes one file `STEP.jsonl` into `trainer.rollout_data_dir`, and one a validation into `trainer.validation_data_dir`, with a
line for each rollout (`_dump_generations` in verl's trainers):

    input, output   the prompt and the completion, decoded without special tokens
    gts             the right answer
    score           the reward, 1 or 0
    step            the number in the file's name; 0 is the validation before training
    uid             PROMPT_SESSION_OUTPUT, where PROMPT is drawn at random; verl's legacy trainer writes none
    acc             the verdict, where a reward manager adds to the score; permix's reward function gives none

No field of a training's dump names the row of the data. So the row is found by its right answer and its prompt: its messages, in
their order, are in the text of `input`, whatever chat template is around them. White space, case and Unicode forms are not
compared, since a tokenizer may change them. Of several rows the one with the most text counts: the prompt with a persona contains
the prompt without one. But a chat template that inserts a system message of its own, where none is sent, may insert the words of
a persona ("You are a helpful assistant."). So the text around the messages counts too, which is the same in all prompts of a
training: a row does not fit where more text stands around its system message than elsewhere. Where a template inserts exactly a
persona's system message, the step and the number of the rollout decide; where they do not, the rollout is refused.

A rollout whose verifier failed, or whose prompt was too long, is not in the dump. verl fills the batch up with lines of zero
reward and without text, which are no rollouts; they are left out here.
"""

import hashlib
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

from pydantic import BaseModel

from permix.config import OptimConfig, RolloutPlanConfig
from permix.errors import DataError
from permix.interop.engine_export import EXPORT_FILE, PLAN_FILE
from permix.interop.merging import guard_values
from permix.plan import MAX_PLAN_BYTES, ROWS_PER_READ, Plan, read_plan
from permix.storage.files import PARSE_ERRORS, jsonl_lines, parse_error_text, read_file_state, read_json
from permix.storage.rows import quote_value
from permix.types import Message, PlanRow

_STEP_FILE = re.compile(r"(0|[1-9]\d{0,8})\.jsonl")

_PADDING_UID = re.compile(r"pad[0-9a-f]{32}_\d+_0")
"""verl's uid of a rollout that fills a batch up; the uid of a prompt begins with a hex digit."""

METRIC_NAMES: Mapping[str, str] = {
    "completion_tokens": "response_length/mean",
    "truncated": "response_length/clip_ratio",
    "loss": "actor/loss",
    "kl": "actor/kl_loss",
    "entropy": "actor/entropy",
    "grad_norm": "actor/grad_norm",
    "lr": "actor/lr",
}
"""Names of log.jsonl, each with verl's name in the file of its logger "file"."""


class TrainedPlan(NamedTuple):
    """What is known of a training before its rollouts are read.

    rows: those of the plan without spare groups, which verl does not have.
    config: the section [plan] behind the plan.
    dev_rows: one row for each prompt of a validation; empty without dev evaluations.
    train, model, engine_version: as they were exported; None where only the plan file was given.
    """

    plan: Plan
    rows: tuple[PlanRow, ...]
    config: RolloutPlanConfig
    dev_rows: tuple[PlanRow, ...] = ()
    train: OptimConfig | None = None
    model: str | None = None
    engine_version: str | None = None

    def count_rollouts(self) -> Counter[int]:
        """Number of rollouts that the plan asks for, by its steps, which count from 0."""
        counts = Counter[int]()
        for row in self.rows:
            counts[row.step] += row.rollouts
        return counts


class _ExportFields(BaseModel):
    """What is read of permix.json. `settings` are by their path: {"train.lr": 1e-5, ...}."""

    format: Literal["verl"]
    plan: str
    settings: dict[str, Any]
    model: str | None = None
    written_against: dict[str, str] = {}


def read_trained_plan(path: Path) -> TrainedPlan:
    """The plan of a training. Raises DataError if the file or folder holds none, or if its parts do not belong together."""
    if not path.is_dir():
        return _from_plan(read_plan(path), path)
    about_path = path / EXPORT_FILE
    if not about_path.exists():
        raise DataError(f"{path}: has no permix.json; give the folder that `permix export --format verl` wrote, or the plan file")
    with guard_values(str(about_path)):
        about = _ExportFields.model_validate(read_json(about_path))
    trained = _from_plan(read_plan(path / PLAN_FILE), path / PLAN_FILE)
    if trained.plan.hash != about.plan:
        raise DataError(f"{about_path}: plan = {quote_value(about.plan)}, and plan.parquet has {trained.plan.hash}")
    train = {name.removeprefix("train."): value for name, value in about.settings.items() if name.startswith("train.")}
    with guard_values(f"{about_path}: settings: train"):
        settings = OptimConfig.model_validate(train)
    dev_path = path / "val.parquet"
    return trained._replace(
        dev_rows=tuple(_read_dev_rows(dev_path, about.plan)) if dev_path.exists() else (),
        train=settings,
        model=about.model,
        engine_version=about.written_against.get("verl"),
    )


def _from_plan(plan: Plan, path: Path) -> TrainedPlan:
    with guard_values(f"{path}: plan"):
        config = RolloutPlanConfig.model_validate(plan.metadata.get("plan", {}))
    # A file of other rows than its configuration describes: what counts is what was trained on.
    described = config.model_copy(update={"steps": plan.steps, "group_size": plan.group_size})
    return TrainedPlan(plan, tuple(row for row in plan.rows if not row.spare), described)


def _read_dev_rows(path: Path, plan_hash: str) -> Iterator[PlanRow]:
    """The rows of val.parquet, one a prompt. Raises DataError if it cannot be read or belongs to another plan."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = n_bytes = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_READ):
                n_bytes += batch.nbytes
                if n_bytes > MAX_PLAN_BYTES:
                    raise DataError(f"{path}: has more than {MAX_PLAN_BYTES / 1e9:g} GB of rows")
                for fields in batch.to_pylist():
                    number += 1
                    yield _parse_dev_row(fields, plan_hash, f"{path}: row {number}")
    except (OSError, pa.ArrowException, *PARSE_ERRORS) as error:
        raise DataError(
            f"{path}: row {number}: not a row that `permix export` writes: {parse_error_text(error)[:300]}"
        ) from error


def _parse_dev_row(fields: Mapping[str, Any], plan_hash: str, where: str) -> PlanRow:
    about = fields["extra_info"]
    if about["plan"] != plan_hash:
        raise DataError(f"{where}: is of the plan {quote_value(about['plan'])}, and permix.json of {plan_hash}")
    (rollout,) = json.loads(about["rollouts"])
    return PlanRow(
        step=about["step"],
        group=about["group"],
        rollouts=1,
        task=about["task"],
        question_id=about["question_id"],
        question_hash=about["question_hash"],
        persona_id=rollout["persona_id"],
        persona_tags=tuple(about["persona_tags"]),
        seed=rollout["seed"],
        messages=tuple(Message(role=message["role"], content=message["content"]) for message in rollout["messages"]),
        gold=fields["reward_model"]["ground_truth"],
    )


class StepFile(NamedTuple):
    """The dump of one step."""

    step: int
    path: Path


class DumpedRollout(NamedTuple):
    """One line of a dump. `correct` is the verdict behind `score`; `uid` is None if the dump has none. `where` is "file:line"."""

    where: str
    prompt: str
    completion: str
    gold: str | None
    score: float
    correct: bool
    uid: str | None

    @property
    def prompt_uid(self) -> str | None:
        """What all rollouts of one prompt have in common; None if the dump does not say."""
        return None if self.uid is None else self.uid.rsplit("_", 2)[0]

    @property
    def session(self) -> int:
        """The number of the rollout among those of its prompt; 0 if the dump does not say."""
        parts = () if self.uid is None else self.uid.rsplit("_", 2)
        return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


class DumpedStep(NamedTuple):
    """The rollouts of a step, in the order of the file. `n_padding` lines filled the batch up; `sha256` is that of `n_bytes`."""

    step: int
    path: Path
    rollouts: tuple[DumpedRollout, ...]
    n_padding: int
    n_bytes: int
    sha256: str


def list_step_files(folder: Path) -> list[StepFile]:
    """The dumps in a folder, by step. Raises DataError if there is none. Files of other names are left alone."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'is not a folder' if folder.exists() else 'no such folder'}")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    found = [StepFile(int(match[1]), folder / name) for name in names if (match := _STEP_FILE.fullmatch(name))]
    if not found:
        raise DataError(f"{folder}: has no file STEP.jsonl; give the folder that trainer.rollout_data_dir named")
    return sorted(found)


RESTART_S = 30
"""Seconds that verl needs at least to start. Files of an earlier step may be newer by less: their times are those of a copy."""


def split_abandoned(files: Sequence[StepFile]) -> tuple[list[StepFile], list[int]]:
    """(the dumps of one training, the steps whose dumps are of weights that were given up).

    verl writes the steps in their order. Where it went back to a checkpoint, it writes the steps from there again, and later
    ones are still those of before: they are older than an earlier step.
    """
    kept, abandoned, newest = list[StepFile](), list[int](), -math.inf
    for file in files:
        state = read_file_state(file.path)
        if state is not None and state.modified < newest - RESTART_S:
            abandoned.append(file.step)
            continue
        kept.append(file)
        if state is not None:
            newest = max(newest, state.modified)
    return kept, abandoned


def read_step(file: StepFile, n_bytes: int | None = None) -> DumpedStep | None:
    """Read a dump; None while verl is writing it: it is empty, or its last line has no end.

    `n_bytes`: read no more than these, the size of an earlier reading. Raises DataError, naming file and line, for a line that is
    no rollout.
    """
    rollouts, uids, n_padding, read, sha = list[DumpedRollout](), set[str](), 0, 0, hashlib.sha256()
    for number, line in jsonl_lines(file.path):
        if n_bytes is not None and read >= n_bytes:
            break
        read += len(line)
        sha.update(line)
        rollout = _parse_line(line, file.step, f"{file.path}:{number}")
        if rollout.uid is not None:
            if rollout.uid in uids:
                raise DataError(f"{rollout.where}: uid = {quote_value(rollout.uid)}: occurs in the file already")
            uids.add(rollout.uid)
        if rollout.uid is not None and _PADDING_UID.fullmatch(rollout.uid):
            n_padding += 1
        else:
            rollouts.append(rollout)
    if n_bytes is None:
        state = read_file_state(file.path)
        if read == 0 or state is None or state.size > read:
            return None
    return DumpedStep(file.step, file.path, tuple(rollouts), n_padding, read, sha.hexdigest())


def hash_beginning(path: Path, n_bytes: int) -> str | None:
    """SHA-256 of the first `n_bytes` bytes of a file; None if there are not as many, or no file."""
    state = read_file_state(path)
    if state is None or state.size < n_bytes:
        return None
    sha, left = hashlib.sha256(), n_bytes
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1_000_000))):
            sha.update(chunk)
            left -= len(chunk)
    return None if left else sha.hexdigest()


def _parse_line(line: bytes, step: int, where: str) -> DumpedRollout:
    try:
        fields = json.loads(line)
    except PARSE_ERRORS as error:
        raise DataError(f"{where}: not JSON: {parse_error_text(error)}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: contains {type(fields).__name__}, not an object; verl writes one object a rollout")
    prompt, completion = (_require(fields, name, str, "a text", where) for name in ("input", "output"))
    if (found := _require(fields, "step", int, "a number", where)) != step:
        raise DataError(f"{where}: step = {quote_value(found)}: the file is that of step {step}")
    gold, uid = (
        _require(fields, name, str, "a text", where) if fields.get(name) is not None else None for name in ("gts", "uid")
    )
    score = _finite(fields, "score", where)
    if uid is not None and not re.fullmatch(r".*_\d+_0", uid, re.DOTALL) and re.fullmatch(r".*_\d+_\d+", uid, re.DOTALL):
        raise DataError(f"{where}: uid = {quote_value(uid)}: a rollout of several outputs; permix's agent loop has one each")
    verdict, field = (score, "score") if fields.get("acc") is None else (_finite(fields, "acc", where), "acc")
    if verdict not in (0, 1):
        raise DataError(
            f"{where}: {field} = {verdict:g}: must be 1, right, or 0, wrong, as permix's reward function gives it; "
            "was the training started with another reward function or reward manager?"
        )
    return DumpedRollout(where, prompt, completion, gold, score, bool(verdict), uid)


def _require(fields: Mapping[str, Any], name: str, kind: type, what: str, where: str) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {name} {f'= {quote_value(value)}' if name in fields else 'is missing'}: must be {what}")
    return value


def _finite(fields: Mapping[str, Any], name: str, where: str) -> float:
    value = fields.get(name)
    if is_finite_number(value):
        return float(value)
    raise DataError(f"{where}: {name} {f'= {quote_value(value)}' if name in fields else 'is missing'}: must be a number")


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a number that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


Prompt = tuple[str, ...]
"""The messages of a row, each without white space (`compact_text`)."""

PromptFrame = tuple[str, ...]
"""The text around the messages of a prompt: before the first one, between two, and after the last one."""


class PromptIndex:
    """Finds the row of a plan by the prompt and the right answer of a rollout."""

    def __init__(self, rows: Sequence[PlanRow], source: str) -> None:
        """`source` names the plan in messages."""
        self._source = source
        self._rows: dict[Prompt, list[PlanRow]] = {}
        self._groups: dict[tuple[int, int], list[PlanRow]] = {}
        self._prompts: dict[str, dict[str, list[Prompt]]] = {}
        """By right answer and last message, so that few prompts are compared with a text."""
        self._frames: dict[int, list[PromptFrame]] | None = None
        """What `learn` found (`_usual_frames`)."""
        self._found: dict[tuple[str, str | None], tuple[Prompt, ...]] = {}
        for row in rows:
            self._groups.setdefault((row.step, row.group), []).append(row)
            prompt = tuple(compact_text(message["content"]) for message in row.messages)
            known = self._rows.setdefault(prompt, [])
            if not known:
                self._prompts.setdefault(row.gold, {}).setdefault(prompt[-1], []).append(prompt)
            known.append(row)

    @property
    def has_rivals(self) -> bool:
        """Whether a question was asked with several prompts, so that one rollout may fit several of them."""
        return any(len(prompts) > 1 for by_question in self._prompts.values() for prompts in by_question.values())

    def learn(self, rollouts: Iterable[DumpedRollout]) -> None:
        """Learn from all rollouts of a training what stands around their messages; only needed if the index `has_rivals`."""
        read: dict[tuple[str, str | None], list[PromptFrame]] = {}
        for rollout in rollouts:
            if (key := (rollout.prompt, rollout.gold)) not in read:
                text = compact_text(rollout.prompt)
                frames = (_frame(text, prompt) for prompt in self._fitting(text, rollout.gold))
                read[key] = [frame for frame in frames if frame is not None]
        self._frames = _usual_frames([frames for frames in read.values() if frames])

    def find_row(self, rollout: DumpedRollout, step: int) -> PlanRow:
        """The row behind a rollout: of rows with the same messages, the one of this step of the plan, or the nearest to it.

        Raises DataError, naming file and line, if no row has these messages, or if rows with other messages fit as well.
        """
        key = (rollout.prompt, rollout.gold)
        prompts = self._found.get(key)
        if prompts is None:
            if len(self._found) >= MAX_KNOWN_PROMPTS:
                self._found.clear()
            prompts = self._found[key] = self._find_prompts(rollout)
        prompt = prompts[0] if len(prompts) == 1 else self._choose(prompts, rollout, step)
        return min(self._rows[prompt], key=lambda row: abs(row.step - step))

    def _fitting(self, text: str, gold: str | None) -> list[Prompt]:
        """The prompts whose messages are in the text, the one with the most text first."""
        golds = self._prompts.values() if gold is None else [self._prompts.get(gold, {})]
        inside = [
            prompt
            for by_question in golds
            for question, prompts in by_question.items()
            if question in text
            for prompt in prompts
            if _frame(text, prompt) is not None
        ]
        return sorted(inside, key=_length, reverse=True)

    def _find_prompts(self, rollout: DumpedRollout) -> tuple[Prompt, ...]:
        """The prompts that the rollout may have had, the likeliest first. Raises DataError if there is none."""
        text = compact_text(rollout.prompt)
        fitting = self._fitting(text, rollout.gold)
        if self._frames is None:
            fitting = [prompt for prompt in fitting if _length(prompt) == _length(fitting[0])]
        elif len(fitting) > 1:
            fitting = self._without_other_frames(text, fitting)
        best = [prompt for prompt in fitting if _length(prompt) == _length(fitting[0])]
        if len(best) != 1:
            raise self._error(len(best), rollout, "was another plan trained?")
        return tuple(fitting)

    def _without_other_frames(self, text: str, fitting: Sequence[Prompt]) -> list[Prompt]:
        """The prompts around which the text has no more than elsewhere; of those after the first only the ones around which it
        has what it has elsewhere, or for which that is not known."""
        assert self._frames is not None
        kept = list[Prompt]()
        for prompt in fitting:
            frame = _frame(text, prompt)
            assert frame is not None
            known = self._frames.get(len(frame), [])
            is_usual = not known or frame in known
            if is_usual if kept else not any(_has_more_text(frame, one) for one in known):
                kept.append(prompt)
        return kept or list(fitting)

    def _choose(self, prompts: Sequence[Prompt], rollout: DumpedRollout, step: int) -> Prompt:
        """Of several prompts that the rollout may have had, the one that its step and its number in the group say."""
        here = [prompt for prompt in prompts if any(self._is_asked(row, rollout, step) for row in self._rows[prompt])]
        if len(here) == 1:
            return here[0]
        assert self._frames is not None
        if not here and not all(len(prompt) + 1 in self._frames for prompt in prompts[1:]):
            return prompts[0]
        raise self._error(
            len(prompts),
            rollout,
            "they cannot be told apart: where no system message is sent, the chat template inserts the words of a persona's",
        )

    def _is_asked(self, row: PlanRow, rollout: DumpedRollout, step: int) -> bool:
        """Whether the step asks the row in the rollout of this number: the agent loop takes the rows of a group in turn."""
        group = self._groups[row.step, row.group]
        return row.step == step and (rollout.uid is None or group[rollout.session % len(group)] is row)

    def _error(self, n_fitting: int, rollout: DumpedRollout, advice: str) -> DataError:
        gold = "" if rollout.gold is None else f" with the right answer {quote_value(rollout.gold)}"
        found = f"{n_fitting} prompts of {self._source}{gold} fit" if n_fitting else f"{self._source} has no prompt{gold} like"
        return DataError(f"{rollout.where}: {found} input = {quote_value(rollout.prompt)}; {advice}")


MAX_KNOWN_PROMPTS = 100_000
"""Most prompts that an index keeps with their rows; a training repeats those of its validations."""


def compact_text(text: str) -> str:
    """The text without white space, in one case and one Unicode form."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def _frame(text: str, prompt: Prompt) -> PromptFrame | None:
    """The text around the messages of a prompt; None if they are not in the text in their order."""
    place, around = 0, list[str]()
    for part in prompt:
        found = text.find(part, place)
        if found < 0:
            return None
        around.append(text[place:found])
        place = found + len(part)
    return (*around, text[place:])


def _has_more_text(frame: PromptFrame, other: PromptFrame) -> bool:
    """Whether a frame has the text of another one and more beside the first message, as where a longer text contains it."""
    same = frame[0].startswith(other[0]) and frame[1].endswith(other[1]) and frame[2:] == other[2:]
    return same and frame[:2] != other[:2]


def _usual_frames(texts: Collection[Sequence[PromptFrame]]) -> dict[int, list[PromptFrame]]:
    """The frames that prompts have, by their length; none has the text of another one and more.

    texts: of each prompt the frames by which it can be read, that of the row with the most text first.
    """
    usual: dict[int, list[PromptFrame]] = {}
    for _ in range(2):  # the first time shows what is around the longest rows, the second time which of these do not fit
        found: dict[int, list[PromptFrame]] = {}
        for frames in texts:
            fits = (one for one in frames if not any(_has_more_text(one, other) for other in usual.get(len(one), ())))
            frame = next(fits, frames[0])
            known = found.setdefault(len(frame), [])
            if not any(frame == one or _has_more_text(frame, one) for one in known):
                known[:] = [*(one for one in known if not _has_more_text(one, frame)), frame]
        usual = found
    return usual


def _length(prompt: Prompt) -> int:
    return sum(map(len, prompt))


def read_verl_metrics(paths: Sequence[Path]) -> dict[int, dict[str, float]]:
    """{step: metrics by our names} from the files of verl's logger "file"; of a step in several files the last one counts.

    Raises DataError, naming file and line, for a line that verl does not write.
    """
    by_step: dict[int, dict[str, float]] = {}
    for path in paths:
        if read_file_state(path) is None:
            raise DataError(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}")
        for step, metrics in _read_metric_lines(path):
            # A validation before training logs step 0, and metrics of a step may be logged in several lines.
            by_step.setdefault(step, {}).update(metrics)
    return by_step


def _read_metric_lines(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    for number, line in jsonl_lines(path):
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except PARSE_ERRORS as error:
            raise DataError(f"{where}: not JSON: {parse_error_text(error)}") from error
        step, data = (fields.get("step"), fields.get("data")) if isinstance(fields, dict) else (None, None)
        if not isinstance(step, int) or isinstance(step, bool) or not isinstance(data, dict):
            raise DataError(f'{where}: must be {{"step": number, "data": object}}, as verl\'s logger "file" writes it')
        # verl writes null for a metric that is not a number, such as the mean of no rollouts.
        yield step, {ours: float(data[theirs]) for ours, theirs in METRIC_NAMES.items() if is_finite_number(data.get(theirs))}
