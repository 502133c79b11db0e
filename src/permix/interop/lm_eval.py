r"""Read and write the logs of lm-evaluation-harness.

Reading: the harness is run with `--log_samples --output_path DIR`, once per persona with `--system_instruction`. A run writes two
files: samples_TASK_DATE.jsonl, with a line per document and filter, and results_DATE.json, with the model, the task's
configuration and the system instruction. A document is a question, identified by its hash; one metric of one filter is its
verdict. Everything that determines a prompt but the persona (task configuration, chat template, few-shot seed) must be the same
in all logs, and so must the prompts without the system instruction. A line looks like this:

    {"doc_id": 0, "doc": {...}, "target": "13", "doc_hash": "ab2b...", "filter": "flexible-extract", "exact_match": 1.0,
     "arguments": {"gen_args_0": {"arg_0": PROMPT, "arg_1": {"until": ["\\n"], ...}}},
     "resps": [["3 + 10 = 13"]], "filtered_resps": ["13"], ...}

PROMPT is chat messages as JSON (endpoints), or text that contains the system instruction, except for white space at its ends,
which some chat templates remove. A multiple-choice document has one request per choice (arg_1 is the choice) with its
log-likelihood: nothing is sampled, and the answer lists all choices, likeliest first. The harness logs neither token counts nor
why a completion ended.

Samples without a results file are read too. The model and the settings are then unknown, and the system instruction is the one in
the prompts, if the marks of the chat template show where it begins and ends. A group of tasks has a samples file for each; the
results file names its tasks.

Writing: a folder per persona with the same two files. Fields and hashes are the harness's, so a question has the same doc_hash
under every persona. One field is added, `permix`: in a line the cell, in the results the identity of the run. A cell without a
score has no line, since the harness has no value for it.
"""

import glob
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field, ValidationError

from permix.config import ImportConfig, ImportedSamplingConfig
from permix.errors import DataError
from permix.interop.merging import (
    ExportableRun,
    LoggedCell,
    LogSource,
    NamedLogPath,
    guard_values,
    read_log_bytes,
    require_equal_fields,
    require_log_file,
    scorer_of_log,
    select_option,
    slug,
    to_json_value,
    to_verdict,
)
from permix.storage.files import write_json, write_text
from permix.storage.rows import parse_json, quote_value
from permix.tasks.datasets import DatasetRow
from permix.types import Cell, Completion, Failure, Message, Record

PERMIX_FIELD = "permix"
"""The field that `permix export` adds: to a line the cell's ids and seed, to the results the identity of the run."""

HARNESS_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"} | {
    "doc_hash", "prompt_hash", "target_hash", PERMIX_FIELD,
}  # fmt: skip

INVALID_ANSWER = "[invalid]"
"""The text that the harness's filters write where they find no answer."""

MAX_TOKENS_FIELDS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


MAX_SAMPLES_BYTES, MAX_SAMPLE_LINE_BYTES, MAX_RESULTS_BYTES = 1_000_000_000, 64_000_000, 64_000_000

SYSTEM_START = re.compile(
    r"<\|im_start\|>system(?:\n|<\|im_sep\|>)|<\|system\|>|<<SYS>>|\[SYSTEM_PROMPT\]|<\|start_of_role\|>system<\|end_of_role\|>"
    r"|<\|(?:start_header_id\|>system<\|end_header_id|header_start\|>system<\|header_end|START_OF_TURN_TOKEN\|><\|SYSTEM_TOKEN)\|>"
)

SYSTEM_END = re.compile(r"<\|(?:im_end|end|eot_id|eot|end_of_text|END_OF_TURN_TOKEN|user)\|>|</s>|<</SYS>>|\[/SYSTEM_PROMPT\]")
"""The marks around the system message of ChatML, Phi, Llama 2 to 4, Granite, Command R, Zephyr and Mistral."""

