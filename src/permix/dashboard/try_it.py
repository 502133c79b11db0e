"""Ask models of the viewed folder one question, for the tab "Try it" of `permix view --try-it`.

Contract: only a model that `find_models` lists can be asked: a trained model of a run in the folder, or a model or endpoint that
the configuration of a run names. A request names it by an id, never by a path or an address. One question is asked at a time, for
at most `ASK_S` seconds, in a process of its own, which ends `IDLE_ASK_S` seconds later and releases its memory. Nothing is
downloaded, and nothing is stored unless the user saves the answers: `save` appends them to `SAVED_FILE` in the viewed folder. The
server (`permix.dashboard.server`) admits only requests that carry `TryIt.token`.

Personas and questions of a run come from its records, as the run sent them.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from permix.config import ENGINE_FIELDS, ModelConfig, build_config, fidelity_kind
from permix.dashboard.folder import RunFolder, start_process
from permix.dashboard.run_monitor import READ_ERRORS, RunMonitor, check_run_files, readable_error
from permix.errors import ConfigError, DataError, PermixError
from permix.evals.fidelity_records import read_persona_cells
from permix.inference import load_model
from permix.metrics.identifiability import MIN_ANSWERS
from permix.prompts import begins_with_you_are, build_messages, persona_prompt
from permix.sanitize import escape_control, redact_secrets, truncate
from permix.storage.cells import record_files
from permix.storage.files import JsonlWriter, open_regular, read_file_state
from permix.tasks import AnswerKind, find_task, verify_completion
from permix.types import Cell, Completion, Failure, Message, Persona, Request, Sampling, digest

ASK_S, IDLE_ASK_S = 300.0, 60.0
"""Longest time for one question, all models together, and how long the process waits for the next question, in seconds."""

MAX_ASKED_MODELS = 6

MAX_OWN_CHARS = 20_000
"""Longest text that a user may type, and longest answer that the page shows."""

MAX_PROMPT_BYTES = 16_000_000
"""How much of a run's records is read to find its personas and questions."""

SAVED_FILE = "tried.jsonl"

_SHOWN_CHARS, _SHOWN_LINES, _MAX_CHOICES = 1000, 20, 1000


class ModelChoice(NamedTuple):
    """A model that may be asked. `origin` says in words where it is; `runs` are the runs that it belongs to or answered."""

    id: str
    name: str
    origin: str
    config: ModelConfig
    runs: tuple[RunMonitor, ...]

    @property
    def address(self) -> str:
        """The address of an endpoint; empty for a model on this machine."""
        return "" if self.config.capabilities.is_local else truncate(escape_control(", ".join(self.config.base_urls)), 200)

    def to_json(self) -> dict[str, Any]:
        """The choice as data for JSON."""
        labels = dict.fromkeys(str((run.published or {}).get("label", "")) for run in self.runs)
        return {"id": self.id, "name": self.name, "origin": self.origin, "runs": list(labels)[:5]}


def find_models(monitors: Sequence[RunMonitor]) -> tuple[dict[str, ModelChoice], list[str]]:
    """The models of the runs by id, trained ones first, and notes that say which cannot be asked and why."""
    found: dict[str, ModelChoice] = {}
    notes: list[str] = []
    for run in monitors:
        if run.stage == "train" and _has_trained_model(run):
            config = ModelConfig(name=str(run.path / "model"))
            _add_choice(found, config, run, f"{_label(run)}, trained", f"in this folder: {run.name}/model")
    for run in monitors:
        section = run.config.get("model")
        if run.stage not in ("stability", "fidelity", "train", "questions") or not isinstance(section, Mapping):
            continue
        try:
            config = build_config(ModelConfig, dict(section), source="its model")
        except READ_ERRORS as error:
            notes.append(f"{run.name}: {readable_error(error)}")
            continue
        if config.capabilities.answers_later:
            notes.append(f"{run.name}: its model was asked by batch files, so the run has no address at which it can be asked")
        elif config.capabilities.configurable:
            _add_choice(found, config, run, _model_name(config), _origin(config))
        else:
            notes.append(f"{run.name}: its model is a function of Python, which only its own script can call")
    return found, [truncate(escape_control(note), 300) for note in dict.fromkeys(notes)]


