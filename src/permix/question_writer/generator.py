"""`permix questions`: have a model write PersonaGym questions for the user's personas, and keep the usable ones.

A run directory holds:

    records.jsonl      one `Cell` per call, failed calls included
    questions.jsonl    one `PersonaGymQuestion` per line, for every task of a persona that is complete
    examples.jsonl     one `ScoreExample` per line, if examples were requested
    metrics.json       counts of calls, of items kept and rejected (by reason), and of tokens

Contract: the configuration and the replies so far determine the pending requests. The model first chooses situations for each
persona, then writes questions for each task, then example answers to the questions of complete tasks. All files but records.jsonl
are rewritten from the records at the end of every start, also after an interruption.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from permix.config import PersonaGymTask, QuestionsConfig
from permix.errors import ConfigError, DataError, IncompleteRunError, option_context
from permix.inference import check_model, load_model
from permix.inference.addresses import check_addresses
from permix.inference.base import Model
from permix.inference.batch_model import next_start
from permix.inference.cost import RequestGroup, estimate_cost, find_measured, runs_beside
from permix.personas.loading import check_plain_text
from permix.personas.personagym import (
    PERSONAGYM_TASKS,
    PersonaGymQuestion,
    ScoreExample,
    make_personagym_question,
    read_personagym,
)
from permix.personas.pool import select_personas
from permix.progress import print_status
from permix.question_writer.parsing import (
    MIN_SITUATIONS,
    SCORE_KEYS,
    FilterResult,
    filter_examples,
    filter_questions,
    filter_situations,
    match_situation,
    normalize_situation,
)
from permix.question_writer.requests import (
    PendingRequest,
    RepliesByKey,
    RequestKey,
    build_examples_prompt,
    build_questions_prompt,
    build_situations_prompt,
    builtin_situations,
    generate_until_complete,
    replies_by_key,
    writing_template_hash,
)
from permix.sanitize import escape_control
from permix.storage.cells import read_run_cells
from permix.storage.failures import explain_missing, find_failures
from permix.storage.files import write_json, write_text
from permix.storage.rows import quote_value, read_rows
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Persona, Record, digest, seed_from


class WritingJob(NamedTuple):
    """The task of a run of `permix questions`.

    `n_per_task`: questions per persona and task. `candidate_situations`: situations to choose from. `given_questions`: existing
    questions; if there are any, no questions are written. `with_examples`: whether to write example answers.
    `criteria_by_task`: for each task, a text that says which answer gets which score.
    """

    personas: tuple[Persona, ...]
    tasks: tuple[PersonaGymTask, ...]
    n_per_task: int
    candidate_situations: tuple[str, ...]
    given_questions: tuple[PersonaGymQuestion, ...]
    with_examples: bool
    criteria_by_task: Mapping[PersonaGymTask, str]

    @property
    def min_situations(self) -> int:
        """Number of situations that each persona needs before its questions are written."""
        return min(MIN_SITUATIONS, len(self.candidate_situations))


SITUATIONS_CELL_ID, EXAMPLES_CELL_PREFIX = "settings", "examples of "
"""The `question_id` of cells for situations, and its prefix in cells for examples. In cells for questions it is the task.