LLAMA_DATES = re.compile(r"\s*(?:Cutting Knowledge Date: [^\n]*\n)?(?:Today Date: [^\n]*\n)?")
"""What the template of Llama 3 puts in front of the system message."""


class LoggedPrompt(NamedTuple):
    """The messages sent, and their text without the persona (None if the two cannot be separated)."""

    messages: tuple[Message, ...]
    question_text: str | None


def metric_names(rows: Sequence[DatasetRow]) -> list[str]:
    """Names of the metrics: every field that the harness writes for no other purpose."""
    return sorted({name for row in rows for name in row.fields.keys() - HARNESS_FIELDS})


class ExportedCellInfo(Record):
    """The cell of a line that permix exported."""

    persona_id: str | None
    question_id: str = Field(min_length=1)
    sample: int = Field(ge=0)
    seed: int


def read_exported_cell_info(row: DatasetRow) -> ExportedCellInfo | None:
    """The `permix` field of a line; None for a line that the harness wrote. Raises DataError if the field is malformed."""
    if PERMIX_FIELD not in row.fields:
        return None
    try:
        return ExportedCellInfo.model_validate(row.fields[PERMIX_FIELD])
    except ValidationError as error:
        raise row.error(PERMIX_FIELD, f"must be as permix export wrote it: {error.errors()[0]['msg']}") from error


def parse_harness_row(
    row: DatasetRow, question_id: str, persona_id: str | None, metric: str | None, system_instruction: str | None
) -> Iterator[LoggedCell]:
    """Yield a cell for every answer of a line, with the verdict of `metric` if given. Raises DataError naming line and field."""
    info = read_exported_cell_info(row) or ExportedCellInfo(persona_id=persona_id, question_id=question_id, sample=0, seed=0)
    prompt, texts = _parse_prompt(row, system_instruction), _answer_texts(row)
    if metric is not None and len(texts) > 1:
        raise row.error("resps", f"{len(texts)} answers share one score; score each of them with --answer")
    verdict = None
    if metric is not None:
        value, extracted = row.value(metric), _extracted_answer(row)
        verdict = to_verdict(value, extracted, field=metric, where=row.where, can_rescore=_is_generated(row))
    for sample, text in enumerate(texts, start=info.sample):
        cell = Cell(
            persona_id=persona_id, question_id=info.question_id, sample=sample, seed=info.seed, messages=prompt.messages,
            gold=str(row.value("target")),
            completion=None if text is None else Completion(text=text, prompt_tokens=None, completion_tokens=None, finish=None),
            verdict=None if text is None else verdict,
            failure=Failure(type="lm-eval", message="no answer was logged") if text is None else None,
        )  # fmt: skip
        yield LoggedCell(cell, prompt.question_text, row.where)


def _is_generated(row: DatasetRow) -> bool:
    """Whether the model wrote an answer to this document. Other requests ask for log-likelihoods, of choices or of a text."""
    return isinstance(_requests(row)[0].get("arg_1"), dict)


def generation_settings(rows: Sequence[DatasetRow]) -> dict[str, Any]:
    """The generation settings of all documents; empty for multiple choice. Raises DataError if two documents differ."""
    settings = [one if isinstance(one := _requests(row)[0].get("arg_1"), dict) else {} for row in rows]
    for row, one in zip(rows, settings, strict=True):
        require_equal_fields(settings[0], one, rows[0].where, row.where, "arguments.gen_args_0.arg_1")
    return settings[0]


def parse_sampling(generation: Mapping[str, Any]) -> ImportedSamplingConfig:
    """Convert the harness's generation settings. `do_sample = false` is temperature 0, whatever temperature is set."""
    max_new_tokens = next((generation[name] for name in MAX_TOKENS_FIELDS if generation.get(name) is not None), None)
    greedy = generation.get("do_sample") is False
    return ImportedSamplingConfig(
        temperature=0.0 if greedy else generation.get("temperature"),
        top_p=generation.get("top_p"),
        max_new_tokens=max_new_tokens,
    )


