"""The trainer: the plan's rows in the plan's order, one gradient with and without its dead rows, and no score is not zero."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from permix.config import ModelConfig, OptimConfig, PersonasConfig, RolloutPlanConfig
from permix.errors import PermixError
from permix.inference.generation import generate_tokens
from permix.inference.hf import HFModel, load_causal_lm, load_tokenizer
from permix.plan import PersonaSampler, Plan, PlanBuilder, compile_plan
from permix.training.grpo_trainer import PlanGRPOTrainer
from permix.training.network import build_lora_config, inference_copy, sync_weights
from permix.training.rewards import Rollout
from permix.training.rollouts import Sample, ScoredRollout, has_nonzero_advantage, samples_from_trl_batch, trl_metrics
from permix.training.trl_setup import grpo_arguments
from permix.types import Completion, Persona, Question, Request, Sampling, Verdict, seed_from
from tests.training.scoring import judge_arithmetic_by

PERSONAS = PersonaSampler(tuple(Persona(id=one, text=f"a {one}", tags=(one,)) for one in ("sailor", "tutor", "poet")), (1.0,) * 3)
QUICK = OptimConfig(lr=1e-2, max_new_tokens=8, microbatch_tokens=64, precision="float32", save_every=1000)


class Notes:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.kept: list[Rollout] = []
        self.figures: list[dict[str, Any]] = []
        self.plans: list[Plan] = []

    def log_rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        assert {rollout.step for rollout in rollouts} == {step}
        self.kept.extend(rollouts)

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        assert step == len(self.figures) + 1
        self.figures.append(metrics)

    def log_plan(self, plan: Plan, blocks: Sequence[dict[str, Any]]) -> None:
        self.plans.append(plan)
        assert len(blocks) == len(self.plans)


class Watched(PlanGRPOTrainer):
    """Keeps what every generation handed to the loss."""

    scored: list[dict[str, Any]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.scored = [*getattr(self, "scored", []), output]
        return output


def odd_check(answer: str | None, gold: str) -> Verdict:
    """Breaks on some answers, and likes small even ones, whatever was asked."""
    if answer in ("1", "3", "5"):
        return Verdict(correct=None, extracted=answer, error="broken")
    return Verdict(correct=answer in ("0", "2", "4", "6"), extracted=answer)


def plan_of(gold: str | None = None, **options: object) -> Plan:
    """A plan over 1 + 1, 2 + 2 ...; `gold` replaces every right answer."""
    questions = [
        Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + {n}?", gold=gold or str(2 * n)) for n in range(1, 7)
    ]
    values = {"mix": 0.6, "steps": 2, "questions_per_step": 2, "group_size": 4} | options
    config = RolloutPlanConfig.model_validate(values)
    return compile_plan(PlanBuilder(questions, lambda question: question.text, PERSONAS, config, PersonasConfig(split="train")))


def trainer_of(tiny_model: Path, out: Path, plan: Plan, config: OptimConfig = QUICK) -> tuple[Watched, Notes]:
    torch.set_num_threads(1)
    notes = Notes()
    trainer = Watched(
        plan=plan, recorder=notes, config=config,
        args=grpo_arguments(config, plan, out),
        model=load_causal_lm(str(tiny_model), torch.float32, "cpu").train(), processing_class=load_tokenizer(str(tiny_model)),
        peft_config=build_lora_config(config),
    )  # fmt: skip
    return trainer, notes


@pytest.mark.parametrize("scope", ["group", "rollout"])
def test_rows_come_in_plan_order_and_a_group_stays_together(tiny_model: Path, tmp_path: Path, scope: str) -> None:
    plan = plan_of(steps=3, scope=scope)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan)
    trainer.train()
    asked = [(rollout.step, rollout.group, rollout.persona_id, rollout.question_id, rollout.gold) for rollout in notes.kept]
    assert asked == [
        (row.step + 1, row.group, row.persona_id, row.question_id, row.gold) for row in plan.rows for _ in range(row.rollouts)
    ]
    personas = [{row.persona_id for row in notes.kept[start : start + 4]} for start in range(0, len(asked), 4)]
    assert (max(map(len, personas)) == 1) == (scope == "group")
    assert [figures["tokens"] for figures in notes.figures] == [
        sum(rollout.tokens for rollout in notes.kept if rollout.step == step) for step in (1, 2, 3)
    ]


def test_rollouts_are_the_evaluations_completions_of_the_same_prompts_and_seeds(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(steps=1)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan)
    trainer.train()
    requests = [Request(row.messages, seed_from(row.seed, number)) for row in plan.rows for number in range(row.rollouts)]
    model = HFModel(ModelConfig(name=str(tiny_model), dtype="float32"))
    answered = {
        answer.request_index: answer.result for answer in model.generate(requests, Sampling(temperature=1, max_new_tokens=8))
    }
    for place, rollout in enumerate(notes.kept):
        completion = answered[place]
        assert isinstance(completion, Completion)
        assert (rollout.completion, rollout.tokens) == (completion.text, completion.completion_tokens)
    assert len({rollout.completion for rollout in notes.kept}) > 4


def test_personas_reach_the_prompt_and_none_leaves_the_template_its_own(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(steps=1)
    trainer, _ = trainer_of(tiny_model, tmp_path, plan)
    trainer.train()
    (scored,) = trainer.scored
    prompts = trainer.processing_class.batch_decode(scored["prompt_ids"])
    for prompt, row in zip(prompts[::4], plan.rows, strict=True):
        assert (f"You are a {row.persona_id}." in prompt) == (row.persona_id is not None)
        assert ("You are a tiny assistant." in prompt) == (row.persona_id is None)


def test_unscored_rollouts_leave_the_baseline_and_have_no_advantage(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_arithmetic_by(monkeypatch, odd_check)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan_of(steps=1, group_size=16))
    trainer.train()
    (scored,) = trainer.scored
    rewards = [rollout.verdict.reward for rollout in notes.kept]
    assert {None, 0.0, 1.0} <= set(rewards), "the tiny model said too little to test with"
    for group in (slice(0, 16), slice(16, 32)):
        known = [reward for reward in rewards[group] if reward is not None]
        mean = sum(known) / len(known)
        deviation = (sum((reward - mean) ** 2 for reward in known) / (len(known) - 1)) ** 0.5
        expected = [0.0 if reward is None else (reward - mean) / (deviation + 1e-4) for reward in rewards[group]]
        assert scored["advantages"][group].tolist() == pytest.approx(expected, abs=1e-5)
    known = [reward for reward in rewards if reward is not None]
    assert notes.figures[0]["unscored"] == rewards.count(None)
    assert notes.figures[0]["reward"] == pytest.approx(sum(known) / len(known))


def test_a_step_without_any_score_has_no_reward_and_leaves_the_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(answer: str | None, gold: str) -> Verdict:
        return Verdict(correct=None, error="broken")

    judge_arithmetic_by(monkeypatch, broken)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan_of())
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert [(figures["reward"], figures["unscored"]) for figures in notes.figures] == [(None, 8), (None, 8)]
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_groups_that_agree_teach_nothing(tiny_model: Path, tmp_path: Path) -> None:
    trainer, notes = trainer_of(tiny_model, tmp_path, plan_of(gold="999"))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert [(figures["reward"], figures["frac_nonzero_advantage_groups"]) for figures in notes.figures] == [
        (0.0, 0.0),
        (0.0, 0.0),
    ]
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_figures_by_tag_are_means_of_the_rollouts(tiny_model: Path, tmp_path: Path) -> None:
    trainer, notes = trainer_of(tiny_model, tmp_path, plan_of(steps=4, gold="4"))
    trainer.train()
    for step, figures in enumerate(notes.figures, start=1):
        by_persona: dict[str, list[float]] = {}
        for rollout in notes.kept:
            if rollout.step == step:
                by_persona.setdefault(rollout.persona_id or "none", []).append(rollout.verdict.reward or 0.0)
        assert figures["reward_by_tag"] == {tag: sum(rewards) / len(rewards) for tag, rewards in sorted(by_persona.items())}
        assert set(figures["seconds"]) == {"generation", "verification", "dev_eval", "saving", "training"}
        assert min(figures["seconds"].values()) >= 0


def test_groups_without_signal_give_way_to_spare_ones_in_the_plans_order(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right is whoever is asked a spare question by chance; the others' questions have no right answer."""

    def only_spares(answer: str | None, gold: str) -> Verdict:
        return Verdict(correct=gold == "spare" and answer in ("0", "1", "2", "3", "4"), extracted=answer)

    plan = plan_of(steps=3, group_size=8, dynamic_sampling_groups=3)
    rows = tuple(row.model_copy(update={"gold": "spare" if row.spare else "none"}) for row in plan.rows)
    plan = Plan(rows, plan.metadata)
    judge_arithmetic_by(monkeypatch, only_spares)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan)
    kept: list[list[Sample]] = []
    accumulate = trainer._gradient_step.accumulate

    def watched(model: Any, samples: Sequence[Sample], *rest: Any) -> Any:
        kept.append(list(samples))
        return accumulate(model, samples, *rest)

    monkeypatch.setattr(trainer._gradient_step, "accumulate", watched)
    trainer.train()
    for step, samples in enumerate(kept):
        asked = [rollout for rollout in notes.kept if rollout.step == step + 1]
        groups = list(dict.fromkeys(rollout.group for rollout in asked))
        assert groups[:4] == [0, 1, 2, 3], "two groups of the plan, then two spare ones for the two that failed"
        signal = [group for group in groups if len({rollout.verdict.reward for rollout in asked if rollout.group == group}) == 2]
        assert len(samples) == 16, "a step's size stays"
        assert sum(has_nonzero_advantage(samples[start : start + 8]) for start in (0, 8)) == min(2, len(signal))
        assert (len(groups) == 5) == (len(set(signal) & {2, 3}) < 2), "the third only when one of the two failed too"
        assert notes.figures[step]["resampled_rollouts"] == 8 * (len(groups) - 2)
        assert notes.figures[step]["tokens"] == sum(rollout.tokens for rollout in asked)
        assert notes.figures[step]["microbatch_tokens"] == QUICK.microbatch_tokens


