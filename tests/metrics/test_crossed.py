"""Several wordings: components worked out by hand, intervals that hold the truth, and the whole way through a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ncf

from permix.config import ExportConfig, PersonasConfig, StabilityConfig, build_config
from permix.errors import ConfigError, DataError
from permix.evals.grid import PromptFormat, build_grid, read_grid_results
from permix.evals.stability import measure_template_effects, read_stability_grid, run_stability
from permix.interop.stage import export_run
from permix.metrics import statistics
from permix.metrics.linear_models import split_by_template, summarize_template_effects, variance_components
from permix.prompts import template_hash
from permix.report.builder import build_report
from permix.report.comparisons import compare_runs
from permix.storage.files import read_json
from permix.types import Question
from tests.sample_runs import asked_what, persona, solve, stability_values
from tests.servers import openai_server

OWN = "Be {persona}!"


def test_components_by_hand() -> None:
    # Two templates, two personas, two questions, W P Q. Accuracies of the templates: 1/4 and 3/4; of the personas: 1/2 and 1/2.
    scores = np.array([[[0, 1], [0, 0]], [[1, 0], [1, 1]]], dtype=float)
    found = variance_components(scores)
    # Templates: by question 0 they are 0 and 1, by question 1 both are 1/2: effects ∓1/4, MS_w = 2·2·(1/16+1/16)/1 = 1/2, and
    # MS_wq = 2·(4·1/16)/1 = 1/2. Nothing is left.
    assert found.template_sd.value == 0
    # Personas never differ on average: MS_p = 0.
    assert found.persona_sd.value == 0
    # Both together: accuracies 1/2 0 / 1/2 1: effects ±1/4, MS_wp = 2·(4/16)/1 = 1/2. Question by question the joint effect is
    # 0, 0 and then 1/2 everywhere: MS_wpq = (8·1/16)/1 = 1/2.
    assert found.persona_template_sd.value == 0
    assert found.template_sd.n == 2


def test_a_component_is_what_the_noise_leaves() -> None:
    # Mean squares 5 and 1, 8 scores behind each effect: sd = sqrt((5 - 1) / 8).
    found = statistics.variance_component_sd(5.0, 1.0, 3, 30, 8)
    assert found.value == pytest.approx(np.sqrt(0.5))
    assert found.n == 11
    for end, p in ((found.low, 0.975), (found.high, 0.025)):
        assert end is not None
        assert ncf.cdf(5.0, 3, 30, 3 * 8 * end**2) == pytest.approx(p)


def test_less_than_noise_is_no_effect_with_room_above() -> None:
    found = statistics.variance_component_sd(0.9, 1.0, 3, 30, 8)
    assert (found.value, found.low) == (0, 0)
    assert found.high is not None
    assert found.high > 0


def test_far_less_than_noise_is_no_effect_at_all() -> None:
    assert statistics.variance_component_sd(1e-9, 1.0, 3, 300, 8).high == 0


def test_without_any_noise_there_is_no_interval() -> None:
    for rounding in (0.0, 1e-33):
        found = statistics.variance_component_sd(2.0, rounding, 1, 4, 8)
        assert (found.value, found.low, found.high) == (0.5, None, None)


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_intervals_hold_the_truth(effect: float) -> None:
    rng = np.random.default_rng(5)
    held = []
    for _ in range(200):
        chance_W_P_Q = np.tile(rng.uniform(0.2, 0.6, size=60), (3, 6, 1)) + effect * np.arange(3)[:, None, None]
        found = variance_components((rng.random(chance_W_P_Q.shape) < chance_W_P_Q).astype(float))
        truth = {"template_sd": effect, "persona_sd": 0.0, "persona_template_sd": 0.0}
        for name, value in truth.items():
            one = getattr(found, name)
            held.append((one.low or 0) <= value <= (one.high or 0) + 1e-9)
    assert np.mean(held) > 0.92


def test_one_template_or_one_question_has_no_component() -> None:
    scores = np.random.default_rng(0).integers(0, 2, size=(1, 3, 9)).astype(float)
    assert variance_components(scores).template_sd.value is None
    assert variance_components(scores).persona_sd.value is not None
    assert variance_components(scores[:, :, :1]).persona_sd.value is None


def test_a_question_with_a_gap_counts_for_no_component() -> None:
    scores = np.random.default_rng(0).integers(0, 2, size=(2, 3, 9)).astype(float)
    gap = scores.copy()
    gap[1, 2, 4] = np.nan
    assert variance_components(gap) == variance_components(np.delete(scores, 4, axis=2))


def test_samples_stand_template_by_template() -> None:
    scores = np.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    found = split_by_template(scores, ("a", "b"))
    assert found.shape == (2, 2, 3, 2)
    assert found[1, 0, 2].tolist() == [10, 11]  # persona 0, question 2, template b


def test_each_template_is_measured_by_itself() -> None:
    correct = np.zeros((2, 2, 4, 1))
    correct[0, :, :2] = 1  # under template a both personas answer half of the questions, under b none
    found = summarize_template_effects(correct, np.ones((4, 1)), {"a": "A", "b": "B"}, resamples=100)
    assert [
        (one.id, one.text, one.measures["mean"].value, one.measures["mean_minus_baseline"].value) for one in found.templates
    ] == [
        ("a", "A", 0.5, -0.5),
        ("b", "B", 0.0, -1.0),
    ]


# The whole way


def test_every_template_brings_every_persona_in_and_none_is_asked_once() -> None:
    question = Question(id="q", task="t", text="What is 1 + 1?", gold="2")
    wording = PromptFormat(lambda one: one.text, "you_are", empty_system_prompt=False, crossed_templates=("adopt", OWN))
    cells = build_grid([None, persona("clerk")], [question], wording, samples=2, seed=0)
    own = template_hash(OWN)
    assert [(cell.persona_id, cell.template, cell.sample) for cell in cells] == [
        (None, "", 0), (None, "", 1), ("clerk", "adopt", 0), ("clerk", "adopt", 1), ("clerk", own, 0), ("clerk", own, 1),
    ]  # fmt: skip
    assert len({cell.key for cell in cells}) == len({cell.seed for cell in cells}) == 6
    assert [cell.messages[0]["content"] for cell in cells[2::2]] == [
        "Adopt the identity of a careful clerk. Answer every message as this person would.", "Be a careful clerk!",
    ]  # fmt: skip


def test_one_template_has_the_seeds_it_always_had() -> None:
    question = Question(id="q", task="t", text="What is 1 + 1?", gold="2")
    (cell,) = build_grid(
        [persona("clerk")],
        [question],
        PromptFormat(lambda one: one.text, "you_are", empty_system_prompt=False),
        samples=1,
        seed=0,
    )
    assert (cell.template, cell.seed) == ("", 5145874237983884085)


def crossed(folder: Path, url: str, *templates: str, **fields: Any) -> StabilityConfig:
    return build_config(StabilityConfig, stability_values(folder, url, templates=list(templates), **fields), source="test")


def test_a_run_in_two_wordings(tmp_path: Path) -> None:
    """Whoever is brought in in the user's message answers wrongly."""

    def reply(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        asked = asked_what(body)
        return f"It is {solve(asked) + asked.startswith('You are')}."

    with openai_server(reply) as server:
        config = crossed(tmp_path, server.base_url, "you_are", "in_question")
        summary = run_stability(config)
        assert len(server.asked) == 6 + 2 * 3 * 6
        assert run_stability(config) == summary
        assert len(server.asked) == 42  # nothing is asked twice
    assert (summary.n_scored, summary.n_asked) == (36, 36)
    assert (summary.baseline.value, summary.mean.value) == (1.0, 0.5)
    found = measure_template_effects(config.out)
    assert found is not None
    assert [(one.id, one.measures["mean"].value) for one in found.templates] == [("you_are", 1.0), ("in_question", 0.0)]
    assert found.templates[1].text == "You are {persona}.\n\n{question}"
    assert found.template_sd.value == pytest.approx(np.sqrt(0.5))  # of 1 and 0
    assert read_json(config.out / "metrics.json")["crossed"] == found.model_dump(mode="json")
    assert read_stability_grid(config.out).correct_P_Q_S[0, 0].tolist() == [1, 0]
    build_report([config.out], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Templates" in text
    assert "between templates" in text
    assert len(read_grid_results(config.out).grid_summaries) == 42


def test_a_run_in_one_wording_has_no_section_on_wordings(tmp_path: Path) -> None:
    with openai_server(lambda body, *_: f"It is {solve(asked_what(body))}.") as server:
        config = build_config(StabilityConfig, stability_values(tmp_path, server.base_url), source="test")
        run_stability(config)
    assert measure_template_effects(config.out) is None
    assert "crossed" not in read_json(config.out / "metrics.json")
    build_report([config.out], tmp_path / "report")
    assert "## Templates" not in (tmp_path / "report" / "report.md").read_text()


def test_other_templates_are_another_run(tmp_path: Path) -> None:
    with openai_server(lambda body, *_: "It is 1.") as server:
        run_stability(crossed(tmp_path, server.base_url, "you_are", "adopt"))
        with pytest.raises(ConfigError, match="this run was made with template"):
            run_stability(crossed(tmp_path, server.base_url, "you_are", "second_person"))


def test_runs_in_other_wordings_are_not_compared(tmp_path: Path) -> None:
    with openai_server(lambda body, *_: "It is 1.") as server:
        for name, templates in (("one", ("you_are", "adopt")), ("two", ("you_are", "second_person"))):
            run_stability(crossed(tmp_path, server.base_url, *templates, out=str(tmp_path / name), label=name))
        run_stability(build_config(StabilityConfig, stability_values(tmp_path, server.base_url), source="test"))
    for other in ("two", "run"):
        with pytest.raises(DataError, match="not asked in the same words"):
            compare_runs(tmp_path / "one", tmp_path / other, resamples=100)
    assert compare_runs(tmp_path / "one", tmp_path / "one", resamples=100).result.n_cells > 0
    with pytest.raises(DataError, match="uses 2 templates"):
        export_run(ExportConfig(run=tmp_path / "one", format="lm-eval", out=tmp_path / "exported"))


def test_a_wording_goes_by_its_name_however_it_is_given(tmp_path: Path) -> None:
    with openai_server(lambda body, *_: "It is 1.") as server:
        run_stability(crossed(tmp_path, server.base_url, "You are {persona}.", "adopt"))
        asked = len(server.asked)
        run_stability(crossed(tmp_path, server.base_url, "you_are", "adopt"))
        assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"templates": ["adopt"]}, "give two or more templates, or this one as personas.template"),
        ({"templates": ["adopt", "you_are"], "strategy": "persona-vote"}, 'strategy = "persona-vote" uses one template'),
        ({"templates": ["adopt", "you_are"], "personas": {"template": "adopt"}}, "templates replace it"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config(StabilityConfig, {"stage": "stability"} | fields, source="test")


@pytest.mark.parametrize(
    ("templates", "said"),
    [
        (("adopt", "adpot"), r"templates = 'adpot': give one of you_are"),
        (("you_are", "You are {persona}."), r"templates: 'You are \{persona\}.' has the same text as 'you_are'"),
    ],
)
def test_templates_are_looked_at_before_anything_is_asked(templates: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with openai_server(lambda body, *_: "It is 1.") as server:
        with pytest.raises(ConfigError, match=said):
            run_stability(crossed(tmp_path, server.base_url, *templates))
        assert not server.asked


def test_the_default_template_is_the_one_crossing_replaces() -> None:
    assert PersonasConfig().template == "you_are"