def _has_trained_model(run: RunMonitor) -> bool:
    return not (run.path / "model").is_symlink() and (run.path / "model" / "config.json").is_file()


def _add_choice(found: dict[str, ModelChoice], config: ModelConfig, run: RunMonitor, name: str, origin: str) -> None:
    id = _model_id(config)
    new = ModelChoice(id, truncate(escape_control(name), 120), truncate(escape_control(origin), 200), config, ())
    known = found.get(id, new)
    found[id] = known._replace(runs=(*known.runs, run))


def _model_id(config: ModelConfig) -> str:
    """Equal for configurations whose answers are the same: how many requests are sent at once makes no difference."""
    folder = Path(config.name)
    name = str(folder.resolve()) if config.capabilities.is_local and folder.is_dir() else config.name
    speed = {"batch_size", "concurrency", "timeout_s", "retries", *ENGINE_FIELDS}
    return digest(config.model_copy(update={"name": name}).model_dump_json(exclude=speed))


def _model_name(config: ModelConfig) -> str:
    settings = [config.name]
    settings += [f"thinking {config.thinking}"] if config.thinking != "default" else []
    settings += [f"thinking budget {config.thinking_budget}"] if config.thinking_budget is not None else []
    settings += [config.dtype] if config.dtype != "auto" else []
    settings += [config.extra_body] if config.extra_body else []
    return redact_secrets(", ".join(settings))


def _origin(config: ModelConfig) -> str:
    if config.capabilities.is_local:
        return "in a process on this machine"
    is_set = "set" if os.environ.get(config.api_key_env, "").strip() else "not set"
    return f"sends the question to {', '.join(config.base_urls)}, with the key in ${config.api_key_env} ({is_set})"


def _label(run: RunMonitor) -> str:
    return str((run.published or {}).get("label") or run.name)


# Personas and questions of a run


class AskedPrompt(NamedTuple):
    """The user message that a run sent for a question, and the right answer; None for an open-ended question."""

    text: str
    gold: str | None


