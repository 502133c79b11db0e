r"""lm-evaluation-harness's output, read: `--log_samples --output_path DIR`, once per persona with `--system_instruction`.

Two files a run: samples_TASK_DATE.jsonl, whose lines `permix.interop.lm_eval` reads, and results_DATE.json, which has the
model, the task's configuration and the system instruction. A document is a question, known by its hash; one metric of one filter
is its verdict. What decides the prompt of a document (the task's configuration, the chat template, the few-shot seed) must be the
same for all personas, and what is left of a prompt without its instruction too.

One line of a samples file of lm-evaluation-harness: a document as one filter saw it.

    {"doc_id": 0, "doc": {...}, "target": "13", "doc_hash": "ab2b...", "filter": "flexible-extract", "exact_match": 1.0,
     "arguments": {"gen_args_0": {"arg_0": PROMPT, "arg_1": {"until": ["\\n"], ...}}},
     "resps": [["3 + 10 = 13"]], "filtered_resps": ["13"], ...}

PROMPT is chat messages as JSON (endpoints), or text with the system instruction somewhere in it. Of a question with choices there
is a request a choice (arg_1 is the choice) and its log-likelihood: nothing was sampled, and the answer is all choices, the
likeliest first. Token counts and how an answer ended are not logged.

A run as lm-evaluation-harness logs one: a folder a persona, each with samples_TASK_DATE.jsonl and results_DATE.json.

Contract: the fields are the harness's, its hashes included, so a question has one doc_hash under every persona. `permix` is the
one field added: which cell a line was, and in the results the identity of the run. A cell without a score has no line, since the
harness knows none; token counts are not its to log.
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
"""The field that `permix export` adds to a line, and to the results: which cell this was; the identity of the run."""

HARNESS_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"} | {
    "doc_hash", "prompt_hash", "target_hash", PERMIX_FIELD,
}  # fmt: skip

INVALID_ANSWER = "[invalid]"
"""What the harness's filters write where they find no answer."""

MAX_TOKENS_FIELDS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class LoggedPrompt(NamedTuple):
    """What was sent, and the question in it without the persona (None where that cannot be told)."""

    messages: tuple[Message, ...]
    question_text: str | None


def metric_names(rows: Sequence[DatasetRow]) -> list[str]:
    """Every field that is none of the harness's own."""
    return sorted({name for row in rows for name in row.fields.keys() - HARNESS_FIELDS})


class ExportedCellInfo(Record):
    """Which cell a line was that permix exported."""

    persona_id: str | None
    question_id: str = Field(min_length=1)
    sample: int = Field(ge=0)
    seed: int


def read_exported_cell_info(row: DatasetRow) -> ExportedCellInfo | None:
    """None for a line of the harness's own."""
    if PERMIX_FIELD not in row.fields:
        return None
    try:
        return ExportedCellInfo.model_validate(row.fields[PERMIX_FIELD])
    except ValidationError as error:
        raise row.error(PERMIX_FIELD, f"must be as permix export wrote it: {error.errors()[0]['msg']}") from error


def parse_harness_row(
    row: DatasetRow, question_id: str, persona_id: str | None, metric: str | None, system_instruction: str | None
) -> Iterator[LoggedCell]:
    """A cell for every answer; judged by `metric` unless that is None. Raises DataError naming line, field and value."""
    known = read_exported_cell_info(row) or ExportedCellInfo(persona_id=persona_id, question_id=question_id, sample=0, seed=0)
    asked, texts = _parse_prompt(row, system_instruction), _answer_texts(row)
    if metric is not None and len(texts) > 1:
        raise row.error("resps", f"{len(texts)} answers share one score; have each of them judged with --answer")
    verdict = None if metric is None else to_verdict(row.value(metric), _extracted_answer(row), field=metric, where=row.where)
    for sample, text in enumerate(texts, start=known.sample):
        completion = Completion(text=text, prompt_tokens=None, completion_tokens=None, finish=None)
        cell = Cell(
            persona_id=persona_id, question_id=known.question_id, sample=sample, seed=known.seed, messages=asked.messages,
            gold=str(row.value("target")), completion=completion, verdict=verdict,
        )  # fmt: skip
        yield LoggedCell(cell, asked.question_text, row.where)


