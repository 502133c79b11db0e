"""Whether verl's own rollout code follows an exported plan, and whether its advantages equal those of permix's trainer.

    python -m bench.verl_rollouts run FOLDER [--scope rollout] [--steps 2]      with verl installed
    python -m bench.verl_rollouts compare FOLDER                                with permix[train]

`run` exports a small training, then does what `verl.trainer.main_ppo` does, but with a scripted server in the place of vLLM and
without training a network: Ray in local mode, the reward workers, the agent loop workers, TransferQueue, the replay buffer and
the advantages. The server's answer depends on the seed of the request: right, wrong, or a text on which the scorer fails. The
figures count the rollouts that had the prompt and the seed of the plan, those without a score, which verl leaves out, and those
whose reward is not the verifier's.

`compare` gives the same rewards to the trainer of `permix train` and compares the advantages. verl divides by the standard
deviation + 1e-6, TRL by it + 1e-4. So the comparison is made with verl's advantage times (sd + 1e-6) / (sd + 1e-4), and also with
the plain one. One JSON line a figure.

Ray needs minutes to start on a busy machine: set RAY_raylet_start_wait_time_s=180.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.figures import show
from permix.config import ExportConfig
from permix.pipelines.engine_export import export_plan
from permix.plan import Plan, read_plan
from permix.tasks import TASKS
from permix.types import PlanRow, Verdict, seed_from

UNREADABLE = "no score can be had"
"""The completion on which the scorer fails."""

GROUP_SIZE = 4


def is_right(completion: str, gold: str) -> bool:
    """Score a completion of the exported task. Raises MemoryError for `UNREADABLE`, as a verifier without memory would."""
    if completion == UNREADABLE:
        raise MemoryError("no room to score this")
    return completion == f"I say {gold}."


def scripted_reply(seed: int, gold: str) -> str:
    """Return the completion for a seed: of five successive seeds, two give a right one, two a wrong one, one gives no score."""
    return (f"I say {gold}.", "No idea.", f"I say {gold}.", "Not today.", UNREADABLE)[seed % 5]


def main() -> None:
    options = parser().parse_args()
    (run if options.action == "run" else compare)(options)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["run", "compare"], help="run verl on an export, or compare its advantages")
    parser.add_argument("folder", type=Path, help="where the export and its rollouts are written")
    parser.add_argument(
        "--scope", choices=["group", "rollout"], default="group", help="whether a group or each rollout has its own persona"
    )
    parser.add_argument("--steps", type=int, default=2, help="steps of the exported training")
    return parser


def write_export(folder: Path, scope: str, steps: int) -> Path:
    """Export a training of `steps` steps of 3 questions × `GROUP_SIZE` rollouts, and return the folder of the export."""
    from tests.tiny import make_folder

    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not (model / "config.json").exists():
        make_folder(model)
    questions = [{"question": f"What is {n} + {n}?", "answer": str(2 * n), "split": "train"} for n in range(1, 10)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    personas = [{"id": name, "text": f"a {name}", "split": "train", "tags": ["role"]} for name in ("sailor", "tutor", "poet")]
    (folder / "personas.jsonl").write_text("".join(json.dumps(persona) + "\n" for persona in personas))
    training = {
        "stage": "train",
        "model": {"name": str(model)},
        "task": {"path": str(folder / "questions.jsonl"), "answer": "bench.verl_rollouts:is_right", "n": 9},
        "personas": {"pool": str(folder / "personas.jsonl"), "split": "train"},
        "plan": {"steps": steps, "questions_per_step": 3, "group_size": GROUP_SIZE, "mix": 0.6, "scope": scope},
        "train": {"max_new_tokens": 32, "max_prompt_tokens": 200},
    }
    (folder / "training.json").write_text(json.dumps(training))
    out = folder / "export"
    export_plan(ExportConfig(plan=folder / "training.json", format="verl", out=out, n_gpus_per_node=1))
    return out


def compose(out: Path) -> Any:
    """Return verl's configuration of the export, changed so that no network is needed: old logprobs are the rollout logprobs."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer")
    OmegaConf.set_struct(config, False)
    exported = OmegaConf.load(out / "config.yaml")
    del exported["defaults"]
    exported.permix.folder = str(out)
    config = OmegaConf.merge(config, exported)
    config.actor_rollout_ref.rollout.agent.num_workers = config.reward.num_workers = 1
    config.data.dataloader_num_workers = 0
    config.algorithm.rollout_correction.bypass_mode = True
    config.transfer_queue.enable = True
    config.transfer_queue.backend.SimpleStorage.num_data_storage_units = 1
    OmegaConf.resolve(config)
    return config