def test_metrics_of_the_rollouts_by_hand() -> None:
    def scored(group: int, reward: float | None, tokens: int, is_truncated: bool) -> ScoredRollout:
        rollout = Rollout(1, group, None, "q", "", "", tokens, "", Verdict(correct=None))
        return ScoredRollout(rollout, (), None, reward, is_truncated)

    step = [
        scored(0, 1.0, 2, False), scored(0, 0.0, 4, False), scored(1, 0.0, 6, True), scored(1, 0.0, 6, True),
        scored(2, 1.0, 3, False), scored(2, None, 6, True), scored(3, None, 1, False), scored(3, None, 4, False),
    ]  # fmt: skip
    # Five scored, mean 2/5, squares 2 · 9/25 + 3 · 4/25 over 4. Only the first of four groups has two rewards.
    assert trl_metrics(step) == pytest.approx(
        {"completions/mean_length": 4.0, "completions/clipped_ratio": 3 / 8, "reward": 0.4}
        | {"reward_std": 0.3**0.5, "frac_reward_zero_std": 3 / 4}
    )
    without = trl_metrics(step[5:])
    assert math.isnan(without["reward"])
    assert math.isnan(without["reward_std"])
    assert (without["frac_reward_zero_std"], math.isnan(trl_metrics(step[4:])["reward_std"])) == (1.0, True)


