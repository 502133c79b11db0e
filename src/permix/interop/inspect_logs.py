"""Read and write logs of inspect_ai, with its own library.

Reading: an entry is one log (.eval or .json) or a folder of them; each log becomes a `LogSource`, each of its samples a cell. A
sample's persona is the field `persona` of its metadata, else its system message, else None. Its question is its prompt without
system messages. Its epoch, counted from 1, is the cell's sample, counted from 0. In a log of one persona the sample id identifies
the question. In a log of several personas the question's text does, since ids differ by persona; where the persona is part of the
text, `permix = {"question_id": ID}` in the metadata does. A sample that ended in an error
becomes a failure, and so does a reply that a content filter stopped and a request that the provider refused. Reasoning that a
provider sent apart from the text is the completion's `reasoning`. All logs must have the same model, task, scorer and sampling.

Writing: a run becomes one log that `inspect view` and `read_eval_log` open, with one sample per cell. A failed cell is a sample
with an error, a cell without a verdict is unscored, a cell without a record is left out.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from permix.config import ImportConfig, ImportedSamplingConfig, ThinkingSwitch
from permix.errors import DataError, missing_package_error
from permix.inference.base import with_cut_off_thinking
from permix.interop.merging import (
    ExportableRun,
    LoggedCell,
    LogSource,
    NamedLogPath,
    question_text_id,
    require_log_file,
    scorer_of_log,
    select_option,
    slug,
    to_json_value,
    to_verdict,
)
from permix.sanitize import escape_control
from permix.storage.files import guard_writes, open_regular
from permix.storage.rows import quote_value
from permix.types import Cell, Completion, Failure, Message, digest

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ChatMessage, ModelOutput
    from inspect_ai.scorer import Score


PERMIX_METADATA_KEY = "permix"
"""The metadata field that permix writes: in a sample the cell's question id and seeds, in a log the identity of the run."""

FINISH_BY_STOP_REASON = {"stop": "stop", "max_tokens": "length", "model_length": "length"}


class SamplePrompt(NamedTuple):
    """A sample's messages, its system text (or None), and the text of its other messages: the question."""

    messages: tuple[Message, ...]
    system_prompt: str | None
    question_text: str


def sample_id(persona_id: str | None, question_id: str) -> str:
    """A sample id that is unique for any two ids, such as '["pirate", "q1"]' or '[null, "q1"]'."""
    return json.dumps([persona_id, question_id], ensure_ascii=False)


def parse_sample_prompt(sample: "EvalSample", system_prompt: str | None) -> SamplePrompt:
    """`system_prompt` is the system message that the log's generation settings added to every prompt."""
    messages = [one for one in _prompt_messages(sample) if one["content"] or one["role"] == "system"]
    if system_prompt is not None:
        messages = [Message(role="system", content=system_prompt), *messages]
    system_texts = [one["content"] for one in messages if one["role"] == "system"]
    question_text = "\n".join(one["content"] for one in messages if one["role"] != "system")
    return SamplePrompt(tuple(messages), "\n".join(system_texts) or None, question_text)


def _prompt_messages(sample: "EvalSample") -> list[Message]:
    """The messages before the first generated one. `sample.input` is not enough, since solvers may add messages to it."""
    input_messages = [] if isinstance(sample.input, str) else sample.input
    # Assistant messages of the input are few-shot examples, not generated.
    examples_left = sum(one.role == "assistant" for one in input_messages)
    if not sample.messages:
        return (
            [Message(role="user", content=sample.input)]
            if isinstance(sample.input, str)
            else [_to_message(one) for one in input_messages]
        )
    messages = []
    for one in sample.messages:
        if one.role == "assistant":
            if not examples_left:
                break
            examples_left -= 1
        messages.append(_to_message(one))
    return messages


def _to_message(message: Any) -> Message:
    return Message(role=message.role, content=message.text)


