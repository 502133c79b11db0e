"""Tokens generated and trained per CPU second, on the quickstart's model and shapes. One JSON line a figure.

CPU seconds of the whole process, not wall time: machines are shared. Threads are pinned; the model is loaded before the clock
starts.
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
        stable, _, trained = quickstart_configs(QuickstartConfig(out=Path(scratch), threads=len(os.sched_getaffinity(0))))
        persona_mixed = next(one for one in trained if one.label != RLVR_LABEL)
        short = persona_mixed.model_copy(update={"plan": persona_mixed.plan.model_copy(update={"steps": STEPS})})
        model = load_model(stable[0].model, stable[0].threads)
        assert isinstance(model, HFModel)
        rows = compile_plan_from_config(short.task, short.personas, short.plan).rows
        requests = [Request(row.messages, row.seed + number) for row in rows[:8] for number in range(row.rollouts)]
        for name, temperature in (("greedy", 0.0), ("sampled", short.train.temperature)):
            sampling = stable[0].sampling.model_copy(update={"temperature": temperature})
            started = time.process_time()
            results = [answer.result for answer in model.generate(requests, sampling)]
            spent = time.process_time() - started
            tokens = sum(one.completion_tokens or 0 for one in results if isinstance(one, Completion))
            show(f"generated_tokens_per_cpu_second_{name}", tokens / spent, tokens=tokens, cpu_seconds=round(spent, 2))
        run_training(short)
        for part in ("generation", "training"):
            lines = read_training_log(short.out / "log.jsonl")
            spent = sum(line["cpu_seconds"][part] for line in lines)
            tokens = lines[-1]["tokens"] if part == "generation" else sum(line["trained_tokens"] for line in lines)
            figure = "rollout_tokens_per_cpu_second" if part == "generation" else "trained_tokens_per_cpu_second"
            show(figure, tokens / spent, tokens=tokens, cpu_seconds=round(spent, 2), steps=STEPS)


def show(figure: str, value: float, **about: object) -> None:
    print(json.dumps({"figure": figure, "value": round(value, 2), **about}), flush=True)


if __name__ == "__main__":
    main()