TRL_FIGURES = {
    "reward": "reward", "reward_std": "reward_std", "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
}  # fmt: skip


def test_metrics_of_a_step_without_spare_groups_and_failures_are_trls_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def even(answer: str | None, gold: str) -> Verdict:
        return Verdict(correct=answer in ("0", "2", "4", "6", "8"), extracted=answer)

    judge_arithmetic_by(monkeypatch, even)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan_of(steps=3, questions_per_step=4, group_size=4))
    theirs: list[dict[str, Any]] = []
    log_rollouts = trainer._log_rollouts

    def watched() -> None:
        theirs.append({name: value for name, (value,) in trainer._metrics["train"].items()})
        log_rollouts()

    monkeypatch.setattr(trainer, "_log_rollouts", watched)
    trainer.train()
    for figures, own in zip(notes.figures, theirs, strict=True):
        assert {name: figures[name] for name in TRL_FIGURES} == pytest.approx(
            {name: own[trls] for name, trls in TRL_FIGURES.items()}
        )
        assert figures["frac_nonzero_advantage_groups"] == pytest.approx(1 - own["frac_reward_zero_std"])
    assert len({figures["frac_nonzero_advantage_groups"] for figures in notes.figures}) > 1


def test_metrics_of_a_step_count_every_rollout_once_with_spare_groups_and_failures(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(steps=3, questions_per_step=4, group_size=4, dynamic_sampling_groups=2)
    judge_arithmetic_by(monkeypatch, odd_check)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan)
    trainer.train()
    assert any(figures["resampled_rollouts"] for figures in notes.figures)
    for step, figures in enumerate(notes.figures, start=1):
        asked = [rollout for rollout in notes.kept if rollout.step == step]
        rewards = [rollout.verdict.reward for rollout in asked if rollout.verdict.reward is not None]
        groups = [asked[start : start + 4] for start in range(0, len(asked), 4)]
        live = [len({one.verdict.reward for one in group} - {None}) == 2 for group in groups]
        assert figures["completion_tokens"] == pytest.approx(sum(rollout.tokens for rollout in asked) / len(asked))
        assert figures["reward_std"] == pytest.approx(stdev(rewards))
        assert figures["frac_nonzero_advantage_groups"] == pytest.approx(sum(live) / len(live))


