"""The grid: every cell asked once, kept for ever, and only what has no score is owed."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from permix.config import StabilityConfig
from permix.errors import ConfigError
from permix.evals.grid import PromptFormat, Scorer, build_grid, describe_grid, read_grid_results, run_cells
from permix.inference.base import CompletionResult
from permix.inference.scripted import ScriptedModel, ScriptedReply
from permix.storage.cells import CellIndex
from permix.storage.files import write_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Failure, Persona, Question, Request, Sampling, Verdict
from tests.sample_runs import persona, solve

WORDING = PromptFormat(lambda question: question.text, "you_are", empty_system_prompt=False)
QUESTIONS = tuple(
    Question(id=f"{a}+{b}", task="arithmetic", text=f"What is {a} + {b}?", gold=str(a + b)) for a, b in ((1, 2), (3, 4), (5, 6))
)
PERSONAS: tuple[Persona | None, ...] = (None, persona("clerk"), persona("troll"))


def right(completion: str, gold: str, prompt: str = "") -> Verdict:
    return Verdict(correct=completion == gold, extracted=completion)


def answer(request: Request) -> str:
    return str(solve(request.messages[-1]["content"]))


def grid(
    personas: Sequence[Persona | None] = PERSONAS, questions: Sequence[Question] = QUESTIONS, samples: int = 1, seed: int = 0
) -> list[Cell]:
    return build_grid(personas, questions, WORDING, samples=samples, seed=seed)


def run_grid(
    path: Path, reply: Callable[[Request], ScriptedReply], asked: Sequence[Cell], judge: Scorer | None = right
) -> tuple[int, list[Request], CellIndex]:
    """(cells owed, what the model was asked by this process, what is on disk)."""
    model = ScriptedModel(reply)
    with RunDir.open(path, StabilityConfig(), {"model": model.fingerprint}) as run:
        left = run_cells(model, asked, Sampling(), run, judge, "test")
        return left, model.requests, run.cells()


def never(request: Request) -> str:
    raise AssertionError(f"asked again: {request}")


# Laying out


def test_the_layout_is_personas_by_questions_by_samples() -> None:
    cells = grid(samples=2)
    keys = itertools.product((None, "clerk", "troll"), ("1+2", "3+4", "5+6"), (0, 1))
    assert [cell.key for cell in cells] == [CellKey(*key) for key in keys]
    assert [message["content"] for message in cells[0].messages] == ["What is 1 + 2?"]
    assert [message["content"] for message in cells[6].messages] == ["You are a careful clerk.", "What is 1 + 2?"]
    assert [cell.gold for cell in cells[::2]] == ["3", "7", "11"] * 3
    assert all((cell.completion, cell.verdict, cell.failure) == (None, None, None) for cell in cells)


def test_an_open_question_has_no_gold() -> None:
    (only,) = grid([None], [Question(id="q", task="roleplay", text="How are you?", gold="")])
    assert only.gold is None


def test_every_cell_has_a_seed_of_its_own() -> None:
    seeds = [cell.seed for seed in (0, 1) for cell in grid(samples=3, seed=seed)]
    assert len(set(seeds)) == 2 * 3 * 3 * 3


def test_a_cells_seed_does_not_depend_on_who_else_is_asked_what() -> None:
    whole = {cell.key: cell.seed for cell in grid(samples=3)}
    for part in (
        grid(PERSONAS[2:], samples=1),
        grid(PERSONAS[::-1], QUESTIONS[::-1], samples=2),
        grid([None], QUESTIONS[1:2], samples=1),
    ):
        assert part
        assert {cell.key: cell.seed for cell in part}.items() <= whole.items()


# Filling


def test_every_cell_is_asked_once_judged_and_kept(tmp_path: Path) -> None:
    asked = grid()
    left, requests, cells = run_grid(tmp_path, answer, asked)
    assert left == 0
    assert requests == [Request(cell.messages, cell.seed) for cell in asked]
    assert list(cells) == [cell.key for cell in asked]
    assert all(cell.verdict == Verdict(correct=True, extracted=cell.gold) for cell in cells.values())
    assert run_grid(tmp_path, never, asked) == (0, [], cells)


def test_a_wrong_answer_is_a_result_and_is_not_asked_again(tmp_path: Path) -> None:
    left, _, cells = run_grid(tmp_path, lambda request: "0", grid())
    assert left == 0
    assert all(cell.verdict is not None and cell.verdict.reward == 0.0 for cell in cells.values())
    assert run_grid(tmp_path, never, grid())[0] == 0


def test_a_failure_stays_owed_and_only_it_is_asked_again(tmp_path: Path) -> None:
    def flaky(request: Request) -> ScriptedReply:
        if request.messages[0]["content"] == "You are a troll under a bridge." and "3 + 4" in request.messages[-1]["content"]:
            return Failure(type="HTTP", message="503")
        return answer(request)

    owed = CellKey("troll", "3+4", 0)
    left, _, cells = run_grid(tmp_path, flaky, grid())
    assert left == 1
    assert cells[owed].failure == Failure(type="HTTP", message="503")
    assert (cells[owed].completion, cells[owed].verdict) == (None, None)  # not a zero

    left, requests, cells = run_grid(tmp_path, answer, grid())
    assert left == 0
    assert [request.seed for request in requests] == [cells[owed].seed]
    assert cells[owed].failure is None
    assert cells[owed].verdict == Verdict(correct=True, extracted="7")


def test_a_completion_without_a_verdict_is_judged_again_not_asked_again(tmp_path: Path) -> None:
    judged = Counter[str]()

    def breaks_on_seven(completion: str, gold: str, prompt: str) -> Verdict:
        judged[gold] += 1
        return Verdict(correct=None, error="out of time") if gold == "7" else right(completion, gold)

    left, _, cells = run_grid(tmp_path, answer, grid(), breaks_on_seven)
    assert left == 3  # one question under two personas and none
    assert [cell.verdict.error for cell in cells.values() if cell.verdict and cell.verdict.correct is None] == ["out of time"] * 3

    left, requests, _ = run_grid(tmp_path, never, grid(), breaks_on_seven)
    assert (left, requests) == (3, [])
    left, requests, cells = run_grid(tmp_path, never, grid())
    assert (left, requests) == (0, [])
    assert judged == {"3": 3, "7": 6, "11": 3}
    assert cells[CellKey(None, "3+4", 0)].verdict == Verdict(correct=True, extracted="7")


def test_without_a_judge_an_answer_is_a_result(tmp_path: Path) -> None:
    left, _, cells = run_grid(tmp_path, answer, grid(), judge=None)
    assert left == 0
    assert all(cell.verdict is None for cell in cells.values())
    assert run_grid(tmp_path, never, grid(), judge=None)[0] == 0
    assert run_grid(tmp_path, never, grid())[0] == 0  # and a judge that comes later needs no new answers


def test_a_cell_without_gold_is_open_ended_beside_cells_that_are_judged(tmp_path: Path) -> None:
    asked = [*grid()[:2], grid()[2].model_copy(update={"gold": None})]
    left, _, cells = run_grid(tmp_path, answer, asked)
    assert left == 0
    assert [cell.verdict is None for cell in cells.values()] == [False, False, True]
    assert run_grid(tmp_path, never, asked)[0] == 0


def test_the_grid_of_a_run_is_what_it_asked_and_not_what_else_it_holds(tmp_path: Path) -> None:
    _, _, cells = run_grid(tmp_path, answer, grid(samples=2))
    assert set(read_grid_results(tmp_path).grid_summaries) == set(cells)  # without a word on what was asked, everything
    write_json(tmp_path / "grid.json", describe_grid([persona("troll"), persona("nurse")], QUESTIONS[:2], 1))
    answers = read_grid_results(tmp_path)
    assert set(answers.grid_summaries) == {CellKey(id, question, 0) for id in (None, "troll") for question in ("1+2", "3+4")}
    scores = answers.scores(answers.persona_ids, answers.question_ids)
    assert scores.shape == (2, 2, 1)
    assert scores[0].tolist() == [[1.0], [1.0]]
    assert np.isnan(scores[1]).all()  # the nurse was asked and has not answered
    assert answers.scores([], ["1+2"]).shape == (0, 1, 1)


@pytest.mark.parametrize("answered", [0, 1, 5, 8])
def test_an_interruption_keeps_what_was_there(answered: int, tmp_path: Path) -> None:
    number = itertools.count()

    def until(request: Request) -> str:
        if next(number) == answered:
            raise KeyboardInterrupt
        return answer(request)

    with pytest.raises(KeyboardInterrupt):
        run_grid(tmp_path, until, grid())
    left, requests, cells = run_grid(tmp_path, answer, grid())
    assert left == 0
    assert len(requests) == 9 - answered
    assert len(cells) == 9
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == 9  # none twice


def test_a_larger_grid_asks_only_what_is_new(tmp_path: Path) -> None:
    run_grid(tmp_path, answer, grid(PERSONAS[:2], QUESTIONS[:2]))
    left, requests, cells = run_grid(tmp_path, answer, grid(samples=2))
    assert left == 0
    assert len(requests) == 18 - 4
    assert len(cells) == 18


def test_a_smaller_grid_owes_nothing_for_what_it_does_not_ask(tmp_path: Path) -> None:
    run_grid(tmp_path, lambda request: Failure(type="x", message=""), grid())
    assert run_grid(tmp_path, answer, grid(PERSONAS[:1], QUESTIONS[:1]))[0] == 0


def test_a_model_that_passes_over_a_request_leaves_it_owed(tmp_path: Path) -> None:
    class Forgetful(ScriptedModel):
        def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
            yield from list(super().generate(requests, sampling))[:-2]

    model = Forgetful(answer)
    with RunDir.open(tmp_path, StabilityConfig(), {"model": model.fingerprint}) as run:
        assert run_cells(model, grid(), Sampling(), run, right, "test") == 2


def test_answers_that_come_in_another_order_find_their_cells(tmp_path: Path) -> None:
    class Backwards(ScriptedModel):
        def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
            yield from list(super().generate(requests, sampling))[::-1]

    model = Backwards(answer)
    with RunDir.open(tmp_path, StabilityConfig(), {"model": model.fingerprint}) as run:
        assert run_cells(model, grid(), Sampling(), run, right, "test") == 0
        assert all(cell.verdict is not None and cell.verdict.correct for cell in run.cells().values())


@pytest.mark.parametrize(
    "changed",
    [
        build_grid(PERSONAS, QUESTIONS, WORDING._replace(template="adopt"), samples=1, seed=0),
        build_grid(PERSONAS, QUESTIONS, WORDING._replace(prompt=lambda question: f"{question.text} Think."), samples=1, seed=0),
        build_grid(PERSONAS, QUESTIONS, WORDING._replace(empty_system_prompt=True), samples=1, seed=0),
        build_grid(PERSONAS, QUESTIONS, WORDING, samples=1, seed=1),
        build_grid(PERSONAS, [QUESTIONS[0].model_copy(update={"gold": "4"}), *QUESTIONS[1:]], WORDING, samples=1, seed=0),
    ],
    ids=["template", "prompt", "empty_system_prompt", "seed", "gold"],
)
def test_changed_words_are_refused_before_anything_is_asked(changed: list[Cell], tmp_path: Path) -> None:
    _, _, before = run_grid(tmp_path, answer, grid())
    with pytest.raises(
        ConfigError, match=r"cell .* × .*: this run asked it with another prompt, another seed or another right answer"
    ):
        run_grid(tmp_path, never, changed)
    assert run_grid(tmp_path, never, grid())[2] == before
