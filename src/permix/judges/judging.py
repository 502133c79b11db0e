"""`permix judge`: score the answers of a fidelity run, and test the judge.

Writes to RUN/judges/LABEL/ only: config.json, provenance.json, inputs.json (its rubrics, and the number of answers in each
control), usage.json, judgements.jsonl (one line a call) and metrics.json. It reads answers and never generates them, so any
number of judges can score the same run, at any time.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import JudgeConfig, JudgeModelConfig
from permix.errors import ConfigError, DataError, MissingScoresError, error_context, option_context
from permix.evals.grid import read_expected_cells
from permix.inference import check_model, load_model
from permix.inference.addresses import check_addresses
from permix.inference.base import Model
from permix.inference.batch_model import BatchModel, next_start
from permix.inference.cost import Price, RequestGroup, estimate_cost, find_measured, runs_beside
from permix.judges.prompts import (
    ExamplesByQuestion,
    JudgePrompt,
    Rubric,
    build_judge_prompt,
    judge_reply_schema,
    judge_template_hash,
    load_rubrics,
    read_score_examples,
    score_examples_hash,
)
from permix.judges.results import JUDGE_INPUTS_FILE, count_answers, describe_judge_inputs, judge_by_rubrics, read_judge_inputs
from permix.judges.runner import (
    CallSettings,
    CallTotals,
    find_judge_failures,
    judge_folder,
    judge_folders,
    latest_judgements,
    load_judge_price,
    max_total_cost,
    read_judge_calls,
    request_pending_scores,
)
from permix.judges.summary import measure_judge
from permix.judges.types import JudgeInput
from permix.judges.validation import build_control_inputs
from permix.progress import print_status
from permix.storage.failures import JUDGE_OPTIONS, NextStart, explain_missing
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir, RunReader, check_resumable
from permix.trackers import check_trackers, log_measures
from permix.types import Sampling


class JudgeSetup(NamedTuple):
    """The rubrics, example answers and price of a judge."""

    rubrics: dict[str, Rubric]
    examples: ExamplesByQuestion
    price: Price | None

    @property
    def discriminates_personas(self) -> dict[str, bool]:
        return {name: rubric.discriminates_personas for name, rubric in self.rubrics.items()}


def judge_fidelity_run(config: JudgeConfig, given_model: Model | None = None) -> None:
    """Judge every answer of the run and every control, or resume doing so. No answer is generated.

    `given_model`: a judge made in Python, used instead of the one that the configuration names.
    Raises ConfigError or DataError before the first call. Raises MissingScoresError, after writing metrics.json, if scores are
    missing.
    """
    named = _with_label(config)
    setup, prompts = prepare_judging(named)
    folder = judge_folder(named.run, judge_label(named.judge))
    with error_context("judge"):
        model = load_model(named.judge, named.threads) if given_model is None else given_model
        identity = _judge_identity(named, setup, model)
        endpoint = check_addresses(model, folder, "judge", "judge")
    with RunDir.open(folder, named, identity, endpoints=[endpoint]) as run:
        inputs = [prompt.judge_input for prompt in prompts]
        write_json(folder / JUDGE_INPUTS_FILE, describe_judge_inputs(setup.discriminates_personas, inputs))
        n_before = _count_replies(folder)
        with run.track_usage(), error_context("judge"):
            try:
                outcome = request_pending_scores(
                    model, prompts, folder, build_call_settings(named, setup.price), f"judge {judge_label(named.judge)}"
                )
            finally:
                run.count_answers(None if isinstance(model, BatchModel) else _count_replies(folder) - n_before)
        print_status(f"judge {judge_label(named.judge)}: {_totals_text(outcome)}")
        _print_missing(named.run, count_answers(inputs))
        _write_metrics(named, folder, pending=outcome.n_pending)
    _require_all_scored(outcome, named, folder, next_start(model, "ask for them"))


def _count_replies(folder: Path) -> int:
    """How many calls of a judge have a reply: a call that failed says nothing of how long an answer takes."""
    return sum(call.reply is not None for call in read_judge_calls(folder))


def preflight_judging(config: JudgeConfig) -> dict[str, str]:
    """The number of calls of a judge and their cost. Raises ConfigError or DataError if the configuration cannot be used."""
    setup, prompts = prepare_judging(config)
    with error_context("judge"):
        check_model(config.judge, contact=False)
    inputs = [prompt.judge_input for prompt in prompts]
    controls, answers = sum(one.control != "none" for one in inputs), count_answers(inputs)
    facts = {
        "answers": str(answers) if answers == len(prompts) - controls else f"{answers}, by {len(setup.rubrics)} rubrics",
        "answers to try the judge": str(controls),
    }
    return facts | _estimate_judging(config, setup, prompts)


def _estimate_judging(config: JudgeConfig, setup: JudgeSetup, prompts: Sequence[JudgePrompt]) -> dict[str, str]:
    """The cost of the calls that have no score yet. A prompt takes several calls where a reply has no score."""
    folder = judge_folder(config.run, judge_label(config.judge))
    check_resumable(folder, _with_label(config), _known_judge_identity(config, setup))
    latest = latest_judgements(read_judge_calls(folder))
    scored = {(key, call.prompt_hash) for key, call in latest.items() if call.score is not None}
    pending = [prompt for prompt in prompts if (prompt.judge_input.key, prompt.hash) not in scored]
    folders = [folder, *(one for run in runs_beside(config.run) for one in judge_folders(run) if one != folder)]
    limit = config.judge.max_new_tokens
    measured = find_measured(folders, "judge", config.judge, limit, section="judge")
    dollars = max_total_cost(pending, build_call_settings(config, setup.price))
    repeats = len(pending) * (config.judge.attempts - 1)
    return estimate_cost(
        [RequestGroup([prompt.messages for prompt in pending], limit, n_repeats=repeats)], config.judge, measured,
        n_recorded=len(prompts) - len(pending), price_option="judge.prices",
        max_dollars=None if dollars is None else dollars * config.judge.attempts,
    )  # fmt: skip


def prepare_judging(config: JudgeConfig) -> tuple[JudgeSetup, list[JudgePrompt]]:
    """The judge's setup and all of its prompts. Prompts that share text are next to each other, since endpoints cache prefixes.

    Raises ConfigError or DataError for every problem that shows without a call.
    """
    check_trackers(config.report_to, "report_to")
    if config.judge.name == "none":
        raise ConfigError('judge.name = "none": give a judge: a model folder, a hub id, or the name that an endpoint serves')
    with option_context("run", config.run):
        stage = RunReader(config.run).config.get("stage")
    if stage != "fidelity":
        raise DataError(f"run = {config.run}: was made by permix {stage}; only answers of permix fidelity can be judged")
    answers = read_judge_inputs(config.run)
    if not answers:
        raise DataError(f"run = {config.run}: contains no answer that can be judged")
    setup = load_judge_setup(config.judge, {item.rubric for item in answers})
    items = judge_by_rubrics(answers, setup.rubrics)
    items += build_control_inputs(items, config.judge.answers_per_control, config.seed, setup.discriminates_personas)
    _check_examples_complete(items, setup.examples, config.judge)
    prompts = [
        build_judge_prompt(item, setup.rubrics[item.rubric], setup.examples, reasons=config.judge.reasons, seed=config.seed)
        for item in sorted(items, key=_sort_key)
    ]
    return setup, prompts


def load_judge_setup(judge: JudgeModelConfig, own_rubrics: Collection[str]) -> JudgeSetup:
    """Load a judge's rubrics, example answers and price. `own_rubrics`: the rubrics of the run's questions (see `load_rubrics`).

    Raises ConfigError or DataError for rubrics, examples or prices that cannot be used.
    """
    examples = {} if judge.examples is None else read_score_examples(judge.examples)
    return JudgeSetup(load_rubrics(judge.rubrics, own_rubrics), examples, load_judge_price(judge))


def build_call_settings(config: JudgeConfig, price: Price | None) -> CallSettings:
    judge = config.judge
    return CallSettings(
        Sampling(temperature=judge.temperature, max_new_tokens=judge.max_new_tokens),
        judge_reply_schema(judge.reasons), config.seed, judge.attempts, price, judge.max_cost, judge.retries + 1,
    )  # fmt: skip


def judge_label(judge: JudgeModelConfig) -> str:
    """The name under which tables show the judge, and of its folder in a run."""
    return judge.label or judge.name


def _with_label(config: JudgeConfig) -> JudgeConfig:
    """Set judge.label, so that config.json always states it."""
    return config.model_copy(update={"judge": config.judge.model_copy(update={"label": judge_label(config.judge)})})


def _judge_identity(config: JudgeConfig, judge_setup: JudgeSetup, model: Model) -> dict[str, Any]:
    return {"judge": model.fingerprint} | _known_judge_identity(config, judge_setup)


def _known_judge_identity(config: JudgeConfig, judge_setup: JudgeSetup) -> dict[str, Any]:
    """The part of the identity that needs no model."""
    return {
        "rubrics": judge_template_hash(judge_setup.rubrics, config.judge.reasons),
        "reasons": config.judge.reasons,
        "examples": score_examples_hash(judge_setup.examples),
        "sampling": build_call_settings(config, judge_setup.price).sampling.model_dump(),
        "seed": config.seed,
    }


def _sort_key(item: JudgeInput) -> tuple[str, ...]:
    return (item.rubric, item.persona_id, item.question_id, str(item.sample), item.control, item.answered_by or "")


def _check_examples_complete(items: Collection[JudgeInput], examples: ExamplesByQuestion, judge: JudgeModelConfig) -> None:
    missing = {item.question_id for item in items} - set(examples) if examples else set()
    if missing:
        raise DataError(
            f"judge.examples = {judge.examples}: has no examples for {len(missing)} of the judged questions, such as "
            f"{min(missing)!r}; give a file with examples for all of them, or leave judge.examples out"
        )


def _write_metrics(config: JudgeConfig, folder: Path, *, pending: int) -> None:
    try:
        metrics = measure_judge(config.run, folder, seed=config.seed, resamples=config.resamples)
    except DataError:
        if not pending:  # with scores missing, the caller raises MissingScoresError, which is the cause
            raise
        return
    write_json(folder / "metrics.json", metrics)
    log_measures(config.report_to, folder, judge_label(config.judge), metrics.model_dump(mode="json"), config.run)


def _print_missing(run: Path, n_present: int) -> None:
    expected = read_expected_cells(RunReader(run)).n_with_persona or 0
    if (missing := expected - n_present) > 0:
        print_status(
            f"note: {missing} of {expected} answers of {run} are missing and were not judged; permix fidelity generates them"
        )


def _totals_text(totals: CallTotals) -> str:
    cost = "cost unknown" if totals.cost is None else f"{totals.cost:.4f} US dollars"
    tokens = f"{totals.prompt_tokens} tokens read and {totals.completion_tokens} written"
    return f"{totals.n_inputs - totals.n_pending} of {totals.n_inputs} scored; {totals.n_calls} calls so far, {tokens}, {cost}"


def _require_all_scored(totals: CallTotals, config: JudgeConfig, folder: Path, again: NextStart) -> None:
    if not totals.n_pending:
        return
    missing = f"{totals.n_pending} of {totals.n_inputs} have no score"
    if totals.next_cost is not None:
        raise MissingScoresError(
            f"{folder}: stopped before judge.max_cost = {config.judge.max_cost:g} US dollars: up to {totals.spent:.6f} are spent "
            f"and the next call may cost {totals.next_cost:.6f}; {missing}; run the same command with a higher limit to go on",
            totals.n_pending,
        )
    why = explain_missing(
        find_judge_failures(folder),
        again,
        stop_reason=totals.stop_reason,
        options=JUDGE_OPTIONS,
    )
    raise MissingScoresError(f"{folder}: {missing}{why}", totals.n_pending)
