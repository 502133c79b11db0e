"""The Python API: the commands of the command line as functions. Models, personas and questions may be made in Python.

Contract: this module computes nothing. Each function builds the configuration of a stage and runs it, so a run made from Python
is like any other: its input is checked before a model is asked, each cell is saved when it is finished, and the same call with
the same `out` resumes the run. `import permix` offers these names and imports this module when one is used (docs/api.md).
"""

import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, wraps
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from pydantic import BaseModel

from permix.config import (
    FidelityConfig,
    JudgeConfig,
    ModelConfig,
    PersonasConfig,
    StabilityConfig,
    StudyConfig,
    TrainConfig,
    annotation_types,
    build_config,
    fidelity_kind,
    merge_values,
    read_config_values,
    require_own_folder,
)
from permix.errors import RENAMED_SHARDS, ConfigError, DataError, IncompleteRunError, OtherShardsPendingError, PermixError
from permix.evals.grid import GridResults, cell_row, count_cut_off, cut_off_warning, persona_rows, read_grid_results
from permix.evals.open_ended import measure_recognisability, try_recognisability
from permix.evals.reference_runs import find_reference
from permix.evals.stability import StabilityGrid, measure_contexts, measure_stability, read_stability_grid, run_stability
from permix.evals.strategies import STRATEGIES
from permix.inference import build_model_config
from permix.inference.base import CompletionResult, Model
from permix.inference.batch_model import BatchFlags, BatchModel, check_no_shard, open_batch_model, use_batch_backend
from permix.inference.scripted import MessageFunction, code_identity, wrap_model
from permix.metrics.linear_models import ContextSummary
from permix.metrics.model_comparison import PairedComparison
from permix.metrics.recognisability import Recognisability
from permix.metrics.right_in_character import RightInCharacter
from permix.metrics.stability import StabilitySummary
from permix.metrics.statistics import Array
from permix.personas.loading import build_open_questions
from permix.personas.pool import PersonaPool, PersonasLike, resolve_pool, select_personas
from permix.progress import print_status
from permix.storage.files import read_json, read_jsonl
from permix.storage.rows import CSV_SUFFIXES, is_whole_number, quote_value
from permix.storage.run_dir import RunReader, read_provenance
from permix.tasks import (
    AnswerKind,
    LoadedTask,
    Task,
    check_answer_kind,
    check_loaded_task,
    find_task,
    is_permix_task,
    load_task_object,
    own_task,
    task_from_questions,
)
from permix.tasks.datasets import DATASET_SUFFIXES
from permix.types import Cell, Estimate, Question, Record, Request, Sampling, Split, digest

GIVEN_IN_PYTHON = "python"
"""The value in config.json for a pool or questions made in Python, which have no file."""


