"""`permix fidelity --interview.turns K`: interview each persona for K turns and measure whether its character drifts.

Contract: the prompt of a turn is the persona, all earlier questions and answers, and this turn's question. All personas answer a
turn before the next turn begins, so turns are generated in batches. Answered turns are kept, so an interrupted run resumes with
the same conversation. If an answer is missing, the interview of that persona stops, and its later turns are pending too.

A script or a model asks. A script asks in one of two orders. In the order "written" the effect of a late turn cannot be separated
from the effect of the late questions. In the order "balanced" it can: the first question of the script opens every interview, and
the other n questions are asked in rows of a Williams design (Williams 1949, Experimental designs balanced for the estimation of
residual effects of treatments). Over n personas every question occurs once at every later turn. Over n personas (n even) or 2 n
(n odd) every question follows every other question equally often. Persona ids and the seed decide which persona gets which row.

An interviewer model sees the conversation so far. Its questions are cells of the run (question id "ask-03", one sample per
attempt), so they are not generated again. Its prompt says neither who the persona is nor that anything is tested.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from permix.config import FidelityConfig, InterviewConfig
from permix.errors import ConfigError, option_context
from permix.evals.drift_report import Drift, measure_drift, read_train_examples
from permix.evals.fidelity_records import (
    AskedQuestion,
    describe_texts,
    interviewer_question_id,
    question_at_turn,
    select_fidelity_personas,
    turn_number,
    write_fidelity_metrics,
)
from permix.evals.grid import describe_grid, fidelity_identity, open_evaluated_model, run_cells
from permix.evals.shards import OwnPart, assign_personas, end_run, missing_text
from permix.evals.text_metrics import measure_text_metrics
from permix.inference import check_model, load_model
from permix.inference.addresses import check_addresses
from permix.inference.base import Model
from permix.inference.batch_model import BatchModel
from permix.inference.chat_template import encode_chat
from permix.inference.cost import RequestGroup, estimate_cost, find_measured, runs_beside
from permix.inference.hf import context_window, load_tokenizer, resolve_model_source
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaPool, warn_of_misfits
from permix.prompts import build_messages
from permix.storage.cells import CellIndex, read_run_cells
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir, RunReader, check_resumable
from permix.trackers import log_measures
from permix.types import Cell, CellKey, Completion, Message, Persona, Question, Sampling, digest, seed_from

QuestionOrders = Mapping[str, tuple[Question, ...]]
"""Persona id to its questions in the order of asking."""


def load_interview_script(config: InterviewConfig) -> tuple[Question, ...]:
    """The first `turns` questions of the script. Raises ConfigError if it has fewer, DataError if the file is invalid."""
    path = config.script or Path(str(files("permix.personas") / "interview.toml"))
    with option_context("interview.script", path):
        script = load_roleplay(path, has_builtin=False)
    if len(script) < config.turns:
        source = f"{config.script} has" if config.script else "the built-in script has"
        raise ConfigError(
            f"interview.turns = {config.turns}: {source} {len(script)} questions; give at most {len(script)}, or a longer script"
        )
    return script[: config.turns]


def assign_question_orders(
    persona_ids: Sequence[str], script: Sequence[Question], order_design: str, seed: int
) -> QuestionOrders:
    """Order the questions of each persona: as in the script ("written"), or opening plus a row of the design ("balanced")."""
    if order_design == "written":
        return {persona: tuple(script) for persona in persona_ids}
    opening, *others = script
    rows = williams_design(len(others))
    shuffled_ids = sorted(persona_ids, key=lambda persona: seed_from(seed, "interview", persona))
    row_index = {persona: rank % len(rows) for rank, persona in enumerate(shuffled_ids)}
    return {persona: (opening, *(others[one] for one in rows[row_index[persona]])) for persona in persona_ids}


def williams_design(n: int) -> list[list[int]]:
    """Rows of a Williams design (Williams 1949) over 0..n-1: n rows for even n, 2 n rows for odd n.

    The first n rows are a Latin square. Over all rows every number follows every other number equally often. Row i is
    (w + i) mod n with w = 0, 1, n-1, 2, n-2, ...; for odd n the reversed rows follow.
    """
    first = [(place + 1) // 2 if place % 2 else (n - place // 2) % n for place in range(n)]
    square = [[(one + shift) % n for one in first] for shift in range(n)]
    return square if n % 2 == 0 else square + [row[::-1] for row in square]


INTERVIEWER_ATTEMPTS = 3

MAX_INTERVIEW_QUESTION_CHARS = 600

INTERVIEWER_SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=120)

MOST_QUESTION_TOKENS = INTERVIEWER_ATTEMPTS * INTERVIEWER_SAMPLING.max_new_tokens
"""The most new tokens of an interviewer model for one question."""


INTERVIEWER_PROMPT = (
    "You write portraits of people for a magazine. Somebody whom you know nothing about has sat down in front of you. Get to "
    "know this person: their days, what they think, what they know, what moves them. Listen, and go back to what they said "
    "before. What you write is what you say aloud: one question at a time, in at most three sentences, and nothing else. Never "
    "answer in their place."
)

INTERVIEWEE_GREETING = "Hello."

EMPTY_ANSWER_TEXT = "(no answer)"


class InterviewTurn(NamedTuple):
    """One turn: the question, and the answer of the persona."""

    question: Question
    answer: str


Conversations = Mapping[str, Sequence[InterviewTurn]]
"""Persona id to the turns of its interview so far."""


class Interviewer(Protocol):
    """Chooses the next question of each interview."""

    def next_questions(self, turn: int, conversations: Conversations) -> dict[str, Question]:
        """Persona id to its question for this turn, counted from 1. A persona without a question is absent and stays pending."""


class ScriptedInterviewer:
    """Asks the questions of the script, in the order of each persona."""

    def __init__(self, question_orders: QuestionOrders) -> None:
        self._question_orders = question_orders

    def next_questions(self, turn: int, conversations: Conversations) -> dict[str, Question]:
        return {persona: question_at_turn(turn, self._question_orders[persona][turn - 1]) for persona in conversations}


class ModelInterviewer:
    """A model asks the questions. An unusable question is requested again, up to `INTERVIEWER_ATTEMPTS` times per start."""

    def __init__(self, model: Model, run: RunDir, seed: int) -> None:
        self._model, self._run, self._seed = model, run, seed

    def next_questions(self, turn: int, conversations: Conversations) -> dict[str, Question]:
        for _ in range(INTERVIEWER_ATTEMPTS):
            known = self._run.cells()
            pending = [persona for persona in conversations if first_usable_question(known, persona, turn) is None]
            if not pending:
                break
            cells = [self._question_cell(persona, turn, conversations[persona], known) for persona in pending]
            run_cells(self._model, cells, INTERVIEWER_SAMPLING, self._run, None, f"turn {turn}: the interviewer")
        known = self._run.cells()
        found = {persona: first_usable_question(known, persona, turn) for persona in conversations}
        return {persona: question for persona, question in found.items() if question is not None}

    def _question_cell(self, persona: str, turn: int, conversation: Sequence[InterviewTurn], cells: CellIndex) -> Cell:
        attempt = len(_interviewer_replies(cells, persona, turn))
        return Cell(
            persona_id=persona, question_id=interviewer_question_id(turn), sample=attempt,
            seed=seed_from("ask", self._seed, persona, turn, attempt), messages=interviewer_messages(conversation),
        )  # fmt: skip


def interviewer_messages(conversation: Sequence[InterviewTurn]) -> tuple[Message, ...]:
    """The conversation from the interviewer's view: its questions have the role assistant, the answers have the role user."""
    messages = [Message(role="system", content=INTERVIEWER_PROMPT), Message(role="user", content=INTERVIEWEE_GREETING)]
    for one in conversation:
        messages.append(Message(role="assistant", content=one.question.text))
        messages.append(Message(role="user", content=one.answer.strip() or EMPTY_ANSWER_TEXT))
    return tuple(messages)


