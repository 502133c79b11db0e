"""Notice that a study would go on with other content than that of its recorded parts: other files, or code that scores otherwise.

The settings of a part name files and not what they hold, and they do not name the version of the verifier. Each run directory
records both, as hashes in grid.json and in the identity of provenance.json. They are compared with those of a part that would be
made now. All models of a study are asked the same cells, so the untrained model's evaluation is prepared and compared with
those of all units. What no hash covers, such as the revision of the code, may differ.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import FidelityConfig, StabilityConfig, StudyConfig, TrainConfig
from permix.errors import ConfigError, error_context
from permix.evals.grid import describe_grid
from permix.evals.interview import describe_interview, prepare_interview
from permix.evals.open_ended import load_open_questions, select_open_ended_personas
from permix.evals.personagym import describe_personagym, select_personagym_questions
from permix.evals.stability import build_stopping_rule, grid_identity, prepare_stability, shuffle_questions
from permix.evals.strategies import STRATEGIES
from permix.inference.hf import resolve_model_source
from permix.judges.judging import load_judge_setup
from permix.judges.prompts import judge_template_hash, score_examples_hash
from permix.judges.results import JUDGE_INPUTS_FILE
from permix.judges.runner import judge_folder
from permix.pipelines.fidelity import required_rubrics
from permix.pipelines.study_units import read_unit_record
from permix.pipelines.train import source_identity, training_identity
from permix.progress import command_output
from permix.prompts import template_hash
from permix.storage.run_dir import RunReader, check_cells_unchanged, read_run_file
from permix.training.job import prepare_training
from permix.verification.math_verifier import VERIFIER_VERSION

VERIFIER = "verifier"

_WORDS: Mapping[str, str] = {
    "task": "another task",
    "task_source": "another source of a task of your own",
    "prompt": "another prompt of the task",
    "template": "another text of personas.template or templates",
    "empty_system_prompt": "another personas.empty_system_prompt",
    "seed": "another seed",
    "context_turns": "other recorded turns behind context_turns",
    "personas": "other personas",
    "questions": "other questions",
    "choosing_personas": "other personas to choose from",
    "choosing_questions": "other questions to choose by",
    "plan": "a plan of other rows (questions, personas or prompts)",
    "model": "another model to train, under the same name",
    "rubrics": "other texts of the rubrics or of the judge's prompt",
    "examples": "other examples for the judge",
}
"""What differs, by its key in `Content`."""

Content = Mapping[str, Any]
"""Hashes of what a part asks or trains on, and the version of the verifier."""

_ContentOfRun = Callable[[RunReader], Content]

_GRID_KEYS = ("personas", "questions")


class _OtherPart(NamedTuple):
    """A recorded part, the words for what differs, and where and when it was made."""

    name: str
    words: tuple[str, ...]
    verifier: Any
    revision: str
    created: str


def check_same_content(config: StudyConfig) -> None:
    """Raise ConfigError if a part that is recorded was made from other content than a part would be made from now.

    The error names the first such part; and for another version of the verifier both versions, and the revision of the code that
    wrote the newest part of the recorded version. Prints nothing else.
    """
    with command_output(as_json=False, is_quiet=True):  # the notes on the data are printed by the check of the parts
        others = list(_other_parts(config))
    if not others:
        return
    first = others[0]
    if first.verifier is None:
        raise ConfigError(
            f"out = {config.out}: {first.name} was made with {' and '.join(first.words)} than would be used now; give another "
            "folder for other data, or the data that it was made with"
        )
    same = max((one for one in others if one.verifier == first.verifier), key=lambda one: one.created)
    also = f" It was also made with {' and '.join(first.words)}." if first.words else ""
    raise ConfigError(
        f"out = {config.out}: {first.name} was made with {first.verifier}, by the code of revision {same.revision}, and this "
        f"code has {_version_text(VERIFIER_VERSION)}, whose scores are not compared with those; run the pending parts with "
        f"revision {same.revision}, or give another folder. The report of what is finished: --report.{also}"
    )


def _version_text(version: Any) -> str:
    return "an unknown version of the verifier" if version is None else f"version {version} of the verifier"


def _other_parts(config: StudyConfig) -> Iterator[_OtherPart]:
    """The recorded parts that differ from what would be made now, the untrained model's first."""
    base = config.units()[0]
    evaluations: dict[str, _ContentOfRun] = {}
    model = ""
    for unit in config.units():
        started = read_unit_record(unit).settings
        for name, part in unit.parts.items():
            if name not in started or not (part.out / "provenance.json").exists():
                continue
            run = RunReader(part.out)
            with error_context(f"arm {unit.arm}" if isinstance(part, TrainConfig) else f"evaluation {name}"):
                if isinstance(part, TrainConfig):
                    model = model or source_identity(resolve_model_source(part.model.name))
                    now = _training_content(part, model)
                else:
                    if name not in evaluations:
                        evaluations[name] = _evaluation_content(base.evaluations[name])
                        if unit.arm is not None and isinstance(part, StabilityConfig):
                            _check_golds(run, base.evaluations[name])
                    now = evaluations[name](run)
            recorded: Content = {**run.grid, **run.identity, **_judge_content(run, part)}
            if isinstance(part, TrainConfig) and VERIFIER not in recorded:  # of an earlier version; its evaluations have one
                recorded = {**recorded, VERIFIER: now[VERIFIER]}
            differing = [key for key in now if recorded.get(key) != now[key]]
            if differing:
                born, words = run.provenance, tuple(_WORDS[key] for key in differing if key != VERIFIER)
                version = _version_text(recorded.get(VERIFIER)) if VERIFIER in differing else None
                revision = str(born.get("revision") or "unknown")
                yield _OtherPart(f"{unit.name}/{name}", words, version, revision, str(born.get("created")))