def batch(advantages: Sequence[float]) -> dict[str, Any]:
    """Five rows of three prompts, with completions of unlike lengths, padded as TRL pads them."""
    random = torch.Generator().manual_seed(3)
    lengths = [(12, 2), (12, 6), (5, 8), (7, 3), (12, 1)]
    prompt_ids, prompt_mask = torch.ones(5, 14, dtype=torch.long), torch.zeros(5, 14, dtype=torch.long)
    completion_ids, completion_mask = torch.ones(5, 10, dtype=torch.long), torch.zeros(5, 10, dtype=torch.long)
    first = torch.randint(2, 320, (12,), generator=random)
    for row, (prompt, completion) in enumerate(lengths):
        prompt_ids[row, 14 - prompt :] = first if prompt == 12 else torch.randint(2, 320, (prompt,), generator=random)
        completion_ids[row, :completion] = torch.randint(2, 320, (completion,), generator=random)
        prompt_mask[row, 14 - prompt :] = 1
        completion_mask[row, :completion] = 1
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": completion_ids,
        "completion_mask": completion_mask, "advantages": torch.tensor(advantages), "num_items_in_batch": torch.tensor(20),
    }  # fmt: skip


def plain_logps(trainer: PlanGRPOTrainer, inputs: dict[str, Any]) -> torch.Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logps, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, 10)
    return torch.as_tensor(logps)


def gradient(trainer: PlanGRPOTrainer) -> torch.Tensor:
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in trainer.model.parameters()]
    return torch.cat([one.flatten() for one in grads])


def trls_own(trainer: PlanGRPOTrainer, inputs: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the same batch by TRL's code: padded, one row a completion, dead rows and all."""

    def logps(model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int, **more: Any) -> Any:
        return GRPOTrainer._get_per_token_logps_and_entropies(trainer, model, ids, mask, keep, **more)

    trainer.model.zero_grad()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "_get_per_token_logps_and_entropies", logps)
        loss = trainer._compute_loss(trainer.model, dict(inputs))
    loss.backward()
    return loss.item(), gradient(trainer)


def ours(trainer: PlanGRPOTrainer, inputs: dict[str, Any]) -> tuple[float, torch.Tensor]:
    samples = samples_from_trl_batch(inputs)
    if "old_per_token_logps" in inputs:
        for sample, logps in zip(samples, inputs["old_per_token_logps"].tolist(), strict=True):
            sample.old_logprobs = logps[: len(sample.completion)]
    trainer.model.zero_grad()
    loss, _ = trainer._gradient_step.accumulate(trainer.model, samples)
    return loss.item(), gradient(trainer)


