"""Compiles the training plan: which question is asked under which persona in which step. Any training engine can follow it.

Every random draw depends only on the plan's seed and on the row's position (step, group, row in the group). So two plans that
differ only in `mix` ask the same questions in the same order, and a row with a persona at a small `mix` has the same persona at
a larger one, by the same template and in the same context. Drawing templates or contexts changes no persona and no question.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from permix.config import (
    NO_PERSONA_METHODS,
    PersonasConfig,
    PlanConfig,
    RolloutPlanConfig,
    TaskConfig,
    TrainMethod,
    resolve_mix,
)
from permix.errors import ConfigError, DataError, option_context
from permix.personas.pool import PersonaSource, selection_context, warn_of_misfits
from permix.personas.recorded_turns import RecordedTurns, choose_turns, load_context_turns
from permix.prompts import build_messages, require_system_template, template_hash, template_id, template_text
from permix.sanitize import escape_control
from permix.storage.files import PARSE_ERRORS, parse_error_text, replace_when_done
from permix.storage.rows import quote_value
from permix.tasks import TASKS, is_own_task, load_questions, load_selection
from permix.types import Persona, PlanRow, Question, digest, seed_from

# pyarrow is optional: evaluations and reports import this module and need no Parquet file.
if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PLAN_FORMAT = "permix-plan-3"
"""The format of a plan file: its columns and the keys of its metadata."""
ROW_FORMAT = "permix-plan-2"
"""The format of a row. It is part of the plan's hash: equal rows keep their hash if only the metadata's format changes."""


class Plan(NamedTuple):
    """The rows in training order, and `metadata`: the configuration and the fingerprints that they were made with. The hash
    covers the rows only."""

    rows: tuple[PlanRow, ...]
    metadata: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hash of the rows; the same rows have the same hash on every machine."""
        return digest(ROW_FORMAT, *(row.model_dump_json() for row in self.rows))

    @property
    def steps(self) -> int:
        return self.rows[-1].step + 1

    @property
    def group_size(self) -> int:
        """Rollouts of one group (G)."""
        first = self.rows[0]
        return sum(row.rollouts for row in self.rows if (row.step, row.group) == (first.step, first.group))

    def rows_at(self, step: int) -> tuple[PlanRow, ...]:
        """The rows of one step, in order."""
        first, end = (bisect_left(self.rows, one, key=lambda row: row.step) for one in (step, step + 1))
        return self.rows[first:end]

    @property
    def groups_per_step(self) -> int:
        """Groups that every step samples; spare groups are not counted."""
        return len({row.group for row in self.rows if row.step == 0 and not row.spare})

    @property
    def dynamic_sampling_groups(self) -> int:
        """Spare groups of a step, which replace groups whose rollouts all earned the same reward."""
        return len({row.group for row in self.rows if row.step == 0 and row.spare})


class PersonaSampler(NamedTuple):
    """Personas and their weights [P]; the chance of a persona is proportional to its weight."""

    personas: tuple[Persona, ...]
    weights: tuple[float, ...]

    def sample(self, rng: random.Random) -> Persona:
        return self.personas[draw_place(self.weights, rng)]


def draw_place(weights: Sequence[float], rng: random.Random) -> int:
    """A place in `weights`, with a probability proportional to its weight."""
    cumulative = list(accumulate(weights))
    place = bisect_right(cumulative, rng.random() * cumulative[-1])
    return min(place, len(weights) - 1)  # rounding can lift the product to the last sum


