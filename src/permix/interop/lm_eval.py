r"""Read and write the logs of lm-evaluation-harness.

Reading: the harness is run with `--log_samples --output_path DIR`, once per persona with `--system_instruction`. A run writes two
files: samples_TASK_DATE.jsonl, with a line per document and filter, and results_DATE.json, with the model, the task's
configuration and the system instruction. A document is a question, identified by its hash; one metric of one filter is its
verdict. Everything that determines a prompt but the persona (task configuration, chat template, few-shot seed) must be the same
in all logs, and so must the prompts without the system instruction. A line looks like this:

    {"doc_id": 0, "doc": {...}, "target": "13", "doc_hash": "ab2b...", "filter": "flexible-extract", "exact_match": 1.0,
     "arguments": {"gen_args_0": {"arg_0": PROMPT, "arg_1": {"until": ["\\n"], ...}}},
     "resps": [["3 + 10 = 13"]], "filtered_resps": ["13"], ...}

PROMPT is chat messages as JSON (endpoints), or text that contains the system instruction. A multiple-choice document has one
request per choice (arg_1 is the choice) with its log-likelihood: nothing is sampled, and the answer lists all choices, likeliest
first. The harness logs neither token counts nor why a completion ended.

Writing: a folder per persona with the same two files. Fields and hashes are the harness's, so a question has the same doc_hash
under every persona. One field is added, `permix`: in a line the cell, in the results the identity of the run. A cell without a
score has no line, since the harness has no value for it.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from permix.config import ImportConfig, ImportedSamplingConfig
from permix.errors import DataError
from permix.interop.merging import (
    ExportableRun,
    LoggedCell,
    LogSource,
    NamedLogPath,
    require_equal_fields,
    scorer_of_log,
    select_option,
    slug,
    to_json_value,
    to_verdict,
    truncated_repr,
)
from permix.storage.files import read_json, write_json, write_text
from permix.tasks.datasets import DatasetRow, read_file_rows
from permix.types import Cell, Completion, Message, Record

PERMIX_FIELD = "permix"
"""The field that `permix export` adds: to a line the cell's ids and seed, to the results the identity of the run."""

HARNESS_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"} | {
    "doc_hash", "prompt_hash", "target_hash", PERMIX_FIELD,
}  # fmt: skip

INVALID_ANSWER = "[invalid]"
"""The text that the harness's filters write where they find no answer."""

MAX_TOKENS_FIELDS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


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
    verdict = None if metric is None else to_verdict(row.value(metric), _extracted_answer(row), field=metric, where=row.where)
    for sample, text in enumerate(texts, start=info.sample):
        completion = Completion(text=text, prompt_tokens=None, completion_tokens=None, finish=None)
        cell = Cell(
            persona_id=persona_id, question_id=info.question_id, sample=sample, seed=info.seed, messages=prompt.messages,
            gold=str(row.value("target")), completion=completion, verdict=verdict,
        )  # fmt: skip
        yield LoggedCell(cell, prompt.question_text, row.where)


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
    prompts = [_unwrap_prompt(one["arg_0"]) for one in _requests(row)]
    if chat := _parse_chat(prompts[0]):
        return LoggedPrompt(chat, "\n".join(one["content"] for one in chat if one["role"] != "system"))
    text = "\n".join(dict.fromkeys(prompts))  # in some tasks every choice has a different context
    if system_instruction is None:
        return LoggedPrompt((Message(role="user", content=text),), None)
    before, separator, after = text.partition(system_instruction)
    if not separator:
        raise row.error("arguments", f"the prompt does not contain the system_instruction {truncated_repr(system_instruction)}")
    question = before + after
    return LoggedPrompt((Message(role="system", content=system_instruction), Message(role="user", content=question)), question)


def _unwrap_prompt(prompt: Any) -> str:
    """The prompt as text; the harness logs an endpoint's prompt as a list of one text."""
    return str(prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt)


def _parse_chat(prompt: str) -> tuple[Message, ...] | None:
    """Chat messages that were logged as JSON; None for any other text."""
    try:
        messages = json.loads(prompt) if prompt.startswith("[") else None
    except ValueError:
        return None
    if not isinstance(messages, list) or not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages):
        return None
    return tuple(Message(role=str(one["role"]), content=str(one["content"])) for one in messages)


def _answer_texts(row: DatasetRow) -> list[str]:
    """The completions of a document; for multiple choice one text: a line per choice with its log-likelihood, likeliest first."""
    responses, requests = row.value("resps"), _requests(row)
    if not isinstance(responses, list) or not responses or not all(isinstance(one, list) and one for one in responses):
        raise row.error("resps", "must be a list of lists of answers")
    if not isinstance(requests[0].get("arg_1"), str):
        return [str(one) for one in responses[0]]
    try:
        choices = [(float(one[0][0]), str(request["arg_1"])) for one, request in zip(responses, requests, strict=True)]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise row.error("resps", "must have the log-likelihood of every choice") from error
    return ["\n".join(f"{loglikelihood:.4f}\t{choice}" for loglikelihood, choice in sorted(choices, reverse=True))]


def _extracted_answer(row: DatasetRow) -> str | None:
    filtered = row.value("filtered_resps")
    answer = filtered[0] if isinstance(filtered, list) and len(filtered) == 1 else None
    return answer if isinstance(answer, str) and answer != INVALID_ANSWER else None


SAMPLES_FILE_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")

MODEL_FIELDS = ("model", "model_args", "model_sha", "model_dtype", "gen_kwargs", "fewshot_seed")


