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

from permix.config import FidelityConfig, InterviewConfig
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.evals.drift_report import Drift, measure_drift, read_train_examples
from permix.evals.fidelity_records import AskedQuestion, describe_ids, question_at_turn
from permix.evals.fidelity_runner import write_fidelity_metrics
from permix.evals.grid import describe_grid, run_cells, warn_trained_personas
from permix.inference import load_model
from permix.inference.base import Model
from permix.inference.cache import cached_model
from permix.inference.hf import context_window, encode_chat, load_tokenizer, resolve_model_source
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, select_personas
from permix.prompts import build_messages, template_hash
from permix.storage.cells import CellIndex, cell_summaries
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Completion, Message, Persona, Question, Sampling, digest, seed_from

QuestionOrders = Mapping[str, tuple[Question, ...]]
"""The questions of each persona, by id, in the order of asking."""


def load_interview_script(config: InterviewConfig) -> tuple[Question, ...]:
    """The first `turns` questions of the script. ConfigError when it has fewer, DataError for a bad file."""
    script = load_roleplay(config.script or Path(str(files("permix.personas") / "interview.toml")))
    if len(script) < config.turns:
        named = f"{config.script} has" if config.script else "the built-in script has"
        raise ConfigError(
            f"interview.turns = {config.turns}: {named} {len(script)} questions; give at most that, or a longer script"
        )
    return script[: config.turns]


def assign_question_orders(
    persona_ids: Sequence[str], script: Sequence[Question], order_design: str, seed: int
) -> QuestionOrders:
    """Who is asked what when: as the script stands ("written"), or the opening and then a row of the design ("balanced")."""
    if order_design == "written":
        return {persona: tuple(script) for persona in persona_ids}
    opening, *others = script
    rows = williams_design(len(others))
    drawn = sorted(persona_ids, key=lambda persona: seed_from(seed, "interview", persona))
    place = {persona: rank % len(rows) for rank, persona in enumerate(drawn)}
    return {persona: (opening, *(others[one] for one in rows[place[persona]])) for persona in persona_ids}


def williams_design(n: int) -> list[list[int]]:
    """Orders of 0..n-1; the first n are a Latin square, and all of them balance who follows whom.

    Row i is (w + i) mod n with w = 0, 1, n-1, 2, n-2, ...; of an odd n the rows follow once more, turned round.
    """
    first = [(place + 1) // 2 if place % 2 else (n - place // 2) % n for place in range(n)]
    square = [[(one + shift) % n for one in first] for shift in range(n)]
    return square if n % 2 == 0 else square + [row[::-1] for row in square]


INTERVIEWER_ATTEMPTS = 3

MAX_INTERVIEW_QUESTION_CHARS = 600

INTERVIEWER_SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=120)


INTERVIEWER_PROMPT = (
    "You write portraits of people for a magazine. Somebody whom you know nothing about has sat down in front of you. Get to "
    "know this person: their days, what they think, what they know, what moves them. Listen, and go back to what they said "
    "before. What you write is what you say aloud: one question at a time, in at most three sentences, and nothing else. Never "
    "answer in their place."
)

INTERVIEWEE_GREETING = "Hello."

EMPTY_ANSWER_TEXT = "(no answer)"


class InterviewTurn(NamedTuple):
    """One turn: what was asked, and what the persona answered."""

    question: Question
    answer: str


Conversations = Mapping[str, Sequence[InterviewTurn]]
"""What each persona and its interviewer have said so far, by the persona's id."""


class Interviewer(Protocol):
    def next_questions(self, turn: int, conversations: Conversations) -> dict[str, Question]:
        """The question of this turn (from 1) for every persona of `talks` that there is one for."""


class ScriptedInterviewer:
    """Asks what is written, in each persona's own order."""

    def __init__(self, question_orders: QuestionOrders) -> None:
        self._question_orders = question_orders

    def next_questions(self, turn: int, conversations: Conversations) -> dict[str, Question]:
        return {persona: question_at_turn(turn, self._question_orders[persona][turn - 1]) for persona in conversations}


