"""The search: the best persona on other questions is taken, and the evaluated ones have no say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from permix.config import StabilityConfig, TaskConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.evals.grid import GridResults
from permix.evals.stability import run_stability
from permix.evals.strategies import measure_strategy
from permix.evals.strategies.persona_search import (
    SELECTION_SPLIT,
    SearchSummary,
    best_persona_index,
    measure_persona_search,
    selected_persona_id,
)
from permix.storage.files import read_json
from permix.storage.run_dir import RunDir
from permix.tasks import load_questions
from permix.tasks.base import TrainedOn, write_trained_on
from permix.types import Cell, CellKey, Failure, Verdict
from tests.cell_files import read_cells
from tests.sample_runs import answered, asked_as, asked_what, cell, endpoint, solve, stability_config
from tests.servers import Action, error, openai_server

NAN = float("nan")
TASK = TaskConfig(levels=("add-1",), n=6)
EVALUATED = [question.text for question in load_questions(TASK)[1]]
CHOOSING = load_questions(TASK.model_copy(update={"split": SELECTION_SPLIT, "n": 4}))[1]
CHOOSING_TEXTS = [question.text for question in CHOOSING]
RIGHT = {None: 6, "clerk": 6, "sailor": 4, "troll": 1}
RIGHT_IN_CHOOSING = {"clerk": 0, "sailor": 2, "troll": 3}
"""The worst of the evaluation is the best of the choice."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def reply(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    question, persona = asked_what(body), asked_as(body)
    if question in CHOOSING_TEXTS:
        assert persona is not None
        return f"It is {solve(question) + (CHOOSING_TEXTS.index(question) >= RIGHT_IN_CHOOSING[persona])}."
    return f"It is {solve(question) + (EVALUATED.index(question) >= RIGHT[persona])}."


def search(folder: Path, base_url: str, **fields: Any) -> StabilityConfig:
    return stability_config(folder, base_url, strategy="persona-search", strategy_questions=4, **fields)


def found_in(config: StabilityConfig) -> SearchSummary:
    found = measure_strategy(config.out)
    assert isinstance(found, SearchSummary)
    return found


# Choosing


@pytest.mark.parametrize(
    ("right_P_Q", "place"),
    [
        ([[1, 0, 0], [1, 1, 0], [0, 0, 1]], 1),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0),  # equals: the first
        ([[0, 0, 0], [1, 1, 0], [0, 1, 1]], 1),
        ([[0, 0], [0, 0]], 0),
        ([[0, 0, 1, 1, 1], [0, 1, NAN, NAN, NAN]], 1),  # 3/5 and 1/2 of their own, but 0 and 1/2 of what both have a score for
        ([[NAN, NAN], [1, 1]], None),
    ],
)
def test_the_best_on_the_questions_that_all_have_a_score_for(right_P_Q: list[list[float]], place: int | None) -> None:
    assert best_persona_index(np.array(right_P_Q, dtype=float)[..., None]) == place


def test_samples_are_averaged() -> None:
    assert best_persona_index(np.array([[[1.0, 0.0]], [[1.0, 1.0]]])) == 1


def choosing(cells: list[Cell]) -> GridResults:
    return GridResults({one.key: one for one in cells}, (), (), 1, ("a", "b"), ("d1", "d2"))


def test_nobody_is_chosen_before_everybody_has_answered() -> None:
    cells = [
        answered(question, "1", right, persona_id=id) for id, right in (("a", False), ("b", True)) for question in ("d1", "d2")
    ]
    assert selected_persona_id(choosing(cells)) == "b"
    assert selected_persona_id(choosing(cells[:-1])) is None
    assert selected_persona_id(choosing([*cells[:-1], cell("d2", "b", failure=Failure(type="HTTP", message="503"))])) is None
    # An answer that the verifier failed on is an answer; its question then counts for nobody.
    assert selected_persona_id(choosing([*cells[:-1], answered("d2", "1", None, persona_id="b")])) == "b"
    assert (
        selected_persona_id(choosing([answered(question, "1", None, persona_id=id) for id in "ab" for question in ("d1", "d2")]))
        is None
    )