class PlanBuilder(NamedTuple):
    """Builds the rows of a plan. `format_question` makes a prompt of a question; `personas_config` gives the persona template,
    where `config` draws none; `turns` are those of contexts with turns."""

    questions: Sequence[Question]
    format_question: Callable[[Question], str]
    persona_sampler: PersonaSampler
    config: RolloutPlanConfig
    personas_config: PersonasConfig
    turns: RecordedTurns | None = None

    def build_rows(self, steps: range, persona_sampler: PersonaSampler | None = None) -> Iterator[PlanRow]:
        """Yield the rows of these steps. `persona_sampler` replaces the builder's own; it changes the personas and nothing else:
        questions, groups and seeds stay the same.
        """
        config = self.config
        order, spares = question_order(self.questions, config), self._reserve_question_order()
        for step in range(steps.stop):  # earlier steps too: their questions must be taken from the orders
            step_questions = list(islice(order, config.questions_per_step))
            while len(step_questions) < config.questions_per_step + config.dynamic_sampling_groups:
                step_questions += [one for one in islice(spares, 1) if one not in step_questions]
            if step in steps:
                for group, question in enumerate(step_questions):
                    yield from self._group_rows(step, group, question, persona_sampler or self.persona_sampler)

    def _reserve_question_order(self) -> Iterator[Question]:
        """Questions for the spare groups, from a separate order: spare groups do not change the other groups' questions."""
        return question_order(self.questions, self.config, "spare")

    def _group_rows(self, step: int, group: int, question: Question, persona_sampler: PersonaSampler) -> Iterator[PlanRow]:
        config = self.config
        rows = 1 if config.scope == "group" else config.group_size
        for place in range(rows):
            seed = seed_from("plan", config.seed, step, group, place)
            persona = sample_persona(seed, persona_sampler, resolve_mix(config))
            template = self._draw_template(seed) if persona else ""
            context = draw_name(seed_from("context", seed), config.contexts) if persona else ""
            yield PlanRow(
                step=step,
                group=group,
                rollouts=config.group_size // rows,
                task=question.task,
                question_id=question.id,
                question_hash=question.content_hash,
                persona_id=persona.id if persona else None,
                persona_tags=persona.tags if persona else (),
                seed=seed,
                messages=build_messages(
                    persona,
                    self.format_question(question),
                    template=template or self.personas_config.template,
                    empty_system_prompt=self.personas_config.empty_system_prompt,
                    context=context,
                    turns=choose_turns(self.turns, persona, context, seed) if persona else (),
                ),
                gold=question.gold,
                solution=question.solution,
                spare=group >= config.questions_per_step,
                template=template_id(template) if template else "",
                context=context,
            )

    def _draw_template(self, seed: int) -> str:
        """The text of the row's template; "" if the plan draws none."""
        # By text: a named template and its own text are the same draw.
        return draw_name(seed_from("template", seed), {template_text(name): one for name, one in self.config.templates.items()})


def load_training_plan(path: Path, method: TrainMethod, task_name: str = "", task_option: str = "") -> Plan:
    """The plan in a file, to train from. `task_name`: the task that the configuration names. `task_option`: the option that names
    it, for messages; those of `permix train` when not given.

    Raises ConfigError if the file's rows have personas and the method uses none, or if they name a task of the user's own that
    the configuration does not name, and DataError if the file cannot be used.
    """
    with option_context("plan_file", path):
        plan = read_plan(path)
    # The reward imports the module of such a task, and a plan may be a stranger's file: only the user's own word is enough.
    if other := next((row.task for row in plan.rows if is_own_task(row.task) and row.task != task_name), None):
        answer = other.removeprefix("own-")
        option = f'task.name = "{other}"' if answer == other else f'task.answer = "{answer}" and task.path'
        if task_option:
            option = f'{task_option} = "{other}"'
        raise ConfigError(
            f"{task_option or 'task.name'} = {task_name!r}: plan_file = {path} has questions of {quote_value(other)}, whose "
            f"module training would run; give {option} too, if you trust that module"
        )
    _reload_reference_tests(plan)
    with_persona = next((row for row in plan.rows if row.persona_id is not None), None)
    if method in NO_PERSONA_METHODS and with_persona is not None:
        raise ConfigError(
            f"plan_file = {path}: its rows have personas (the first, {with_persona.persona_id}, in step {with_persona.step}), "
            f'but method = "{method}" uses none; give a plan made with --plan.mix 0, or another method'
        )
    return plan


