"""`permix judge`: the answers of a fidelity run, judged.

Writes RUN/judges/NAME/ and nothing else in the run: config.json, provenance.json, usage.json, judgements.jsonl (one call a line)
and metrics.json. Answers are read, never generated, so judging can be done on another day, by any number of judges, and again.

`permix fidelity`: answers of a model in character, of one of three kinds, and what is measured of them without a judge.

open         questions that all personas share            `open_ended.py`
personagym   PersonaGym's questions, each persona its own  `personagym.py`
interview    a conversation with each persona              `interview.py`
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from permix.config import FidelityStage, GymTask, JudgeConfig, JudgeStage
from permix.errors import ConfigError, DataError, OwedScoresError, speaking_of
from permix.evals.interview import interview
from permix.evals.open_ended import open_ended
from permix.evals.personagym import personagym
from permix.evals.text_metrics import wanted
from permix.inference import open_model
from permix.inference.base import Model
from permix.judges.pricing import Price, price_of
from permix.judges.prompts import (
    Examples,
    Prompt,
    Rubric,
    examples_hash,
    load_rubrics,
    prompt_for,
    read_examples,
    verdict_schema,
    wording_hash,
)
from permix.judges.results import read_items
from permix.judges.runner import Outcome, Terms, ask_owed, judge_folder
from permix.judges.summary import measure_judge
from permix.judges.types import IN_CHARACTER, Item
from permix.judges.validation import controls
from permix.progress import say
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import RunDir
from permix.types import Record, Sampling


class Means(NamedTuple):
    """What a judge judges by, and at what price."""

    rubrics: dict[str, Rubric]
    examples: Examples
    price: Price | None


def judge(config: JudgeStage) -> None:
    """Judge, or go on judging, every answer of the run and the controls; nothing is generated anew.

    Raises ConfigError or DataError before anything is asked; OwedScoresError, with metrics.json written, when scores are missing.
    """
    named = _labelled(config)
    means, prompts = set_up(named)
    folder = judge_folder(named.run, label_of(named.judge))
    with speaking_of("judge"):
        model = open_model(named.judge, named.threads)
        identity = _identity(named, means, model)
    with RunDir.open(folder, named, identity) as run:
        with run.accounted(), speaking_of("judge"):
            outcome = ask_owed(model, prompts, folder, terms_of(named, means.price), f"judge {label_of(named.judge)}")
        say(f"judge {label_of(named.judge)}: {_words(outcome)}")
        _say_missing(named.run, sum(prompt.item.control == "none" for prompt in prompts))
        _measure(named, folder, owed=outcome.owed)
    _refuse_owed(outcome, named, folder)


def judge_of(stage: FidelityStage) -> JudgeStage:
    """The judging that a fidelity run ends with."""
    return JudgeStage(run=stage.out, judge=stage.judge, threads=stage.threads, seed=stage.seed, resamples=stage.resamples)


def rubrics_of(stage: FidelityStage) -> Collection[str]:
    """The rubrics that the answers of a fidelity run are judged by."""
    return stage.personagym.tasks or get_args(GymTask) if stage.kind == "personagym" else (IN_CHARACTER,)


def set_up(config: JudgeStage) -> tuple[Means, list[Prompt]]:
    """All that a judge is going to be asked, in order: what calls share stands together, for endpoints that read it once.

    Raises ConfigError or DataError for whatever can be found wrong without asking.
    """
    if config.judge.name == "none":
        raise ConfigError('judge.name = "none": say who judges: a model folder, a hub id, or the name that an endpoint serves')
    stage = read_json(config.run / "config.json").get("stage")
    if stage != "fidelity":
        raise DataError(f"run = {config.run}: is a run of permix {stage}; only answers of permix fidelity can be judged")
    items = read_items(config.run)
    if not items:
        raise DataError(f"run = {config.run}: holds no answer that could be judged")
    items = [*items, *controls(items, config.judge.trial, config.seed)]
    means = means_of(config.judge, {item.rubric for item in items})
    _refuse_unexemplified(items, means.examples, config.judge)
    prompts = [
        prompt_for(item, means.rubrics[item.rubric], means.examples, reasons=config.judge.reasons, seed=config.seed)
        for item in sorted(items, key=_place)
    ]
    return means, prompts


def means_of(judge: JudgeConfig, rubrics: Collection[str]) -> Means:
    """Raises ConfigError or DataError for rubrics, examples or prices that cannot be used."""
    examples = {} if judge.examples is None else read_examples(judge.examples)
    return Means(load_rubrics(judge.rubrics, rubrics), examples, price_of(judge))


def refuse_unfit(stage: FidelityStage) -> None:
    """Raises ConfigError or DataError for a judge that could not judge the answers of a run, before there are any.

    An endpoint is asked what it serves. Which questions examples are needed for is known once these are chosen.
    """
    means_of(stage.judge, rubrics_of(stage))
    with speaking_of("judge"):
        if stage.judge.backend == "openai":
            _ = open_model(stage.judge).fingerprint
        else:
            from permix.inference.hf import refuse_missing_folder

            refuse_missing_folder(stage.judge.name)


def terms_of(config: JudgeStage, price: Price | None) -> Terms:
    judge = config.judge
    return Terms(
        Sampling(temperature=judge.temperature, max_new_tokens=judge.max_new_tokens),
        verdict_schema(judge.reasons), config.seed, judge.attempts, price, judge.max_cost, judge.retries + 1,
    )  # fmt: skip


def label_of(judge: JudgeConfig) -> str:
    return judge.label or judge.name


def _labelled(config: JudgeStage) -> JudgeStage:
    """With the label that the judge goes by, for whoever reads config.json."""
    return config.model_copy(update={"judge": config.judge.model_copy(update={"label": label_of(config.judge)})})


def _identity(config: JudgeStage, means: Means, model: Model) -> dict[str, Any]:
    return {
        "judge": model.fingerprint,
        "rubrics": wording_hash(means.rubrics, config.judge.reasons),
        "reasons": config.judge.reasons,
        "examples": examples_hash(means.examples),
        "sampling": terms_of(config, means.price).sampling.model_dump(),
        "seed": config.seed,
    }


def _place(item: Item) -> tuple[str, ...]:
    return (item.rubric, item.persona_id, item.question_id, str(item.sample), item.control, item.answered_by or "")


def _refuse_unexemplified(items: Collection[Item], examples: Examples, judge: JudgeConfig) -> None:
    missing = {item.question_id for item in items} - set(examples) if examples else set()
    if missing:
        raise DataError(
            f"judge.examples = {judge.examples}: has none for {len(missing)} of the questions whose answers are judged, such as "
            f"{min(missing)!r}; give a file with all of them, or none"
        )


def _measure(config: JudgeStage, folder: Path, *, owed: int) -> None:
    try:
        write_json(folder / "metrics.json", measure_judge(config.run, folder, seed=config.seed, resamples=config.resamples))
    except DataError:
        if not owed:  # else it is the missing scores that are to be told of
            raise


def _say_missing(run: Path, there: int) -> None:
    asked = wanted(run)
    if (missing := asked - there) > 0:
        say(f"note: {missing} of {asked} answers of {run} are missing and were not judged; permix fidelity fills them")


def _words(outcome: Outcome) -> str:
    paid = "cost unknown" if outcome.cost is None else f"{outcome.cost:.4f} US dollars"
    tokens = f"{outcome.prompt_tokens} tokens read and {outcome.completion_tokens} written"
    return f"{outcome.asked - outcome.owed} of {outcome.asked} scored; {outcome.calls} calls so far, {tokens}, {paid}"


def _refuse_owed(outcome: Outcome, config: JudgeStage, folder: Path) -> None:
    if not outcome.owed:
        return
    missing = f"{outcome.owed} of {outcome.asked} have no score"
    if outcome.next_cost is not None:
        raise OwedScoresError(
            f"{folder}: stopped before judge.max_cost = {config.judge.max_cost:g} US dollars: {outcome.booked:.6f} are spent "
            f"or may have been, and "
            f"the next call may cost {outcome.next_cost:.6f}; {missing}; run the same command with a higher limit to go on"
        )
    raise OwedScoresError(f"{folder}: {missing}; run the same command again to ask for them")


KINDS: Mapping[str, Callable[[FidelityStage], Record]] = {
    "open": open_ended,
    "personagym": personagym,
    "interview": interview,
}
"""Each runs, or goes on with, an evaluation of one kind, writes its metrics.json and returns what is in it."""


def fidelity(config: FidelityStage) -> Record:
    """Run, or go on with, an evaluation; writes metrics.json and returns it.

    With a judge, the answers are judged once all are there. Raises OwedCellsError when answers are missing, OwedScoresError when
    only scores are, DataError when there are too few answers to measure, and ConfigError, before anything is asked, for a judge
    that could not judge.
    """
    judged = config.judge.name != "none"
    if judged:
        refuse_unfit(config)
    result = KINDS[config.kind](config)
    if judged:
        judge(judge_of(config))
    return result