def generation_settings(rows: Sequence[DatasetRow]) -> dict[str, Any]:
    """How answers were drawn, the same for every document; empty where choices were scored. Raises DataError where it differs."""
    drawn = [one if isinstance(one := _requests(row)[0].get("arg_1"), dict) else {} for row in rows]
    for row, one in zip(rows, drawn, strict=True):
        require_equal_fields(drawn[0], one, rows[0].where, row.where, "arguments.gen_args_0.arg_1")
    return drawn[0]


def parse_sampling(generation: Mapping[str, Any]) -> ImportedSamplingConfig:
    length = next((generation[name] for name in MAX_TOKENS_FIELDS if generation.get(name) is not None), None)
    greedy = generation.get("do_sample") is False
    return ImportedSamplingConfig(
        temperature=0.0 if greedy else generation.get("temperature"), top_p=generation.get("top_p"), max_new_tokens=length
    )


def _requests(row: DatasetRow) -> list[Mapping[str, Any]]:
    found = row.value("arguments")
    requests = list(found.values()) if isinstance(found, dict) else []
    if not requests or not all(isinstance(one, dict) and "arg_0" in one for one in requests):
        raise row.error("arguments", 'must be {"gen_args_0": {"arg_0": ..., "arg_1": ...}, ...}')
    return requests


def _parse_prompt(row: DatasetRow, system_instruction: str | None) -> LoggedPrompt:
    sent = [_unwrap_prompt(one["arg_0"]) for one in _requests(row)]
    if chat := _parse_chat(sent[0]):
        return LoggedPrompt(chat, "\n".join(one["content"] for one in chat if one["role"] != "system"))
    text = "\n".join(dict.fromkeys(sent))  # some tasks put a context of its own before each choice
    if system_instruction is None:
        return LoggedPrompt((Message(role="user", content=text),), None)
    before, found, after = text.partition(system_instruction)
    if not found:
        raise row.error("arguments", f"the prompt does not hold the system_instruction {truncated_repr(system_instruction)}")
    words = before + after
    return LoggedPrompt((Message(role="system", content=system_instruction), Message(role="user", content=words)), words)


def _unwrap_prompt(sent: Any) -> str:
    """An endpoint's prompt is logged as a list of one text."""
    return str(sent[0] if isinstance(sent, list) and len(sent) == 1 else sent)


def _parse_chat(sent: str) -> tuple[Message, ...] | None:
    """Chat messages that were logged as JSON; None for any other text."""
    try:
        found = json.loads(sent) if sent.startswith("[") else None
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in found):
        return None
    return tuple(Message(role=str(one["role"]), content=str(one["content"])) for one in found)


def _answer_texts(row: DatasetRow) -> list[str]:
    found, requests = row.value("resps"), _requests(row)
    if not isinstance(found, list) or not found or not all(isinstance(one, list) and one for one in found):
        raise row.error("resps", "must be a list of lists of answers")
    if not isinstance(requests[0].get("arg_1"), str):
        return [str(one) for one in found[0]]
    try:
        likely = [(float(one[0][0]), str(request["arg_1"])) for one, request in zip(found, requests, strict=True)]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise row.error("resps", "must have the log-likelihood of every choice") from error
    return ["\n".join(f"{loglikelihood:.4f}\t{choice}" for loglikelihood, choice in sorted(likely, reverse=True))]


def _extracted_answer(row: DatasetRow) -> str | None:
    found = row.value("filtered_resps")
    alone = found[0] if isinstance(found, list) and len(found) == 1 else None
    return alone if isinstance(alone, str) and alone != INVALID_ANSWER else None


SAMPLES_FILE_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")

MODEL_FIELDS = ("model", "model_args", "model_sha", "model_dtype", "gen_kwargs", "fewshot_seed")


