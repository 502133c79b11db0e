"""A plan as tinker-cookbook's data set: its own rollout code, with a scripted policy in place of the service."""

import asyncio
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from permix.errors import ConfigError
from permix.plan import Plan, write_plan
from permix.types import Message, PlanRow

pytest.importorskip("tinker_cookbook", reason="tinker-cookbook is not installed: make test-engines")

from tinker_cookbook import renderers
from tinker_cookbook.completers import TokenCompleter, TokensWithLogprobs
from tinker_cookbook.rl.data_processing import compute_advantages
from tinker_cookbook.rl.rollout_strategy import MinViableGroup, RetryOnFailure
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.tokenizer_utils import get_tokenizer

from permix.interop.tinker_dataset import PlanDataset, PlanDatasetBuilder, UnverifiedAnswerError


def row(step: int, group: int, *messages: Message, **fields: Any) -> PlanRow:
    values: dict[str, Any] = {
        "step": step, "group": group, "rollouts": 2, "task": "arithmetic", "question_id": "q", "question_hash": "q",
        "persona_id": None, "seed": 0, "messages": messages, "gold": "5",
    }  # fmt: skip
    return PlanRow.model_validate(values | fields)


SYSTEM = Message(role="system", content="You are a sailor.")
QUESTION = Message(role="user", content="What is 2 + 3?")
SAILOR: dict[str, Any] = {"persona_id": "sailor", "persona_tags": ("character", "sea")}

ROWS = (
    row(0, 0, SYSTEM, QUESTION, **SAILOR),
    row(0, 1, QUESTION),
    row(0, 2, QUESTION, spare=True),
    row(1, 0, QUESTION),
)


class ScriptedPolicy(TokenCompleter):  # type: ignore[misc]
    """Answers with the texts of a list, one after the other, and remembers the prompts."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.tokenizer, self.texts, self.prompts = tokenizer, iter(texts), list[str]()

    async def __call__(self, model_input: Any, stop: Any, *, max_tokens: int | None = None) -> TokensWithLogprobs:
        self.prompts.append(self.tokenizer.decode(model_input.to_ints()))
        tokens = self.tokenizer.encode(next(self.texts), add_special_tokens=False)
        return TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-1.0] * len(tokens))


@pytest.fixture
def renderer(tiny_model: Path) -> Any:
    return renderers.get_renderer("role_colon", get_tokenizer(str(tiny_model)))


def rollouts(builder: Any, renderer: Any, *texts: str, strategy: Any = None) -> tuple[Any, list[str]]:
    """The group's trajectories by tinker-cookbook's own code, and the prompts."""
    policy = ScriptedPolicy(renderer.tokenizer, list(texts))
    return asyncio.run(do_group_rollout(builder, policy, strategy=strategy)), policy.prompts


def test_a_batch_is_a_step_and_its_groups_are_in_the_plans_order(renderer: Any) -> None:
    dataset = PlanDataset(Plan(ROWS, {}), renderer)
    assert len(dataset) == 2
    assert [builder.rows for builder in dataset.get_batch(0)] == [(ROWS[0],), (ROWS[1],)]  # without the spare group
    assert [builder.rows for builder in dataset.get_batch(1)] == [(ROWS[3],)]
    for step in (-1, 2):
        with pytest.raises(IndexError, match=f"step {step}: the plan has the steps 0 to 1"):
            dataset.get_batch(step)


def test_the_prompt_has_the_persona_as_system_message_and_the_reward_is_1_or_0(renderer: Any) -> None:
    builder = PlanDataset(Plan(ROWS, {}), renderer).get_batch(0)[0]
    group, prompts = rollouts(builder, renderer, "\\boxed{5}", "\\boxed{6}")
    assert prompts == ["System: You are a sailor.\n\nUser: What is 2 + 3?\n\nAssistant:"] * 2
    assert group.get_total_rewards() == [1.0, 0.0]
    assert [one.transitions[-1].metrics for one in group.trajectories_G] == [
        {"right/character": x, "right/sea": x} for x in (1.0, 0.0)
    ]
    assert [one.tolist() for one in compute_advantages([group])] == [[0.5, -0.5]]  # reward − mean, divided by nothing
    assert builder.logging_tags() == ["arithmetic", "character", "sea"]


def test_without_a_persona_no_system_message_is_sent(renderer: Any) -> None:
    group, prompts = rollouts(PlanDataset(Plan(ROWS, {}), renderer).get_batch(1)[0], renderer, "I refuse.", "")
    assert prompts == ["User: What is 2 + 3?\n\nAssistant:"] * 2
    assert group.get_total_rewards() == [0.0, 0.0]
    assert group.trajectories_G[0].transitions[-1].metrics == {"right/none": 0.0}


def test_rollouts_of_a_group_may_have_personas_of_their_own(renderer: Any) -> None:
    rows = (row(0, 0, SYSTEM, QUESTION, rollouts=1, **SAILOR), row(0, 0, QUESTION, rollouts=1))
    (builder,) = PlanDataset(Plan(rows, {}), renderer).get_batch(0)
    group, prompts = rollouts(builder, renderer, "\\boxed{5}", "\\boxed{5}")
    assert [prompt.startswith("System: You are a sailor.") for prompt in prompts] == [True, False]
    assert [list(one.transitions[-1].metrics) for one in group.trajectories_G] == [
        ["right/character", "right/sea"],
        ["right/none"],
    ]
    assert builder.logging_tags() == ["arithmetic"]  # the rows share no tag


def test_a_persona_without_tags_is_not_no_persona(renderer: Any) -> None:
    (builder,) = PlanDataset(Plan((row(0, 0, SYSTEM, QUESTION, persona_id="poet"),), {}), renderer).get_batch(0)
    group, _ = rollouts(builder, renderer, "\\boxed{5}", "\\boxed{5}")
    assert group.trajectories_G[0].transitions[-1].metrics == {"right/untagged": 1.0}
    assert builder.logging_tags() == ["arithmetic", "untagged"]


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A scorer that fails for one kind of answer."""
    (tmp_path / "picky_tinker.py").write_text(
        "def score(answer, gold):\n    if '?' in answer:\n        raise ValueError('a question')\n    return gold in answer\n"
    )
    monkeypatch.chdir(tmp_path)
    return "own-picky_tinker:score"


