"""Tokens that are generated and trained per CPU second, with the quickstart's model and sizes. One JSON line a figure.

    python bench/bench_quickstart.py

CPU seconds are those of the whole process. The number of threads is that of the available cores, and the model is loaded before
the clock starts. Figures are compared with those of earlier revisions.
"""

import json
import os
import tempfile
import time
from pathlib import Path

from permix.config import QuickstartConfig
from permix.inference import load_model
from permix.inference.hf import HFModel
from permix.pipelines.quickstart import RLVR_LABEL, quickstart_configs
from permix.pipelines.train import run_training
from permix.plan import compile_plan_from_config
from permix.training.run_log import read_training_log
from permix.types import Completion, Request

STEPS = 2


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        stability, _, trainings = quickstart_configs(QuickstartConfig(out=Path(scratch), threads=len(os.sched_getaffinity(0))))
        permix_training = next(training for training in trainings if training.label != RLVR_LABEL)
        short_training = permix_training.model_copy(update={"plan": permix_training.plan.model_copy(update={"steps": STEPS})})
        model = load_model(stability[0].model, stability[0].threads)
        assert isinstance(model, HFModel)
        rows = compile_plan_from_config(short_training.task, short_training.personas, short_training.plan).rows
        requests = [Request(row.messages, row.seed + number) for row in rows[:8] for number in range(row.rollouts)]
        for name, temperature in (("greedy", 0.0), ("sampled", short_training.train.temperature)):
            sampling = stability[0].sampling.model_copy(update={"temperature": temperature})
            started = time.process_time()
            results = [answer.result for answer in model.generate(requests, sampling)]
            cpu_s = time.process_time() - started
            tokens = sum(result.completion_tokens or 0 for result in results if isinstance(result, Completion))
            show(f"generated_tokens_per_cpu_second_{name}", tokens / cpu_s, tokens=tokens, cpu_seconds=round(cpu_s, 2))
        run_training(short_training)
        for part in ("generation", "training"):
            lines = read_training_log(short_training.out / "log.jsonl")
            cpu_s = sum(line["cpu_seconds"][part] for line in lines)
            tokens = lines[-1]["tokens"] if part == "generation" else sum(line["trained_tokens"] for line in lines)
            figure = "rollout_tokens_per_cpu_second" if part == "generation" else "trained_tokens_per_cpu_second"
            show(figure, tokens / cpu_s, tokens=tokens, cpu_seconds=round(cpu_s, 2), steps=STEPS)


def show(figure: str, value: float, **settings: object) -> None:
    """Print a figure to two decimals, with what belongs to it."""
    print(json.dumps({"figure": figure, "value": round(value, 2), **settings}), flush=True)


if __name__ == "__main__":
    main()
