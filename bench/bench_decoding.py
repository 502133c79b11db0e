"""CPU seconds of a grid of short answers, decoded with waiting prompts in the place of ended rows, and batch by batch.

The model's persona grid of `permix stability`: dev personas × small sums, greedy. Both arms use the same prompts, batch size and
code, and prompts that begin alike together; one of them gives the engine a batch at a time. They take turns by rounds, after a
few answers that are not measured. One JSON line a figure.

    python -m bench.bench_decoding [--model bundled] [--personas 6] [--questions 60] [--batch-size 64] [--rounds 1]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import show
from permix.config import ModelConfig, PersonasConfig, TaskConfig
from permix.evals.grid import PromptFormat, build_grid
from permix.inference.base import balanced_batches
from permix.inference.hardware import set_threads
from permix.personas.pool import select_personas
from permix.tasks import load_questions
from permix.types import Completion, Request, Sampling

LEVELS = ("add-1", "sub-1", "mul-1", "add-1x3", "add-2")


def grid_requests(personas: int, questions: int) -> list[Request]:
    task, asked = load_questions(
        TaskConfig(
            name="arithmetic", split="dev", levels=LEVELS, n=questions, prompt_template="{question} Answer with a number only."
        )
    )
    people = select_personas(PersonasConfig(split="dev", n=personas)).personas
    wording = PromptFormat(task.prompt, "you_are", empty_system_prompt=False)
    return [Request(cell.messages, cell.seed) for cell in build_grid(people, asked, wording, samples=1, seed=0)]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    options.add_argument("--model", default="bundled", help="bundled, or a folder or hub id")
    options.add_argument("--personas", type=int, default=6)
    options.add_argument("--questions", type=int, default=60)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--new-tokens", type=int, default=64, help="longest completion")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--threads", type=int, default=1)
    return options


def main() -> None:
    given = parser().parse_args()
    set_threads(given.threads)
    from permix.inference.hf import HFModel
    from permix.inference.shared_prefix import supports_shared_prefix

    model = HFModel(ModelConfig.model_validate({"name": given.model, "batch_size": given.batch_size}))
    sampling = Sampling(max_new_tokens=given.new_tokens)
    supports_shared_prefix(model.network)  # the trial, which is made once
    requests = grid_requests(given.personas, given.questions)
    texts = [model.tokenizer.apply_chat_template([dict(turn) for turn in one.messages], tokenize=False) for one in requests]
    in_order = sorted(range(len(requests)), key=texts.__getitem__)
    list(model.generate(requests[:8], sampling))
    spent = {"batches": 0.0, "continuous": 0.0}
    found: dict[str, dict[int, Completion]] = {name: {} for name in spent}
    for round_number in range(given.rounds):
        for name in spent if round_number % 2 == 0 else reversed(spent):
            parts = [in_order] if name == "continuous" else balanced_batches(in_order, given.batch_size)
            started = time.process_time()
            for part in parts:
                for place, result in model.generate([requests[index] for index in part], sampling):
                    assert isinstance(result, Completion)
                    found[name][part[place]] = result
            spent[name] += time.process_time() - started
    about = {
        "model": given.model, "cells": len(requests), "batch_size": given.batch_size, "new_tokens": given.new_tokens,
        "rounds": given.rounds, "threads": given.threads,
    }  # fmt: skip
    pairs = [(found["batches"][index], found["continuous"][index]) for index in in_order]
    tokens = [one.completion_tokens or 0 for _, one in pairs]
    for name, seconds in spent.items():
        show(f"decoding_{name}_cells_per_cpu_s", given.rounds * len(requests) / seconds, cpu_s=round(seconds, 1), **about)
    show("decoding_ratio", spent["batches"] / spent["continuous"], mean_tokens=round(sum(tokens) / len(tokens), 1), **about)
    show("decoding_equal_answers", sum(one == two for one, two in pairs) / len(pairs), **about)


if __name__ == "__main__":
    main()
