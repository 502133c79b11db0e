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

from permix.config import ImportedSampling, ImportStage
from permix.errors import DataError
from permix.interop.merging import (
    Answered,
    Entry,
    Exported,
    Source,
    chosen,
    judge_of,
    plain,
    refuse_difference,
    shown,
    slug,
    verdict_of,
)
from permix.storage.files import read_json, write_json, write_text
from permix.tasks.datasets import Row, file_rows
from permix.types import Cell, Completion, Message, Record

OURS = "permix"
"""The field that `permix export` adds to a line, and to the results: which cell this was; the identity of the run."""

BASE = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"} | {
    "doc_hash", "prompt_hash", "target_hash", OURS,
}  # fmt: skip

NO_ANSWER = "[invalid]"
"""What the harness's filters write where they find no answer."""

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Prompt(NamedTuple):
    """What was sent, and the question in it without the persona (None where that cannot be told)."""

    messages: tuple[Message, ...]
    words: str | None


def metrics(rows: Sequence[Row]) -> list[str]:
    """Every field that is none of the harness's own."""
    return sorted({name for row in rows for name in row.fields.keys() - BASE})


class Ours(Record):
    """Which cell a line was that permix exported."""

    persona_id: str | None
    question_id: str = Field(min_length=1)
    sample: int = Field(ge=0)
    seed: int


def ours(row: Row) -> Ours | None:
    """None for a line of the harness's own."""
    if OURS not in row.fields:
        return None
    try:
        return Ours.model_validate(row.fields[OURS])
    except ValidationError as error:
        raise row.error(OURS, f"must be as permix export wrote it: {error.errors()[0]['msg']}") from error


def answered(row: Row, id: str, persona_id: str | None, metric: str | None, system: str | None) -> Iterator[Answered]:
    """A cell for every answer; judged by `metric` unless that is None. Raises DataError naming line, field and value."""
    known = ours(row) or Ours(persona_id=persona_id, question_id=id, sample=0, seed=0)
    asked, texts = _prompt(row, system), _texts(row)
    if metric is not None and len(texts) > 1:
        raise row.error("resps", f"{len(texts)} answers share one score; have each of them judged with --answer")
    verdict = None if metric is None else verdict_of(row.value(metric), _extracted(row), field=metric, where=row.where)
    for sample, text in enumerate(texts, start=known.sample):
        completion = Completion(text=text, prompt_tokens=None, completion_tokens=None, finish=None)
        cell = Cell(
            persona_id=persona_id, question_id=known.question_id, sample=sample, seed=known.seed, messages=asked.messages,
            gold=str(row.value("target")), completion=completion, verdict=verdict,
        )  # fmt: skip
        yield Answered(cell, asked.words, row.where)


def generation(rows: Sequence[Row]) -> dict[str, Any]:
    """How answers were drawn, the same for every document; empty where choices were scored. Raises DataError where it differs."""
    drawn = [one if isinstance(one := _requests(row)[0].get("arg_1"), dict) else {} for row in rows]
    for row, one in zip(rows, drawn, strict=True):
        refuse_difference(drawn[0], one, rows[0].where, row.where, "arguments.gen_args_0.arg_1")
    return drawn[0]


def sampling_of(drawn: Mapping[str, Any]) -> ImportedSampling:
    length = next((drawn[name] for name in LENGTHS if drawn.get(name) is not None), None)
    greedy = drawn.get("do_sample") is False
    return ImportedSampling(
        temperature=0.0 if greedy else drawn.get("temperature"), top_p=drawn.get("top_p"), max_new_tokens=length
    )


def _requests(row: Row) -> list[Mapping[str, Any]]:
    found = row.value("arguments")
    requests = list(found.values()) if isinstance(found, dict) else []
    if not requests or not all(isinstance(one, dict) and "arg_0" in one for one in requests):
        raise row.error("arguments", 'must be {"gen_args_0": {"arg_0": ..., "arg_1": ...}, ...}')
    return requests


def _prompt(row: Row, system: str | None) -> Prompt:
    sent = [_text(one["arg_0"]) for one in _requests(row)]
    if chat := _chat(sent[0]):
        return Prompt(chat, "\n".join(one["content"] for one in chat if one["role"] != "system"))
    text = "\n".join(dict.fromkeys(sent))  # some tasks put a context of its own before each choice
    if system is None:
        return Prompt((Message(role="user", content=text),), None)
    before, found, after = text.partition(system)
    if not found:
        raise row.error("arguments", f"the prompt does not hold the system_instruction {shown(system)}")
    words = before + after
    return Prompt((Message(role="system", content=system), Message(role="user", content=words)), words)