class RunPrompts(NamedTuple):
    """What a run asked: the system message of each persona, and its questions. `note` says what is left out."""

    personas: Mapping[str, str]
    questions: Mapping[str, AskedPrompt]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Both lists as data for JSON, with texts cut and made printable."""
        questions = list(self.questions.items())[:_MAX_CHOICES]
        return {
            "personas": [{"id": id, "shown": _printable(id, 80), "text": _printable(text)} for id, text in self.personas.items()],
            "questions": [
                {"id": id, "text": _printable(one.text), "gold": None if one.gold is None else _printable(one.gold, 200)}
                for id, one in questions
            ],
            "note": self.note,
        }


def _printable(text: str, width: int = _SHOWN_CHARS) -> str:
    return truncate(escape_control(text[: 2 * width]), width, 1 if width < _SHOWN_CHARS else _SHOWN_LINES)


def read_prompts(run: RunMonitor) -> RunPrompts:
    """The personas and questions in the first `MAX_PROMPT_BYTES` of a run's records.

    Raises DataError if the run may not be read (`check_run_files`). Lines that are no cell are passed over.
    """
    check_run_files(run.path, run.root)
    states = {path: state for path in record_files(run.path) if (state := read_file_state(path)) is not None}
    if not states:
        return RunPrompts({}, {}, "it has no records yet")
    share = MAX_PROMPT_BYTES // len(states)
    return _read_prompts(tuple((path, state.inode, min(state.size, share)) for path, state in states.items()))


def _read_beginning(path: Path, size: int) -> bytes:
    with open_regular(path) as file:
        return file.read(size)


@lru_cache(maxsize=4)  # each question that is asked looks up its texts here
def _read_prompts(beginnings: tuple[tuple[Path, int, int], ...]) -> RunPrompts:
    """The prompts in the beginnings of files: (path, inode, bytes) of each. The inode tells a file that replaced another one."""
    personas: dict[str, str] = {}
    questions: dict[str, AskedPrompt] = {}
    in_question = 0
    for line in (line for path, _, size in beginnings for line in _read_beginning(path, size).split(b"\n")):
        try:
            cell = Cell.model_validate_json(line)
        except ValidationError:
            continue
        system = cell.messages[0]["content"] if cell.messages and cell.messages[0]["role"] == "system" else ""
        if cell.persona_id is not None and not system:
            in_question += not cell.context  # the persona is in the user message, and cannot be separated from the question
        elif cell.context not in ("", "system"):  # its question is not the bare one, or follows recorded turns
            if cell.persona_id is not None and len(personas) < _MAX_CHOICES:
                personas.setdefault(cell.persona_id, system)
        elif len(cell.messages) <= 2:  # a later turn of an interview means nothing without the turns before
            if cell.persona_id is not None and len(personas) < _MAX_CHOICES:
                personas.setdefault(cell.persona_id, system)
            questions.setdefault(cell.question_id, AskedPrompt(cell.prompt, cell.gold))
    is_cut = any(size == MAX_PROMPT_BYTES // len(beginnings) for *_, size in beginnings)
    notes = [f"read from the first {MAX_PROMPT_BYTES // 10**6} MB of its records"] if is_cut else []
    if len(questions) > _MAX_CHOICES:
        notes.append(f"{len(questions)} questions, of which the first {_MAX_CHOICES} are listed")
    notes += ["its template puts the persona into the question, so its personas are not listed"] if in_question else []
    return RunPrompts(personas, questions, "; ".join(notes))


# What the page asks


class TryRequest(BaseModel):
    """One question from the page. `persona` and `question` are ids of the run, or the user's own texts, by their `_kind`.

    `persona_kind`: "text" completes "You are ...", "system" is a whole system prompt. `gold` and `compare` belong to the user's
    own question: the right answer, and how answers are compared with it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    models: list[str] = Field(min_length=1, max_length=MAX_ASKED_MODELS)
    run: str = ""
    persona_kind: Literal["none", "run", "text", "system"] = "none"
    persona: str = Field(default="", max_length=MAX_OWN_CHARS)
    question_kind: Literal["run", "own"]
    question: str = Field(max_length=MAX_OWN_CHARS)
    gold: str = Field(default="", max_length=1000)
    compare: AnswerKind = "number"
    temperature: float = Field(default=0.0, ge=0, le=5)
    max_new_tokens: int = Field(default=256, gt=0, le=4096)
    seed: int = Field(default=0, ge=0, lt=2**31)


class TriedQuestion(NamedTuple):
    """What is sent to each model, and what its answer is compared with. `task`: the task that scores it; None without a gold.

    `persona_id` and `question_id` are empty for the user's own.
    """

    messages: tuple[Message, ...]
    persona_id: str
    question_id: str
    gold: str | None
    task: str | None
    sampling: Sampling
    seed: int


class _AskedModel(NamedTuple):
    """One model in the process that asks: its configuration, and its open-ended fidelity runs."""

    config: ModelConfig
    fidelity_runs: tuple[Path, ...]


class BusyError(PermixError):
    """A question is being answered."""