def run(options: argparse.Namespace) -> None:
    """Write the rollouts of verl to FOLDER/rollouts.jsonl, and print their figures."""
    started, started_cpu = time.monotonic(), time.process_time()
    out = write_export(options.folder, options.scope, options.steps)
    plan = read_plan(out / "plan.parquet")
    with open(options.folder / "rollouts.jsonl", "w", encoding="utf-8") as file:
        for rollout in verl_rollouts(out, plan):
            file.write(json.dumps(rollout) + "\n")
    rollouts = read_rollouts(options.folder)
    settings = {"scope": options.scope, "steps": options.steps}
    show("rollouts of the plan", len(rollouts), **settings)
    show("rollouts with the plan's prompt and seed", sum(rollout["as_planned"] for rollout in rollouts), **settings)
    show("rollouts without a score, left out by verl", sum(rollout["reward"] is None for rollout in rollouts), **settings)
    show(
        "rollouts whose reward is not the verifier's",
        sum(rollout["reward"] != rollout["expected"] for rollout in rollouts),
        **settings,
    )
    show(
        "wall seconds",
        time.monotonic() - started,
        **settings,
        cpu_seconds_of_the_driver=round(time.process_time() - started_cpu, 1),
    )


def read_rollouts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]


def expected_reward(row: PlanRow, number: int) -> float | None:
    """Return the reward of the scripted reply to rollout `number` of the row; None if the scorer fails on it."""
    try:
        return float(is_right(scripted_reply(seed_from(row.seed, number), row.gold), row.gold))
    except MemoryError:
        return None


def planned(plan: Plan, step: int) -> Iterator[tuple[PlanRow, int, int]]:
    """Yield the rollouts of a step: the row, the rollout's number in the row, and its number in the group."""
    n_in_group = Counter[int]()
    for row in plan.rows_at(step):
        for number in range(row.rollouts):
            yield row, number, n_in_group[row.group]
            n_in_group[row.group] += 1


def verl_rollouts(out: Path, plan: Plan) -> Iterator[dict[str, Any]]:
    """Run verl on the export, and yield a line for each rollout of the plan with verl's reward and advantage."""
    import ray
    import transfer_queue as tq
    from torchdata.stateful_dataloader import StatefulDataLoader
    from transformers import AutoTokenizer
    from verl.experimental.reward_loop import RewardLoopManager
    from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.dataset.rl_dataset import collate_fn

    config = compose(out)
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    tokenizer.chat_template = config.actor_rollout_ref.model.custom_chat_template
    data = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    loader = StatefulDataLoader(
        dataset=data, batch_size=config.data.train_batch_size, num_workers=0, drop_last=True, collate_fn=collate_fn,
        sampler=create_rl_sampler(config.data, data),
    )  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    environment = {"PYTHONPATH": os.pathsep.join(str(Path(folder).resolve()) for folder in ("src", "."))} | threads
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    tq.init(config.transfer_queue)
    try:
        rewards = RewardLoopManager(config)
        golds = {row.messages[-1]["content"]: row.gold for row in plan.rows}
        agents = AgentLoopManagerTQ.create(
            config=config, llm_client=scripted_client(config, golds), teacher_client=None,
            reward_loop_worker_handles=rewards.reward_loop_worker_handles,
        )  # fmt: skip
        buffer = ReplayBuffer(
            trainer_mode="sync", trainer_config={}, max_off_policy_threshold=8, max_off_policy_strategy="drop", sampler_kwargs={},
            refill_fn=None, train_batch_size=config.data.train_batch_size,
        )  # fmt: skip

        class WithoutNetwork(PPOTrainer):  # type: ignore[misc]
            """verl's trainer, of which only the methods that submit prompts, fetch rollouts and compute advantages are used."""

            def __init__(self) -> None:
                self.config, self.trainer_mode, self.global_steps = config, "sync", 1
                self.train_dataloader, self.train_dataloader_it, self.agent_loop_manager = loader, None, agents

            def on_sample_end(self, *_: Any, **__: Any) -> None: ...

            def on_step_end(self, *_: Any, **__: Any) -> None: ...

        trainer = WithoutNetwork()
        for step in range(plan.steps):
            trainer._add_batch_to_generate()
            batch, _ = buffer.sample(
                global_steps=trainer.global_steps, partition_id="train", batch_size=config.data.train_batch_size
            )
            trainer._compute_old_log_prob(batch, {})
            trainer._compute_advantage(batch, {})
            fields = ["prompts", "rm_scores", "advantages", "extra_info", "extra_fields"]
            fetched = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=fields)
            yield from _rollout_lines(plan, step, batch.keys, fetched, tokenizer)
            tq.kv_clear(keys=batch.keys, partition_id="train")
            trainer.global_steps += 1
    finally:
        tq.close()
        ray.shutdown()