def sample_persona_id(sample: "EvalSample", prompt: SamplePrompt, persona_key: str, where: str) -> str | None:
    """The persona in the metadata, else the system text. Raises DataError if the metadata holds neither a text nor null."""
    if persona_key not in sample.metadata:
        return prompt.system_prompt
    value = sample.metadata[persona_key]
    if value is not None and not (isinstance(value, str) and value):
        raise DataError(
            f"{where}: sample {sample.id!r}: metadata.{persona_key} = {value!r}: must be a persona's name, or null for no persona"
        )
    return value


def exported_sample_info(sample: "EvalSample") -> Mapping[str, Any]:
    """The metadata that `permix export` wrote for the cell; empty for samples of other programs."""
    info = sample.metadata.get(PERMIX_METADATA_KEY)
    return info if isinstance(info, dict) else {}


def parse_inspect_sample(
    sample: "EvalSample",
    prompt: SamplePrompt,
    persona_id: str | None,
    question_id: str,
    scorer: str | None,
    where: str,
    thinking: ThinkingSwitch = "default",
) -> LoggedCell:
    """The sample as a cell, with the verdict of `scorer` if given. Raises DataError if the score is no verdict.

    thinking: whether the model was asked with its thinking switched on or off; as in `permix stability`, thinking that the token
    limit cut off is no answer.
    """
    where = f"{where}: sample {sample.id!r}, epoch {sample.epoch}"
    completion, failure = _completion_or_failure(sample, thinking)
    verdict = None
    if completion is not None and scorer is not None:
        score = (sample.scores or {}).get(scorer)
        value, answer = (None, None) if score is None else (score.value, score.answer)
        verdict = to_verdict(value, answer, field=f"scores.{scorer}", where=where)
    seeds: Sequence[int] = exported_sample_info(sample).get("seeds", ())
    cell = Cell(
        persona_id=persona_id,
        question_id=question_id,
        sample=sample.epoch - 1,
        messages=prompt.messages,
        gold=_target_text(sample),
        seed=seeds[sample.epoch - 1] if sample.epoch <= len(seeds) else 0,
        completion=completion,
        verdict=verdict,
        failure=failure,
    )
    return LoggedCell(cell, prompt.question_text, where)


def _target_text(sample: "EvalSample") -> str:
    return sample.target if isinstance(sample.target, str) else "\n".join(sample.target)


def _completion_or_failure(sample: "EvalSample", thinking: ThinkingSwitch) -> tuple[Completion | None, Failure | None]:
    why = output_problem(sample.output) if sample.error is None else sample.error.message
    if why is not None:
        return None, Failure(type="inspect_ai", message=why)
    return with_cut_off_thinking(to_completion(sample.output), thinking), None


def output_problem(output: "ModelOutput") -> str | None:
    """Why an output holds no answer of the model, whatever words are in it; None if it holds one."""
    if not output.choices:
        return "no output was logged"
    if output.stop_reason == "content_filter":
        return "a content filter stopped the reply" + (f": {output.error}" if output.error else "")
    # inspect_ai writes a provider's refusal of a prompt that is too long as an output with the words of the error.
    if output.error or (output.stop_reason == "model_length" and output.usage is None):
        return f"the provider refused the request: {output.error or output.completion}"
    return None


def to_completion(output: "ModelOutput") -> Completion:
    """The first choice of an output that has one."""
    n_input, n_output = (output.usage.input_tokens, output.usage.output_tokens) if output.usage else (None, None)
    finish: Any = FINISH_BY_STOP_REASON.get(output.stop_reason)
    return Completion(
        text=output.completion,
        prompt_tokens=n_input,
        completion_tokens=n_output,
        finish=finish,
        reasoning=_reasoning_text(output.message) or None,
    )


def _reasoning_text(message: "ChatMessage") -> str:
    """The reasoning of a message; of a part that the provider has encrypted, its summary."""
    parts = [part for part in message.content if part.type == "reasoning"] if isinstance(message.content, list) else []
    texts = [part.summary if part.redacted or not part.reasoning else part.reasoning for part in parts]
    return "\n".join(filter(None, texts))


LOG_SUFFIXES = (".eval", ".json")