class TryIt:
    """The state of the tab: one question, and the answers to it so far. `token` is what a request must carry."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.token = secrets.token_urlsafe(32)
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Any = None
        self._idle_timer: threading.Timer | None = None
        self._number = self._stopped = 0  # of questions: the last one, and the last one that was stopped
        self._busy = self._saved = False
        self._error = ""
        self._question: TriedQuestion | None = None
        self._asked: tuple[ModelChoice, ...] = ()
        self._answers: list[dict[str, Any]] = []

    def choices(self) -> dict[str, Any]:
        """The models that may be asked, and the runs whose personas and questions may be used, as data for JSON."""
        monitors = self.folder.monitors
        models, notes = find_models(monitors)
        runs = [run.published or {} for run in monitors if run.stage in ("stability", "fidelity") and run.state != "broken"]
        return {
            "models": [choice.to_json() for choice in models.values()],
            "runs": [{name: run[name] for name in ("id", "label", "stage", "name")} for run in runs],
            "notes": notes,
            "max_models": MAX_ASKED_MODELS,
            "saved_file": SAVED_FILE,
        }

    def prompts(self, id: str) -> dict[str, Any]:
        """The personas and questions of a run, as data for JSON. Raises ConfigError for an unknown run, DataError."""
        return read_prompts(self._find_run(id)).to_json()

    def _find_run(self, id: str) -> RunMonitor:
        run = self.folder.find(id)
        if run is None or run.state == "broken":
            raise ConfigError("run: is none of the runs in this folder that can be read; choose one of the list")
        return run

    def ask(self, body: bytes) -> dict[str, Any]:
        """Begin to ask the question of a request (JSON), and return its number. `answers` returns what has been answered.

        Raises ConfigError for a request that is invalid or names what is not listed, and BusyError while a question is being
        answered.
        """
        try:
            request = TryRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}") from None
        models, _ = find_models(self.folder.monitors)
        if unknown := [id for id in request.models if id not in models]:
            raise ConfigError(f"models: {escape_control(unknown[0][:40])!r} is none of the models that are listed")
        chosen = tuple(models[id] for id in dict.fromkeys(request.models))
        question = self._resolve(request)
        with self._lock:
            if self._busy:
                raise BusyError("a question is being answered; wait for it, or stop it")
            self._cancel_timer()
            self._number, self._busy, self._saved, self._error = self._number + 1, True, False, ""
            self._question, self._asked, self._answers = question, chosen, []
            number = self._number
        threading.Thread(target=self._work, args=(question, chosen), daemon=True).start()
        return {"number": number}

    def _resolve(self, request: TryRequest) -> TriedQuestion:
        """Look up what the request names. Raises ConfigError if the run does not have it."""
        prompts, task = RunPrompts({}, {}, ""), None
        if request.persona_kind == "run" or request.question_kind == "run":
            run = self._find_run(request.run)
            prompts = read_prompts(run)
            section = run.config.get("task")
            task = str(section.get("name") or "arithmetic") if isinstance(section, Mapping) else None
        if request.persona_kind == "run" and request.persona not in prompts.personas:
            raise ConfigError("persona: is none of the personas of this run; choose one of the list")
        if request.question_kind == "run":
            if request.question not in prompts.questions:
                raise ConfigError("question: is none of the questions of this run; choose one of the list")
            text, gold = prompts.questions[request.question]
        else:
            text, gold = request.question.strip(), request.gold.strip() or None
            task = f"own-{request.compare}"
        if not text:
            raise ConfigError("question: is empty; write one, or choose one of a run")
        return TriedQuestion(
            messages=_build_messages(request, prompts, text),
            persona_id=request.persona if request.persona_kind == "run" else "",
            question_id=request.question if request.question_kind == "run" else "",
            gold=gold,
            task=None if gold is None else task,
            sampling=Sampling(temperature=request.temperature, max_new_tokens=request.max_new_tokens),
            seed=request.seed,
        )

    def answers(self) -> dict[str, Any]:
        """The last question and the answers to it so far, as data for JSON."""
        with self._lock:
            question, answers = self._question, list(self._answers)
            waiting = [{"id": one.id, "name": one.name} for one in self._asked[len(answers) :]]
            return {
                "number": self._number,
                "busy": self._busy,
                "saved": self._saved,
                "error": self._error,
                "messages": [] if question is None else [_message_view(one) for one in question.messages],
                "gold": None if question is None or question.gold is None else _printable(question.gold, 200),
                "answers": [_answer_view(one) for one in answers],
                "waiting": waiting,
            }

    def save(self, number: int) -> dict[str, Any]:
        """Append the answers to question `number` to `SAVED_FILE` in the viewed folder, once.

        Raises ConfigError if that is not the last question or it is still being answered, PermixError if the file cannot be
        written.
        """
        with self._lock:
            question = self._question
            if question is None or number != self._number or self._busy or not self._answers:
                raise ConfigError("number: is not that of the last question with its answers")
            if not self._saved:
                path = self.folder.root / SAVED_FILE
                writer = JsonlWriter(path)
                try:
                    writer.append([self._record(question)])
                finally:
                    writer.close()
                self._saved = True
        return {"file": SAVED_FILE}

    def _record(self, question: TriedQuestion) -> dict[str, Any]:
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "messages": list(question.messages),
            "persona_id": question.persona_id or None,
            "question_id": question.question_id or None,
            "gold": question.gold,
            "sampling": question.sampling.model_dump(),
            "seed": question.seed,
            "answers": [
                {"model": choice.config.model_dump(mode="json", exclude_defaults=True) | {"name": choice.config.name}}
                | {name: value for name, value in answer.items() if name not in ("id", "name", "address")}
                for choice, answer in zip(self._asked, self._answers, strict=False)
            ],
        }

    def stop(self) -> None:
        """End the process, and with it the question that is being answered."""
        with self._lock:
            process = self._release_process()
        _kill(process)

    def _stop_if_idle(self) -> None:
        with self._lock:  # for both the check and the release, so that a question cannot begin between them and be killed
            process = None if self._busy else self._release_process()
        _kill(process)

    def _release_process(self) -> Any:
        """Stop using the process, and return it, or None. The caller holds the lock, and kills it."""
        self._cancel_timer()
        self._stopped = self._number
        process, self._process = self._process, None
        return process

    def _cancel_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _work(self, question: TriedQuestion, chosen: Sequence[ModelChoice]) -> None:
        """Let the process answer, and take over each answer as it comes."""
        deadline, reason = time.monotonic() + ASK_S, "it failed here; the terminal of permix view shows why"
        asked = [_AskedModel(one.config, tuple(run.path for run in one.runs if _is_open_fidelity(run))) for one in chosen]
        try:
            pipe = self._open_process()
            pipe.send((question, asked))
            reason = self._receive(pipe, chosen, deadline)
        except (EOFError, OSError):
            stopped = self._stopped == self._number
            reason = "stopped" if stopped else "the process that asks ended; perhaps the memory was not enough"
        finally:  # after any other error too, or no question could be asked again
            self._finish(reason)

    def _receive(self, pipe: Any, chosen: Sequence[ModelChoice], deadline: float) -> str:
        """Take over the answers. Return why there are no more; empty if all are there."""
        for choice in chosen:
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                return f"stopped: it took longer than {ASK_S:.0f} s"
            answer = pipe.recv()
            with self._lock:
                self._answers.append({"id": choice.id, "name": choice.name, "address": choice.address} | answer)
        return ""

    def _finish(self, reason: str) -> None:
        """End the question; with a reason for its missing answers, also the process."""
        if reason:
            self.stop()
        with self._lock:
            self._busy, self._error = False, reason
            if self._process is not None:
                self._idle_timer = threading.Timer(IDLE_ASK_S, self._stop_if_idle)
                self._idle_timer.daemon = True
                self._idle_timer.start()

    def _open_process(self) -> Any:
        """The pipe to the process, which is started if there is none. Raises EOFError if the question was stopped."""
        with self._lock:
            if self._process is not None:
                return self._pipe
        process, pipe = start_process(_answer_questions)
        with self._lock:
            is_stopped = self._stopped == self._number
            if not is_stopped:
                self._process, self._pipe = process, pipe
        if is_stopped:
            _kill(process)
            raise EOFError
        return pipe


def _kill(process: Any) -> None:
    if process is not None:
        process.kill()
        process.join()


def _build_messages(request: TryRequest, prompts: RunPrompts, text: str) -> tuple[Message, ...]:
    if request.persona_kind == "none":
        return build_messages(None, text)
    persona = request.persona.strip()
    if not persona:
        raise ConfigError("persona: is empty; write one, or choose no persona")
    if request.persona_kind == "text":
        return build_messages(Persona(id="own", text=persona, whole_prompt=begins_with_you_are(persona)), text)
    system = prompts.personas[request.persona] if request.persona_kind == "run" else persona
    return (Message(role="system", content=system), Message(role="user", content=text))


def _is_open_fidelity(run: RunMonitor) -> bool:
    try:
        return run.stage == "fidelity" and fidelity_kind(run.config) == "open"
    except READ_ERRORS:
        return False


def _message_view(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": _long_text(message["content"])}


def _long_text(text: str) -> str:
    return truncate(escape_control(text[: MAX_OWN_CHARS + 1]), MAX_OWN_CHARS, MAX_OWN_CHARS)


def _answer_view(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as the page shows it: printable, and cut."""
    return {name: _long_text(value) if isinstance(value, str) else value for name, value in answer.items()}