class ModelInterviewer:
    """A model asks, from its side of the conversation; a question that is none is asked for again, `INTERVIEWER_ATTEMPTS`
    times a start."""

    def __init__(self, model: Model, run: RunDir, seed: int) -> None:
        self._model, self._run, self._seed = model, run, seed

    def next_questions(self, turn: int, conversations: Conversations) -> dict[str, Question]:
        for _ in range(INTERVIEWER_ATTEMPTS):
            known = self._run.cells()
            owed = [persona for persona in conversations if first_usable_question(known, persona, turn) is None]
            if not owed:
                break
            cells = [self._question_cell(persona, turn, conversations[persona], known) for persona in owed]
            run_cells(self._model, cells, INTERVIEWER_SAMPLING, self._run, None, f"turn {turn}: the interviewer")
        known = self._run.cells()
        found = {persona: first_usable_question(known, persona, turn) for persona in conversations}
        return {persona: question for persona, question in found.items() if question is not None}

    def _question_cell(self, persona: str, turn: int, conversation: Sequence[InterviewTurn], cells: CellIndex) -> Cell:
        attempt = len(_interviewer_replies(cells, persona, turn))
        return Cell(
            persona_id=persona, question_id=f"ask-{turn:02}", sample=attempt,
            seed=seed_from("ask", self._seed, persona, turn, attempt), messages=interviewer_messages(conversation),
        )  # fmt: skip


def interviewer_messages(conversation: Sequence[InterviewTurn]) -> tuple[Message, ...]:
    """The conversation as the interviewer has it: its own questions are the assistant's, the persona's answers the user's."""
    said = [Message(role="system", content=INTERVIEWER_PROMPT), Message(role="user", content=INTERVIEWEE_GREETING)]
    for one in conversation:
        said.append(Message(role="assistant", content=one.question.text))
        said.append(Message(role="user", content=one.answer.strip() or EMPTY_ANSWER_TEXT))
    return tuple(said)


def first_usable_question(cells: CellIndex, persona: str, turn: int) -> Question | None:
    """The first of the model's replies that can be put to somebody; None when there is none yet."""
    usable = (reply.text.strip() for reply in _interviewer_replies(cells, persona, turn) if is_usable_question(reply))
    return next((Question(id=f"turn-{turn:02}", task="interview", text=text, gold="") for text in usable), None)


def is_usable_question(reply: Completion) -> bool:
    """Something was said, to its end, and briefly."""
    return 0 < len(reply.text.strip()) <= MAX_INTERVIEW_QUESTION_CHARS and reply.finish != "length"


def _interviewer_replies(cells: CellIndex, persona: str, turn: int) -> list[Completion]:
    """What the model said for this turn, attempt by attempt."""
    found: list[Completion] = []
    while (cell := cells.get(CellKey(persona, f"ask-{turn:02}", len(found)))) is not None and cell.completion is not None:
        found.append(cell.completion)
    return found


class InterviewPlan(NamedTuple):
    """Whom to interview, and who is asked what when; no script where a model asks."""

    pool: PersonaPool
    question_orders: QuestionOrders | None


def run_interview(config: FidelityConfig, model: Model | None = None, given_pool: PersonaPool | None = None) -> Drift:
    """Run, or go on with, the interviews; writes metrics.json and returns it. IncompleteRunError when turns are missing.

    `model`, `given_pool`: what was made in Python, in place of what the configuration names.
    """
    plan = prepare_interview(config, given_pool)
    check_interview_length(config, plan)
    warn_trained_personas(config.model, plan.pool)
    asked = load_model(config.model, config.threads) if model is None else model
    with cached_model(asked, config.cache, config.out) as cached:
        other = load_model(config.interviewer, config.threads) if config.interviewer.is_model else None
        return evaluate_interview(cached, config, plan, other)