class Generates(Protocol):
    """An object of the user's own that answers many requests at once (see `permix.inference.scripted.GeneratorModel`)."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]: ...


ModelLike = str | Path | Mapping[str, Any] | Model | Generates | MessageFunction
"""A folder, a hub id, "bundled", an endpoint's URL, the fields of a [model] section, a model from `load_model`, an object with
`generate(requests, sampling)`, or a function messages -> text."""

TaskLike = str | Path | Mapping[str, Any] | Task | LoadedTask | Sequence[Question | Mapping[str, Any]]
"""A task's name, also that of your own ("package.module:NAME"), a file of questions, the fields of a [task] section, a `Task`, a
`LoadedTask` from `load_task`, or a list of questions (records, or dicts with `question` and `answer`: see
`permix.tasks.task_from_questions`)."""

SamplingLike = Sampling | Mapping[str, Any]

_ParametersT = ParamSpec("_ParametersT")

_ResultT = TypeVar("_ResultT")


class OpenedRun:
    """A run directory; each file is read when it is first needed. With `path` None the run is in a temporary folder, which is
    deleted with this object."""

    def __init__(self, path: str | Path | None) -> None:
        if path is None:
            path = tempfile.mkdtemp(prefix="permix-")
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        self.path = _filled_path(path, "path")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json: the resolved configuration."""
        return read_json(self.path / "config.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """The content of provenance.json: versions, source revision, command, time and `identity`."""
        return read_provenance(self.path)


class TrainRun(OpenedRun):
    """A training of `train` or `permix train`, or one of another engine that `permix import` read."""

    def steps(self) -> list[dict[str, Any]]:
        """One dict for each step, in order, as log.jsonl has it: step, reward, reward_by_tag, unscored, loss, kl ...

        `pandas.DataFrame(run.steps())` is a table. A step has the measures that its engine gives.
        """
        return RunReader(self.path).log

    def rollouts(self) -> Iterator[dict[str, Any]]:
        """One dict for each rollout, in order: step, group, persona_id, question_id, prompt, completion, gold, verdict ...

        They are read from disk one by one. Raises DataError, naming file and line, for a damaged line.
        """
        return read_jsonl(self.path / "rollouts.jsonl", json.loads, "a rollout")

    def dev_evaluations(self) -> list[dict[str, Any]]:
        """One dict for each dev evaluation, by step: step, n_scored, and each measure as a dict with value, low, high and n."""
        return list(read_jsonl(self.path / "dev_eval.jsonl", json.loads, "a dev evaluation"))


class EvaluationRun(OpenedRun):
    """The run directory of an evaluation."""

    @cached_property
    def _results(self) -> GridResults:
        return read_grid_results(self.path)

    @property
    def persona_ids(self) -> tuple[str, ...]:
        return self._results.persona_ids

    @property
    def question_ids(self) -> tuple[str, ...]:
        return self._results.question_ids

    def cells(self) -> list[Cell]:
        """The recorded cells of the grid: messages, completion and verdict."""
        return [self._results.read_cell(key) for key in self._results.grid_summaries]

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each recorded cell; `pandas.DataFrame(run.rows())` is a table.

        `persona_id` is None without persona. `correct` is None without a score, and `error` says why.
        """
        return [cell_row(cell) for cell in self.cells()]


def estimate_rows(record: Record, prefix: str = "") -> list[dict[str, Any]]:
    """One dict for each `Estimate` of a record: name, value, low, high, n. A list of estimates counts from 1: "best_of.1"."""
    rows: list[dict[str, Any]] = []
    for name, value in record:
        if isinstance(value, Estimate):
            rows.append({"name": prefix + name, **value.model_dump()})
        elif isinstance(value, Mapping):
            # The measures of a `MeasureRecord` are named without "measures.", as in its JSON.
            outer = "" if name == "measures" else f"{name}."
            estimates = {f"{prefix}{outer}{key}": one for key, one in value.items() if isinstance(one, Estimate)}
            rows += [{"name": key, **one.model_dump()} for key, one in estimates.items()]
        elif isinstance(value, tuple):
            numbered = [(place, one) for place, one in enumerate(value, start=1) if isinstance(one, Estimate)]
            rows += [{"name": f"{prefix}{name}.{place}", **one.model_dump()} for place, one in numbered]
    return rows


class StabilityRun(EvaluationRun):
    """A run of `evaluate_stability`, or of `permix stability`."""

    @cached_property
    def summary(self) -> StabilitySummary:
        """Every measure of docs/measures.md, computed from the records; `summary.personas` has one entry for each persona."""
        return measure_stability(self.path, self._results)

    def measures(self) -> list[dict[str, Any]]:
        """One dict for each measure: name, value, low and high (95 % interval), n (number of questions)."""
        return estimate_rows(self.summary)

    def right_in_character(self, reference: str | Path | None = None) -> RightInCharacter:
        """Measure how many answers are right and recognisable as their persona's, from the records; asks no model.

        `reference`: the stability run whose answers train the classifier, on the same questions and personas; by default
        `character_reference` of the run's configuration, or else this run. Raises DataError if the answers do not allow it.
        """
        from permix.evals.in_character import measure_right_in_character

        path = find_reference(self.path, self.config, "character_reference") if reference is None else Path(reference)
        return measure_right_in_character(self.path, path, self._results)

    @property
    def contexts(self) -> tuple[ContextSummary, ...]:
        """The stability in each context, in the order of the run's contexts; empty for a run without contexts."""
        return measure_contexts(self.path, self._results)

    def persona_rows(self) -> list[dict[str, Any]]:
        """One dict for each persona; `pandas.DataFrame(run.persona_rows())` is a table of numbers.

        The first one, with `persona_id` None, is the baseline: it has no difference and no p-value.
        """
        return persona_rows(self.summary, count_cut_off(self._results))

    @cached_property
    def _grid(self) -> StabilityGrid:
        return read_stability_grid(self.path, self._results)

    def scores(self) -> Array:
        """correct_P_Q_S [personas, questions, samples], in the order of `persona_ids` and `question_ids`: 1 right, 0 wrong, NaN
        without a score."""
        return self._grid.correct_P_Q_S

    def baseline_scores(self) -> Array:
        """correct_Q_S [questions, samples] of the baseline: the same questions without a persona."""
        return self._grid.baseline_Q_S


class FidelityRun(EvaluationRun):
    """A run of `evaluate_fidelity`, or of `permix fidelity`."""

    @property
    def kind(self) -> str:
        """The kind of run: "open", "personagym" or "interview"."""
        return fidelity_kind(self.config)

    @cached_property
    def summary(self) -> Record:
        """The measures of the run's kind, computed from the records: `Identifiability`, `PersonaGymCounts` or `Drift`.

        Raises DataError if there are too few answers.
        """
        from permix.evals.drift_report import measure_drift
        from permix.evals.open_ended import measure_identifiability
        from permix.evals.personagym import count_personagym_answers

        if self.kind == "personagym":
            return count_personagym_answers(self.path)
        reference = find_reference(self.path, self.config)
        return measure_drift(self.path, reference) if self.kind == "interview" else measure_identifiability(self.path, reference)

    @cached_property
    def recognisability(self) -> Recognisability:
        """How often the persona text nearest to an answer is that of its persona, of a run of kind "open"; from the records.

        Raises ConfigError if no sentence embedder is installed or the configuration says "none", DataError if there are too few
        answers or the run is of another kind. `permix.metrics.summarize_recognisability` takes an embedder of your own.
        """
        if self.kind != "open":
            raise DataError(
                f"{self.path}: recognisability needs questions that all personas share; the run's kind is {self.kind}"
            )
        return measure_recognisability(self.path)

    def measures(self) -> list[dict[str, Any]]:
        """One dict for each measure of `summary`, of recognisability where it can be measured ("recognisability.accuracy" ...)
        and of the answers' text ("text.words" ...): name, value, low, high, n."""
        from permix.evals.text_metrics import measure_text_metrics

        recognised = try_recognisability(self.path).value if self.kind == "open" else None
        rows = [] if recognised is None else estimate_rows(recognised, "recognisability.")
        return estimate_rows(self.summary) + rows + estimate_rows(measure_text_metrics(self.path), "text.")


_AGAIN = "run the same command again"

_KEEP = 'give out="..." to keep the answers (error.run holds them now), and make the same call again'

_OPTION_NAME = r"[a-z_]+(?:[.-][a-z_]+)*(?![\w=/-]|\.\w)"

_QUOTED = r""" "(?:[^"\\]|\\.)*" | (?<!\w)'(?:[^'\\]|\\.)*'(?!\w) """

_SHELL_COMMAND = r"""
    (?<![\w/.-]) (?:permix|pip|torchrun|vllm) (?:[ ][a-z]+)?
    (?: [ ] (?: -[\w.-]+ (?:[ ](?!-)[^\s;,()]+)? | [A-Z][A-Z\d_]*(?!\w) | [^\s;,()]*[/.][^\s;,()]*[^\s;,().:] ) )+
"""
"""A command to type: options with their values, placeholders and paths follow its name, and no other word."""


def _in_words_of_python(
    *configs: type[BaseModel],
) -> Callable[[Callable[_ParametersT, _ResultT]], Callable[_ParametersT, _ResultT]]:
    """Make the errors of a function name what a call from Python has: the call in place of the command, fields in place of flags.

    `configs`: the configurations whose fields a call gives, to this function or to those that made its runs. Options of these
    fields and of the function's parameters alone are rewritten, and none in a quoted text, in a command to type, or in a text or
    path that the call gives.
    """

    def decorate(function: Callable[_ParametersT, _ResultT]) -> Callable[_ParametersT, _ResultT]:
        @wraps(function)
        def call(*args: _ParametersT.args, **kwargs: _ParametersT.kwargs) -> _ResultT:
            try:
                return function(*args, **kwargs)
            except PermixError as error:
                parameters = signature(function).parameters
                # Without `out` the same call would not find the answers again, which are in a temporary folder.
                may_be_temporary = "out" in parameters and parameters["out"].default is None
                again = _KEEP if may_be_temporary and kwargs.get("out") is None else "make the same call again"
                text = str(error).replace(_AGAIN, again).replace("running the same command again", "making the same call again")
                if "template" in parameters:
                    text = text.replace("--personas.template in_question", 'template="in_question"')
                options = {name: name for name in parameters} | {name: new for one in configs for name, new in _option_words(one)}
                error.args = (_replace_options(text, options, "n" in parameters, _dashed_texts(args, kwargs)), *error.args[1:])
                raise

        return call

    return decorate


def _option_words(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The full name of each field and section of a configuration, and the words of Python for its option."""
    for name, field in config.model_fields.items():
        yield f"{prefix}{name}", f"{prefix}{name}" + ("=True" if field.annotation is bool else "")
        for section in annotation_types(field.annotation):
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from _option_words(section, f"{prefix}{name}.")


def _dashed_texts(args: Sequence[object], kwargs: Mapping[str, object]) -> list[str]:
    """The texts and paths among the arguments of a call, and in a dict or list there, that look as if they had an option."""
    given = [*args, *kwargs.values()]
    for value in given[:]:
        if isinstance(value, Mapping | list | tuple):
            given += value.values() if isinstance(value, Mapping) else value
    texts = {str(one.path if isinstance(one, OpenedRun) else one) for one in given if isinstance(one, str | PathLike | OpenedRun)}
    return sorted((one for one in texts if "--" in one), key=len, reverse=True)


def _replace_options(text: str, options: Mapping[str, str], has_n: bool, kept_texts: Sequence[str]) -> str:
    """The text with `options` in words of Python; " (--personas.column NAME)", which repeats the field before it, is left out.

    `has_n`: whether `task.n` is the parameter `n`. `kept_texts` stay as they are.
    """
    kept = "|".join([*map(re.escape, kept_texts), f"(?x:{_QUOTED}|{_SHELL_COMMAND})"])
    pattern = rf"{kept}|[ ]\(--(?P<repeated>{_OPTION_NAME})[ ][A-Z]+\)|(?<![\w/.-])--(?P<option>{_OPTION_NAME})"

    def replace_one(found: re.Match[str]) -> str:
        if found.lastgroup == "n":
            return "n"
        new = None if found.lastgroup is None else options.get(found[found.lastgroup].replace("-", "_"))
        return found[0] if new is None else "" if found.lastgroup == "repeated" else new

    return re.sub(pattern + (r"|\btask\.(?P<n>n)(?= = )" if has_n else ""), replace_one, text)


def open_run(path: str | Path) -> StabilityRun | FidelityRun | TrainRun:
    """Open the run directory of a stability run, a fidelity run or a training. Raises DataError for any other folder, ConfigError
    for no path."""
    folder = _filled_path(path, "path")
    stage = read_json(folder / "config.json").get("stage")
    if stage == "stability":
        return StabilityRun(folder)
    if stage == "fidelity":
        return FidelityRun(folder)
    if stage == "train":
        return TrainRun(folder)
    raise DataError(f"{folder}: config.json has stage {stage!r}; open_run reads runs of stability, fidelity and train")


_A_POOL = '"builtin", or a text or a Path, the path of a file or folder'


@_in_words_of_python(PersonasConfig)
def load_personas(source: str | Path = "builtin", *, split: Split | None = None, column: str | None = None) -> PersonaPool:
    """The built-in pool, or the pool in a file or folder; with `split`, only its personas of that split.

    `column` names the column of the texts, where that is not clear. `permix.personas.published` lists the forms of files.
    Raises DataError for a bad file, ConfigError if no persona belongs to the split.
    """
    pool = source if source == "builtin" else str(_filled_path(source, "source", _A_POOL))
    values = {"pool": pool, "split": "all" if split is None else split, "column": column}
    return select_personas(build_config(PersonasConfig, values, source="load_personas"))


@_in_words_of_python(StabilityConfig)
def evaluate_stability(
    model: ModelLike,
    *,
    task: TaskLike,
    personas: PersonasLike | Mapping[str, Any] = "builtin",
    out: str | Path | None = None,
    n: int | None = None,
    answer: AnswerKind | str | None = None,
    name: str | None = None,
    template: str | None = None,
    samples: int = 1,
    sampling: SamplingLike | None = None,
    seed: int = 0,
    batch_out: str | Path | None = None,
    batch_in: str | Path | None = None,
    batch_files: int | None = None,
    **config: Any,
) -> StabilityRun:
    """Ask every question under every persona and without one, check the answers, and measure what personas cost in accuracy. This
    is `permix stability`.

    `model`, `task`, `personas`: see `ModelLike`, `TaskLike`, `PersonasLike`. Of "builtin" and of files whose rows have splits the
    held-out personas are used, else all. `out`: the run directory, which the same call resumes; a temporary one if not given.
    `n`: number of questions; all of your own file if not given. `answer`: how answers to your own questions are compared, also
    by your own "package.module:function". `name`: the name of a function or object, which tables show and which identifies it
    when a run is resumed (without a name its source does); or the name of the endpoint's model. `template`: the template that
    states the persona. `config`: any other field of `permix stability`, such as label, templates, strategy, budget, precision,
    cache, resamples; `shard=(2, 4)` asks the second of four parts, and the summary is that of the records so far.

    `batch_out`, `batch_in`: write the pending requests to batch files in this new folder, `batch_files` of them, or read the
    results in this folder, as --batch-out and --batch-in do; `model` is then the name under which an engine or a provider serves
    it. With `batch_out` the run that is returned is incomplete as long as something is pending.

    Raises ConfigError or DataError for bad input before the model is asked. Raises IncompleteRunError at the end if cells have no
    score: its `run` is the incomplete run, and with `out` the same call asks the missing cells. A function that fails eight times
    in a row is asked no more. After Ctrl-C the same call resumes the run.
    """
    if config.get("plan_power") is not None:
        raise ConfigError("plan_power: asks no model, so it has no effect here; the command permix stability prints the numbers")
    batch = _batch_flags(batch_in, batch_out, batch_files, config)
    section, given_model = _resolve_model(model, name)
    section = _batch_section(section, batch, given_model)
    task_section, given_task = _resolve_task(task, n, answer)
    personas_section, given_pool = _resolve_personas(personas, template)
    run = StabilityRun(None if out is None else _filled_path(out, "out"))
    values = {
        "out": run.path, "model": section, "task": task_section, "personas": personas_section,
        "samples": samples, "sampling": {} if sampling is None else sampling, "seed": seed,
    }  # fmt: skip
    stage = build_config(StabilityConfig, values | config, source="evaluate_stability")
    if given_task is not None:
        stage = stage.model_copy(update={"task": given_task.config})
    if STRATEGIES[stage.strategy].selects_persona and given_task is not None and not isinstance(task, LoadedTask):
        raise ConfigError(
            f'strategy = "{stage.strategy}": chooses a persona by questions of the dev split; give the task by its name, or as '
            "permix.load_task returns it"
        )
    # Without measures, while parts of other workers are pending, `run.summary` measures what is there.
    with _asked_model(stage, batch, given_model, run.path) as asked, _attach_run(run), suppress(OtherShardsPendingError):
        run.summary = run_stability(stage, asked, given_task, given_pool)
    return run


@_in_words_of_python(FidelityConfig)
def evaluate_fidelity(
    model: ModelLike,
    *,
    personas: PersonasLike | Mapping[str, Any] = "builtin",
    questions: str | Path | Sequence[str | Question] = "builtin",
    out: str | Path | None = None,
    name: str | None = None,
    template: str | None = None,
    sampling: SamplingLike | None = None,
    seed: int = 0,
    batch_out: str | Path | None = None,
    batch_in: str | Path | None = None,
    batch_files: int | None = None,
    **config: Any,
) -> FidelityRun:
    """Have a model answer in character, and compute the measures that need no judge. This is `permix fidelity`.

    `questions`: open-ended questions for every persona: "builtin", a file, or a list of texts. Instead of them,
    `personagym={"path": ...}` asks PersonaGym's questions, and `interview={"turns": 16}` has a conversation with each persona.
    `config`: any other field of `permix fidelity`. The other arguments and the errors are those of `evaluate_stability`.
    """
    from permix.pipelines.fidelity import run_fidelity

    batch = _batch_flags(batch_in, batch_out, batch_files, config)
    section, given_model = _resolve_model(model, name)
    section = _batch_section(section, batch, given_model)
    personas_section, given_pool = _resolve_personas(personas, template)
    given_questions = None if isinstance(questions, str | Path) else build_open_questions(questions)
    if given_questions is not None and "questions_split" in config:
        raise ConfigError("questions_split: has no effect on a list of questions, which is asked whole; leave it out")
    run = FidelityRun(None if out is None else _filled_path(out, "out"))
    values = {
        "out": run.path, "model": section, "personas": personas_section, "seed": seed,
        "questions": str(questions) if given_questions is None else GIVEN_IN_PYTHON,
    } | ({} if sampling is None else {"sampling": sampling})  # fmt: skip
    stage = build_config(FidelityConfig, values | config, source="evaluate_fidelity")
    with _asked_model(stage, batch, given_model, run.path) as asked, _attach_run(run), suppress(OtherShardsPendingError):
        run.summary = run_fidelity(stage, asked, given_pool, given_questions)
    return run


@_in_words_of_python(JudgeConfig, FidelityConfig)
def judge(
    run: FidelityRun | str | Path,
    judge: ModelLike,
    *,
    name: str | None = None,
    label: str | None = None,
    seed: int = 0,
    resamples: int = 2000,
    threads: int | None = None,
    batch_out: str | Path | None = None,
    batch_in: str | Path | None = None,
    batch_files: int | None = None,
    **fields: Any,
) -> Record:
    """Score the answers of a fidelity run with a judge, and test the judge. This is `permix judge`. Returns its `JudgeSummary`.

    `judge`: a model, as in `evaluate_stability`. `fields`: the fields of a [judge] section: rubrics, reasons, examples,
    temperature, max_new_tokens, attempts, prices, max_cost ...
    `batch_out`, `batch_in`, `batch_files`: as in `evaluate_stability`; if requests were written, returns their `BatchManifest`.

    Raises IncompleteRunError if scores are missing; the same call asks for them.
    """
    from permix.judges.judging import judge_fidelity_run
    from permix.judges.runner import judge_folder
    from permix.judges.summary import JudgeSummary

    batch = _batch_flags(batch_in, batch_out, batch_files, fields)
    section, given_model = _resolve_model(judge, name)
    section = _batch_section(section, batch, given_model)
    path = _run_path(run, "run")
    model_fields = section if isinstance(section, Mapping) else section.model_dump(mode="json", exclude_unset=True)
    judge_fields = {**model_fields, "label": label, **fields}
    values = {"run": path, "judge": judge_fields, "seed": seed, "resamples": resamples, "threads": threads}
    stage = build_config(JudgeConfig, values, source="judge")
    with _asked_model(stage, batch, given_model, path, repeats_failed=False) as asked:
        judge_fidelity_run(stage, asked)
    if isinstance(asked, BatchModel) and asked.manifest is not None:
        return asked.manifest
    return JudgeSummary.model_validate(read_json(judge_folder(path, stage.judge.label or stage.judge.name) / "metrics.json"))


@_in_words_of_python(TrainConfig)
def train(config: str | Path | Mapping[str, Any] | TrainConfig | None = None, **fields: Any) -> Path:
    """Train a model or resume a training, as `permix train` does. Returns the folder of the trained model.

    `config`: a TOML file, or its content as a dict. `fields` override it, also single fields of a section: `train={"lr": 1e-5}`.
    Raises ConfigError or DataError for bad input.
    """
    from permix.pipelines.train import run_training

    values, source = _config_values(config, TrainConfig, "train")
    merged = {
        key: {**values[key], **value} if isinstance(value, Mapping) and isinstance(values.get(key), Mapping) else value
        for key, value in fields.items()
    }
    stage = build_config(TrainConfig, values | merged, source=source)
    if isinstance(config, str | Path) and "out" not in fields:
        require_own_folder(Path(config), stage)
    return run_training(stage)


def _config_values(
    config: str | Path | Mapping[str, Any] | TrainConfig | StudyConfig | None,
    cls: type[TrainConfig] | type[StudyConfig],
    name: str,
) -> tuple[dict[str, Any], str]:
    """The values of a configuration, and what its errors begin with: its file, or the name of the function."""
    if isinstance(config, str | Path):
        return read_config_values(Path(config)), str(config)
    if isinstance(config, cls):
        return config.model_dump(exclude_unset=True), name
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"{name}: config = {quote_value(config)}: must be a file, or a dict of its fields")
    return dict(config or {}), name


@_in_words_of_python(StudyConfig, TrainConfig, StabilityConfig, FidelityConfig)
def study(config: str | Path | Mapping[str, Any] | StudyConfig, **fields: Any) -> Path:
    """Run a study or go on with it, as `permix study` does. Returns the path of its report's page.

    `config`: a TOML file, or its content as a dict. `fields` override it at any depth: `only=["rlvr"]`, `jobs=2`,
    `train={"plan": {"steps": 50}}`. With `report=True` nothing is run, and the report of everything that is finished is written.
    The units run in processes of their own. Raises ConfigError or DataError for bad input, and IncompleteRunError or PermixError
    at the end if units are pending or have failed; DataError if there is no report: nothing is finished yet, or `unit` was given,
    which runs one unit without a report.
    """
    from permix.pipelines.study import run_study

    values, source = _config_values(config, StudyConfig, "study")
    stage = build_config(StudyConfig, merge_values(values, fields), source=source)
    if isinstance(config, str | Path) and "out" not in fields:
        require_own_folder(Path(config), stage)
    page = run_study(stage)
    if page is None:
        why = f'unit = "{stage.unit}" runs one unit' if stage.unit is not None else "no evaluation is finished"
        raise DataError(
            f"{stage.out}: there is no report: {why}; study(..., report=True) writes one of everything that is finished"
        )
    return page


@_in_words_of_python(StabilityConfig, FidelityConfig)
def write_report(
    runs: OpenedRun | str | Path | Sequence[OpenedRun | str | Path],
    out: str | Path = "runs/report",
    caption: str = "",
) -> Path:
    """Write the report on runs, or on folders that contain runs: page, tables and figures in `out`. Returns the path of the page.

    `caption`: a paragraph of your own, in Markdown. Raises DataError if there is no run, or if two runs have the same kind and
    label.
    """
    from permix.report.builder import build_report

    several = [runs] if isinstance(runs, OpenedRun | str | Path) or not isinstance(runs, Iterable) else runs
    folder = _filled_path(out, "out")
    build_report([_run_path(one, "runs") for one in several], folder, caption)
    return folder / "index.html"


@_in_words_of_python(StabilityConfig)
def compare(
    first: StabilityRun | str | Path, other: StabilityRun | str | Path, *, seed: int = 0, resamples: int = 2000
) -> PairedComparison:
    """Compare two stability runs, cell by cell: every measure's difference (other − first), interval and test.

    Raises DataError, with the reason, if questions, personas, prompts or verification of the two runs differ.
    """
    from permix.report.comparisons import compare_runs

    return compare_runs(_run_path(first, "first"), _run_path(other, "other"), seed=seed, resamples=resamples).result


def _run_path(run: OpenedRun | str | Path, name: str) -> Path:
    """The folder of a run that is given as parameter `name`. Raises ConfigError as `_filled_path`."""
    return run.path if isinstance(run, OpenedRun) else _filled_path(run, name, f"a run, or {_A_FOLDER}")


_A_FOLDER = "a text or a Path, the path of a folder"


def _filled_path(path: str | Path, name: str, valid: str = _A_FOLDER) -> Path:
    """The path that is given as parameter `name`; `valid` says what it may be. Raises ConfigError for an empty text, which as a
    path would be the current folder, and for what is no path."""
    if not isinstance(path, str | PathLike):
        raise ConfigError(f"{name} = {quote_value(path)}: must be {valid}")
    if not str(path).strip():
        here = ', "." for the current one' if valid.endswith(_A_FOLDER) else ""
        raise ConfigError(f"{name} = {path!r}: is empty; give {valid}{here}")
    return Path(path)


@contextmanager
def _attach_run(run: EvaluationRun) -> Iterator[None]:
    """Attach the run to an IncompleteRunError of the block. Print a warning at its end if many answers were cut off."""
    try:
        yield
    except IncompleteRunError as error:
        error.run = run
        _warn_of_cut_off(run)
        raise
    _warn_of_cut_off(run)


@contextmanager
def _asked_model(
    stage: StabilityConfig | FidelityConfig | JudgeConfig,
    batch: BatchFlags,
    given: Model | None,
    run: Path,
    *,
    repeats_failed: bool = True,
) -> Iterator[Model | None]:
    """The model to ask: the one that reads and writes batch files, or the given one, if any."""
    if batch.is_used:
        check_no_shard(stage)
    config = stage.judge if isinstance(stage, JudgeConfig) else stage.model
    read_back = f"the same call of Python with batch_in={str(batch.batch_out)!r} in place of batch_out"
    with open_batch_model(batch, config, stage=stage.stage, run=run, read_back=read_back, repeats_failed=repeats_failed) as model:
        yield model or given


def _batch_flags(
    batch_in: str | Path | None, batch_out: str | Path | None, batch_files: int | None, fields: Mapping[str, Any]
) -> BatchFlags:
    """The flags of a call. Raises ConfigError if `fields`, its other arguments, have the earlier name of `batch_files`."""
    if "shards" in fields:
        raise ConfigError(f"shards: {RENAMED_SHARDS.format(new='batch_files', part='shard=(2, 4)')}")
    return BatchFlags.of(batch_in, batch_out, batch_files)


def _batch_section(section: ModelConfig | Mapping[str, Any], batch: BatchFlags, given: Model | None) -> Any:
    """The [model] section of a call with `batch_out` or `batch_in`. Raises ConfigError for a model made in Python."""
    batch.check()
    if not batch.is_used:
        return section
    if given is not None:
        raise ConfigError("batch_out, batch_in: ask a model that is served elsewhere; give its name as model")
    return use_batch_backend(section if isinstance(section, Mapping) else section.model_dump(exclude_unset=True), batch)


def _warn_of_cut_off(run: EvaluationRun) -> None:
    if (warning := cut_off_warning(RunReader(run.path), read_grid_results(run.path))) is not None:
        print_status(f"warning: {warning}")


def _resolve_model(model: ModelLike, name: str | None) -> tuple[ModelConfig | Mapping[str, Any], Model | None]:
    """The [model] section, and the model itself if it was made in Python."""
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ConfigError(f"name = {quote_value(name)}: must be a text that is not blank")
    if isinstance(model, str | Path):
        return build_model_config(model, name), None
    if isinstance(model, Mapping):
        return model, None
    wrapped = wrap_model(model, name)
    loaded = getattr(wrapped, "config", None)
    if isinstance(loaded, ModelConfig):
        return loaded, wrapped
    return build_config(ModelConfig, {"name": wrapped.name, "backend": "python"}, source="model"), wrapped


def _resolve_task(task: TaskLike, n: int | None, answer: str | None) -> tuple[Mapping[str, Any], LoadedTask | None]:
    """The [task] section, or the task with its questions if these were made in Python."""
    if n is not None and not is_whole_number(n):
        raise ConfigError(f"n = {n!r}: must be a whole number, the number of questions to ask")
    if n is not None and n < 1:
        raise ConfigError(f"n = {n}: must be 1 or above, the number of questions to ask")
    if answer is not None:
        if isinstance(task, Task | LoadedTask):
            raise ConfigError(
                f'answer = "{answer}": applies to a list of questions only; leave it out, since a task has a scorer'
            )
        check_answer_kind(answer)
    overrides = {
        name: value for name, value in {"n": None if n is None else int(n), "answer": answer}.items() if value is not None
    }
    if isinstance(task, str | Path):
        is_file = Path(task).suffix in (*DATASET_SUFFIXES, *CSV_SUFFIXES)
        return ({"path": task, **overrides} if is_file else {"name": find_task(str(task)).name, **overrides}), None
    if isinstance(task, Mapping):
        if "question" in task:
            raise DataError("task: a dict has the fields of a [task] section; give questions as a list of dicts, one for each")
        return {**task, **overrides}, None
    if isinstance(task, Task):
        loaded = load_task_object(_with_source(task), n)
    elif isinstance(task, LoadedTask):
        loaded = check_loaded_task(replace(task, task=_with_source(task.task)))
    else:
        loaded = task_from_questions(task, answer)
    if n is not None and n > len(loaded.questions):
        raise ConfigError(f"n = {n}: there are only {len(loaded.questions)} questions; give at most that number")
    questions = loaded.questions[:n]
    return {}, LoadedTask(loaded.config.model_copy(update={"n": len(questions)}), loaded.task, questions)


def _with_source(task: Task) -> Task:
    """A task of the user's own with the digest of what scores its answers, so that a run is not resumed with another scorer."""
    if is_permix_task(task):
        return task
    if task.source is not None:
        return own_task(task, task.source)
    scoring = (task.extract, task.answers_match, task.scorer)
    return own_task(task, digest(*(code_identity(one, f"task.name = {task.name!r}") for one in scoring)))


def _resolve_personas(
    personas: PersonasLike | Mapping[str, Any], template: str | None
) -> tuple[Mapping[str, Any], PersonaPool | None]:
    """The [personas] section, and the pool if it was made in Python."""
    overrides = {} if template is None else {"template": template}
    if isinstance(personas, str | Path):
        return {"pool": str(personas), **overrides}, None
    if isinstance(personas, Mapping):
        return {**personas, **overrides}, None
    return {"pool": GIVEN_IN_PYTHON, "split": "all", **overrides}, resolve_pool(personas, "heldout")