def _requests(row: DatasetRow) -> list[Mapping[str, Any]]:
    arguments = row.value("arguments")
    requests = list(arguments.values()) if isinstance(arguments, dict) else []
    if not requests or not all(isinstance(one, dict) and "arg_0" in one for one in requests):
        raise row.error("arguments", 'must be {"gen_args_0": {"arg_0": ..., "arg_1": ...}, ...}')
    return requests


def _parse_prompt(row: DatasetRow, system_instruction: str | None) -> LoggedPrompt:
    prompts = _prompts(row)
    chat = _parse_chat(prompts[0])
    # In some tasks every choice has a different context.
    text = "\n".join(one["content"] for one in chat) if chat else "\n".join(dict.fromkeys(prompts))
    parts = None if system_instruction is None else _split_at_instruction(text, system_instruction)
    if system_instruction is not None and parts is None:
        raise row.error("arguments", f"the prompt does not contain the system_instruction {quote_value(system_instruction)}")
    if chat:
        return LoggedPrompt(chat, "\n".join(one["content"] for one in chat if one["role"] != "system"))
    if parts is None:
        return LoggedPrompt((Message(role="user", content=text),), None)
    before, instruction, after = parts
    question = before + after
    return LoggedPrompt((Message(role="system", content=instruction), Message(role="user", content=question)), question)


def _split_at_instruction(text: str, instruction: str) -> tuple[str, str, str] | None:
    """The text before the instruction, the instruction as sent, and the text after it; None if the text lacks it.

    A chat template may have removed the white space at its ends, and a file may have other line ends.
    """
    unix_text, unix_instruction = (one.replace("\r\n", "\n") for one in (text, instruction))
    for whole, part in ((text, instruction), (text, instruction.strip()), (unix_text, unix_instruction.strip())):
        if part in whole:
            return whole.partition(part)
    return None


def _prompts(row: DatasetRow) -> list[str]:
    """The prompt of every request as text; the harness logs an endpoint's prompt as a list of one text."""
    prompts = [one["arg_0"] for one in _requests(row)]
    texts = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in prompts]
    if not all(isinstance(one, str) for one in texts):
        raise row.error("arguments", "arg_0 must be a text, or a list of one text")
    return texts


def recover_instruction(rows: Sequence[DatasetRow]) -> str | None:
    """The system message of all prompts, for logs whose results file is missing.

    It is empty for chat messages without one, and None if the prompts differ in it or do not show where it begins and ends.
    """
    found = {_system_text(_prompts(row)[0]) for row in rows}
    return found.pop() if len(found) == 1 else None


def _system_text(prompt: str) -> str | None:
    if chat := _parse_chat(prompt):
        return "\n".join(one["content"] for one in chat if one["role"] == "system").strip()
    start = SYSTEM_START.search(prompt)
    end = None if start is None else SYSTEM_END.search(prompt, start.end())
    if start is None or end is None:
        return None
    text = prompt[start.end() : end.start()]
    return LLAMA_DATES.sub("", text, count=1).strip() or None


def _parse_chat(prompt: str) -> tuple[Message, ...] | None:
    """Chat messages that were logged as JSON; None for any other text."""
    try:
        messages = json.loads(prompt) if prompt.startswith("[") else None
    except ValueError:
        return None
    if not isinstance(messages, list) or not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages):
        return None
    return tuple(Message(role=str(one["role"]), content=str(one["content"])) for one in messages)


def _answer_texts(row: DatasetRow) -> list[str | None]:
    """The completions of a document (None: none was logged); for multiple choice one text: a line per choice with its
    log-likelihood, likeliest first.
    """
    responses, requests = row.value("resps"), _requests(row)
    if not isinstance(responses, list) or not responses or not all(isinstance(one, list) and one for one in responses):
        raise row.error("resps", "must be a list of lists of answers")
    if not isinstance(requests[0].get("arg_1"), str):
        if not all(one is None or isinstance(one, str | int | float) for one in responses[0]):
            raise row.error("resps", "must be a list of lists of answers")
        return [None if one is None else str(one) for one in responses[0]]
    try:
        choices = [(float(one[0][0]), str(request["arg_1"])) for one, request in zip(responses, requests, strict=True)]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise row.error("resps", "must have the log-likelihood of every choice") from error
    return ["\n".join(f"{loglikelihood:.4f}\t{choice}" for loglikelihood, choice in sorted(choices, reverse=True))]