# In the process that asks


def _answer_questions(pipe: Connection) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # a run's configuration may name a model of any size; nothing is downloaded
    os.nice(10)
    with suppress(OSError):  # where memory is short, the system ends this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    models = _LoadedModel()
    with suppress(EOFError, OSError):
        while True:
            question, asked = pipe.recv()
            for one in asked:
                pipe.send(_answer(question, one, models))


class _LoadedModel:
    """Keeps the model that was asked last, so that the next question to it is answered sooner; never two at a time."""

    def __init__(self) -> None:
        self._config: ModelConfig | None = None
        self._model: Any = None

    def load(self, config: ModelConfig) -> Any:
        if config != self._config:
            self.forget()  # its memory is free before the next one is loaded
            _require_on_this_machine(config)
            self._model = load_model(config)
            self._config = config
        return self._model

    def forget(self) -> None:
        self._config = self._model = None


def _require_on_this_machine(config: ModelConfig) -> None:
    """Raise ConfigError for a hub id that is not in the cache of hub models: loading it would ask for a download."""
    if not config.capabilities.is_local or config.name == "bundled" or Path(config.name).is_dir():
        return
    from permix.inference.hf import check_model_folder

    check_model_folder(config.name)
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(config.name, "config.json"), str):
        raise ConfigError(
            f"model.name = {config.name!r}: is neither a folder nor in this machine's cache of hub models, and nothing is "
            "downloaded from here"
        )