def first_usable_question(cells: CellIndex, persona: str, turn: int) -> Question | None:
    """The first reply of the interviewer model for this turn that is a usable question; None if there is no such reply yet."""
    usable = (reply.answer.strip() for reply in _interviewer_replies(cells, persona, turn) if is_usable_question(reply))
    return next((Question(id=f"turn-{turn:02}", task="interview", text=text, gold="") for text in usable), None)


def is_usable_question(reply: Completion) -> bool:
    """Whether the reply is not empty, not too long, and not cut off."""
    return 0 < len(reply.answer.strip()) <= MAX_INTERVIEW_QUESTION_CHARS and reply.finish != "length"


def _interviewer_replies(cells: CellIndex, persona: str, turn: int) -> list[Completion]:
    """The interviewer model's replies for this turn, in the order of the attempts."""
    replies: list[Completion] = []
    question_id = interviewer_question_id(turn)
    while (cell := cells.get(CellKey(persona, question_id, len(replies)))) is not None and cell.completion is not None:
        replies.append(cell.completion)
    return replies


class InterviewPlan(NamedTuple):
    """The personas to interview and the order of their questions; `question_orders` is None if a model asks."""

    pool: PersonaPool
    question_orders: QuestionOrders | None


def run_interview(config: FidelityConfig, model: Model | None = None, given_pool: PersonaPool | None = None) -> Drift:
    """Start or resume a run of interviews; writes metrics.json and returns the drift measures.

    With `config.shard` only the interviews of that part are held; OtherShardsPendingError is raised, and no metrics.json written,
    if they are finished and others are not.

    `model` and `given_pool` are Python objects that replace what the configuration names. Raises ConfigError or DataError if the
    configuration is invalid, and IncompleteRunError if turns are missing at the end.
    """
    plan = prepare_interview(config, given_pool)
    check_interview_length(config, plan)
    with open_evaluated_model(config, plan.pool, model) as asked:
        interviewer_model = load_model(config.interviewer, config.threads) if config.interviewer.is_model else None
        return evaluate_interview(asked, config, plan, interviewer_model)


