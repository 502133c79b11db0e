"""CPU milliseconds a rollout and peak memory of `permix import --verl`, on made-up rollouts of a long training.

    python -m bench.import_verl --steps 100 --questions 128 --group-size 8

The rollouts are written as verl dumps them, one file a step, before the clock starts. One JSON line a figure.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from bench.figures import show
from permix.config import ImportConfig, PersonasConfig, RolloutPlanConfig, TaskConfig
from permix.pipelines.verl_import import import_verl_training
from permix.plan import Plan, compile_plan_from_config, write_plan

WORDS = 120
"""Words of a completion: about 160 tokens."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="steps of the training")
    parser.add_argument("--questions", type=int, default=128, help="questions in a step")
    parser.add_argument("--group-size", type=int, default=8, help="rollouts of a question")
    return parser


def make_plan(steps: int, questions: int, group_size: int) -> Plan:
    """Compile a plan of arithmetic questions, 0.8 of which have a persona."""
    task = TaskConfig(name="arithmetic", levels=("add-2", "sub-2"), split="train", n=max(questions, 4000))
    plan = RolloutPlanConfig(steps=steps, questions_per_step=questions, group_size=group_size, mix=0.8)
    return compile_plan_from_config(task, PersonasConfig(split="train"), plan)


def write_rollouts(plan: Plan, folder: Path) -> int:
    """Write one file a step, as verl dumps it; return the number of rollouts."""
    folder.mkdir()
    rng, n_rollouts = random.Random(0), 0
    for step in range(plan.steps):
        lines = []
        for row in plan.rows_at(step):
            prompt = "".join(f"{turn['role']}\n{turn['content']}\n" for turn in row.messages) + "assistant\n"
            uid = f"{rng.getrandbits(128):032x}"
            for number in range(row.rollouts):
                output = " ".join(f"word{rng.randrange(1000)}" for _ in range(WORDS))
                fields = {"input": prompt, "output": output, "gts": row.gold, "score": float(rng.random() < 0.5)}
                lines.append(fields | {"step": step + 1, "uid": f"{uid}_{number}_0"})
        n_rollouts += len(lines)
        lines.sort(key=lambda line: str(line["uid"]))
        (folder / f"{step + 1}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return n_rollouts


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = make_plan(options.steps, options.questions, options.group_size)
        write_plan(plan, folder / "plan.parquet")
        n_rollouts = write_rollouts(plan, folder / "rollouts")
        config = ImportConfig(verl=folder / "rollouts", plan=folder / "plan.parquet", out=folder / "run")
        started = time.process_time()
        import_verl_training(config, folder / "rollouts")
        seconds = time.process_time() - started
        n_bytes = sum(path.stat().st_size for path in (folder / "rollouts").iterdir())
    show("import_cpu_ms_a_rollout", 1000 * seconds / n_rollouts, n=n_rollouts, cpu_seconds=round(seconds, 1), bytes=n_bytes)
    show("import_peak_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, n=n_rollouts)


if __name__ == "__main__":
    main()