def test_an_answer_that_cannot_be_verified_is_never_a_wrong_one(renderer: Any, picky: str) -> None:
    (builder,) = PlanDataset(Plan((row(0, 0, QUESTION, task=picky),), {}), renderer).get_batch(0)
    with pytest.raises(UnverifiedAnswerError, match=r"step 0, group 0: the answer could not be verified: .*a question"):
        rollouts(builder, renderer, "5", "why?")
    group, prompts = rollouts(builder, renderer, "why?", "5", "6", strategy=RetryOnFailure(max_retries=1))
    assert sorted(group.get_total_rewards()) == [0.0, 1.0]  # the one that failed was sampled again
    assert (len(prompts), [one.error_type for one in group.rollout_errors]) == (3, ["UnverifiedAnswerError"])


@pytest.mark.parametrize("strategy", [RetryOnFailure(max_retries=2), MinViableGroup(min_successful=4, max_retries=2)])
def test_a_rollout_that_is_sampled_again_keeps_its_persona(renderer: Any, picky: str, strategy: Any) -> None:
    one = {"task": picky, "rollouts": 1}
    rows = (
        row(0, 0, SYSTEM, QUESTION, **SAILOR, **one),
        row(
            0, 0, Message(role="system", content="You are a nurse."), QUESTION, persona_id="nurse", persona_tags=("nurse",), **one
        ),
        row(0, 0, Message(role="system", content="You are a poet."), QUESTION, persona_id="poet", persona_tags=("poet",), **one),
        row(0, 0, QUESTION, **one),
    )
    (builder,) = PlanDataset(Plan(rows, {}), renderer).get_batch(0)
    group, prompts = rollouts(builder, renderer, "5", "why?", "how?", "5", "5", "5", strategy=strategy)
    metrics = [name for trajectory in group.trajectories_G for name in trajectory.transitions[-1].metrics]
    assert sorted(metrics) == ["right/character", "right/none", "right/nurse", "right/poet", "right/sea"]
    assert len(prompts) == 6


def test_groups_travel_to_other_processes(renderer: Any) -> None:
    builder = PlanDataset(Plan(ROWS, {}), renderer).get_batch(0)[0]
    again = pickle.loads(pickle.dumps(builder))
    assert again.rows == builder.rows
    assert rollouts(again, renderer, "\\boxed{5}", "\\boxed{5}")[0].get_total_rewards() == [1.0, 1.0]


def test_the_builder_reads_plans_from_files(tmp_path: Path, tiny_model: Path) -> None:
    plan = Plan(ROWS, {})
    write_plan(plan, tmp_path / "plan.parquet")
    write_plan(Plan(ROWS[3:], {}), tmp_path / "dev.parquet")
    fields = {"plan_file": str(tmp_path / "plan.parquet"), "model_name": str(tiny_model), "renderer_name": "role_colon"}
    dataset, dev = asyncio.run(PlanDatasetBuilder(**fields)())
    assert (dataset.plan.rows, dev) == (ROWS, None)
    _, dev = asyncio.run(PlanDatasetBuilder(**fields, dev_plan_file=str(tmp_path / "dev.parquet"))())
    assert dev is not None
    assert [builder.rows for builder in dev.get_batch(1)] == [(ROWS[3],)]


def test_a_strangers_plan_imports_nothing(tmp_path: Path, tiny_model: Path, picky: str) -> None:
    write_plan(Plan((row(0, 0, QUESTION, task=picky),), {}), tmp_path / "plan.parquet")
    builder = PlanDatasetBuilder(plan_file=str(tmp_path / "plan.parquet"), model_name=str(tiny_model), renderer_name="role_colon")
    with pytest.raises(ConfigError, match=re.escape(f'give own_task = "{picky}" too, if you trust')):
        asyncio.run(builder())


def test_tasks_that_cannot_be_scored_here_are_refused(renderer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from permix.tasks import TASKS, code

    def refuse() -> None:
        raise ConfigError("no sandbox")

    monkeypatch.setitem(TASKS, "code", code.CODE.__class__(**{**vars(code.CODE), "check_environment": refuse}))
    with pytest.raises(ConfigError, match="no sandbox"):
        PlanDataset(Plan((row(0, 0, QUESTION, task="code"),), {}), renderer)