class HarnessResults(NamedTuple):
    """What results_DATE.json says of one task."""

    path: Path
    task: str
    config: Mapping[str, Any]
    fields: Mapping[str, Any]

    @property
    def system_instruction(self) -> str | None:
        return self.fields.get("system_instruction") or None

    @property
    def permix_identity(self) -> dict[str, Any] | None:
        found = self.fields.get(PERMIX_FIELD)
        return found if isinstance(found, dict) else None

    @property
    def details(self) -> dict[str, Any]:
        """All that makes the prompt of a document, the persona left out, and all that makes a model what it is."""
        run = self.fields.get("config") or {}
        of_task = {f"{name}.{self.task}": (self.fields.get(name) or {}).get(self.task) for name in ("n-shot", "versions")}
        chat = {name: self.fields.get(name) for name in ("chat_template_sha", "fewshot_as_multiturn", "lm_eval_version")}
        config = {"config": {name: run.get(name) for name in MODEL_FIELDS}, f"configs.{self.task}": dict(self.config)}
        return {**config, **of_task, **chat}


def read_lm_eval_log(entry: NamedLogPath, config: ImportConfig) -> LogSource:
    """One run of the harness. Raises DataError naming file, line and field of whatever cannot be used."""
    path = find_samples_file(entry.path, config.task)
    results = read_harness_results(path)
    rows = _select_filter(read_file_rows(path), config, path)
    metric = None
    if config.answer is None:
        metric = select_option(metric_names(rows), config.metric, field="metric", where=str(path))
    judge = scorer_of_log(results.permix_identity, f"lm-eval {metric}, {rows[0].fields['filter']}")
    answered = [
        one for id, row in _rows_by_question_id(results.task, rows) for one in _parse_document(row, id, entry, metric, results)
    ]
    drawn = generation_settings(rows)
    return LogSource(
        where=str(path), model=str(results.fields["model_name"]), task=results.task, sampling=parse_sampling(drawn),
        scorer=judge, details=to_json_value({**results.details, "generation": drawn}), personas=_persona_texts(answered, results),
        logged_cells=answered, default_system=None if _has_persona(entry, results) else results.system_instruction,
        permix_identity=results.permix_identity,
    )  # fmt: skip