PERMIX_SCORERS = ("permix/verify", "verify")

IGNORED_GENERATE_FIELDS = frozenset(
    (
        "system_message",
        "seed",
        "max_connections",
        "adaptive_connections",
        "max_retries",
        "timeout",
        "attempt_timeout",
        "cache",
        "batch",
    )
)
"""Fields of the generation settings that may differ between logs: the persona, the seed and how requests are sent."""


def require_inspect_ai() -> None:
    """Raise ConfigError, naming the extra to install, if inspect_ai is missing."""
    try:
        import inspect_ai.log  # noqa: F401
    except ImportError as error:
        raise missing_package_error(["inspect_ai"], "inspect: reading and writing its logs") from error


def read_inspect_logs(entry: NamedLogPath, config: ImportConfig) -> list[LogSource]:
    """Read every log at the entry's path. Raises ConfigError or DataError, naming log, sample and field of an unusable part."""
    require_inspect_ai()
    logs = [(path, _read_log(path)) for path in find_log_files(entry.path)]
    selected = [(path, log) for path, log in logs if config.task in (None, log.eval.task)]
    if not selected:
        tasks = ", ".join(dict.fromkeys(log.eval.task for _, log in logs))
        raise DataError(f"task = {config.task!r}: is not in {entry.path}; it has {tasks}")
    return [_to_log_source(path, log, entry, config) for path, log in selected]


def find_log_files(path: Path) -> list[Path]:
    """The log itself, or every log below a folder. Raises DataError if there is no log."""
    if path.is_file():
        return [path]
    found = sorted(one for one in path.rglob("*") if one.is_file() and _is_log(one)) if path.is_dir() else []
    if not found:
        raise DataError(f"{path}: no such log, or a folder without logs; logs end in {' or '.join(LOG_SUFFIXES)}")
    return found


_LOG_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}[:-]\d{2}[:-]\d{2}.*\.json")

_LOG_START = re.compile(rb'\s*\{\s*"(?:version|status|eval)"')


def _is_log(path: Path) -> bool:
    """Whether a file of a folder is a log: by inspect_ai's own rule of names, or JSON that begins as its logs do.

    `eval-set.json` and `logs.json`, which `inspect eval-set` writes beside the logs, are none.
    """
    if path.suffix != ".json":
        return path.suffix in LOG_SUFFIXES
    if _LOG_NAME.fullmatch(path.name):
        return True
    with open_regular(path) as file:
        return _LOG_START.match(file.read(200)) is not None


def _to_log_source(path: Path, log: "EvalLog", entry: NamedLogPath, config: ImportConfig) -> LogSource:
    samples, status = _samples_in_order(log), _status_text(log)
    if not samples:
        raise DataError(f"{path}: has no samples ({status}); inspect_ai writes them with log_samples")
    system_prompt = log.eval.model_generate_config.system_message
    prompts = [parse_sample_prompt(sample, system_prompt) for sample in samples]
    personas = [_persona_id(sample, prompt, entry, config, path) for sample, prompt in zip(samples, prompts, strict=True)]
    if log.status != "success" and not config.answer and not _scorer_names(samples):
        raise DataError(
            f"{path}: {status}; it ended before anything was scored. Give --answer to score its answers, or repeat it"
        )
    scorer = None if config.answer else select_option(_scorer_names(samples), config.metric, field="metric", where=str(path))
    single_persona = len(set(personas)) == 1
    generation = {**_generation_settings(log.plan.config), **_generation_settings(log.eval.model_generate_config)}
    thinking = _thinking_switch(generation)
    cells = [
        parse_inspect_sample(sample, prompt, persona, _question_id(sample, prompt, single_persona), scorer, str(path), thinking)
        for sample, prompt, persona in zip(samples, prompts, personas, strict=True)
    ]
    metadata = (log.eval.metadata or {}).get(PERMIX_METADATA_KEY)
    identity = metadata if isinstance(metadata, dict) else None
    if identity is None:
        cells = [
            cell._replace(question_text=None) if _may_hold_persona(sample, prompt, persona) else cell
            for cell, sample, prompt, persona in zip(cells, samples, prompts, personas, strict=True)
        ]
    return LogSource(
        where=str(path),
        model=log.eval.model,
        task=log.eval.task,
        sampling=_parse_sampling(generation),
        scorer=scorer_of_log(identity if scorer in PERMIX_SCORERS else None, f"inspect {scorer}"),
        details=to_json_value({"model_args": log.eval.model_args, "generation": generation}),
        personas=_persona_texts(personas, prompts, path),
        logged_cells=cells,
        question_ids=_dataset_question_ids(log, cells) if single_persona else (),
        samples=log.eval.config.epochs or 1,
        default_system=_default_system_prompt(personas, prompts),
        permix_identity=identity,
        notes=() if log.status == "success" else (f"{path}: {status}; answers may be missing",),
    )