def prepare_interview(config: FidelityConfig, given_pool: PersonaPool | None = None) -> InterviewPlan:
    """Everything that can be found wrong without a model. ConfigError for a single persona or a script that is too short."""
    pool = select_personas(config.personas) if given_pool is None else given_pool
    if len(pool) < 2:
        raise ConfigError(
            f"personas: only {pool.personas[0].id!r} is left to choose; an interval is over personas, so give two or more"
        )
    ids = [persona.id for persona in pool.personas]
    if config.interviewer.is_model:
        plan = InterviewPlan(pool, None)
    else:
        plan = InterviewPlan(
            pool, assign_question_orders(ids, load_interview_script(config.interview), config.interview.order, config.seed)
        )
    if config.reference is not None:
        script = () if plan.question_orders is None else plan.question_orders[ids[0]]
        read_train_examples(config.reference, ids, [question.text for question in script])
    return plan


def evaluate_interview(
    model: Model, config: FidelityConfig, plan: InterviewPlan, interviewer_model: Model | None = None
) -> Drift:
    """`interview` by models that are there already; `other` asks where the plan has no script."""
    with RunDir.open(config.out, config, _identity(model, config, plan, interviewer_model)) as run:
        with run.track_usage():
            talks = conduct_interviews(model, config, plan, _make_interviewer(plan, interviewer_model, run, config.seed), run)
        asked = len(talks) * config.interview.turns
        owed = asked - sum(map(len, talks.values()))
        try:
            result = measure_drift(run.path, config.reference)
        except DataError as error:
            raise (_incomplete_run_error(run, owed, asked) if owed else error) from error
        write_fidelity_metrics(run.path, result)
        if owed:
            raise _incomplete_run_error(run, owed, asked)
    return result


def conduct_interviews(
    model: Model, config: FidelityConfig, plan: InterviewPlan, interviewer: Interviewer, run: RunDir
) -> dict[str, tuple[InterviewTurn, ...]]:
    """Ask turn by turn what is not answered yet; returns what each persona and its interviewer have said."""
    personas = {persona.id: persona for persona in plan.pool.personas}
    talks: dict[str, tuple[InterviewTurn, ...]] = dict.fromkeys(personas, ())
    for turn in range(1, config.interview.turns + 1):
        asked = interviewer.next_questions(turn, {persona: talk for persona, talk in talks.items() if len(talk) == turn - 1})
        cells = [build_turn_cell(personas[persona], talks[persona], question, config) for persona, question in asked.items()]
        if cells:
            run_cells(model, cells, config.sampling, run, None, f"turn {turn} of {config.interview.turns}")
        known = run.cells()
        for persona, question in asked.items():
            cell = known.get(CellKey(persona, question.id, 0))
            if cell is not None and cell.completion is not None:
                talks[persona] = (*talks[persona], InterviewTurn(question, cell.completion.text))
        write_json(run.path / "grid.json", describe_interview(config, plan, talks))
    return talks


def build_turn_cell(persona: Persona, earlier_turns: Sequence[InterviewTurn], question: Question, config: FidelityConfig) -> Cell:
    """The next turn of one conversation, unanswered."""
    return Cell(
        persona_id=persona.id,
        question_id=question.id,
        seed=seed_from("cell", config.seed, persona.id, question.id, 0),
        messages=turn_messages(persona, earlier_turns, question.text, config),
    )


def turn_messages(
    persona: Persona, earlier_turns: Sequence[InterviewTurn], question: str, config: FidelityConfig
) -> tuple[Message, ...]:
    """The persona, all that was said, and the question. A template that puts the persona beside a question does so once."""
    texts = [*(one.question.text for one in earlier_turns), question]
    first = build_messages(
        persona, texts[0], template=config.personas.template, empty_system_prompt=config.personas.empty_system_prompt
    )
    rest = [
        Message(role=role, content=content)
        for one, text in zip(earlier_turns, texts[1:], strict=True)
        for role, content in (("assistant", one.answer), ("user", text))
    ]
    return (*first, *rest)


