"""How many questions an effect needs: by hand, and held against McNemar's test on simulated answers."""

from pathlib import Path

import numpy as np
import pytest

from permix.config import PersonasConfig, StabilityConfig, TaskConfig
from permix.evals.stability import power_analysis, run_stability
from permix.metrics.statistics import discordance, mcnemar_exact, minimum_detectable_effect, required_questions
from tests.sample_runs import asked_as, asked_what, endpoint, solve, stability_config, write_pool
from tests.servers import openai_server


def test_discordance_is_the_mean_squared_difference_of_cells_that_have_both() -> None:
    without_Q = np.array([1.0, 0.0, 1.0, np.nan])
    under_P_Q = np.array([[1.0, 1.0, 0.0, 1.0], [0.5, np.nan, 1.0, 1.0]])
    assert discordance(under_P_Q, without_Q) == pytest.approx((0 + 1 + 1 + 0.25 + 0) / 5)
    assert discordance(under_P_Q, np.full(4, np.nan)) is None


def test_a_number_of_questions_by_hand() -> None:
    """z_a = 1.960, z_b = 0.842: ((1.960 × √.2 + 0.842 × √.19) / .1)² = 154.6."""
    assert required_questions(0.1, 0.2, 1) == 155
    assert required_questions(0.5, 0.2, 1) == required_questions(0.5, 0.5, 1)  # no difference without as much discordance


def test_more_personas_less_effect_and_more_noise_need_more() -> None:
    needed = [required_questions(0.1, 0.2, 1), required_questions(0.1, 0.2, 12), required_questions(0.1, 0.4, 12)]
    assert needed == sorted(needed)
    assert required_questions(0.05, 0.2, 1) > 3.5 * needed[0]


@pytest.mark.parametrize(("questions", "seen", "tests"), [(100, 0.3, 12), (1319, 0.2, 64), (30, 0.1, 4)])
def test_the_smallest_effect_needs_so_many_questions(questions: int, seen: float, tests: int) -> None:
    smallest = minimum_detectable_effect(questions, seen, tests)
    assert smallest is not None
    assert required_questions(smallest, seen, tests) <= questions < required_questions(smallest - 0.001, seen, tests)


def test_five_questions_show_nothing() -> None:
    assert minimum_detectable_effect(5, 0.3, 12) is None


@pytest.mark.parametrize("effect", [0.0, -0.1, 1.5])
def test_an_effect_that_cannot_be_is_refused(effect: float) -> None:
    with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
        required_questions(effect, 0.3, 1)


@pytest.mark.parametrize(("effect", "seen", "tests"), [(0.1, 0.2, 1), (0.2, 0.3, 12)])
def test_the_exact_test_finds_it_about_as_often_as_said(effect: float, seen: float, tests: int) -> None:
    """The exact test is a little more careful than the formula: .77 to .78 in 4,000 draws."""
    n, rng = required_questions(effect, seen, tests), np.random.default_rng(0)
    drawn = rng.multinomial(n, [(seen + effect) / 2, (seen - effect) / 2, 1 - seen], size=1000)
    shown = np.mean([mcnemar_exact(int(wins), int(losses)) <= 0.05 / tests for wins, losses, _ in drawn])
    assert 0.7 < shown < 0.85


def test_a_plan_without_a_run_says_what_it_assumes(tmp_path: Path) -> None:
    pool = PersonasConfig(pool=str(write_pool(tmp_path / "pool.toml")))
    facts = power_analysis(StabilityConfig(out=tmp_path / "run", personas=pool, task=TaskConfig(n=100), plan_power=0.1))
    assert facts["effect"] == "0.1 against no persona, each of 4 personas, level 0.05 (Holm), power 0.8"
    needed = required_questions(0.1, 0.2, 4)
    smallest = minimum_detectable_effect(100, 0.2, 4)
    assert facts["discordance 0.20, assumed"] == f"{needed} questions needed; 100 show {smallest:.3f} or more"
    assert facts["two models, PSS 20 % apart, test of PSS"] == "340 to 430 questions (simulated)"
    assert facts["two models, PSS 20 % apart, test of sd of personas / mean"].startswith("190 to 360 questions")


def test_a_run_that_is_there_is_planned_by_and_says_what_it_showed(tmp_path: Path) -> None:
    """Wrong under one of three personas, always: a third of the pairs are discordant."""
    with openai_server(lambda body, *_: str(solve(asked_what(body)) + (asked_as(body) == "troll"))) as server:
        config = stability_config(tmp_path, server.base_url, model=endpoint(server.base_url))
        found = run_stability(config)
        asked = len(server.asked)
        (line,) = [
            text
            for name, text in power_analysis(config.model_copy(update={"plan_power": 0.25})).items()
            if name.startswith("discordance")
        ]
        assert len(server.asked) == asked
    assert line.startswith(f"{required_questions(0.25, 1 / 3, 3)} questions needed; 6 show ")
    assert (found.minimum_detectable_effect.value, found.minimum_detectable_effect.n) == (
        minimum_detectable_effect(6, 1 / 3, 3),
        6,
    )