def _extracted_answer(row: DatasetRow) -> str | None:
    filtered = row.value("filtered_resps")
    answer = filtered[0] if isinstance(filtered, list) and len(filtered) == 1 else None
    return answer if isinstance(answer, str) and answer != INVALID_ANSWER else None


SAMPLES_FILE_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?))?\.jsonl")

RESULTS_FILE_NAME = re.compile(r"results(?:_(?P<date>.+))?\.json")

MODEL_FIELDS = ("model", "model_args", "model_sha", "model_dtype", "gen_kwargs", "fewshot_seed")

UNKNOWN_SETTINGS_NOTE = (
    "samples without their results_DATE.json: the model's name, the task's version and configuration, few-shot examples, chat "
    "template and version of the harness are unknown. The run has null for them, and nobody checked that all logs agree in them"
)


class HarnessResults(Record):
    """The fields of results_DATE.json that are read."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    model_name: str = Field(min_length=1)
    configs: dict[str, dict[str, Any]]
    system_instruction: str | None = None
    config: dict[str, Any] | None = None
    versions: dict[str, Any] = Field(default_factory=dict)
    n_shot: dict[str, Any] = Field(default_factory=dict, alias="n-shot")
    group_subtasks: dict[str, list[str]] = Field(default_factory=dict)
    chat_template_sha: Any = None
    fewshot_as_multiturn: Any = None
    lm_eval_version: Any = None
    permix: dict[str, Any] | None = None

    def describe_task(self, task: str) -> dict[str, Any]:
        """The fields that determine the model and the prompts, except the persona. They must be equal in all logs of a merge."""
        return {
            "config": {name: (self.config or {}).get(name) for name in MODEL_FIELDS},
            f"configs.{task}": self.configs[task],
            f"n-shot.{task}": self.n_shot.get(task),
            f"versions.{task}": self.versions.get(task),
            "chat_template_sha": self.chat_template_sha,
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
            "lm_eval_version": self.lm_eval_version,
        }


class TaskLog(NamedTuple):
    """One samples file: the lines of one filter, and the results of its run (None: their file is missing).

    `instruction` is the system instruction as the harness got it, or as the prompts show it: empty if there was none, None if it
    is not known.
    """

    path: Path
    task: str
    rows: Sequence[DatasetRow]
    results: HarnessResults | None
    instruction: str | None

    @property
    def persona_text(self) -> str | None:
        """The instruction without white space at its ends, which makes no other persona; None if there is none."""
        return (self.instruction or "").strip() or None


def read_lm_eval_log(entry: NamedLogPath, config: ImportConfig) -> LogSource:
    """Read one task, or one group of tasks, of one run. Raises DataError, naming file, line and field, if a part is unusable."""
    with guard_values(str(entry.path)):
        files = find_samples_files(entry.path, config.task)
        logs = [_read_task_log(path, task, config) for task, path in files.items()]
        task = logs[0].task if len(logs) == 1 else str(config.task)
        rows = [row for log in logs for row in log.rows]
        metric = None
        if config.answer is None:
            metric = select_option(metric_names(rows), config.metric, field="metric", where=str(logs[0].path))
        elif (row := next((row for row in rows if not _is_generated(row)), None)) is not None:
            raise DataError(
                f"{row.where}: answer = {config.answer!r}: nothing was generated here, the harness asked for "
                "log-likelihoods; choose a score of the log with --metric"
            )
        return _to_log_source(logs, task, entry, metric)


def _to_log_source(logs: Sequence[TaskLog], task: str, entry: NamedLogPath, metric: str | None) -> LogSource:
    """Merge the tasks of a run into one source. Tasks may have different generation settings, but one model and one persona."""
    first = logs[0]
    results = None if any(log.results is None for log in logs) else first.results
    persona_of_log = _persona_of_log(logs, entry)
    identity = None if results is None else results.permix
    generation = {log.task: generation_settings(log.rows) for log in logs}
    cells = [cell for log in logs for cell in _parse_rows(log, persona_of_log, entry, metric)]
    filters = ", ".join(dict.fromkeys(str(log.rows[0].fields["filter"]) for log in logs))
    return LogSource(
        where=str(first.path if len(logs) == 1 else entry.path),
        model=None if results is None else results.model_name,
        task=task,
        sampling=_common_sampling([parse_sampling(one) for one in generation.values()]),
        scorer=scorer_of_log(identity, f"lm-eval {metric}, {filters}"),
        details=to_json_value({**_task_settings(logs), "generation": generation[first.task] if len(logs) == 1 else generation}),
        personas=_persona_texts(cells, first.persona_text),
        logged_cells=cells,
        default_system=first.persona_text if persona_of_log is None else None,
        permix_identity=identity,
        notes=_notes(logs, entry),
    )


def _task_settings(logs: Sequence[TaskLog]) -> dict[str, Any]:
    """The settings of all tasks; none where one of the results files is missing. Raises DataError if two tasks disagree."""
    settings: dict[str, Any] = {}
    for log in logs:
        if log.results is None:
            return {}
        for name, value in log.results.describe_task(log.task).items():
            require_equal_fields(settings.setdefault(name, value), value, str(logs[0].path), str(log.path), name)
    return settings


def _common_sampling(found: Sequence[ImportedSamplingConfig]) -> ImportedSamplingConfig:
    """The settings that all tasks of a group have in common; None for one in which they differ."""
    fields = [one.model_dump() for one in found]
    return ImportedSamplingConfig(
        **{name: value if all(one[name] == value for one in fields) else None for name, value in fields[0].items()}
    )


def find_samples_files(path: Path, task: str | None) -> dict[str, Path]:
    """Task name to samples file: the file at `path`, or the files of one task or group of one run. Raises DataError otherwise."""
    if path.is_file() and RESULTS_FILE_NAME.fullmatch(path.name) is None:
        return {_task_of_file(path, task): path}
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files = _samples_of_run(path) if path.is_file() else sorted(path.rglob("samples_*.jsonl"))
    found: dict[str, list[Path]] = {}
    for file in files:
        if match := SAMPLES_FILE_NAME.fullmatch(file.name):
            found.setdefault(match["task"], []).append(file)
    if not found:
        what = "has no samples_TASK_DATE.jsonl" if path.is_dir() or path.is_file() else "is not a regular file"
        raise DataError(f"{path}: {what}; the harness writes it with --log_samples --output_path")
    selected = _select_tasks(found, task, path)
    for name in selected:
        if len(found[name]) > 1:
            runs = ", ".join(map(str, found[name]))
            raise DataError(
                f"{path}: has {len(found[name])} runs of {name}: {runs}; give one of these files, or a results_DATE.json"
            )
    return {name: found[name][0] for name in selected}


def _task_of_file(path: Path, task: str | None) -> str:
    match = SAMPLES_FILE_NAME.fullmatch(path.name)
    if match is None and task is None:
        raise DataError(f"{path}: is not named samples_TASK_DATE.jsonl, so its task is not known; give it with --task")
    return str(task) if match is None else select_option([match["task"]], task, field="task", where=str(path))


def _samples_of_run(results: Path) -> list[Path]:
    match = RESULTS_FILE_NAME.fullmatch(results.name)
    assert match is not None
    date = f"_{match['date']}" if match["date"] else ""
    return sorted(results.parent.glob(f"samples_*{glob.escape(date)}.jsonl"))


def _select_tasks(found: Mapping[str, Sequence[Path]], wanted: str | None, path: Path) -> list[str]:
    """The wanted task, the tasks of the wanted group, or the only task. Raises DataError that names all tasks and groups."""
    if wanted in found or (wanted is None and len(found) == 1):
        return [wanted or next(iter(found))]
    groups = _find_groups(found)
    if wanted is not None and wanted in groups:
        return groups[wanted]
    names = {tuple(groups[name]): name for name in sorted(groups, key=len)}  # of equal groups the longest name
    described = [f"{name} (a group of {len(members)})" for members, name in names.items()]
    return [select_option([*described, *found], wanted, field="task", where=str(path))]


def _find_groups(found: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
    """Group name to its tasks that have a samples file.

    The results files name the groups. Tasks that are in none of these belong to the groups whose name begins theirs, such as
    hendrycks_math and hendrycks_math_algebra.
    """
    subtasks: dict[str, list[str]] = {}
    for results in dict.fromkeys(_results_path(file) for files in found.values() for file in files):
        if results is not None:
            subtasks |= _read_results(results).group_subtasks
    groups = {name: sorted(_leaf_tasks(name, subtasks, found)) for name in sorted(subtasks)}
    grouped = {task for members in groups.values() for task in members}
    for task in found:
        for end in (match.start() for match in re.finditer("_", task) if task not in grouped):
            groups.setdefault(task[:end], []).append(task)
    return {name: members for name, members in groups.items() if len(members) > 1}


def _leaf_tasks(group: str, subtasks: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[Path]]) -> set[str]:
    """The tasks below a group that have a samples file. A group may contain groups, and a damaged file itself."""
    seen, tasks, waiting = {group}, set(), [group]
    while waiting:
        for name in subtasks.get(waiting.pop(), ()):
            if name in found:
                tasks.add(name)
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return tasks


def _results_path(samples: Path) -> Path | None:
    """The results file with the date of the samples file, in the same folder; None if there is none."""
    match = SAMPLES_FILE_NAME.fullmatch(samples.name)
    if match is None:
        return None
    path = samples.with_name(f"results_{match['date']}.json" if match["date"] else "results.json")
    return path if path.exists() else None


def _read_results(path: Path) -> HarnessResults:
    values = _parse_utf8_json(read_log_bytes(path, MAX_RESULTS_BYTES), path, 1)
    with guard_values(str(path)):
        return HarnessResults.model_validate(values)


def _read_task_log(path: Path, task: str, config: ImportConfig) -> TaskLog:
    results_path = _results_path(path)
    results = None if results_path is None else _read_results(results_path)
    if results is not None and task not in results.configs:
        raise DataError(f"{results_path}: configs.{task} is missing; give the file as the harness wrote it")
    rows = _select_filter(_read_rows(path), config, path)
    instruction = recover_instruction(rows) if results is None else results.system_instruction or ""
    return TaskLog(path, task, rows, results, instruction if instruction is None or instruction.strip() else "")


def _read_rows(path: Path) -> list[DatasetRow]:
    """The lines of a samples file without `doc`, which is not used. Raises DataError for a line or a file of extreme length."""
    require_log_file(path, MAX_SAMPLES_BYTES)
    rows = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_SAMPLE_LINE_BYTES + 1), b""), start=1):
                if len(line) > MAX_SAMPLE_LINE_BYTES:
                    raise DataError(f"{path}:{number}: the line has more than {MAX_SAMPLE_LINE_BYTES:,} bytes")
                if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                    rows.append(_parse_line(line, path, number))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not rows:
        raise DataError(f"{path}: contains no rows")
    return rows


def _parse_line(line: bytes, path: Path, number: int) -> DatasetRow:
    fields = _parse_utf8_json(line, path, number)
    if not isinstance(fields, dict):
        raise DataError(f"{path}:{number}: must be a JSON object with named fields, not {type(fields).__name__}")
    fields.pop("doc", None)
    return DatasetRow(f"{path}:{number}", fields)


def _parse_utf8_json(raw: bytes, path: Path, first_line: int) -> Any:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        raise DataError(f"{path}:{line}: not UTF-8") from error
    return parse_json(text, str(path), first_line)


def _select_filter(rows: Sequence[DatasetRow], config: ImportConfig, path: Path) -> list[DatasetRow]:
    """The lines of one filter; a document has a line per filter. With `answer` any filter works: all have equal completions."""
    filters = list(dict.fromkeys(str(row.value("filter")) for row in rows))
    selected = filters[0] if config.answer else select_option(filters, config.filter, field="filter", where=str(path))
    return [row for row in rows if row.fields["filter"] == selected]


def _persona_of_log(logs: Sequence[TaskLog], entry: NamedLogPath) -> str | None:
    """The persona that all lines of the log were asked with, or None: the name given, else the instruction.

    Raises DataError if the entry names a persona but the model had no instruction, if nothing identifies the persona, and if the
    tasks have different instructions.
    """
    first = logs[0]
    for log in logs:
        where = str(log.path)
        if first.instruction is not None and log.instruction is not None:
            require_equal_fields(first.persona_text, log.persona_text, str(first.path), where, "system_instruction")
        if entry.persona_id is not None and log.instruction == "":
            raise DataError(f"{where}: system_instruction is missing, so nothing was asked with the persona {entry.persona_id!r}")
        if entry.name is None and log.instruction is None and not all(map(read_exported_cell_info, log.rows)):
            raise DataError(
                f"{where}: its results_DATE.json is missing and the prompts do not show where a system instruction begins and "
                "ends, so its persona is not known; give NAME=PATH, or none=PATH for no persona"
            )
    return first.persona_text if entry.name is None else entry.persona_id


def _parse_rows(log: TaskLog, persona_of_log: str | None, entry: NamedLogPath, metric: str | None) -> Iterator[LoggedCell]:
    """The cells of one samples file. The persona is that of the entry, else of the exported line, else the instruction."""
    for question_id, row in _rows_by_question_id(log.task, log.rows):
        info = read_exported_cell_info(row) if entry.name is None else None
        with guard_values(row.where):
            yield from parse_harness_row(
                row, question_id, info.persona_id if info else persona_of_log, metric, log.instruction or None
            )


def _persona_texts(logged_cells: Sequence[LoggedCell], text: str | None) -> dict[str, str]:
    """Persona id to text: the instruction, or the id if it is not known or there is none (persona in the user's message)."""
    persona_ids = {one.cell.persona_id for one in logged_cells} - {None}
    return {id: text or id for id in persona_ids if id is not None}


def _notes(logs: Sequence[TaskLog], entry: NamedLogPath) -> tuple[str, ...]:
    """What an import of samples without results must say."""
    if all(log.results is not None for log in logs):
        return ()
    instruction = logs[0].instruction
    shown = "is unknown" if instruction is None else f"is, as its prompts show it, {quote_value(instruction)}"
    return (UNKNOWN_SETTINGS_NOTE, f"{entry.path}: the system instruction {shown}")


def _rows_by_question_id(task: str, rows: Sequence[DatasetRow]) -> Iterator[tuple[str, DatasetRow]]:
    """Yield (question id, row) of each document by doc_id. The second document with the same hash gets "#2", and so on."""
    seen: Counter[str] = Counter()
    for row in sorted(rows, key=_doc_id):
        doc_hash = row.text("doc_hash")
        seen[doc_hash] += 1
        yield f"{task}:{doc_hash[:16]}" + (f"#{seen[doc_hash]}" if seen[doc_hash] > 1 else ""), row


def _doc_id(row: DatasetRow) -> int:
    doc_id = row.value("doc_id")
    if not isinstance(doc_id, int):
        raise row.error("doc_id", "must be a whole number")
    return doc_id


EXPORT_METRIC, EXPORT_FILTER = "exact_match", "none"


def write_lm_eval_logs(run: ExportableRun, out: Path) -> dict[str, str]:
    """Write one folder per persona that has at least one score; returns facts to print."""
    folders = []
    for number, persona_id in enumerate((None, *run.results.persona_ids)):
        scored = [
            cell for cell in run.cells_of_persona(persona_id) if cell.verdict is not None and cell.verdict.correct is not None
        ]
        if not scored:
            continue
        folder = out / ("none" if persona_id is None else f"{number:03d}-{slug(persona_id)}")
        lines = [json.dumps(_sample_line(doc_id, cell, run), ensure_ascii=False) for doc_id, cell in enumerate(scored)]
        write_text(folder / f"samples_{run.task}_{run.file_date}.jsonl", "".join(f"{line}\n" for line in lines))
        write_json(folder / f"results_{run.file_date}.json", _results_json(scored, run))
        folders.append(folder)
    return {"folders": f"{len(folders)} in {out}", "read back": f"permix import --lm-eval {out}/*"}


def _sample_line(doc_id: int, cell: Cell, run: ExportableRun) -> dict[str, Any]:
    assert cell.completion is not None
    assert cell.verdict is not None
    prompt = json.dumps(list(cell.messages), ensure_ascii=False)
    doc = {"question": cell.messages[-1]["content"], "answer": cell.gold, "sample": cell.sample}
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": cell.gold or "",
        "arguments": {"gen_args_0": {"arg_0": [prompt], "arg_1": _generation_kwargs(run.sampling)}},
        "resps": [[cell.completion.text]],
        "filtered_resps": [INVALID_ANSWER if cell.verdict.extracted is None else cell.verdict.extracted],
        "filter": EXPORT_FILTER,
        "metrics": [EXPORT_METRIC],
        "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha256(prompt),
        "target_hash": _sha256(cell.gold or ""),
        EXPORT_METRIC: cell.verdict.reward,
        PERMIX_FIELD: {"persona_id": cell.persona_id, "question_id": cell.question_id, "sample": cell.sample, "seed": cell.seed},
    }