def _reload_reference_tests(plan: Plan) -> None:
    """Load the questions of a task whose scorer needs more than the row's gold (a program's tests), as the metadata names them.

    Raises DataError if the metadata names no task, or if a row's tests are no longer in the data set.
    """
    scored_rows = [row for row in plan.rows if row.task in TASKS and TASKS[row.task].scorer is not None]
    if not scored_rows:
        return
    if "task" not in plan.metadata:
        raise DataError("plan: does not say which task its questions are of; make it again with `permix plan`")
    try:
        task = TaskConfig.model_validate(plan.metadata["task"])
    except PARSE_ERRORS as error:
        raise DataError(f"plan: the task that it names is none: {parse_error_text(error)[:MAX_PLAN_ERROR_CHARS]}") from error
    if task.name not in TASKS:
        raise DataError(
            f"plan: its questions are of {scored_rows[0].task}, but it says that they are of {quote_value(task.name)}"
        )
    golds = {question.gold for question in load_questions(task)[1]}
    if changed := [row for row in scored_rows if row.gold not in golds]:
        raise DataError(
            f"{task.path or task.name}: no longer has the tests of the plan's question {changed[0].question_id}; make the "
            "plan again with `permix plan`, or give the data set that it was made from"
        )


def plan_builder_from_config(
    task: TaskConfig, personas: PersonasConfig, plan: RolloutPlanConfig, source: PersonaSource
) -> tuple[PlanBuilder, dict[str, Any]]:
    """A builder for the plan that these sections describe, and the part of the plan's metadata that the builder does not hold.

    Raises ConfigError or DataError if the questions or personas cannot be loaded.
    """
    loaded = load_selection(task)
    pool = source.select(personas)
    _check_drawn_templates(plan, personas)
    warn_of_misfits(pool, list(plan.templates) or [personas.template])
    with selection_context():
        sampler = PersonaSampler(pool.personas, pool.sampling_weights(plan.tag_weights))
    contexts = list(plan.contexts) if resolve_mix(plan) > 0 else []
    turns = load_context_turns(contexts, plan.context_turns, pool.personas, personas, prefix="plan.")
    return PlanBuilder(loaded.questions, loaded.task.prompt, sampler, plan, personas, turns), {
        "task": loaded.config.model_dump(mode="json"),
        "pool": pool.fingerprint,
        **({} if turns is None else {"context_turns": turns.content_hash}),
    }


def _check_drawn_templates(plan: RolloutPlanConfig, personas: PersonasConfig) -> None:
    """Raise ConfigError if a template is unknown or given twice, or does not go with contexts or with personas.template."""
    ids = [template_id(one, "plan.templates") for one in plan.templates]
    if repeated := next((one for one in plan.templates if ids.count(template_id(one)) > 1), None):
        raise ConfigError(f"plan.templates: {repeated!r} has the same text as another one; give each text once")
    if plan.templates and personas.template != PersonasConfig().template:
        raise ConfigError(
            f"personas.template = {personas.template!r}: plan.templates replace it; leave it out, or add it to plan.templates"
        )
    if plan.contexts:
        for template in plan.templates or [personas.template]:
            require_system_template(template, "plan.contexts")


def compile_plan_from_config(task: TaskConfig, personas: PersonasConfig, plan: RolloutPlanConfig) -> Plan:
    """Compile the plan that these sections describe. Raises ConfigError or DataError."""
    return compile_plan(*plan_builder_from_config(task, personas, plan, PersonaSource(personas.pool, personas.column)))


def preflight_plan(config: PlanConfig) -> dict[str, str]:
    """Facts about the plan that a configuration describes. Raises ConfigError or DataError for what is wrong with it."""
    template_text(config.personas.template)
    return describe_plan(compile_plan_from_config(config.task, config.personas, config.plan))


def compile_plan(builder: PlanBuilder, sources: Mapping[str, Any] | None = None) -> Plan:
    """Build the rows of `builder.config.steps` steps; `sources` is added to the plan's metadata.

    Raises ConfigError if a step would ask the same question twice, or if `mix` is above 0 and there are no personas.
    """
    config, questions = builder.config, builder.questions
    if len(questions) < config.questions_per_step + config.dynamic_sampling_groups:
        spares = f" and plan.dynamic_sampling_groups = {config.dynamic_sampling_groups}" if config.dynamic_sampling_groups else ""
        raise ConfigError(
            f"plan.questions_per_step = {config.questions_per_step}{spares}: the task has only {len(questions)} questions; "
            "ask for more questions or fewer a step"
        )
    mix = resolve_mix(config)
    if mix > 0 and not builder.persona_sampler.personas:
        raise ConfigError(f"plan.mix = {mix}: there are no personas to draw from; widen personas.include or set mix to 0")
    about = {
        "format": PLAN_FORMAT,
        "plan": config.model_dump(mode="json") | {"mix": mix},
        "template": template_hash(builder.personas_config.template),
        "empty_system_prompt": builder.personas_config.empty_system_prompt,
        "personas": len(builder.persona_sampler.personas),
        "questions": len(questions),
    } | dict(sources or {})
    return Plan(tuple(builder.build_rows(range(config.steps))), about)