def preflight_interview(config: FidelityConfig) -> dict[str, str]:
    """Facts about the interviews without calling a model. Raises ConfigError or DataError if the configuration is invalid."""
    plan, turns = prepare_interview(config), config.interview.turns
    if config.interviewer.is_model:
        check_model(config.interviewer, contact=False)
    facts = {
        "personas": str(len(plan.pool)),
        "turns": f"{turns}, asked by {config.interviewer.name if config.interviewer.is_model else 'a script'}",
        "answers": str(len(plan.pool) * turns),
    }
    return facts | _estimate_interview(config, plan)


def _estimate_interview(config: FidelityConfig, plan: InterviewPlan) -> dict[str, str]:
    """The cost of the turns that are not answered yet, and of an interviewer model's questions.

    Earlier answers, and the questions of an interviewer model, count with their greatest length in the prompts of later turns.
    """
    orders = (plan.question_orders or {}).values()
    asked_by = {} if plan.question_orders is None else {"asked by": digest(*(one.text for order in orders for one in order))}
    check_resumable(config.out, config, _plan_identity(config, plan, asked_by))
    turns, limit, recorded = config.interview.turns, config.sampling.max_new_tokens, read_run_cells(config.out)
    answered = [key for key, one in recorded.summaries.items() if one.has_completion]
    n_answered = Counter(key.persona_id for key in answered if turn_number(key.question_id) is not None)
    placeholders = [Question(id=f"{turn}", task="interview", text="?", gold="") for turn in range(turns)]
    personas = plan.pool.personas
    if (shard := config.worker_shard) is not None:
        number_of = assign_personas([persona.id for persona in personas], shard.total)
        personas = tuple(persona for persona in personas if number_of[persona.id] == shard.number)
        n_answered = Counter({persona.id: n_answered[persona.id] for persona in personas})
    prompts, earlier_turns = [], 0
    for persona in personas:
        order = placeholders if plan.question_orders is None else plan.question_orders[persona.id]
        for turn in range(n_answered[persona.id], turns):
            earlier = [InterviewTurn(question, "") for question in order[:turn]]
            prompts.append(turn_messages(persona, earlier, order[turn].text, config))
            earlier_turns += turn
    question_limit = INTERVIEWER_SAMPLING.max_new_tokens if config.interviewer.is_model else 0
    answer_tokens = earlier_turns * (limit + question_limit) + len(prompts) * question_limit
    measured = None if question_limit else find_measured(runs_beside(config.out), "fidelity", config.model, limit)
    group = RequestGroup(prompts, limit, answer_tokens=answer_tokens)
    facts = estimate_cost([group], config.model, measured, n_recorded=n_answered.total())
    if not question_limit:
        return facts
    n_asked = len({key[:2] for key in answered if turn_number(key.question_id) is None})
    asking = [interviewer_messages(())] * (len(plan.pool) * turns - n_asked)
    unusable = len(asking) * (INTERVIEWER_ATTEMPTS - 1)
    group = RequestGroup(asking, question_limit, n_repeats=unusable, answer_tokens=answer_tokens if asking else 0)
    return facts | estimate_cost(
        [group], config.interviewer, None, n_recorded=n_asked, price_option="interviewer.prices", prefix="interviewer: "
    )


def prepare_interview(config: FidelityConfig, given_pool: PersonaPool | None = None) -> InterviewPlan:
    """Choose personas and question orders, and check the reference; calls no model.

    Raises ConfigError for a single persona or a script that is too short, DataError for a file or reference that is unusable.
    """
    pool = select_fidelity_personas(config)[1] if given_pool is None else given_pool
    warn_of_misfits(pool, [config.personas.template])
    if len(pool) < 2:
        raise ConfigError(f"personas: only {pool.personas[0].id!r} is selected; intervals are over personas, so give two or more")
    ids = [persona.id for persona in pool.personas]
    if config.interviewer.is_model:
        plan = InterviewPlan(pool, None)
    else:
        plan = InterviewPlan(
            pool, assign_question_orders(ids, load_interview_script(config.interview), config.interview.order, config.seed)
        )
    if config.reference is not None:
        script = () if plan.question_orders is None else plan.question_orders[ids[0]]
        read_train_examples(config.reference, ids, [AskedQuestion(id=one.id, text=one.text) for one in script])
    return plan