def _generation_kwargs(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The known settings, under the harness's names."""
    values = {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "max_gen_toks": sampling["max_new_tokens"]}
    known = {name: value for name, value in values.items() if value is not None}
    return {"until": [], **({"do_sample": known["temperature"] != 0} if "temperature" in known else {}), **known}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _results_json(scored_cells: Sequence[Cell], run: ExportableRun) -> dict[str, Any]:
    rewards = [cell.verdict.reward or 0.0 for cell in scored_cells if cell.verdict is not None]
    n, mean = len(rewards), sum(rewards) / len(rewards)
    system = "\n".join(one["content"] for one in scored_cells[0].messages if one["role"] == "system") or None
    standard_error = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else None
    return {
        "results": {
            run.task: {
                "alias": run.task,
                f"{EXPORT_METRIC},{EXPORT_FILTER}": mean,
                f"{EXPORT_METRIC}_stderr,{EXPORT_FILTER}": standard_error,
            }
        },
        "configs": {
            run.task: {
                "task": run.task,
                "output_type": "generate_until",
                "num_fewshot": 0,
                "repeats": 1,
                "generation_kwargs": _generation_kwargs(run.sampling),
                "metric_list": [{"metric": EXPORT_METRIC, "aggregation": "mean", "higher_is_better": True}],
            }
        },
        "versions": {run.task: 1},
        "n-shot": {run.task: 0},
        "higher_is_better": {run.task: {EXPORT_METRIC: True}},
        "n-samples": {run.task: {"original": n, "effective": n}},
        "config": {"model": run.config["model"].get("backend", "imported"), "model_args": {"model": run.model}},
        "date": datetime.fromisoformat(run.created).timestamp(),
        "model_name": run.model,
        "system_instruction": system,
        "system_instruction_sha": None if system is None else _sha256(system),
        PERMIX_FIELD: dict(run.identity),
    }