def question_order(questions: Sequence[Question], config: RolloutPlanConfig, purpose: str = "order") -> Iterator[Question]:
    """Pass over the questions endlessly, each pass in a new order, seeded by `purpose`, the plan's seed and the pass's number.

    Only whole steps are taken from a pass: the last questions of its order that do not fill a step are skipped.
    """
    # Sorted by content first: the plan must not depend on the order in which the questions came.
    by_hash = sorted(questions, key=lambda question: question.content_hash)
    whole = len(by_hash) - len(by_hash) % config.questions_per_step
    for epoch in count():
        shuffled = by_hash.copy()
        random.Random(seed_from(purpose, config.seed, epoch)).shuffle(shuffled)
        yield from shuffled[:whole]


def sample_persona(seed: int, persona_sampler: PersonaSampler, mix: float) -> Persona | None:
    """A persona with probability `mix`, else None. With the same seed, a larger `mix` gives the same persona or adds one."""
    # The first number decides whether, the second one who: `mix` never changes the second.
    rng = random.Random(seed)
    mixed_in = rng.random() < mix
    return persona_sampler.sample(rng) if mixed_in else None


def draw_name(seed: int, weights: Mapping[str, float]) -> str:
    """A name with a probability proportional to its weight, whatever the order of the names; "" without any."""
    if not weights:
        return ""
    names = sorted(name for name, weight in weights.items() if weight > 0)
    return names[draw_place([weights[name] for name in names], random.Random(seed))]


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan to one Parquet file. Messages are written as JSON text, so that any Parquet viewer shows them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row.model_dump(mode="json") | {"messages": json.dumps(row.messages, ensure_ascii=False)} for row in plan.rows]
    about = plan.metadata | {"format": PLAN_FORMAT, "hash": plan.hash}
    table = pa.Table.from_pylist(rows, schema=_schema(_optional_columns(plan.rows))).replace_schema_metadata(
        {"permix": json.dumps(about)}
    )
    with replace_when_done(path) as scratch:
        pq.write_table(table, scratch)


def read_plan(path: Path) -> Plan:
    """Read a plan file. Raises DataError if it is missing, no plan, of another format, or if its rows do not match its hash.

    The file may be a stranger's: columns of other types are refused unread, and at most `MAX_PLAN_BYTES` are decompressed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.exists() and not path.is_file():
        raise DataError(f"plan {path}: not a file; give the file that `permix plan` wrote")
    try:
        with pq.ParquetFile(path) as file:
            about = json.loads(file.schema_arrow.metadata[b"permix"])
            if about["format"] != PLAN_FORMAT:
                found = escape_control(str(about["format"]))[:MAX_PLAN_ERROR_CHARS]
                raise DataError(f"plan {path}: has format {found}, not {PLAN_FORMAT}; make it again with `permix plan`")
            _check_columns(path, file.schema_arrow)
            rows = tuple(_read_rows(path, file))
    except FileNotFoundError as error:
        raise DataError(f"plan {path}: no such file; make one with `permix plan`") from error
    except (OSError, pa.ArrowException, *PARSE_ERRORS) as error:
        raise DataError(f"plan {path}: not a plan file: {parse_error_text(error)[:MAX_PLAN_ERROR_CHARS]}") from error
    if not rows:
        raise DataError(f"plan {path}: has no rows")
    if unknown := next((row for row in rows if row.task not in TASKS and not is_own_task(row.task)), None):
        raise DataError(f"plan {path}: its task {quote_value(unknown.task)} is unknown; known: {', '.join(TASKS)}")
    plan = Plan(rows, about)
    if plan.hash != about.get("hash"):
        raise DataError(
            f"plan {path}: its rows hash to {plan.hash}, not to the recorded {about.get('hash')}; "
            "the file was edited or cut short"
        )
    return plan


MAX_PLAN_BYTES = 4_000_000_000
"""Most bytes of a plan's rows, decompressed: a million rows of 4 kB. A small file can claim more, which would fill the memory."""