def find_samples_file(path: Path, task: str | None) -> Path:
    """The one file of samples at `path`. Raises DataError naming what is there when that is none, or several."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    found = {
        file: named["task"] for file in sorted(path.rglob("samples_*.jsonl")) if (named := SAMPLES_FILE_NAME.fullmatch(file.name))
    }
    if not found:
        raise DataError(f"{path}: holds no samples_TASK_DATE.jsonl; the harness writes it with --log_samples --output_path")
    wanted = select_option(list(dict.fromkeys(found.values())), task, field="task", where=str(path))
    files = [file for file, its in found.items() if its == wanted]
    if len(files) > 1:
        raise DataError(f"{path}: holds {len(files)} runs of {wanted}: {', '.join(map(str, files))}; give one file")
    return files[0]


def read_harness_results(samples: Path) -> HarnessResults:
    """The results file of the same date, beside it."""
    named = SAMPLES_FILE_NAME.fullmatch(samples.name)
    if named is None:
        raise DataError(f"{samples}: is not named samples_TASK_DATE.jsonl, so its results_DATE.json cannot be found")
    path = samples.with_name(f"results_{named['date']}.json")
    if not path.exists():
        raise DataError(f"{path}: no such file; it says which model was asked, and how, and belongs beside {samples.name}")
    values = read_json(path)
    configs = values.get("configs")
    config = configs.get(named["task"]) if isinstance(configs, dict) else None
    if not isinstance(config, dict) or not values.get("model_name"):
        raise DataError(f"{path}: configs.{named['task']} or model_name is missing; give the file as the harness wrote it")
    return HarnessResults(path, named["task"], config, values)


def _select_filter(rows: Sequence[DatasetRow], config: ImportConfig, path: Path) -> list[DatasetRow]:
    """A document has a line for every filter. Judged anew, any of them has the same answers in it."""
    filters = list(dict.fromkeys(str(row.value("filter")) for row in rows))
    wanted = filters[0] if config.answer else select_option(filters, config.filter, field="filter", where=str(path))
    return [row for row in rows if row.fields["filter"] == wanted]


def _has_persona(entry: NamedLogPath, results: HarnessResults) -> bool:
    """Raises DataError when a persona was named and no instruction was given to the model."""
    if entry.persona_id is not None and results.system_instruction is None:
        raise DataError(f"{results.path}: system_instruction is missing, so nothing was asked as {entry.persona_id!r}")
    return results.system_instruction is not None if entry.name is None else entry.persona_id is not None


def _parse_document(
    row: DatasetRow, question_id: str, entry: NamedLogPath, metric: str | None, results: HarnessResults
) -> Iterator[LoggedCell]:
    """The cells of one document. Who was asked: as the entry says, else as an exported line does, else by instruction."""
    named = entry.persona_id if entry.name is not None else _persona_id_of_row(row, results)
    yield from parse_harness_row(row, question_id, named, metric, results.system_instruction)


def _persona_id_of_row(row: DatasetRow, results: HarnessResults) -> str | None:
    known = read_exported_cell_info(row)
    return results.system_instruction if known is None else known.persona_id


def _persona_texts(logged_cells: Sequence[LoggedCell], results: HarnessResults) -> dict[str, str]:
    asked = {one.cell.persona_id for one in logged_cells} - {None}
    return {
        id: results.system_instruction or id for id in asked if id is not None
    }  # who stands in the question speaks for itself


def _rows_by_question_id(task: str, rows: Sequence[DatasetRow]) -> Iterator[tuple[str, DatasetRow]]:
    """(question id, row) by document; of equal documents the second is "#2", in order of doc_id."""
    seen: Counter[str] = Counter()
    for row in sorted(rows, key=_doc_id):
        content = row.text("doc_hash")
        seen[content] += 1
        yield f"{task}:{content[:16]}" + (f"#{seen[content]}" if seen[content] > 1 else ""), row


def _doc_id(row: DatasetRow) -> int:
    place = row.value("doc_id")
    if not isinstance(place, int):
        raise row.error("doc_id", "must be a whole number")
    return place


EXPORT_METRIC, EXPORT_FILTER = "exact_match", "none"


def write_lm_eval_logs(run: ExportableRun, out: Path) -> dict[str, str]:
    folders = []
    for number, persona_id in enumerate((None, *run.results.persona_ids)):
        scored = [
            cell for cell in run.cells_of_persona(persona_id) if cell.verdict is not None and cell.verdict.correct is not None
        ]
        if not scored:
            continue
        folder = out / ("none" if persona_id is None else f"{number:03d}-{slug(persona_id)}")
        lines = [json.dumps(_sample_line(place, cell, run), ensure_ascii=False) for place, cell in enumerate(scored)]
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
    """What is known of it, in the harness's words."""
    named = {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "max_gen_toks": sampling["max_new_tokens"]}
    known = {name: value for name, value in named.items() if value is not None}
    return {"until": [], **({"do_sample": known["temperature"] != 0} if "temperature" in known else {}), **known}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _results_json(scored_cells: Sequence[Cell], run: ExportableRun) -> dict[str, Any]:
    rewards = [cell.verdict.reward or 0.0 for cell in scored_cells if cell.verdict is not None]
    n, mean = len(rewards), sum(rewards) / len(rewards)
    system = "\n".join(one["content"] for one in scored_cells[0].messages if one["role"] == "system") or None
    error = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else None
    return {
        "results": {
            run.task: {
                "alias": run.task,
                f"{EXPORT_METRIC},{EXPORT_FILTER}": mean,
                f"{EXPORT_METRIC}_stderr,{EXPORT_FILTER}": error,
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
