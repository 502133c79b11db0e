"""The card of a trained model states its method, plan, settings and figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from permix.config import DevEvalConfig, OptimConfig, PersonasConfig, RolloutPlanConfig, TrainableModelConfig, TrainConfig
from permix.metrics.dev_curve import DevCurve, DevEvalPoint
from permix.plan import PersonaSampler, Plan, PlanBuilder, compile_plan
from permix.training.model_card import draw_curves, write_model_card
from permix.types import Estimate, Persona, Question

QUESTIONS = tuple(Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + {n}?", gold=str(2 * n)) for n in range(4))
SAILORS = PersonaSampler((Persona(id="sailor", text="a sailor"),), (1.0,))


def card(tmp_path: Path, plan: Plan, rewards: list[float | None]) -> str:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": n, "reward": r, "tokens": 7 * n}) + "\n" for n, r in enumerate(rewards, 1)))
    config = TrainConfig(
        out=tmp_path / "run", label="PerMix", model=TrainableModelConfig(name="base-model"),
        train=OptimConfig(lr=3e-5, temperature=0.7, beta=0.04),
    )  # fmt: skip
    write_model_card(tmp_path, config, plan, log, str(tmp_path / "base"))
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def plan_of(mix: float) -> Plan:
    config = RolloutPlanConfig(mix=mix, steps=10, questions_per_step=2, group_size=2)
    return compile_plan(PlanBuilder(QUESTIONS, lambda question: question.text, SAILORS, config, PersonasConfig(split="train")))


def test_figures_are_means_over_the_first_and_last_fifth(tmp_path: Path) -> None:
    plan = plan_of(0.8)
    text = card(tmp_path, plan, [0.1, 0.3, None, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.8, 0.9])
    assert "# PerMix\n" in text
    assert "PerMix-RLVR (persona-mixed RLVR), trained by permix from `base-model`" in text
    assert "Mean reward of the rollouts: 0.200 over the first 2 steps, 0.850 over the last 2" in text
    assert "temperature 0.7; 77 tokens generated" in text
    assert f"| hash | {plan.hash} |" in text
    for setting in ("| lr | 3e-05 |", "| beta | 0.04 |", "| loss | dapo |", "| max_new_tokens | 256 |"):
        assert setting in text
    assert "no evaluation" in text


def test_without_personas_it_is_plain_rlvr(tmp_path: Path) -> None:
    assert "RLVR (no personas), trained" in card(tmp_path, plan_of(0.0), [0.5])


@pytest.mark.parametrize("rewards", [[], [None, None]])
def test_a_run_without_scores_claims_no_reward(tmp_path: Path, rewards: list[float | None]) -> None:
    text = card(tmp_path, plan_of(0.8), rewards)
    assert "0.000" not in text
    assert "no rollout was scored" in text
    assert "training.png" not in text
    assert not (tmp_path / "training.png").exists()


def test_curves_of_the_training_stand_beside_the_card(tmp_path: Path) -> None:
    text = card(tmp_path, plan_of(0.8), [0.1, None, 0.9])
    assert "## Learning curves\n\n![Learning curves](training.png)\n\n## Plan" in text
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "probes.png").exists()


def test_probes_stand_in_a_table_and_a_figure(tmp_path: Path) -> None:
    one, gone = Estimate(value=0.5, low=0.4, high=0.6, n=12), Estimate(value=None, n=0)
    point = DevEvalPoint(
        step=10, measures={"mean": one, "baseline": one, "worst": gone, "best": one, "pss": one},
        identifiability=None, chance=None, completion_tokens=9.0, cut_off=0.25, n_questions=12, n_scored=35, n_asked=36,
    )  # fmt: skip
    *_, table = draw_curves(tmp_path, "PerMix", [], DevCurve((point,), DevEvalConfig(every=10, metric="worst")))
    number = "0.50 [0.40, 0.60]<br><sub>n = 12</sub>"
    assert table.split("\n")[2] == f"| 10 | {number} | {number} | – | {number} | – | 25% | 35 of 36 |"
    assert (tmp_path / "probes.png").read_bytes().startswith(b"\x89PNG")


def test_a_label_is_text(tmp_path: Path) -> None:
    config = TrainConfig(out=tmp_path / "run", label="<!-- permix report: begin -->\n## x")
    (tmp_path / "log.jsonl").write_text("")
    write_model_card(tmp_path, config, plan_of(0.8), tmp_path / "log.jsonl", "base-model")
    text = (tmp_path / "README.md").read_text()
    assert "<!--" not in text
    assert "\n## x" not in text


def test_matplotlib_waits_for_the_card() -> None:
    code = "import sys, permix.training.model_card, permix.training.checkpoints; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def front_matter(tmp_path: Path, name: str, source_card: str | None) -> dict[str, object]:
    """The fields of the card of a model trained from `name`, whose folder has this README.md."""
    source = tmp_path / "source"
    source.mkdir()
    if source_card is not None:
        (source / "README.md").write_text(source_card, encoding="utf-8")
    config = TrainConfig(out=tmp_path / "run", model=TrainableModelConfig(name=str(source) if name == "FOLDER" else name))
    write_model_card(tmp_path, config, plan_of(0.8), tmp_path / "log.jsonl", str(source))
    head = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    fields: dict[str, object] = yaml.safe_load(head)
    assert fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "text-generation"
    assert fields["tags"] == ["permix", "reinforcement-learning", "grpo"]
    return {key: value for key, value in fields.items() if key not in ("library_name", "pipeline_tag", "tags")}


OURS = "---\nbase_model: Org/Small\nlicense: apache-2.0\ntags: [permix, grpo]\n---\n# Model"
OTHER = "---\r\nlicense: other\r\nlicense_name: 'own: #1'\r\nlicense_link: LICENSE\r\nbase_model: Org/Base\r\n---\r\n"

OTHER_LICENCE = {"license": "other", "license_name": "own: #1", "license_link": "LICENSE"}


@pytest.mark.parametrize(
    ("name", "source_card", "fields"),
    [
        ("bundled", None, {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}),
        ("Org/Small", None, {"base_model": "Org/Small"}),
        ("Org/Small", OTHER, {"base_model": "Org/Small"} | OTHER_LICENCE),
        ("FOLDER", OURS, {"base_model": "Org/Small", "license": "apache-2.0"}),  # trained here before, so its origin is ours
        ("FOLDER", OTHER, OTHER_LICENCE),  # the card names the base of that model, not that model
        ("FOLDER", None, {}),
        ("FOLDER", "# no front matter", {}),
        ("FOLDER", "---\n[a: {\n---\n", {}),
        ("FOLDER", "---\n- a list\n---\n", {}),
        ("FOLDER", "---\n!!python/object/apply:os.system ['false']\n---\n", {}),
        ("FOLDER", "---\nlicense: [mit, 3]\nbase_model: {a: b}\ntags: permix\n---\n", {}),
        ("FOLDER", "---\nlicense: mit\n---\n" + "x" * 1_000_000, {}),
    ],
)  # fmt: skip
def test_a_card_names_the_base_model_and_the_licence(
    tmp_path: Path, name: str, source_card: str | None, fields: dict[str, str]
) -> None:
    assert front_matter(tmp_path, name, source_card) == fields