def evaluate_interview(
    model: Model, config: FidelityConfig, plan: InterviewPlan, interviewer_model: Model | None = None
) -> Drift:
    """Like `run_interview`, for loaded models; `interviewer_model` asks if the plan has no question orders."""
    shard, personas = config.worker_shard, [persona.id for persona in plan.pool.personas]
    number_of = None if shard is None else assign_personas(personas, shard.total)
    own = personas if number_of is None else [one for one in personas if shard is not None and number_of[one] == shard.number]
    grid_json = None if shard is None else describe_interview(config, plan, {})
    endpoints = [check_addresses(model, config.out)]
    if interviewer_model is not None:
        endpoints.append(check_addresses(interviewer_model, config.out, "interviewer", "interview.asked by"))
    identity = _identity(model, config, plan, interviewer_model)

    def write_metrics() -> Drift:
        result = measure_drift(config.out, config.reference)
        metrics = write_fidelity_metrics(config.out, result, measure_text_metrics(config.out))
        log_measures(config.report_to, config.out, config.label or model.name, metrics)
        return result

    with RunDir.open(config.out, config, identity, endpoints=endpoints, shard=shard, grid=grid_json) as run:
        with run.track_usage():
            interviewer = _make_interviewer(plan, interviewer_model, run, config.seed)
            conversations = conduct_interviews(model, config, plan, interviewer, run, own)
        turns = config.interview.turns
        n_turns = len(conversations) * turns
        n_pending = n_turns - sum(map(len, conversations.values()))
        waiting = sum(len(one) < turns for one in conversations.values())
        rounds = (
            f"; {waiting} of {len(conversations)} interviews wait for their next turn" if isinstance(model, BatchModel) else ""
        )
        missing = missing_text(run, model, n_pending, n_turns, "turns", f" are missing{rounds}")
        part = (
            None
            if shard is None or number_of is None
            else OwnPart(shard, n_turns, "turns", partial(_count_pending_turns, number_of=number_of, turns=turns))
        )
        return end_run(run, model, n_pending, missing, part, write_metrics)


def _count_pending_turns(cells: CellIndex, number_of: Mapping[str, int], turns: int) -> Counter[int]:
    """For each part that has some: the number of turns without an answer in its interviews."""
    pending = Counter({number: n * turns for number, n in Counter(number_of.values()).items()})
    for key, one in cells.summaries.items():
        number = number_of.get(key.persona_id or "")
        if number is not None and one.has_completion and turn_number(key.question_id) is not None:
            pending[number] -= 1
    return +pending


def conduct_interviews(
    model: Model, config: FidelityConfig, plan: InterviewPlan, interviewer: Interviewer, run: RunDir, own: Collection[str]
) -> dict[str, tuple[InterviewTurn, ...]]:
    """Ask the pending turns of the personas in `own`, turn by turn; returns the answered turns of each of them."""
    personas = {persona.id: persona for persona in plan.pool.personas if persona.id in own}
    conversations: dict[str, tuple[InterviewTurn, ...]] = dict.fromkeys(personas, ())
    asked_before = RunReader(run.path).grid.get("turns_asked", {})
    for turn in range(1, config.interview.turns + 1):
        # A missing answer stops its interview, since all later prompts contain that answer.
        questions = interviewer.next_questions(
            turn, {persona: turns for persona, turns in conversations.items() if len(turns) == turn - 1}
        )
        cells = [
            build_turn_cell(personas[persona], conversations[persona], question, config)
            for persona, question in questions.items()
        ]
        if cells:
            run_cells(model, cells, config.sampling, run, None, f"turn {turn} of {config.interview.turns}")
        known = run.cells()
        for persona, question in questions.items():
            cell = known.get(CellKey(persona, question.id, 0))
            if cell is not None and cell.completion is not None:
                conversations[persona] = (*conversations[persona], InterviewTurn(question, cell.completion.answer))
        # The turns of an interviewer model are known one after the other, also recorded ones; an earlier grid has them all.
        is_whole = all(len(turns) >= len(asked_before.get(persona, ())) for persona, turns in conversations.items())
        if run.shard is None and (is_whole or plan.question_orders is not None):
            write_json(run.path / "grid.json", describe_interview(config, plan, conversations))
        if run.stop_reason:
            break
    return conversations