def _answer(question: TriedQuestion, asked: _AskedModel, models: _LoadedModel) -> dict[str, Any]:
    """Ask one model. What goes wrong is one line, `error`."""
    try:
        return _answer_or_raise(question, asked, models)
    except Exception as error:  # libraries raise errors of their own kinds, and the process must not end for one model's
        models.forget()
        return {"error": _error_line(error)}


def _answer_or_raise(question: TriedQuestion, asked: _AskedModel, models: _LoadedModel) -> dict[str, Any]:
    config = asked.config
    if not config.capabilities.is_local:
        config = config.model_copy(update={"retries": min(config.retries, 1), "timeout_s": min(config.timeout_s, ASK_S / 2)})
    model = models.load(config)
    start = time.monotonic()
    results = list(model.generate([Request(question.messages, question.seed)], question.sampling))
    seconds = round(time.monotonic() - start, 1)
    result = results[0].result if results else Failure(type="NoAnswer", message="the model yielded nothing")
    if isinstance(result, Failure):
        return {"error": escape_control(f"{result.type}: {result.message}").replace("\n", " ")}
    return _completion_json(result) | {"seconds": seconds} | _score(question, result) | _attribution(question, result, asked)


def _error_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in ("torch", "transformers"):
        return f"needs the package {error.name}, which is not installed; it is part of the extra permix[local]"
    text = str(error) if isinstance(error, PermixError) else f"{type(error).__name__}: {error}"
    return truncate(escape_control(text[:MAX_OWN_CHARS]).replace("\n", " "), 600)


