"""`permix fidelity --interview.turns K`: each persona in a conversation, turn by turn, to see whether its character drifts.

Contract: a turn's prompt is the persona, every earlier question and the model's own answers to them, and this turn's question.
All personas answer a turn before the next one begins, so they travel in batches. What was answered is never asked again: a killed
run goes on with the same words. Where an answer is missing the conversation stops, since nobody is asked on a gap, and its later
turns are owed too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from permix.config import FidelityStage
from permix.errors import ConfigError, DataError, OwedCellsError
from permix.evals.answering import write_metrics
from permix.evals.answers import AskedQuestion, in_words
from permix.evals.drift_summary import Drift, measure_drift
from permix.evals.grid import describe_asked, fill, note_seen_personas
from permix.evals.interview_script import Orders, choose_script, orders
from permix.evals.interviewer import SAMPLING, Interviewer, ModelInterviewer, Script, Spoken, turn_question
from permix.evals.told import read_taught
from permix.models import Model, cached, open_model
from permix.models.hf import context_window, encode_chat, load_tokenizer, resolve
from permix.personas.choose import choose_personas
from permix.personas.pool import PersonaPool
from permix.prompting import build_messages, template_hash
from permix.recorded import briefs_of
from permix.records import RunDir, write_json
from permix.types import Cell, CellKey, Message, Persona, Question, digest, seed_from


class Plan(NamedTuple):
    """Whom to interview, and who is asked what when; no script where a model asks."""

    pool: PersonaPool
    script: Orders | None


def interview(config: FidelityStage) -> Drift:
    """Run, or go on with, the interviews; writes metrics.json and returns it. OwedCellsError when turns are missing."""
    plan = set_up(config)
    refuse_overlong(config, plan)
    note_seen_personas(config.model, plan.pool)
    with cached(open_model(config.model, config.threads), config.cache, config.out) as model:
        other = open_model(config.interviewer, config.threads) if config.interviewer.is_model else None
        return evaluate(model, config, plan, other)


def set_up(config: FidelityStage) -> Plan:
    """Everything that can be found wrong without a model. ConfigError for a single persona or a script that is too short."""
    pool = choose_personas(config.personas)
    if len(pool) < 2:
        raise ConfigError(
            f"personas: only {pool.personas[0].id!r} is left to choose; an interval is over personas, so give two or more"
        )
    ids = [persona.id for persona in pool.personas]
    if config.interviewer.is_model:
        plan = Plan(pool, None)
    else:
        plan = Plan(pool, orders(ids, choose_script(config.interview), config.interview.order, config.seed))
    if config.reference is not None:
        script = () if plan.script is None else plan.script[ids[0]]
        read_taught(config.reference, ids, [question.text for question in script])
    return plan


def evaluate(model: Model, config: FidelityStage, plan: Plan, other: Model | None = None) -> Drift:
    """`interview` by models that are there already; `other` asks where the plan has no script."""
    with RunDir.open(config.out, config, _identity(model, config, plan, other)) as run:
        with run.accounted():
            talks = converse(model, config, plan, _interviewer(plan, other, run, config.seed), run)
        asked = len(talks) * config.interview.turns
        owed = asked - sum(map(len, talks.values()))
        try:
            result = measure_drift(run.path, config.reference)
        except DataError as error:
            raise (_owed(run, owed, asked) if owed else error) from error
        write_metrics(run.path, result)
        if owed:
            raise _owed(run, owed, asked)
    return result


def converse(
    model: Model, config: FidelityStage, plan: Plan, interviewer: Interviewer, run: RunDir
) -> dict[str, tuple[Spoken, ...]]:
    """Ask turn by turn what is not answered yet; returns what each persona and its interviewer have said."""
    personas = {persona.id: persona for persona in plan.pool.personas}
    talks: dict[str, tuple[Spoken, ...]] = dict.fromkeys(personas, ())
    for turn in range(1, config.interview.turns + 1):
        asked = interviewer.ask(turn, {persona: talk for persona, talk in talks.items() if len(talk) == turn - 1})
        cells = [turn_cell(personas[persona], talks[persona], question, config) for persona, question in asked.items()]
        if cells:
            fill(model, cells, config.sampling, run, None, f"turn {turn} of {config.interview.turns}")
        known = run.cells()
        for persona, question in asked.items():
            cell = known.get(CellKey(persona, question.id, 0))
            if cell is not None and cell.completion is not None:
                talks[persona] = (*talks[persona], Spoken(question, cell.completion.text))
        write_json(run.path / "asked.json", describe_interview(config, plan, talks))
    return talks


def turn_cell(persona: Persona, talk: Sequence[Spoken], question: Question, config: FidelityStage) -> Cell:
    """The next turn of one conversation, unanswered."""
    return Cell(
        persona_id=persona.id,
        question_id=question.id,
        seed=seed_from("cell", config.seed, persona.id, question.id, 0),
        messages=conversation(persona, talk, question.text, config),
    )


def conversation(persona: Persona, talk: Sequence[Spoken], question: str, config: FidelityStage) -> tuple[Message, ...]:
    """The persona, all that was said, and the question. A template that puts the persona beside a question does so once."""
    texts = [*(one.question.text for one in talk), question]
    first = build_messages(persona, texts[0], template=config.personas.template, bare=config.personas.bare)
    rest = [
        Message(role=role, content=content)
        for one, text in zip(talk, texts[1:], strict=True)
        for role, content in (("assistant", one.answer), ("user", text))
    ]
    return (*first, *rest)


def describe_interview(config: FidelityStage, plan: Plan, talks: Mapping[str, Sequence[Spoken]]) -> dict[str, object]:
    """asked.json: where a script asks, every turn that will be; where a model does, those that were.

    `turns_asked`: of each persona the ids of its turns, in order.
    """
    if plan.script is not None:
        each = {who: [turn_question(turn, one) for turn, one in enumerate(order, 1)] for who, order in plan.script.items()}
    else:
        each = {who: [one.question for one in talk] for who, talk in talks.items()}
    shared = plan.script is not None
    asked = {(one.id, None if shared else who): one for who, order in each.items() for one in order}
    told = [AskedQuestion(id=name, text=one.text, persona_id=who) for (name, who), one in sorted(asked.items(), key=str)]
    known = describe_asked(plan.pool.personas, list({one.id: one for one in asked.values()}.values()), samples=1)
    return known | in_words(plan.pool.personas, told) | {
        "turns_asked": {who: [one.id for one in order] for who, order in each.items()}
    }  # fmt: skip


def refuse_overlong(config: FidelityStage, plan: Plan) -> None:
    """ConfigError when an interview of the longest answers would not fit the window of a model in this process.

    An endpoint does not say what fits; what it refuses is a failure of that turn.
    """
    turns, answer = config.interview.turns, config.sampling.max_new_tokens
    if config.model.backend != "transformers":
        return
    source = resolve(config.model.name)
    tokenizer, window = load_tokenizer(source), context_window(source)
    asked = SAMPLING.max_new_tokens * turns if plan.script is None else 0
    silent = [Question(id=f"{turn}", task="interview", text="?", gold="") for turn in range(turns)]
    for persona in plan.pool.personas:
        *before, last = silent if plan.script is None else plan.script[persona.id]
        longest = conversation(persona, [Spoken(one, "") for one in before], last.text, config)
        most = len(encode_chat(tokenizer, longest)) + asked + turns * answer
        if most > window:
            raise ConfigError(
                f"interview.turns = {turns}: with persona {persona.id!r} and sampling.max_new_tokens = {answer} up to {most} "
                f"tokens are read and written; {window} fit the model. Give fewer turns, or shorter answers"
            )


def _identity(model: Model, config: FidelityStage, plan: Plan, other: Model | None) -> dict[str, object]:
    """What must be the same for a run to be gone on with. Orders hang on all personas, so these belong to it."""
    texts = [] if plan.script is None else [one.text for order in plan.script.values() for one in order]
    return {
        "model": model.fingerprint,
        "template": template_hash(config.personas.template),
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
        "interview": {
            "turns": config.interview.turns,
            "personas": digest(*(persona.model_dump_json() for persona in plan.pool.personas)),
            "asked by": digest(*texts) if other is None else other.fingerprint,
        },
    }


def _interviewer(plan: Plan, other: Model | None, run: RunDir, seed: int) -> Interviewer:
    if other is not None:
        return ModelInterviewer(other, run, seed)
    assert plan.script is not None, "neither a script nor a model asks"
    return Script(plan.script)


def _owed(run: RunDir, owed: int, asked: int) -> OwedCellsError:
    """How many turns are missing, and what the first failure was: one that comes back every time will not be filled."""
    known = run.cells()
    failures = (known[key].failure for key, brief in briefs_of(known).items() if not brief.answered)
    why = next((f" (the first failure: {one.type}: {one.message})" for one in failures if one is not None), "")
    return OwedCellsError(f"{run.path}: {owed} of {asked} turns are missing{why}; run the same command again to fill them")