def _training_content(part: TrainConfig, model: str) -> Content:
    identity = training_identity(prepare_training(part), model)
    return {key: identity[key] for key in ("plan", "task_source", "model", VERIFIER) if key in identity}


def _check_golds(run: RunReader, part: StabilityConfig | FidelityConfig) -> None:
    """Raise ConfigError if the run asked a question with another gold, which no hash covers. The untrained model's own run is
    checked in this way with its cells (`permix.evals.grid.estimate_cells`)."""
    assert isinstance(part, StabilityConfig)
    config, _, setup = prepare_stability(part)
    check_cells_unchanged(run.cells, STRATEGIES[config.strategy].initial_cells(setup))


def _evaluation_content(part: StabilityConfig | FidelityConfig) -> _ContentOfRun:
    """What an evaluation would ask now, as a function of a recorded run, since some runs ask a part of the questions."""
    return _stability_content(part) if isinstance(part, StabilityConfig) else _fidelity_content(part)


def _stability_content(part: StabilityConfig) -> _ContentOfRun:
    config, task, setup = prepare_stability(part)
    turns = setup.prompt_format.turns
    strategy = STRATEGIES[config.strategy]
    common = grid_identity(config, task) | ({} if turns is None else {"context_turns": turns.content_hash})
    if build_stopping_rule(config):
        setup = shuffle_questions(setup)

    def content(run: RunReader) -> Content:
        rounds = run.grid.get("rounds")
        asked = setup._replace(questions=setup.questions[: rounds[-1]["until"]]) if rounds else setup
        grid = strategy.describe_grid(asked, ())
        # The personas of the grid of a search are those that it has chosen.
        compared = [f"choosing_{one}" for one in _GRID_KEYS] if strategy.selects_persona else ["personas"]
        return common | {key: grid[key] for key in (*compared, "questions")}

    return content


def _fidelity_content(part: FidelityConfig) -> _ContentOfRun:
    grid: Content
    if part.kind == "interview":
        plan = prepare_interview(part)
        grid, keys = describe_interview(part, plan, {}), ("personas",) if part.interviewer.is_model else _GRID_KEYS
    elif part.kind == "personagym":
        pool, questions = select_personagym_questions(part)
        grid, keys = describe_personagym(pool.personas, questions, ()), _GRID_KEYS
    else:
        grid, keys = describe_grid(select_open_ended_personas(part).personas, load_open_questions(part), samples=1), _GRID_KEYS
    common = {"template": template_hash(part.personas.template)} | {key: grid[key] for key in keys}
    judge = None if part.judge.name == "none" else load_judge_setup(part.judge, required_rubrics(part))

    def content(run: RunReader) -> Content:
        inputs = _judge_folder(run.path, part) / JUDGE_INPUTS_FILE
        if judge is None or not inputs.exists():
            return common
        names = read_run_file(inputs).get("discriminates_personas", {})
        rubrics = {name: judge.rubrics[name] for name in names if name in judge.rubrics}
        hashes = {"rubrics": judge_template_hash(rubrics, part.judge.reasons), "examples": score_examples_hash(judge.examples)}
        return common | hashes

    return content


def _judge_folder(run: Path, part: FidelityConfig) -> Path:
    return judge_folder(run, part.judge.label or part.judge.name)


def _judge_content(run: RunReader, part: TrainConfig | StabilityConfig | FidelityConfig) -> Content:
    if not isinstance(part, FidelityConfig) or not (_judge_folder(run.path, part) / "provenance.json").exists():
        return {}
    identity = RunReader(_judge_folder(run.path, part)).identity
    return {key: identity.get(key) for key in ("rubrics", "examples")}