def _rollout_lines(plan: Plan, step: int, keys: Sequence[str], fetched: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Yield the lines of a step, in the order of the plan."""
    index_of: dict[tuple[int, int], int] = {}
    for index, key in enumerate(keys):
        info = getattr(fetched["extra_info"][index], "data", fetched["extra_info"][index])
        index_of[info["group"], int(key.split("_")[1])] = index
    for row, number, in_group in planned(plan, step):
        expected = expected_reward(row, number)
        line = {"step": step, "group": row.group, "rollout": in_group, "expected": expected, "reward": None, "advantage": None}
        if (row.group, in_group) not in index_of:
            yield line | {"as_planned": expected is None}
            continue
        index = index_of[row.group, in_group]
        prompt = tokenizer.apply_chat_template(
            [dict(turn) for turn in row.messages], add_generation_prompt=True, return_dict=False
        )
        fields = getattr(fetched["extra_fields"][index], "data", fetched["extra_fields"][index])
        yield line | {
            "reward": float(fetched["rm_scores"][index].sum()),
            "advantage": float(fetched["advantages"][index][0]),
            "as_planned": fetched["prompts"][index].tolist() == prompt and fields["seed"] == seed_from(row.seed, number),
        }


def scripted_client(config: Any, golds: Mapping[str, str]) -> Any:
    """Return a client in the place of vLLM's; it gets token ids and sampling parameters only."""
    from verl.workers.rollout.llm_server import LLMServerClient
    from verl.workers.rollout.replica import TokenOutput

    class Scripted(LLMServerClient):  # type: ignore[misc]
        async def generate(
            self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
        ) -> TokenOutput:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
            question = tokenizer.decode(prompt_ids).split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]
            reply = scripted_reply(sampling_params["seed"], golds[question])
            ids = tokenizer(f"{reply}<|im_end|>", add_special_tokens=False).input_ids
            fields = {"min_global_steps": 1, "max_global_steps": 1, "seed": sampling_params["seed"]}
            return TokenOutput(token_ids=ids, log_probs=[-0.1] * len(ids), stop_reason="completed", extra_fields=fields)

    return Scripted(config)