def build_turn_cell(persona: Persona, earlier_turns: Sequence[InterviewTurn], question: Question, config: FidelityConfig) -> Cell:
    """Build the cell of the next turn of one interview, unanswered."""
    return Cell(
        persona_id=persona.id,
        question_id=question.id,
        seed=seed_from("cell", config.seed, persona.id, question.id, 0),
        messages=turn_messages(persona, earlier_turns, question.text, config),
    )


def turn_messages(
    persona: Persona, earlier_turns: Sequence[InterviewTurn], question: str, config: FidelityConfig
) -> tuple[Message, ...]:
    """Messages of a turn: persona, earlier turns, question. A user-message template applies to the first question only."""
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
    """Content of grid.json: all turns if a script asks; the turns answered so far if a model asks.

    `turns_asked` maps each persona id to the question ids of its turns, in order.
    """
    if plan.question_orders is not None:
        questions_of = {
            persona_id: [question_at_turn(turn, question) for turn, question in enumerate(order, 1)]
            for persona_id, order in plan.question_orders.items()
        }
    else:
        questions_of = {persona_id: [question.question for question in turns] for persona_id, turns in conversations.items()}
    shared = plan.question_orders is not None
    question_by_key = {
        (question.id, None if shared else persona_id): question
        for persona_id, order in questions_of.items()
        for question in order
    }
    asked_questions = [
        AskedQuestion(id=name, text=question.text, persona_id=persona_id)
        for (name, persona_id), question in sorted(question_by_key.items(), key=str)
    ]
    grid = describe_grid(
        plan.pool.personas, list({question.id: question for question in question_by_key.values()}.values()), samples=1
    )
    return grid | describe_texts(plan.pool.personas, asked_questions) | {
        "turns_asked": {persona_id: [question.id for question in order] for persona_id, order in questions_of.items()}
    }  # fmt: skip


def check_interview_length(config: FidelityConfig, plan: InterviewPlan) -> None:
    """Raise ConfigError if an interview with answers of maximum length exceeds the context window of a model in this process.

    The context window of an endpoint is unknown; a turn that the endpoint rejects is recorded as a failure.
    """
    turns, answer = config.interview.turns, config.sampling.max_new_tokens
    if not config.model.capabilities.is_local:
        return
    source = resolve_model_source(config.model.name)
    tokenizer = load_tokenizer(source, config.model.thinking)
    window = min(filter(None, (context_window(source), config.model.max_model_len)))
    interviewer_tokens = INTERVIEWER_SAMPLING.max_new_tokens * turns if plan.question_orders is None else 0
    placeholders = [Question(id=f"{turn}", task="interview", text="?", gold="") for turn in range(turns)]
    for persona in plan.pool.personas:
        *earlier, last = placeholders if plan.question_orders is None else plan.question_orders[persona.id]
        longest = turn_messages(persona, [InterviewTurn(one, "") for one in earlier], last.text, config)
        n_tokens = len(encode_chat(tokenizer, longest)) + interviewer_tokens + turns * answer
        if n_tokens > window:
            raise ConfigError(
                f"interview.turns = {turns}: with persona {persona.id!r} and sampling.max_new_tokens = {answer} an "
                f"interview has up to {n_tokens} tokens; the context window has {window}. Give fewer turns or shorter answers"
            )


def _identity(model: Model, config: FidelityConfig, plan: InterviewPlan, interviewer_model: Model | None) -> dict[str, object]:
    """The identity of the run. It contains all personas, since the question orders depend on all of them."""
    texts = [] if plan.question_orders is None else [one.text for order in plan.question_orders.values() for one in order]
    asked_by = digest(*texts) if interviewer_model is None else interviewer_model.fingerprint
    return {"model": model.fingerprint} | _plan_identity(config, plan, {"asked by": asked_by})


def _plan_identity(config: FidelityConfig, plan: InterviewPlan, asked_by: Mapping[str, str]) -> dict[str, Any]:
    personas = digest(*(persona.model_dump_json() for persona in plan.pool.personas))
    return fidelity_identity(config) | {"interview": {"turns": config.interview.turns, "personas": personas, **asked_by}}


def _make_interviewer(plan: InterviewPlan, interviewer_model: Model | None, run: RunDir, seed: int) -> Interviewer:
    if interviewer_model is not None:
        return ModelInterviewer(interviewer_model, run, seed)
    assert plan.question_orders is not None, "neither a script nor a model asks"
    return ScriptedInterviewer(plan.question_orders)
