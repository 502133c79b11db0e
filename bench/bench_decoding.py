"""CPU seconds of a grid of short answers, decoded with waiting prompts in the place of finished rows, and batch by batch.

    python -m bench.bench_decoding [--model bundled] [--personas 6] [--questions 60] [--batch-size 64] [--rounds 1]

The grid is that of `permix stability`: dev personas × small sums, answered greedily. Both arms use the same prompts, batch size
and code, and both put prompts with equal beginnings next to each other. The arm "continuous" gives all requests to the engine at
once, the arm "batches" one batch at a time. They take turns by rounds, after a few answers that are not measured.
`decoding_ratio` is the seconds of "batches" over those of "continuous". One JSON line a figure.
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


def grid_requests(n_personas: int, n_questions: int) -> list[Request]:
    """Return the requests of a grid of dev personas × arithmetic questions."""
    task, questions = load_questions(
        TaskConfig(
            name="arithmetic", split="dev", levels=LEVELS, n=n_questions, prompt_template="{question} Answer with a number only."
        )
    )
    personas = select_personas(PersonasConfig(split="dev", n=n_personas)).personas
    prompt_format = PromptFormat(task.prompt, "you_are", empty_system_prompt=False)
    return [Request(cell.messages, cell.seed) for cell in build_grid(personas, questions, prompt_format, samples=1, seed=0)]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bundled", help="bundled, or a folder or hub id")
    parser.add_argument("--personas", type=int, default=6, help="dev personas of the grid")
    parser.add_argument("--questions", type=int, default=60, help="questions of the grid")
    parser.add_argument("--batch-size", type=int, default=64, help="rows that are decoded together")
    parser.add_argument("--new-tokens", type=int, default=64, help="most tokens of a completion")
    parser.add_argument("--rounds", type=int, default=1, help="how often each arm answers the grid")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def main() -> None:
    options = parser().parse_args()
    set_threads(options.threads)
    from permix.inference.hf import HFModel
    from permix.inference.shared_prefix import supports_shared_prefix

    model = HFModel(ModelConfig.model_validate({"name": options.model, "batch_size": options.batch_size}))
    sampling = Sampling(max_new_tokens=options.new_tokens)
    supports_shared_prefix(model.network)  # permix tries this once per model; it is not part of the measurement
    requests = grid_requests(options.personas, options.questions)
    texts = [
        model.tokenizer.apply_chat_template([dict(turn) for turn in request.messages], tokenize=False) for request in requests
    ]
    in_order = sorted(range(len(requests)), key=texts.__getitem__)
    list(model.generate(requests[:8], sampling))
    cpu_s = {"batches": 0.0, "continuous": 0.0}
    completions: dict[str, dict[int, Completion]] = {name: {} for name in cpu_s}
    for round_number in range(options.rounds):
        for name in cpu_s if round_number % 2 == 0 else reversed(cpu_s):
            parts = [in_order] if name == "continuous" else balanced_batches(in_order, options.batch_size)
            started = time.process_time()
            for part in parts:
                for index, result in model.generate([requests[number] for number in part], sampling):
                    assert isinstance(result, Completion)
                    completions[name][part[index]] = result
            cpu_s[name] += time.process_time() - started
    settings = {
        "model": options.model, "cells": len(requests), "batch_size": options.batch_size, "new_tokens": options.new_tokens,
        "rounds": options.rounds, "threads": options.threads,
    }  # fmt: skip
    pairs = [(completions["batches"][number], completions["continuous"][number]) for number in in_order]
    tokens = [continuous.completion_tokens or 0 for _, continuous in pairs]
    for name, seconds in cpu_s.items():
        show(f"decoding_{name}_cells_per_cpu_s", options.rounds * len(requests) / seconds, cpu_s=round(seconds, 1), **settings)
    show("decoding_ratio", cpu_s["batches"] / cpu_s["continuous"], mean_tokens=round(sum(tokens) / len(tokens), 1), **settings)
    show("decoding_equal_answers", sum(batched == continuous for batched, continuous in pairs) / len(pairs), **settings)


if __name__ == "__main__":
    main()