def _text(sent: Any) -> str:
    """An endpoint's prompt is logged as a list of one text."""
    return str(sent[0] if isinstance(sent, list) and len(sent) == 1 else sent)


def _chat(sent: str) -> tuple[Message, ...] | None:
    """Chat messages that were logged as JSON; None for any other text."""
    try:
        found = json.loads(sent) if sent.startswith("[") else None
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in found):
        return None
    return tuple(Message(role=str(one["role"]), content=str(one["content"])) for one in found)


def _texts(row: Row) -> list[str]:
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


def _extracted(row: Row) -> str | None:
    found = row.value("filtered_resps")
    alone = found[0] if isinstance(found, list) and len(found) == 1 else None
    return alone if isinstance(alone, str) and alone != NO_ANSWER else None


NAMED = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")

MODEL = ("model", "model_args", "model_sha", "model_dtype", "gen_kwargs", "fewshot_seed")


class Results(NamedTuple):
    """What results_DATE.json says of one task."""

    where: Path
    task: str
    config: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def system(self) -> str | None:
        return self.values.get("system_instruction") or None

    @property
    def born(self) -> dict[str, Any] | None:
        found = self.values.get(OURS)
        return found if isinstance(found, dict) else None

    @property
    def details(self) -> dict[str, Any]:
        """All that makes the prompt of a document, the persona left out, and all that makes a model what it is."""
        run = self.values.get("config") or {}
        of_task = {f"{name}.{self.task}": (self.values.get(name) or {}).get(self.task) for name in ("n-shot", "versions")}
        chat = {name: self.values.get(name) for name in ("chat_template_sha", "fewshot_as_multiturn", "lm_eval_version")}
        config = {"config": {name: run.get(name) for name in MODEL}, f"configs.{self.task}": dict(self.config)}
        return {**config, **of_task, **chat}


def read(entry: Entry, config: ImportStage) -> Source:
    """One run of the harness. Raises DataError naming file, line and field of whatever cannot be used."""
    path = samples_file(entry.path, config.task)
    results = results_of(path)
    rows = _of_one_filter(file_rows(path), config, path)
    metric = None
    if config.answer is None:
        metric = chosen(metrics(rows), config.metric, field="metric", where=str(path))
    judge = judge_of(results.born, f"lm-eval {metric}, {rows[0].fields['filter']}")
    answered = [one for id, row in _questions(results.task, rows) for one in _cells(row, id, entry, metric, results)]
    drawn = generation(rows)
    return Source(
        where=str(path), model=str(results.values["model_name"]), task=results.task, sampling=sampling_of(drawn),
        judge=judge, details=plain({**results.details, "generation": drawn}), personas=_personas(answered, results),
        answered=answered, default_system=None if _asks_as_someone(entry, results) else results.system,
        born=results.born,
    )  # fmt: skip