def _may_hold_persona(sample: "EvalSample", prompt: SamplePrompt, persona: str | None) -> bool:
    """Whether the persona may be a part of the text: the metadata names the question, and there is no system message."""
    is_named = exported_sample_info(sample).get("question_id") is not None
    return is_named and persona is not None and prompt.system_prompt is None


def _thinking_switch(generation: Mapping[str, Any]) -> ThinkingSwitch:
    """Whether the requests switched the model's thinking on, as `ModelConfig.extra_fields` does, or off."""
    body = generation.get("extra_body")
    switches = body.get("chat_template_kwargs") if isinstance(body, Mapping) else None
    values = [switches.get(name) for name in ("enable_thinking", "thinking")] if isinstance(switches, Mapping) else []
    return "on" if True in values else "off" if False in values else "default"


def _status_text(log: "EvalLog") -> str:
    """ "status error: CUDA out of memory"."""
    reason = f": {escape_control(log.error.message.strip().partition(chr(10))[0])}" if log.error else ""
    return f"status {log.status}{reason}"


MAX_LOG_BYTES, MAX_UNPACKED_BYTES, MAX_ZIP_MEMBERS = 1_000_000_000, 4_000_000_000, 1_000_000
"""A log of 10,000 samples has about 100 MB unpacked."""


def _check_size(path: Path) -> None:
    """Raise DataError for a log that is no regular file, or whose content would fill the memory."""
    require_log_file(path, MAX_LOG_BYTES)
    if path.suffix != ".eval":
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unpacked = sum(one.file_size for one in members)
    if len(members) > MAX_ZIP_MEMBERS or unpacked > MAX_UNPACKED_BYTES:
        raise DataError(
            f"{path}: has {len(members):,} members of {unpacked:,} bytes unpacked; at most {MAX_ZIP_MEMBERS:,} and "
            f"{MAX_UNPACKED_BYTES:,} are read"
        )