def compare(options: argparse.Namespace) -> None:
    """Print the largest difference of verl's advantages from those of permix's trainer, both from verl's rewards."""
    plan, rollouts = read_plan(options.folder / "export" / "plan.parquet"), read_rollouts(options.folder)
    advantages = permix_advantages(options.folder / "model", plan, rollouts, options.folder / "permix-train")
    pairs = [
        (rollout["advantage"] * epsilon_factor(deviation), rollout["advantage"], advantage, n_scored)
        for rollout, advantage, (deviation, n_scored) in zip(rollouts, advantages, group_deviations(rollouts), strict=True)
        if rollout["reward"] is not None
    ]
    compared = [pair for pair in pairs if pair[3] > 1]  # a single score has no standard deviation
    show("rollouts compared", len(compared))
    show("largest difference", max(abs(scaled - advantage) for scaled, _, advantage, _ in compared))
    show("largest difference, epsilons not made equal", max(abs(plain - advantage) for _, plain, advantage, _ in compared))
    show("rollouts that are the only ones of their group with a score", len(pairs) - len(compared))
    unscored = [advantage for rollout, advantage in zip(rollouts, advantages, strict=True) if rollout["reward"] is None]
    show("largest advantage without a score in permix", max(map(abs, unscored), default=0.0), n=len(unscored))


def epsilon_factor(deviation: float) -> float:
    """Return the factor that turns verl's advantage into TRL's: they add 1e-6 and 1e-4 to the group's standard deviation."""
    return (deviation + 1e-6) / (deviation + 1e-4)


def group_deviations(rollouts: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """Return for each rollout the standard deviation and the number of its group's rewards."""
    groups: dict[tuple[int, int], list[float]] = {}
    for rollout in rollouts:
        rewards = groups.setdefault((rollout["step"], rollout["group"]), [])
        if rollout["reward"] is not None:
            rewards.append(rollout["reward"])
    by_group = {
        key: (statistics.stdev(rewards) if len(rewards) > 1 else math.nan, len(rewards)) for key, rewards in groups.items()
    }
    return [by_group[rollout["step"], rollout["group"]] for rollout in rollouts]


class RecordedRewards:
    """Returns the recorded rewards as verdicts, in order."""

    def __init__(self, rewards: Sequence[float | None]) -> None:
        self.rewards = iter(rewards)

    def __call__(self, answer: str, gold: str) -> Verdict:
        reward = next(self.rewards)
        return Verdict(correct=None, error="no score") if reward is None else Verdict(correct=reward == 1.0)


def permix_advantages(model: Path, plan: Plan, rollouts: Sequence[Mapping[str, Any]], out: Path) -> list[float]:
    """Return the advantages that the trainer of `permix train` computes from these rewards, in the order of the rollouts."""
    import torch

    from permix.config import OptimConfig
    from permix.inference.hf import load_causal_lm, load_tokenizer
    from permix.training.grpo_trainer import PlanGRPOTrainer
    from permix.training.trl_setup import grpo_arguments

    class Recorder:
        def log_rollouts(self, step: int, rollouts: Sequence[Any]) -> None: ...

        def log_metrics(self, step: int, metrics: dict[str, Any]) -> None: ...

        def log_plan(self, plan: Plan, blocks: Sequence[dict[str, Any]]) -> None: ...

    class RecordingTrainer(PlanGRPOTrainer):
        advantages: list[float]

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            scored = super()._generate_and_score_completions(inputs)
            self.advantages = [*getattr(self, "advantages", []), *scored["advantages"].tolist()]
            return dict(scored)

    # The task arithmetic gives the recorded rewards, for every completion; the exported task would call its own scorer instead.
    recorded = RecordedRewards([rollout["reward"] for rollout in rollouts])
    task = replace(TASKS["arithmetic"], extract=lambda completion, question: completion, scorer=recorded)
    plan = Plan(tuple(row.model_copy(update={"task": "arithmetic"}) for row in plan.rows), plan.metadata)
    config = OptimConfig(lr=1e-4, max_new_tokens=4, microbatch_tokens=64, precision="float32", save_every=1000)
    trainer = RecordingTrainer(
        plan=plan, recorder=Recorder(), config=config,
        args=grpo_arguments(config, plan, out), model=load_causal_lm(str(model), torch.float32, "cpu").train(),
        processing_class=load_tokenizer(str(model)),
    )  # fmt: skip
    with patch.dict(TASKS, arithmetic=task):
        trainer.train()
    return trainer.advantages


if __name__ == "__main__":
    main()