def samples_file(path: Path, task: str | None) -> Path:
    """The one file of samples at `path`. Raises DataError naming what is there when that is none, or several."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    found = {file: named["task"] for file in sorted(path.rglob("samples_*.jsonl")) if (named := NAMED.fullmatch(file.name))}
    if not found:
        raise DataError(f"{path}: holds no samples_TASK_DATE.jsonl; the harness writes it with --log_samples --output_path")
    wanted = chosen(list(dict.fromkeys(found.values())), task, field="task", where=str(path))
    files = [file for file, its in found.items() if its == wanted]
    if len(files) > 1:
        raise DataError(f"{path}: holds {len(files)} runs of {wanted}: {', '.join(map(str, files))}; give one file")
    return files[0]


def results_of(samples: Path) -> Results:
    """The results file of the same date, beside it."""
    named = NAMED.fullmatch(samples.name)
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
    return Results(path, named["task"], config, values)


def _of_one_filter(rows: Sequence[Row], config: ImportStage, path: Path) -> list[Row]:
    """A document has a line for every filter. Judged anew, any of them has the same answers in it."""
    filters = list(dict.fromkeys(str(row.value("filter")) for row in rows))
    wanted = filters[0] if config.answer else chosen(filters, config.filter, field="filter", where=str(path))
    return [row for row in rows if row.fields["filter"] == wanted]


def _asks_as_someone(entry: Entry, results: Results) -> bool:
    """Raises DataError when a persona was named and no instruction was given to the model."""
    if entry.persona_id is not None and results.system is None:
        raise DataError(f"{results.where}: system_instruction is missing, so nothing was asked as {entry.persona_id!r}")
    return results.system is not None if entry.name is None else entry.persona_id is not None


def _cells(row: Row, id: str, entry: Entry, metric: str | None, results: Results) -> Iterator[Answered]:
    """The cells of one document. Who was asked: as the entry says, else as an exported line does, else by instruction."""
    named = entry.persona_id if entry.name is not None else _who(row, results)
    yield from answered(row, id, named, metric, results.system)


def _who(row: Row, results: Results) -> str | None:
    known = ours(row)
    return results.system if known is None else known.persona_id


def _personas(answered: Sequence[Answered], results: Results) -> dict[str, str]:
    asked = {one.cell.persona_id for one in answered} - {None}
    return {id: results.system or id for id in asked if id is not None}  # who stands in the question speaks for itself


def _questions(task: str, rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """(question id, row) by document; of equal documents the second is "#2", in order of doc_id."""
    seen: Counter[str] = Counter()
    for row in sorted(rows, key=_place):
        content = row.text("doc_hash")
        seen[content] += 1
        yield f"{task}:{content[:16]}" + (f"#{seen[content]}" if seen[content] > 1 else ""), row


def _place(row: Row) -> int:
    place = row.value("doc_id")
    if not isinstance(place, int):
        raise row.error("doc_id", "must be a whole number")
    return place


METRIC, FILTER = "exact_match", "none"


def write(run: Exported, out: Path) -> dict[str, str]:
    folders = []
    for number, persona_id in enumerate((None, *run.answers.persona_ids)):
        scored = [cell for cell in run.cells(persona_id) if cell.verdict is not None and cell.verdict.correct is not None]
        if not scored:
            continue
        folder = out / ("none" if persona_id is None else f"{number:03d}-{slug(persona_id)}")
        lines = [json.dumps(_line(place, cell, run), ensure_ascii=False) for place, cell in enumerate(scored)]
        write_text(folder / f"samples_{run.task}_{run.date}.jsonl", "".join(f"{line}\n" for line in lines))
        write_json(folder / f"results_{run.date}.json", _results(scored, run))
        folders.append(folder)
    return {"folders": f"{len(folders)} in {out}", "read back": f"permix import --lm-eval {out}/*"}


def _line(place: int, cell: Cell, run: Exported) -> dict[str, Any]:
    assert cell.completion is not None
    assert cell.verdict is not None
    prompt = json.dumps(list(cell.messages), ensure_ascii=False)
    doc = {"question": cell.messages[-1]["content"], "answer": cell.gold, "sample": cell.sample}
    return {
        "doc_id": place,
        "doc": doc,
        "target": cell.gold or "",
        "arguments": {"gen_args_0": {"arg_0": [prompt], "arg_1": _generation(run.sampling)}},
        "resps": [[cell.completion.text]],
        "filtered_resps": [NO_ANSWER if cell.verdict.extracted is None else cell.verdict.extracted],
        "filter": FILTER,
        "metrics": [METRIC],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(cell.gold or ""),
        METRIC: cell.verdict.reward,
        OURS: {"persona_id": cell.persona_id, "question_id": cell.question_id, "sample": cell.sample, "seed": cell.seed},
    }


def _generation(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of it, in the harness's words."""
    named = {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "max_gen_toks": sampling["max_new_tokens"]}
    known = {name: value for name, value in named.items() if value is not None}
    return {"until": [], **({"do_sample": known["temperature"] != 0} if "temperature" in known else {}), **known}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _results(scored: Sequence[Cell], run: Exported) -> dict[str, Any]:
    rewards = [cell.verdict.reward or 0.0 for cell in scored if cell.verdict is not None]
    n, mean = len(rewards), sum(rewards) / len(rewards)
    system = "\n".join(one["content"] for one in scored[0].messages if one["role"] == "system") or None
    error = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else None
    return {
        "results": {run.task: {"alias": run.task, f"{METRIC},{FILTER}": mean, f"{METRIC}_stderr,{FILTER}": error}},
        "configs": {
            run.task: {
                "task": run.task,
                "output_type": "generate_until",
                "num_fewshot": 0,
                "repeats": 1,
                "generation_kwargs": _generation(run.sampling),
                "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
            }
        },
        "versions": {run.task: 1},
        "n-shot": {run.task: 0},
        "higher_is_better": {run.task: {METRIC: True}},
        "n-samples": {run.task: {"original": n, "effective": n}},
        "config": {"model": run.config["model"].get("backend", "imported"), "model_args": {"model": run.model}},
        "date": datetime.fromisoformat(run.created).timestamp(),
        "model_name": run.model,
        "system_instruction": system,
        "system_instruction_sha": None if system is None else _hash(system),
        OURS: dict(run.identity),
    }