_READ_ERRORS = (
    ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, RecursionError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What inspect_ai's reader raises for files that are damaged in different ways."""


def _read_log(path: Path) -> "EvalLog":
    from inspect_ai.log import read_eval_log

    try:
        _check_size(path)
        return read_eval_log(str(path), resolve_attachments=True)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a log of inspect_ai: {str(error).partition(chr(10))[0]}") from error


def _samples_in_order(log: "EvalLog") -> list["EvalSample"]:
    """Samples in the order of the data set: inspect_ai's reader sorts by id, but resampling depends on the order of questions."""
    index_of = {id: index for index, id in enumerate(log.eval.dataset.sample_ids or ())}
    return sorted(log.samples or [], key=lambda sample: (index_of.get(sample.id, len(index_of)), sample.epoch))


def _persona_id(sample: "EvalSample", prompt: SamplePrompt, entry: NamedLogPath, config: ImportConfig, path: Path) -> str | None:
    if entry.name is None:
        return sample_persona_id(sample, prompt, config.persona_key, str(path))
    if entry.persona_id is not None and prompt.system_prompt is None:
        raise DataError(
            f"{path}: sample {sample.id!r} has no system message, so it was not asked with the persona {entry.persona_id!r}"
        )
    return entry.persona_id


def _question_id(sample: "EvalSample", prompt: SamplePrompt, single_persona: bool) -> str:
    return str(
        exported_sample_info(sample).get("question_id")
        or (sample.id if single_persona else question_text_id(prompt.question_text))
    )


def _scorer_names(samples: Sequence["EvalSample"]) -> list[str]:
    return list(dict.fromkeys(name for sample in samples for name in sample.scores or {}))


def _persona_texts(personas: Sequence[str | None], prompts: Sequence[SamplePrompt], path: Path) -> dict[str, str]:
    """The system text of each persona, or its id if it has no system text. Raises DataError if a persona has two texts."""
    texts: dict[str, str] = {}
    for id, prompt in zip(personas, prompts, strict=True):
        text = prompt.system_prompt or id
        if id is not None and text is not None and texts.setdefault(id, text) != text:
            raise DataError(
                f"{path}: persona {id!r} is {quote_value(texts[id])} in one sample and {quote_value(text)} in another"
            )
    return texts


def _default_system_prompt(personas: Sequence[str | None], prompts: Sequence[SamplePrompt]) -> str | None:
    return next(
        (prompt.system_prompt for id, prompt in zip(personas, prompts, strict=True) if id is None and prompt.system_prompt), None
    )


def _dataset_question_ids(log: "EvalLog", logged_cells: Sequence[LoggedCell]) -> list[str]:
    """All ids of the log's data set, so that samples that were never logged count as missing.

    Empty for a log that permix wrote, since its cells have other question ids than its data set.
    """
    logged = {one.cell.question_id for one in logged_cells}
    dataset_ids = [str(id) for id in log.eval.dataset.sample_ids or ()]
    return dataset_ids if logged <= set(dataset_ids) else []


def _generation_settings(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in values.items() if name not in IGNORED_GENERATE_FIELDS}


def _parse_sampling(generation: dict[str, Any]) -> ImportedSamplingConfig:
    return ImportedSamplingConfig(
        temperature=generation.get("temperature"), top_p=generation.get("top_p"), max_new_tokens=generation.get("max_tokens")
    )


EXPORT_SCORER = "verify"

STOP_REASON_BY_FINISH = {"stop": "stop", "length": "max_tokens", None: "unknown"}


def write_inspect_log(run: ExportableRun, out: Path) -> dict[str, str]:
    """Write the run as one .eval log in `out`; returns facts to print. Raises ConfigError when inspect_ai is not installed."""
    require_inspect_ai()
    from inspect_ai.log import write_eval_log

    path = out / f"{run.file_date}_{slug(run.task)}_{_log_id(run)}.eval"
    with guard_writes(path):
        out.mkdir(parents=True, exist_ok=True)
        write_eval_log(_build_log(run), str(path), format="eval")
    return {"log": str(path), "read back": f"permix import --inspect {path}"}


def _log_id(run: ExportableRun) -> str:
    return digest(run.created, run.model, run.task)


def _build_log(run: ExportableRun) -> "EvalLog":
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalPlanStep, EvalSpec, EvalStats
    from inspect_ai.model import GenerateConfig

    sampling, id = run.sampling, _log_id(run)
    generation = GenerateConfig(
        temperature=sampling["temperature"], top_p=sampling["top_p"], max_tokens=sampling["max_new_tokens"]
    )
    samples = [
        sample for persona_id in (None, *run.results.persona_ids) for sample in _build_samples(run.cells_of_persona(persona_id))
    ]
    ids = list(dict.fromkeys(str(sample.id) for sample in samples))
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=run.created, eval_id=id, run_id=id, task_id=id, task=run.task, model=run.model,
            model_generate_config=generation, config=EvalConfig(epochs=run.results.samples),
            dataset=EvalDataset(name=run.task, samples=len(ids), sample_ids=ids),
            metadata={PERMIX_METADATA_KEY: dict(run.identity)},
        ),
        plan=EvalPlan(steps=[EvalPlanStep(solver="generate")], config=generation),
        stats=EvalStats(started_at=run.created, completed_at=run.created),
        results=_build_results(samples, len(ids)),
        samples=samples,
    )  # fmt: skip