@pytest.fixture(scope="module", params=["dapo", "grpo", "dr_grpo", "bnpo"])
def trainer(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> PlanGRPOTrainer:
    config = QUICK.model_copy(update={"loss": request.param, "microbatch_tokens": 30})
    made, _ = trainer_of(tiny_model, tmp_path_factory.mktemp("grpo"), plan_of(), config)
    made.current_gradient_accumulation_steps = 1
    made.loss_type = request.param  # of TRL's own loss, which ours is held against
    return made


@pytest.mark.parametrize("way", ["shared", "plain"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("advantages", [(1.0, 0.0, -0.5, 0.0, 2.0), (0.0, 0.7, 0.0, 0.0, 0.0), (1.0, -1.0, 0.3, 0.2, -0.4)])
def test_loss_and_gradient_are_trls_own(
    trainer: PlanGRPOTrainer, advantages: Sequence[float], old: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(advantages)
    if old:  # drawn by a policy whose log-probabilities were up to 0.4 off: some ratios are clipped
        inputs["old_per_token_logps"] = plain_logps(trainer, inputs) + torch.linspace(-0.4, 0.4, 50).view(5, 10)
    monkeypatch.setattr(trainer.model, "shared_prefix_enabled", way == "shared")
    expected_loss, expected = trls_own(trainer, inputs)
    loss, found = ours(trainer, inputs)
    assert float(expected.norm()) > 1e-2
    assert float((found - expected).norm() / expected.norm()) <= 1e-4
    assert loss == pytest.approx(expected_loss, abs=1e-6)


def test_a_batch_of_dead_rows_has_gradients_of_zero_so_that_momentum_still_moves(trainer: PlanGRPOTrainer) -> None:
    loss, _ = ours(trainer, batch((0.0,) * 5))
    assert loss == 0
    gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert all(one is not None and not one.any() for one in gradients)


def test_with_a_kl_term_every_row_counts(tiny_model: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(tiny_model, tmp_path, plan_of(), QUICK.model_copy(update={"beta": 0.5}))
    trainer.current_gradient_accumulation_steps = 1
    inputs = batch((0.0,) * 5)
    inputs["ref_per_token_logps"] = torch.linspace(-6, -4, 50).view(5, 10)
    expected_loss, expected = trls_own(trainer, inputs)
    loss, found = ours(trainer, inputs)
    assert float(expected.norm()) > 1e-2
    assert float((found - expected).norm() / expected.norm()) <= 1e-4
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_the_references_log_probabilities_are_the_plain_ones(tiny_model: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(tiny_model, tmp_path, plan_of(), QUICK.model_copy(update={"beta": 0.5}))
    inputs = batch((0.0,) * 5)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    found, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 10)
    real = inputs["completion_mask"].bool()
    assert float((found - plain_logps(trainer, inputs))[real].abs().max()) <= 1e-4
    assert not bool(found[~real].any())


def test_the_size_of_packs_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for tokens in (1, 25, 10_000):
        trainer, _ = trainer_of(tiny_model, tmp_path, plan_of(), QUICK.model_copy(update={"microbatch_tokens": tokens}))
        found.append(ours(trainer, batch((1.0, -1.0, 0.3, 0.2, -0.4))))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        assert float((gradients - found[0][1]).norm() / found[0][1].norm()) <= 1e-5


def test_a_token_the_sampler_thought_too_likely_weighs_less_and_one_too_unlikely_no_more_than_the_cap(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Every weight is e^-1 in one batch and the cap in the other: so is the whole gradient."""
    trainer, _ = trainer_of(tiny_model, tmp_path, plan_of(), QUICK.model_copy(update={"importance_ratio_cap": 1.5}))
    inputs = batch((1.0, -1.0, 0.3, 0.2, -0.4))
    now = plain_logps(trainer, inputs)
    _, plain = ours(trainer, inputs)
    for shift, expected in ((1.0, 0.367879), (-3.0, 1.5)):
        _, weighted = ours(trainer, inputs | {"sampling_per_token_logps": now + shift})
        assert float((weighted - expected * plain).norm() / plain.norm()) <= 1e-4


def test_a_loss_that_is_no_number_stops_the_run_and_says_so(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_arithmetic_by(monkeypatch, odd_check)
    trainer, _ = trainer_of(tiny_model, tmp_path, plan_of())
    monkeypatch.setattr(trainer._gradient_step, "accumulate", lambda *_: (torch.tensor(float("nan")), {}))
    with pytest.raises(PermixError, match=r"step 1: the loss is nan; training has diverged.*smaller train\.lr$"):
        trainer.train()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_gradient_that_is_no_number_stops_the_run_before_its_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_rank: int
) -> None:
    """The loss of the second step is fine and its gradient is not. Adapters alone are no model that a run could begin with."""
    config = QUICK.model_copy(update={"save_every": 1, "lora_rank": lora_rank})
    judge_arithmetic_by(monkeypatch, odd_check)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan_of(), config)
    accumulate = trainer._gradient_step.accumulate

    def spoilt(model: Any, *arguments: Any) -> Any:
        result = accumulate(model, *arguments)
        if trainer.state.global_step == 1:
            learnt = [one for one in model.parameters() if one.requires_grad]
            learnt[-1].grad = torch.full_like(learnt[-1], float("inf"))
        return result

    monkeypatch.setattr(trainer._gradient_step, "accumulate", spoilt)
    with pytest.raises(PermixError, match="step 2: the norm of the gradient is inf; training has diverged") as stopped:
        trainer.train()
    assert (f"--model.name {tmp_path / 'checkpoint-1'} begins it" in str(stopped.value)) == (lora_rank == 0)
    assert len(notes.figures) == 1
    assert all(bool(torch.isfinite(one).all()) for one in trainer.model.parameters())


@pytest.mark.slow
def test_a_reward_that_can_be_learnt_is_learnt(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(answer: str | None, gold: str) -> Verdict:
        return Verdict(correct=answer in ("0", "1", "2", "3", "4"), extracted=answer)

    plan = plan_of(steps=20, group_size=16)
    judge_arithmetic_by(monkeypatch, small)
    trainer, notes = trainer_of(tiny_model, tmp_path, plan, QUICK.model_copy(update={"lr": 3e-3}))
    trainer.train()
    rewards = [figures["reward"] for figures in notes.figures]
    assert rewards[0] < 0.8, "five digits of ten are right"
    assert sum(rewards[-5:]) / 5 > 0.9


def test_the_rollout_copy_answers_by_its_own_weights(tiny_model: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(tiny_model, tmp_path, plan_of(), QUICK.model_copy(update={"precision": "bfloat16"}))
    ids = torch.tensor([[5, 6, 7]])
    with trainer.generation_network() as network:
        assert network(input_ids=ids).logits.dtype == torch.bfloat16
        for parameter in network.parameters():
            parameter.zero_()
        assert not network(input_ids=ids).logits.any()
    assert trainer.model(input_ids=ids).logits.any()


def test_rollouts_come_from_the_copy_also_once_training_has_begun(tiny_model: Path, tmp_path: Path) -> None:
    """accelerate leaves the trained network's `forward` with the copy: a step that found it there would decode by that."""
    trainer, _ = trainer_of(tiny_model, tmp_path, plan_of(), QUICK.model_copy(update={"precision": "bfloat16"}))
    trainer.train()
    passes = []
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained.model.register_forward_hook(lambda *_: passes.append("trained"))
    with trainer.generation_network() as network:
        network.model.register_forward_hook(lambda *_: passes.append("copy"))
        assert not network.training
        generate_tokens(network, trainer.processing_class, [[5, 6, 7], [5, 6, 8]], [0, 1], Sampling(max_new_tokens=3))
    assert set(passes) == {"copy"}


def test_the_rollout_copy_keeps_its_rotary_frequencies(tiny_model: Path) -> None:
    """In bfloat16 they would turn far positions by wrong angles: another policy than the one that is trained."""
    network = load_causal_lm(str(tiny_model), torch.float32, "cpu")
    twin = inference_copy(network, torch.bfloat16)
    sync_weights(twin, network, include_frozen=True)
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    for (name, ours), (_, theirs) in zip(twin.named_buffers(), network.named_buffers(), strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_configuration_says_the_precision_whatever_an_earlier_run_left_behind(tiny_model: Path, tmp_path: Path) -> None:
    for precision, expected in (("bfloat16", "bf16"), ("float32", "no"), ("bfloat16", "bf16")):
        config = QUICK.model_copy(update={"precision": precision})
        trainer, _ = trainer_of(tiny_model, tmp_path / expected, plan_of(), config)
        assert trainer.accelerator.mixed_precision == expected