ROWS_PER_READ = 256

MAX_PLAN_ERROR_CHARS = 300


def _check_columns(path: Path, schema: pa.Schema) -> None:
    """Raise DataError naming the first column that is missing, additional or of another type."""
    optional = [name for name in OPTIONAL_COLUMNS if name in schema.names]
    found, wanted = ({field.name: field.type for field in one} for one in (schema, _schema(optional)))
    for name in wanted | found:
        if found.get(name) != wanted.get(name):
            raise DataError(
                f"plan {path}: not a plan file: column {quote_value(name)} has type {found.get(name, 'none, it is missing')}; "
                f"valid: {wanted.get(name, 'no such column')}"
            )


def _read_rows(path: Path, file: pq.ParquetFile) -> Iterator[PlanRow]:
    """The rows, a few at a time. Raises DataError when they have more than `MAX_PLAN_BYTES`."""
    n_bytes = 0
    for batch in file.iter_batches(ROWS_PER_READ):
        n_bytes += batch.nbytes
        if n_bytes > MAX_PLAN_BYTES:
            raise DataError(f"plan {path}: has more than {MAX_PLAN_BYTES / 1e9:g} GB of rows; give a plan of fewer steps")
        for row in batch.to_pylist():
            optional = {name: row[name] or "" for name in OPTIONAL_COLUMNS if name in row}
            yield PlanRow.model_validate(row | optional | {"messages": json.loads(row["messages"])})


OPTIONAL_COLUMNS = ("template", "context")
"""Columns that only the file of a plan that draws them has; null in a row without a persona."""


def _optional_columns(rows: Sequence[PlanRow]) -> list[str]:
    return [name for name in OPTIONAL_COLUMNS if any(getattr(row, name) for row in rows)]


def _schema(optional: Sequence[str] = ()) -> pa.Schema:
    """The columns of a plan file."""
    import pyarrow as pa

    return pa.schema(
        [
            ("step", pa.int32()),
            ("group", pa.int32()),
            ("rollouts", pa.int32()),
            ("task", pa.string()),
            ("question_id", pa.string()),
            ("question_hash", pa.string()),
            ("persona_id", pa.string()),
            ("persona_tags", pa.list_(pa.string())),
            ("seed", pa.int64()),
            ("messages", pa.string()),
            ("gold", pa.string()),
            ("spare", pa.bool_()),
            ("solution", pa.string()),
            *((name, pa.string()) for name in optional),
        ]
    )


def describe_plan(plan: Plan) -> dict[str, str]:
    """The facts that `permix plan` prints, by name: steps, rollouts, questions, personas and an estimate of the tokens."""
    rollouts = sum(row.rollouts for row in plan.rows)
    spare = sum(row.rollouts for row in plan.rows if row.spare)
    without = sum(row.rollouts for row in plan.rows if row.persona_id is None)
    seen = Counter(row.persona_id for row in plan.rows if row.persona_id)
    characters = sum(row.rollouts * sum(len(message["content"]) for message in row.messages) for row in plan.rows)
    spread = f", each in {min(seen.values())} to {max(seen.values())} rows" if seen else ""
    return {
        "hash": plan.hash,
        "steps": str(plan.steps),
        "rows": str(len(plan.rows)),
        "rollouts": f"{rollouts} in groups of {plan.group_size}" + (f", {spare} of them spare" if spare else ""),
        "questions": str(len({row.question_hash for row in plan.rows})),
        "personas": f"{len(seen)}{spread}",
        "without persona": f"{without / rollouts:.1%} of rollouts",
        **_describe_drawn(plan),
        "prompt tokens": f"about {characters // 4} over all rollouts (4 characters a token)",
        "completion tokens": f"at most {rollouts} × train.max_new_tokens",
    }


def _describe_drawn(plan: Plan) -> dict[str, str]:
    """How many rollouts have each template and each context; nothing of what the plan does not draw."""
    facts = {}
    for field in OPTIONAL_COLUMNS:
        counts = Counter[str]()
        for row in plan.rows:
            counts[getattr(row, field)] += row.rollouts
        del counts[""]
        if counts:
            facts[f"{field}s"] = ", ".join(f"{escape_control(name)} {n}" for name, n in sorted(counts.items())) + " rollouts"
    return facts