def _build_samples(cells: Sequence[Cell]) -> "Iterable[EvalSample]":
    """Yield one sample per cell. Its metadata has the seeds of all samples of the question, 0 for a sample without a record."""
    seeds: dict[str, dict[int, int]] = {}
    for cell in cells:
        seeds.setdefault(cell.question_id, {})[cell.sample] = cell.seed
    for cell in cells:
        seed_by_sample = seeds[cell.question_id]
        yield _build_sample(cell, [seed_by_sample.get(sample, 0) for sample in range(max(seed_by_sample) + 1)])


def _build_sample(cell: Cell, seeds: Sequence[int]) -> "EvalSample":
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput

    prompt = [to_chat_message(message) for message in cell.messages]
    output = ModelOutput() if cell.completion is None else _to_model_output(cell.completion)
    return EvalSample(
        id=sample_id(cell.persona_id, cell.question_id),
        epoch=cell.sample + 1,
        input=prompt,
        target=cell.gold or "",
        metadata={"persona": cell.persona_id, PERMIX_METADATA_KEY: {"question_id": cell.question_id, "seeds": list(seeds)}},
        messages=[*prompt, *(choice.message for choice in output.choices)],
        output=output,
        scores=None if cell.completion is None else {EXPORT_SCORER: _to_inspect_score(cell)},
        error=None if cell.failure is None or cell.completion is not None else _to_eval_error(cell),
    )


def to_chat_message(message: Message) -> "ChatMessage":
    """The message as inspect_ai's. Raises DataError for another role than system, user and assistant."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds: Any = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    if message["role"] not in kinds:
        raise DataError(
            f"role = {quote_value(message['role'])}: the role of a message to export must be one of {', '.join(kinds)}"
        )
    chat_message: ChatMessage = kinds[message["role"]](content=message["content"])
    return chat_message


def _to_model_output(completion: Completion) -> "ModelOutput":
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ContentReasoning,
        ContentText,
        ModelOutput,
        ModelUsage,
    )

    stop_reason: Any = STOP_REASON_BY_FINISH[completion.finish]
    n_input, n_output = completion.prompt_tokens, completion.completion_tokens
    usage = None
    if n_input is not None and n_output is not None:
        usage = ModelUsage(input_tokens=n_input, output_tokens=n_output, total_tokens=n_input + n_output)
    content: Any = completion.text
    if completion.reasoning:
        content = [ContentReasoning(reasoning=completion.reasoning), ContentText(text=completion.text)]
    choice = ChatCompletionChoice(message=ChatMessageAssistant(content=content), stop_reason=stop_reason)
    return ModelOutput(choices=[choice], usage=usage)


def _to_inspect_score(cell: Cell) -> "Score":
    from inspect_ai.scorer import Score

    verdict = cell.verdict
    if verdict is None or verdict.correct is None:
        return Score.unscored(answer=verdict and verdict.extracted, reason=(verdict and verdict.error) or "not scored")
    return Score(value="C" if verdict.correct else "I", answer=verdict.extracted)


def _to_eval_error(cell: Cell) -> Any:
    from inspect_ai.log import EvalError

    assert cell.failure is not None
    return EvalError(message=f"{cell.failure.type}: {cell.failure.message}", traceback="", traceback_ansi="")


def _build_results(samples: "Sequence[EvalSample]", n: int) -> Any:
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    values = [score.value for sample in samples for score in (sample.scores or {}).values() if isinstance(score.value, str)]
    accuracy = [EvalMetric(name="accuracy", value=values.count("C") / len(values))] if values else []
    score = EvalScore(
        name=EXPORT_SCORER,
        scorer=f"permix/{EXPORT_SCORER}",
        scored_samples=len(values),
        unscored_samples=len(samples) - len(values),
        metrics={one.name: one for one in accuracy},
    )
    return EvalResults(total_samples=n, completed_samples=sum(sample.error is None for sample in samples), scores=[score])