def describe_interview(
    config: FidelityConfig, plan: InterviewPlan, conversations: Mapping[str, Sequence[InterviewTurn]]
) -> dict[str, object]:
    """grid.json: where a script asks, every turn that will be; where a model does, those that were.

    `turns_asked`: of each persona the ids of its turns, in order.
    """
    if plan.question_orders is not None:
        each = {
            who: [question_at_turn(turn, one) for turn, one in enumerate(order, 1)] for who, order in plan.question_orders.items()
        }
    else:
        each = {who: [one.question for one in talk] for who, talk in conversations.items()}
    shared = plan.question_orders is not None
    asked = {(one.id, None if shared else who): one for who, order in each.items() for one in order}
    told = [AskedQuestion(id=name, text=one.text, persona_id=who) for (name, who), one in sorted(asked.items(), key=str)]
    known = describe_grid(plan.pool.personas, list({one.id: one for one in asked.values()}.values()), samples=1)
    return known | describe_ids(plan.pool.personas, told) | {
        "turns_asked": {who: [one.id for one in order] for who, order in each.items()}
    }  # fmt: skip


def check_interview_length(config: FidelityConfig, plan: InterviewPlan) -> None:
    """ConfigError when an interview of the longest answers would not fit the window of a model in this process.

    An endpoint does not say what fits; what it refuses is a failure of that turn.
    """
    turns, answer = config.interview.turns, config.sampling.max_new_tokens
    if not config.model.capabilities.is_local:
        return
    source = resolve_model_source(config.model.name)
    tokenizer, window = load_tokenizer(source), context_window(source)
    asked = INTERVIEWER_SAMPLING.max_new_tokens * turns if plan.question_orders is None else 0
    silent = [Question(id=f"{turn}", task="interview", text="?", gold="") for turn in range(turns)]
    for persona in plan.pool.personas:
        *before, last = silent if plan.question_orders is None else plan.question_orders[persona.id]
        longest = turn_messages(persona, [InterviewTurn(one, "") for one in before], last.text, config)
        most = len(encode_chat(tokenizer, longest)) + asked + turns * answer
        if most > window:
            raise ConfigError(
                f"interview.turns = {turns}: with persona {persona.id!r} and sampling.max_new_tokens = {answer} up to {most} "
                f"tokens are read and written; {window} fit the model. Give fewer turns, or shorter answers"
            )


def _identity(model: Model, config: FidelityConfig, plan: InterviewPlan, interviewer_model: Model | None) -> dict[str, object]:
    """What must be the same for a run to be gone on with. Orders hang on all personas, so these belong to it."""
    texts = [] if plan.question_orders is None else [one.text for order in plan.question_orders.values() for one in order]
    return {
        "model": model.fingerprint,
        "template": template_hash(config.personas.template),
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
        "interview": {
            "turns": config.interview.turns,
            "personas": digest(*(persona.model_dump_json() for persona in plan.pool.personas)),
            "asked by": digest(*texts) if interviewer_model is None else interviewer_model.fingerprint,
        },
    }


def _make_interviewer(plan: InterviewPlan, interviewer_model: Model | None, run: RunDir, seed: int) -> Interviewer:
    if interviewer_model is not None:
        return ModelInterviewer(interviewer_model, run, seed)
    assert plan.question_orders is not None, "neither a script nor a model asks"
    return ScriptedInterviewer(plan.question_orders)


def _incomplete_run_error(run: RunDir, pending: int, n_turns: int) -> IncompleteRunError:
    """How many turns are missing, and what the first failure was: one that comes back every time will not be filled."""
    known = run.cells()
    failures = (known[key].failure for key, brief in cell_summaries(known).items() if not brief.has_completion)
    why = next((f" (the first failure: {one.type}: {one.message})" for one in failures if one is not None), "")
    return IncompleteRunError(
        f"{run.path}: {pending} of {n_turns} turns are missing{why}; run the same command again to fill them"
    )
