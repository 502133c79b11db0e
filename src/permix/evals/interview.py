"""`permix fidelity --interview.turns K`: each persona in a conversation, turn by turn, to see whether its character drifts.

Contract: a turn's prompt is the persona, every earlier question and the model's own answers to them, and this turn's question.
All personas answer a turn before the next one begins, so they travel in batches. What was answered is never asked again: a killed
run goes on with the same words. Where an answer is missing the conversation stops, since nobody is asked on a gap, and its later
turns are owed too.

What an interviewer asks, and in which order whom: so that a turn and the question put in it can be told apart.

Contract: were all personas asked in one order, a late fall would be the late questions' as well as the conversation's. Here the
first question of the script opens every interview, and the n others are asked in orders that are rows of a Williams design
(Williams 1949, Experimental designs balanced for the estimation of residual effects of treatments): over n personas every
question stands once at every later turn, and over n (n even) or 2 n (n odd) every one follows every other equally often. Which
persona has which row hangs on ids and the seed.

Who asks in an interview: a script, or a model that plays the interviewer.

Contract: an interviewer is given what was said so far and names the next question of each persona it has one for; one it has none
for is owed. A model's questions are cells of the run like any other ("ask-03", a sample an attempt), so what it asked
is never asked anew; it is told to get to know somebody, and neither who that is nor that anything is tested.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Protocol

from permix.config import FidelityStage, InterviewConfig
from permix.errors import ConfigError, DataError, OwedCellsError
from permix.evals.drift_report import Drift, measure_drift, read_taught
from permix.evals.fidelity_records import AskedQuestion, in_words, turn_question
from permix.evals.fidelity_runner import write_metrics
from permix.evals.grid import describe_asked, fill, note_seen_personas
from permix.inference import open_model
from permix.inference.base import Model
from permix.inference.cache import cached
from permix.inference.hf import context_window, encode_chat, load_tokenizer, resolve
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, choose_personas
from permix.prompts import build_messages, template_hash
from permix.storage.cells import Records, briefs_of
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Completion, Message, Persona, Question, Sampling, digest, seed_from

Orders = Mapping[str, tuple[Question, ...]]
"""The questions of each persona, by id, in the order of asking."""


def choose_script(config: InterviewConfig) -> tuple[Question, ...]:
    """The first `turns` questions of the script. ConfigError when it has fewer, DataError for a bad file."""
    script = load_roleplay(config.script or Path(str(files("permix.personas") / "interview.toml")))
    if len(script) < config.turns:
        named = f"{config.script} has" if config.script else "the built-in script has"
        raise ConfigError(
            f"interview.turns = {config.turns}: {named} {len(script)} questions; give at most that, or a longer script"
        )
    return script[: config.turns]


def orders(persona_ids: Sequence[str], script: Sequence[Question], order: str, seed: int) -> Orders:
    """Who is asked what when: as the script stands ("written"), or the opening and then a row of the design ("balanced")."""
    if order == "written":
        return {persona: tuple(script) for persona in persona_ids}
    opening, *others = script
    rows = williams(len(others))
    drawn = sorted(persona_ids, key=lambda persona: seed_from(seed, "interview", persona))
    place = {persona: rank % len(rows) for rank, persona in enumerate(drawn)}
    return {persona: (opening, *(others[one] for one in rows[place[persona]])) for persona in persona_ids}


def williams(n: int) -> list[list[int]]:
    """Orders of 0..n-1; the first n are a Latin square, and all of them balance who follows whom.

    Row i is (w + i) mod n with w = 0, 1, n-1, 2, n-2, ...; of an odd n the rows follow once more, turned round.
    """
    first = [(place + 1) // 2 if place % 2 else (n - place // 2) % n for place in range(n)]
    square = [[(one + shift) % n for one in first] for shift in range(n)]
    return square if n % 2 == 0 else square + [row[::-1] for row in square]


ATTEMPTS = 3

MOST_CHARACTERS = 600

SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=120)


PROMPT = (
    "You write portraits of people for a magazine. Somebody whom you know nothing about has sat down in front of you. Get to "
    "know this person: their days, what they think, what they know, what moves them. Listen, and go back to what they said "
    "before. What you write is what you say aloud: one question at a time, in at most three sentences, and nothing else. Never "
    "answer in their place."
)

GREETING = "Hello."

SILENCE = "(no answer)"


class Spoken(NamedTuple):
    """One turn: what was asked, and what the persona answered."""

    question: Question
    answer: str


Talks = Mapping[str, Sequence[Spoken]]
"""What each persona and its interviewer have said so far, by the persona's id."""


class Interviewer(Protocol):
    def ask(self, turn: int, talks: Talks) -> dict[str, Question]:
        """The question of this turn (from 1) for every persona of `talks` that there is one for."""


class Script:
    """Asks what is written, in each persona's own order."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def ask(self, turn: int, talks: Talks) -> dict[str, Question]:
        return {persona: turn_question(turn, self._orders[persona][turn - 1]) for persona in talks}


class ModelInterviewer:
    """A model asks, from its side of the conversation; a question that is none is asked for again, `ATTEMPTS` times a start."""

    def __init__(self, model: Model, run: RunDir, seed: int) -> None:
        self._model, self._run, self._seed = model, run, seed

    def ask(self, turn: int, talks: Talks) -> dict[str, Question]:
        for _ in range(ATTEMPTS):
            known = self._run.cells()
            owed = [persona for persona in talks if asked_by_model(known, persona, turn) is None]
            if not owed:
                break
            cells = [self._cell(persona, turn, talks[persona], known) for persona in owed]
            fill(self._model, cells, SAMPLING, self._run, None, f"turn {turn}: the interviewer")
        known = self._run.cells()
        found = {persona: asked_by_model(known, persona, turn) for persona in talks}
        return {persona: question for persona, question in found.items() if question is not None}

    def _cell(self, persona: str, turn: int, talk: Sequence[Spoken], known: Records) -> Cell:
        attempt = len(_replies(known, persona, turn))
        return Cell(
            persona_id=persona, question_id=f"ask-{turn:02}", sample=attempt,
            seed=seed_from("ask", self._seed, persona, turn, attempt), messages=interviewers_side(talk),
        )  # fmt: skip


def interviewers_side(talk: Sequence[Spoken]) -> tuple[Message, ...]:
    """The conversation as the interviewer has it: its own questions are the assistant's, the persona's answers the user's."""
    said = [Message(role="system", content=PROMPT), Message(role="user", content=GREETING)]
    for one in talk:
        said.append(Message(role="assistant", content=one.question.text))
        said.append(Message(role="user", content=one.answer.strip() or SILENCE))
    return tuple(said)


def asked_by_model(known: Records, persona: str, turn: int) -> Question | None:
    """The first of the model's replies that can be put to somebody; None when there is none yet."""
    usable = (reply.text.strip() for reply in _replies(known, persona, turn) if usable_question(reply))
    return next((Question(id=f"turn-{turn:02}", task="interview", text=text, gold="") for text in usable), None)


def usable_question(reply: Completion) -> bool:
    """Something was said, to its end, and briefly."""
    return 0 < len(reply.text.strip()) <= MOST_CHARACTERS and reply.finish != "length"


def _replies(known: Records, persona: str, turn: int) -> list[Completion]:
    """What the model said for this turn, attempt by attempt."""
    found: list[Completion] = []
    while (cell := known.get(CellKey(persona, f"ask-{turn:02}", len(found)))) is not None and cell.completion is not None:
        found.append(cell.completion)
    return found


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