def test_the_summary_of_a_search_under_way_has_no_numbers() -> None:
    found = measure_persona_search(
        choosing([answered("d1", persona_id="a")])._replace(question_ids=("q1",)), seed=0, resamples=200
    )
    assert (
        found.selected_persona_id,
        found.accuracy.value,
        found.gain.value,
        found.tokens_per_answer,
        found.selection_tokens,
    ) == (None, None, None, None, None)
    assert (found.n_scored, found.n_asked) == (0, 1)
    assert found.details_text == "no persona chosen yet, of 2"


def test_a_candidate_that_is_always_or_never_right_has_no_interval_of_width_0() -> None:
    cells = [answered(question, "1", who == "a", persona_id=who) for who in "ab" for question in ("d1", "d2")]
    always, never = measure_persona_search(choosing(cells)._replace(question_ids=("q1",)), seed=0, resamples=200).candidates
    assert (always.accuracy.low, always.accuracy.high) == pytest.approx((0.025 ** (1 / 2), 1))
    assert (never.accuracy.low, never.accuracy.high) == pytest.approx((0, 1 - 0.025 ** (1 / 2)))


# The whole


def test_the_best_on_other_questions_is_taken_and_the_evaluated_ones_have_no_say(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = search(tmp_path, server.base_url)
        summary = run_stability(config)
        asked = [(asked_as(one.body), asked_what(one.body)) for one in server.asked]
    assert asked == [
        *((persona, question) for persona in ("clerk", "sailor", "troll") for question in CHOOSING_TEXTS),
        *((None, question) for question in EVALUATED),
        *(("troll", question) for question in EVALUATED),
    ]
    found = found_in(config)
    assert found.selected_persona_id == "troll"
    assert [(one.id, one.accuracy.value) for one in found.candidates] == [("clerk", 0.0), ("sailor", 0.5), ("troll", 0.75)]
    assert (found.n_selection_questions, found.n_scored, found.n_asked) == (4, 6, 6)
    assert found.accuracy.value == pytest.approx(1 / 6)
    assert found.baseline.value == 1.0
    assert found.gain.value == pytest.approx(-5 / 6)
    assert found.gain.n == 6
    assert found.selection_tokens is not None
    assert (found.selection_tokens.prompt_tokens, found.selection_tokens.completion_tokens) == (12 * 7, 12 * 3)
    assert found.tokens_per_answer is not None
    assert (found.tokens_per_answer.total, found.token_ratio) == (10.0, 1.0)
    assert "persona troll, the best of 3 on 4 dev questions (0.75 [" in found.details_text
    # What the run says of the grid is what it asked: no persona, and the one that was chosen.
    assert summary.n_personas == 1
    assert summary.personas[0].difference == found.gain
    metrics = read_json(config.out / "metrics.json")
    assert metrics.pop("strategy") == found.model_dump(mode="json")
    assert metrics.items() >= summary.model_dump(mode="json").items()


def test_a_finished_search_asks_nothing_more(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = search(tmp_path, server.base_url)
        run_stability(config)
        metrics = (config.out / "metrics.json").read_bytes()
        run_stability(config)
        assert len(server.asked) == 24
    assert (config.out / "metrics.json").read_bytes() == metrics


def test_a_choosing_answer_that_is_owed_holds_the_choice_back(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        fails = asked_as(body) == "clerk" and asked_what(body) == CHOOSING_TEXTS[1]
        return error(400, "no") if fails else reply(body)

    with openai_server(flaky) as server:
        config = search(tmp_path, server.base_url)
        with pytest.raises(
            IncompleteRunError,
            match=r"1 of 18 cells, .* have no score; .* again to fill them .*; until then no persona can be chosen",
        ):
            run_stability(config)
        assert len(server.asked) == 18
        assert not (config.out / "metrics.json").exists()
        assert found_in(config).selected_persona_id is None
        server.script = reply
        run_stability(config)
        assert len(server.asked) == 18 + 1 + 6
    assert found_in(config).selected_persona_id == "troll"


def test_more_questions_to_choose_by_go_on_with_those_that_were_asked(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        few = stability_config(tmp_path, server.base_url, strategy="persona-search", strategy_questions=2)
        run_stability(few)
        assert found_in(few).selected_persona_id == "sailor"  # 2 of 2, as the troll, and the first of the two
        assert len(server.asked) == 6 + 6 + 6
        more = search(tmp_path, server.base_url)
        run_stability(more)
        assert found_in(more).selected_persona_id == "troll"
        assert len(server.asked) == 18 + 6 + 6
        assert run_stability(few).personas[0].id == "sailor"
        assert len(server.asked) == 30


def test_a_verifier_that_failed_in_choosing_is_counted_and_the_question_counts_for_nobody(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = search(tmp_path, server.base_url)
        run_stability(config)
        lost = read_cells(config.out / "records.jsonl")[CellKey("sailor", CHOOSING[0].id, 0)]
        identity = read_json(config.out / "provenance.json")["identity"]
        with RunDir.open(config.out, config, identity) as run:
            run.append([lost.model_copy(update={"verdict": Verdict(correct=None, extracted="1", error="out of time")})])
    found = found_in(config)
    assert found.n_selection_questions == 3
    assert [one.accuracy.value for one in found.candidates] == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3)]


# Refused


def test_questions_to_choose_by_must_not_be_evaluated(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = search(tmp_path, server.base_url, task={"levels": ["add-1"], "n": 6, "split": SELECTION_SPLIT})
        with pytest.raises(ConfigError, match="strategy_questions = 4: 4 selection questions are evaluated too") as refused:
            run_stability(config)
    assert f'evaluate with another task.split than "{SELECTION_SPLIT}"' in str(refused.value)
    assert server.asked == []
    assert not config.out.exists()


def rows_file(folder: Path, name: str, texts: list[str]) -> None:
    (folder / name).write_text("".join(json.dumps({"question": text, "answer": "#### 1"}) + "\n" for text in texts))


def test_content_counts_not_the_side_it_is_published_on(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    many = [f"What is one times {n}?" for n in range(200)]
    rows_file(folder, "train.jsonl", many)
    rows_file(folder, "test.jsonl", [text.upper() for text in many])
    with openai_server(reply) as server:
        config = search(tmp_path, server.base_url, task={"name": "gsm8k", "path": str(folder), "n": 200})
        with pytest.raises(ConfigError, match="4 selection questions are evaluated too"):
            run_stability(config)
    assert server.asked == []


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"levels": ["add-1"], "n": 6}, r"strategy_questions = 5000: needs questions of the \w+ split .*: task.n = 5000"),
        (
            {"name": "gsm8k", "path": "test.jsonl", "n": 2},
            r"needs questions of the \w+ split .*: task.path = test.jsonl: has the name ",
        ),
    ],
)
def test_too_few_questions_to_choose_by_are_refused(
    task: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path, "test.jsonl", ["one?", "two?"])
    config = stability_config(tmp_path, "http://127.0.0.1:1/v1", strategy="persona-search", strategy_questions=5000, task=task)
    with pytest.raises(ConfigError, match=words):
        run_stability(config)


def test_questions_trained_on_are_not_chosen_by(tmp_path: Path) -> None:
    write_trained_on(tmp_path / "model", TrainedOn(frozenset({CHOOSING[2].content_hash})))
    config = search(tmp_path, "", model=endpoint("http://127.0.0.1:1/v1", name=str(tmp_path / "model")))
    with pytest.raises(ConfigError, match=r"split to choose a persona: 1 of 4 questions .* were seen in training"):
        run_stability(config)