These texts are part of recorded cells, so changing them makes old runs unreadable.
"""


def situations_key(persona: Persona) -> RequestKey:
    return RequestKey(persona.id, SITUATIONS_CELL_ID)


def examples_key(question: PersonaGymQuestion) -> RequestKey:
    return RequestKey(question.persona_id, f"{EXAMPLES_CELL_PREFIX}{question.id}")


# Filtered replies of one persona or one question


def situations_of_persona(job: WritingJob, replies: RepliesByKey, persona: Persona) -> FilterResult:
    """The situations chosen for one persona so far."""
    return filter_situations(replies.get(situations_key(persona), ()), job.candidate_situations)


def questions_of_persona(job: WritingJob, replies: RepliesByKey, persona: Persona) -> dict[PersonaGymTask, FilterResult]:
    """The usable questions of one persona so far, by task."""
    return filter_questions({task: replies.get(RequestKey(persona.id, task), ()) for task in job.tasks}, job.n_per_task)


def examples_of_question(replies: RepliesByKey, question: PersonaGymQuestion) -> FilterResult:
    """The five example answers of one question, or nothing if no reply holds all five."""
    return filter_examples(replies.get(examples_key(question), ()))


# Pending requests


def pending_situation_requests(job: WritingJob, replies: RepliesByKey) -> list[PendingRequest]:
    requests = []
    for persona in () if job.given_questions else job.personas:
        key, chosen = situations_key(persona), situations_of_persona(job, replies, persona).kept
        if len(chosen) < job.min_situations:
            prompt = build_situations_prompt(persona.text, _shuffle_for_persona(job.candidate_situations, persona), chosen)
            requests.append(PendingRequest(key, persona.id, len(replies.get(key, ())), job.min_situations - len(chosen), prompt))
    return requests


def pending_question_requests(job: WritingJob, replies: RepliesByKey) -> list[PendingRequest]:
    """The next request for each unfinished task; personas without enough situations are left out."""
    requests = []
    for persona in () if job.given_questions else job.personas:
        chosen = situations_of_persona(job, replies, persona).kept
        if len(chosen) < job.min_situations:
            continue
        for task, questions in questions_of_persona(job, replies, persona).items():
            key, missing = RequestKey(persona.id, task), job.n_per_task - len(questions.kept)
            if missing:
                prompt = build_questions_prompt(persona.text, task, chosen, missing, questions.kept)
                requests.append(PendingRequest(key, persona.id, len(replies.get(key, ())), missing, prompt))
    return requests


def pending_example_requests(job: WritingJob, replies: RepliesByKey) -> list[PendingRequest]:
    requests = []
    for question in complete_questions(job, replies) if job.with_examples else ():
        key = examples_key(question)
        if not examples_of_question(replies, question).kept:
            prompt = build_examples_prompt(question.persona, question.text, job.criteria_by_task[question.task])
            requests.append(PendingRequest(key, question.id, len(replies.get(key, ())), len(SCORE_KEYS), prompt))
    return requests


# Finished questions and examples


def complete_questions(job: WritingJob, replies: RepliesByKey) -> tuple[PersonaGymQuestion, ...]:
    """The given questions; without any, the questions of every task that is complete, persona by persona."""
    return job.given_questions or tuple(
        _build_question(persona, task, text, situations_of_persona(job, replies, persona).kept)
        for persona in job.personas
        for task, questions in questions_of_persona(job, replies, persona).items()
        if len(questions.kept) == job.n_per_task
        for text in questions.kept
    )


def complete_examples(job: WritingJob, replies: RepliesByKey) -> tuple[ScoreExample, ...]:
    return tuple(
        ScoreExample(question_id=question.id, score=score, text=text)
        for question in (complete_questions(job, replies) if job.with_examples else ())
        for score, text in enumerate(examples_of_question(replies, question).kept, start=1)
    )


def describe_pending_requests(job: WritingJob, replies: RepliesByKey) -> list[str]:
    """Describe each missing part in a few words."""
    missing = [f"situations of {one.key.persona_id!r}" for one in pending_situation_requests(job, replies)]
    missing += [
        f"{one.key.persona_id!r} × {one.key.name} ({job.n_per_task - one.n_missing} of {job.n_per_task} questions)"
        for one in pending_question_requests(job, replies)
    ]
    return missing + [one.key.name for one in pending_example_requests(job, replies)]


def _shuffle_for_persona(candidates: Sequence[str], persona: Persona) -> list[str]:
    """Shuffle the list by a seed of this persona, since some models tend to choose the first items of a list."""
    return sorted(candidates, key=lambda one: seed_from("situation", persona.text, one))


def _build_question(persona: Persona, task: PersonaGymTask, text: str, chosen: Sequence[str]) -> PersonaGymQuestion:
    return make_personagym_question(persona, task, text).model_copy(update={"setting": match_situation(text, chosen)})


class WritingCounts(Record):
    """Counts of one part of a job. `kept`: usable situations, questions or answers. `rejected`: unusable ones, by reason."""

    calls: int
    failed: int
    kept: int
    rejected: dict[str, int]


class WritingSummary(Record):
    """Counts of a run of `permix questions`. Tokens are summed over all calls.

    `pending` names each missing part; `last_failure` is the message of the last failed call. `stop_reason`: why this start asked
    for no more, if the endpoint stopped answering.
    """

    situations: WritingCounts
    questions: WritingCounts
    examples: WritingCounts
    prompt_tokens: int
    completion_tokens: int
    pending: tuple[str, ...]
    last_failure: str | None
    stop_reason: str = ""


def summarize_writing(job: WritingJob, cells: Mapping[CellKey, Cell]) -> WritingSummary:
    """Compute all counts of a run from its cells."""
    replies, calls = replies_by_key(cells), list(cells.values())
    questions = (
        {} if job.given_questions else {persona.id: questions_of_persona(job, replies, persona) for persona in job.personas}
    )
    by_part: dict[str, list[Cell]] = {"situations": [], "questions": [], "examples": []}
    for cell in calls:
        by_part[_classify_cell(cell)].append(cell)
    results = [result for cell in calls if (result := cell.completion or cell.failure)]
    failures = [cell.failure for cell in calls if cell.failure]
    return WritingSummary(
        situations=_count_replies(
            by_part["situations"],
            [] if job.given_questions else [situations_of_persona(job, replies, one) for one in job.personas],
        ),
        questions=_count_replies(by_part["questions"], [one for tasks in questions.values() for one in tasks.values()]),
        examples=_count_replies(
            by_part["examples"], [examples_of_question(replies, one) for one in complete_questions(job, replies)]
        ),
        prompt_tokens=sum(result.prompt_tokens or 0 for result in results),
        completion_tokens=sum(result.completion_tokens or 0 for result in results),
        pending=tuple(describe_pending_requests(job, replies)),
        last_failure=escape_control(f"{failures[-1].type}: {failures[-1].message}") if failures else None,
    )


def format_writing_summary(summary: WritingSummary) -> list[str]:
    """Lines for the terminal at the end of a run, one per part and one for tokens."""
    parts = {"situations": summary.situations, "questions": summary.questions, "example answers": summary.examples}
    lines = []
    for name, part in parts.items():
        if part.calls:
            rejected = ", ".join(f"{reason} {n}" for reason, n in part.rejected.items())
            failed = f", {part.failed} failed" if part.failed else ""
            lines.append(f"{name}: {part.kept} kept, from {part.calls} calls{failed}; rejected: {rejected or 'none'}")
    return [*lines, f"tokens: {summary.prompt_tokens} read, {summary.completion_tokens} written"]


def _classify_cell(cell: Cell) -> str:
    if cell.question_id == SITUATIONS_CELL_ID:
        return "situations"
    return "examples" if cell.question_id.startswith(EXAMPLES_CELL_PREFIX) else "questions"


def _count_replies(calls: Iterable[Cell], filtered: Iterable[FilterResult]) -> WritingCounts:
    calls, filtered = list(calls), list(filtered)
    rejected = sum((one.rejected for one in filtered), Counter[str]())
    return WritingCounts(
        calls=len(calls),
        failed=sum(cell.failure is not None for cell in calls),
        kept=sum(len(one.kept) for one in filtered),
        rejected=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
    )


PENDING_REQUEST_FINDERS = {
    "situations": pending_situation_requests,
    "questions": pending_question_requests,
    "examples": pending_example_requests,
}

MAX_SITUATION_CHARS = 200

MAX_LISTED_MISSING = 5
"""Number of missing parts that an error message names."""


def write_questions(config: QuestionsConfig, model: Model | None = None) -> Path:
    """Start or resume a run of `permix questions`. `model` replaces the one that the configuration names.

    Returns the path of questions.jsonl, or of examples.jsonl if the questions were given. Raises IncompleteRunError, naming the
    missing parts, if the model did not write all of them.
    """
    job = build_writing_job(config)
    asked = load_model(config.model, config.threads) if model is None else model
    summary = run_writing_job(asked, config, job)
    for line in format_writing_summary(summary):
        print_status(line)
    if summary.pending:
        missing = ", ".join(summary.pending[:MAX_LISTED_MISSING]) + (
            f" and {len(summary.pending) - MAX_LISTED_MISSING} more" if len(summary.pending) > MAX_LISTED_MISSING else ""
        )
        failures = find_failures(read_run_cells(config.out), scored=False)
        why = explain_missing(failures, next_start(asked, "write them"), stop_reason=summary.stop_reason)
        raise IncompleteRunError(f"{config.out}: still missing: {missing}{why}", len(summary.pending))
    return config.out / ("examples.jsonl" if job.given_questions else "questions.jsonl")


def preflight_questions(config: QuestionsConfig) -> dict[str, str]:
    """Facts about the job without calling a model; the number of calls assumes that no reply is rejected.

    Raises ConfigError or DataError if the configuration or a file is invalid.
    """
    job = build_writing_job(config)
    check_model(config.model, contact=False)
    personas, written = len(job.personas), len(job.personas) * len(job.tasks) * job.n_per_task
    calls = 0 if job.given_questions else personas * (1 + len(job.tasks))
    questions = (
        f"{len(job.given_questions)}, given"
        if job.given_questions
        else f"{written}, {job.n_per_task} for each persona and task ({len(job.tasks)} tasks)"
    )
    examples = (len(job.given_questions) or written) * job.with_examples
    facts = {
        "personas": str(personas),
        "questions": questions,
        "examples": f"{examples} × 5 answers",
        "calls": f"{calls + examples} or more, since unusable replies are asked for again",
    }
    return facts | _estimate_writing(config, job, calls + examples)


def _estimate_writing(config: QuestionsConfig, job: WritingJob, n_calls: int) -> dict[str, str]:
    """The cost of the calls that are not made yet, if no reply is rejected: `n_calls` in all, the recorded ones included."""
    cells = read_run_cells(config.out)
    replies, n_recorded = replies_by_key(cells), cells.n_completions
    pending = [one for find in PENDING_REQUEST_FINDERS.values() for one in find(job, replies)]
    n_later = max(0, n_calls - n_recorded - len(pending))
    limit = config.sampling.max_new_tokens
    group = RequestGroup([one.prompt.messages for one in pending], limit, n_later=n_later if pending else 0)
    measured = find_measured(runs_beside(config.out), "questions", config.model, limit)
    return estimate_cost([group], config.model, measured, n_recorded=n_recorded)


def build_writing_job(config: QuestionsConfig) -> WritingJob:
    """Build the job from the configuration. Raises ConfigError or DataError if the configuration or a file is invalid."""
    tasks = tuple(task for task in PERSONAGYM_TASKS if not config.tasks or task in config.tasks)
    examples = (config.examples, _load_criteria())
    if config.personagym.path or config.personagym.hub:
        source = config.personagym.model_copy(update={"tasks": config.tasks or config.personagym.tasks})
        with option_context("personagym.path", source.path):
            personas, questions = read_personagym(source)
        return WritingJob(personas, tasks, config.n, (), questions, *examples)
    return WritingJob(select_personas(config.personas).personas, tasks, config.n, read_situations(config.settings), (), *examples)


def run_writing_job(model: Model, config: QuestionsConfig, job: WritingJob) -> WritingSummary:
    """Like `write_questions`, for a model that is already loaded; reports missing parts in the result instead of raising."""
    first = [one.to_cell(config.seed) for one in (*pending_situation_requests(job, {}), *pending_example_requests(job, {}))]
    endpoint = check_addresses(model, config.out)
    with RunDir.open(config.out, config, _identity(model, config, job), first, endpoints=[endpoint]) as run:
        try:
            with run.track_usage():
                for label, find_pending in PENDING_REQUEST_FINDERS.items():
                    generate_until_complete(model, config, run, partial(find_pending, job), label)
        finally:
            summary = _write_outputs(run, job)
    return summary.model_copy(update={"stop_reason": run.stop_reason})


def _write_outputs(run: RunDir, job: WritingJob) -> WritingSummary:
    """Write the output files from the run's cells."""
    cells = run.cells()
    replies = replies_by_key(cells)
    if not job.given_questions:
        _write_lines(run.path / "questions.jsonl", complete_questions(job, replies))
    if job.with_examples:
        _write_lines(run.path / "examples.jsonl", complete_examples(job, replies))
    summary = summarize_writing(job, cells)
    write_json(run.path / "metrics.json", summary)
    return summary