class HarnessResults(NamedTuple):
    """The content of results_DATE.json (`fields`), and the configuration of one task in it (`config`)."""

    path: Path
    task: str
    config: Mapping[str, Any]
    fields: Mapping[str, Any]

    @property
    def system_instruction(self) -> str | None:
        return self.fields.get("system_instruction") or None

    @property
    def permix_identity(self) -> dict[str, Any] | None:
        identity = self.fields.get(PERMIX_FIELD)
        return identity if isinstance(identity, dict) else None

    @property
    def details(self) -> dict[str, Any]:
        """The fields that determine the model and the prompts, except the persona. They must be equal in all logs of a merge."""
        run_config = self.fields.get("config") or {}
        task_fields = {f"{name}.{self.task}": (self.fields.get(name) or {}).get(self.task) for name in ("n-shot", "versions")}
        chat_fields = {name: self.fields.get(name) for name in ("chat_template_sha", "fewshot_as_multiturn", "lm_eval_version")}
        model_fields = {name: run_config.get(name) for name in MODEL_FIELDS}
        return {"config": model_fields, f"configs.{self.task}": dict(self.config), **task_fields, **chat_fields}


def read_lm_eval_log(entry: NamedLogPath, config: ImportConfig) -> LogSource:
    """Read one run of the harness. Raises DataError, naming file, line and field, if a part is unusable."""
    path = find_samples_file(entry.path, config.task)
    results = read_harness_results(path)
    rows = _select_filter(read_file_rows(path), config, path)
    metric = None
    if config.answer is None:
        metric = select_option(metric_names(rows), config.metric, field="metric", where=str(path))
    scorer = scorer_of_log(results.permix_identity, f"lm-eval {metric}, {rows[0].fields['filter']}")
    cells = [
        cell for id, row in _rows_by_question_id(results.task, rows) for cell in _parse_document(row, id, entry, metric, results)
    ]
    generation = generation_settings(rows)
    return LogSource(
        where=str(path), model=str(results.fields["model_name"]), task=results.task, sampling=parse_sampling(generation),
        scorer=scorer, details=to_json_value({**results.details, "generation": generation}),
        personas=_persona_texts(cells, results), logged_cells=cells,
        default_system=None if _has_persona(entry, results) else results.system_instruction,
        permix_identity=results.permix_identity,
    )  # fmt: skip


def find_samples_file(path: Path, task: str | None) -> Path:
    """The samples file at `path`, or the only one below it. Raises DataError if there is no such file, or several."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    task_of = {
        file: match["task"] for file in sorted(path.rglob("samples_*.jsonl")) if (match := SAMPLES_FILE_NAME.fullmatch(file.name))
    }
    if not task_of:
        raise DataError(f"{path}: has no samples_TASK_DATE.jsonl; the harness writes it with --log_samples --output_path")
    selected = select_option(list(dict.fromkeys(task_of.values())), task, field="task", where=str(path))
    files = [file for file, file_task in task_of.items() if file_task == selected]
    if len(files) > 1:
        raise DataError(f"{path}: has {len(files)} runs of {selected}: {', '.join(map(str, files))}; give one of these files")
    return files[0]


def read_harness_results(samples: Path) -> HarnessResults:
    """Read the results file with the date of the samples file, in the same folder. Raises DataError if it is unusable."""
    match = SAMPLES_FILE_NAME.fullmatch(samples.name)
    if match is None:
        raise DataError(f"{samples}: is not named samples_TASK_DATE.jsonl, so its results_DATE.json cannot be found")
    path = samples.with_name(f"results_{match['date']}.json")
    if not path.exists():
        raise DataError(
            f"{path}: no such file; it has the model and its settings, and must be in the same folder as {samples.name}"
        )
    values = read_json(path)
    configs = values.get("configs")
    config = configs.get(match["task"]) if isinstance(configs, dict) else None
    if not isinstance(config, dict) or not values.get("model_name"):
        raise DataError(f"{path}: configs.{match['task']} or model_name is missing; give the file as the harness wrote it")
    return HarnessResults(path, match["task"], config, values)


def _select_filter(rows: Sequence[DatasetRow], config: ImportConfig, path: Path) -> list[DatasetRow]:
    """The lines of one filter; a document has a line per filter. With `answer` any filter works: all have equal completions."""
    filters = list(dict.fromkeys(str(row.value("filter")) for row in rows))
    selected = filters[0] if config.answer else select_option(filters, config.filter, field="filter", where=str(path))
    return [row for row in rows if row.fields["filter"] == selected]


def _has_persona(entry: NamedLogPath, results: HarnessResults) -> bool:
    """Whether the log has a persona. Raises DataError if the entry names one but the model had no system instruction."""
    if entry.persona_id is not None and results.system_instruction is None:
        raise DataError(
            f"{results.path}: system_instruction is missing, so nothing was asked with the persona {entry.persona_id!r}"
        )
    return results.system_instruction is not None if entry.name is None else entry.persona_id is not None


def _parse_document(
    row: DatasetRow, question_id: str, entry: NamedLogPath, metric: str | None, results: HarnessResults
) -> Iterator[LoggedCell]:
    """The cells of one document. The persona is that of the entry, else of the exported line, else the system instruction."""
    persona_id = entry.persona_id if entry.name is not None else _persona_id_of_row(row, results)
    yield from parse_harness_row(row, question_id, persona_id, metric, results.system_instruction)


def _persona_id_of_row(row: DatasetRow, results: HarnessResults) -> str | None:
    info = read_exported_cell_info(row)
    return results.system_instruction if info is None else info.persona_id


def _persona_texts(logged_cells: Sequence[LoggedCell], results: HarnessResults) -> dict[str, str]:
    """Persona id to text: the system instruction, or the id if there is no system instruction (persona in the user's message)."""
    persona_ids = {one.cell.persona_id for one in logged_cells} - {None}
    return {id: results.system_instruction or id for id in persona_ids if id is not None}


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