def _completion_json(completion: Completion) -> dict[str, Any]:
    return {
        "text": completion.answer,
        "thinking": completion.thinking,
        "cut_off": completion.is_cut_off,
        "unclosed": completion.is_thinking_unclosed,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }


def _score(question: TriedQuestion, completion: Completion) -> dict[str, Any]:
    """The extracted answer and the verdict, as the evaluation has them; `unscored` says why there is none."""
    if question.gold is None or question.task is None:
        return {}
    try:
        task = find_task(question.task)
    except ConfigError:
        return {"unscored": f"not scored: the task {question.task[:80]!r} is not one of permix's"}
    if task.scorer is not None:
        return {"unscored": f"not scored: answers of {task.name} are programs, and they are not run here"}
    prompt = question.messages[-1]["content"]
    verdict = verify_completion(task, completion.text, question.gold, prompt)
    if verdict.correct is None:
        return {"unscored": f"not scored: {verdict.error}"}
    return {"extracted": verdict.extracted, "correct": verdict.correct}


def _attribution(question: TriedQuestion, completion: Completion, asked: _AskedModel) -> dict[str, Any]:
    """The persona that the classifier of identifiability names for the answer, or why it is not asked.

    Nothing without a persona, and for a model without an open-ended fidelity run.
    """
    if len(question.messages) < 2 or not asked.fidelity_runs:
        return {}
    for run in asked.fidelity_runs if question.persona_id and question.question_id else ():
        try:
            if (found := attribute_answer(run, question, completion.answer)) is not None:
                return {"attributed": found._asdict()}
        except READ_ERRORS as error:
            return {"not_attributed": _error_line(error)}
    return {"not_attributed": "no open-ended fidelity run of this model asked this persona this question"}


class Attribution(NamedTuple):
    """The persona that a classifier names for one answer, and the personas and answers that it was trained on."""

    named: str
    right: bool
    n_personas: int
    n_answers: int


def attribute_answer(run: Path, question: TriedQuestion, answer: str) -> Attribution | None:
    """Name the persona of an answer, with the classifier of `identifiability` trained on the run's answers to other questions.

    None if the run did not ask this persona this question with the same messages. Raises DataError for fewer than two personas,
    or fewer than `MIN_ANSWERS` answers of one of them, since the name would then mean nothing.
    """
    from permix.metrics.persona_classifier import fit_persona_classifier

    cells = [cell for cell in read_persona_cells(run) if cell.persona_id is not None]
    asked = (question.persona_id, question.question_id, question.messages)
    if not any((cell.persona_id, cell.question_id, cell.messages) == asked for cell in cells):
        return None
    texts = {cell.persona_id: persona_prompt(cell.messages) for cell in cells}
    training = [
        (cell.completion.answer, str(cell.persona_id))
        for cell in cells
        if cell.completion is not None and cell.question_id != question.question_id
    ]
    labels = [label for _, label in training]
    few = next((id for id in texts if labels.count(str(id)) < MIN_ANSWERS), None)
    if few is not None or len(texts) < 2:
        raise DataError(f"needs two personas, and {MIN_ANSWERS} answers of each to other questions; {run.name} has fewer")
    named = str(fit_persona_classifier([text for text, _ in training], labels, list(texts.values())).predict([answer])[0])
    return Attribution(named, named == question.persona_id, len(texts), len(training))