def read_situations(path: Path | None) -> tuple[str, ...]:
    """The built-in situations, or the lines of a text file. Raises ConfigError or DataError if the file is missing or invalid."""
    if path is None:
        return builtin_situations()
    if not path.is_file():
        raise ConfigError(
            f"settings = {path}: no such file; give a .txt file with one situation per line, or omit it for the built-in list"
        )
    text_by_key: dict[str, str] = {}
    for row in read_rows(path, "situation", (".txt",)):
        try:
            text = check_plain_text(row.fields["text"])
        except ValueError as error:
            raise DataError(f"{row.where}: {quote_value(row.fields['text'])}: {error}") from error
        if len(text) > MAX_SITUATION_CHARS:
            raise DataError(
                f"{row.where}: {quote_value(text)}: {len(text)} characters; a situation has at most {MAX_SITUATION_CHARS}"
            )
        if normalize_situation(text) in text_by_key:
            raise DataError(
                f"{row.where}: {quote_value(text)}: repeats "
                f"{quote_value(text_by_key[normalize_situation(text)])}; give each situation once"
            )
        text_by_key[normalize_situation(text)] = text
    return tuple(text_by_key.values())


def _identity(model: Model, config: QuestionsConfig, job: WritingJob) -> dict[str, object]:
    return {
        "model": model.fingerprint,
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
        "wording": writing_template_hash(),
        "criteria": digest(*(f"{task}\n{text}" for task, text in sorted(job.criteria_by_task.items()))),
        "questions": "given"
        if job.given_questions
        else {"n": job.n_per_task, "tasks": list(job.tasks), "situations": digest(*job.candidate_situations)},
    }


def _load_criteria() -> dict[PersonaGymTask, str]:
    """For each task, the text that says which answer gets which score: the built-in rubric up to the persona."""
    from permix.judges.prompts import load_rubrics

    rubrics = load_rubrics("permix", PERSONAGYM_TASKS)
    before = {task: rubrics[task].template.partition("{persona}")[0].strip() for task in PERSONAGYM_TASKS}
    return {task: text.rpartition("\n\n")[0] for task, text in before.items()}  # drops the heading of the persona


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    write_text(path, "".join(one.model_dump_json() + "\n" for one in records))
