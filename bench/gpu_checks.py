"""The checks that `bench.gpu` runs, in order of value, with their bounds. One check alone: `python -m bench.gpu_checks NAME ...`.

A check is a command in a process of its own. It prints one JSON line a figure (`bench.figures`). Its exit status is 0 if it could
measure, `NOT_POSSIBLE` if the machine lacks something that it needs, and another one if it failed; the last line on stderr is
then the reason. `bench.gpu` compares the figures with the bounds that are defined here.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bench.figures import show

NOT_POSSIBLE = 77
"""The exit status of a check that is not possible on this machine; its reason is the last line on stderr."""

NO_BOUNDS: Mapping[str, float] = MappingProxyType({})


class Check(NamedTuple):
    """One check. `number` is its number in docs/gpu.md.

    `words` are the arguments of `python -m`, in which {model} and {data} are replaced. `--dry`, which runs the checks on CPUs
    with a tiny model, adds `dry_words`. `seconds` is the estimated time, used until times have been measured. `figures` are those
    that the table shows; a check may print more. `at_most` and `at_least` are the bounds of figures; a bounded figure must be
    printed.
    """

    number: int
    name: str
    what: str
    words: tuple[str, ...]
    dry_words: tuple[str, ...]
    seconds: float
    figures: tuple[str, ...]
    at_most: Mapping[str, float] = NO_BOUNDS
    at_least: Mapping[str, float] = NO_BOUNDS


STEP_FIGURES = (
    *("step_ratio_to_the_better", "training_ratio", "generation_ratio_per_token", "floor_share_of_training"),
    *("floor_share_of_generation", "peak_memory_gib_trl", "peak_memory_gib_ours", "logp_difference_float32"),
)
TRAIN_FIGURES = ("steps", "seconds_per_step", "reward_first", "reward_last", "peak_memory_gib")
ALL_FINITE = {"not_finite": 0.0}
DRY_STEP = ("--groups", "2", "--group-size", "2", "--new-tokens", "4", "--pairs", "1", "--micro-batch", "4")
DRY_TRAIN = (
    "--steps",
    "1",
    "--flags=--train.precision=float32 --train.max-new-tokens=8 --plan.questions-per-step=2 --plan.group-size=2",
)
DRY_SUPERVISED = ("--steps", "1", "--flags=--train.precision=float32 --train.max-new-tokens=16 --plan.questions-per-step=2")
DRY_TEACHER = ("--steps", "1", "--flags=--train.precision=float32 --train.max-new-tokens=16 --plan.questions-per-step=8")
DRY_CELLS = ("--cells", "4")


def _steps_check(number: int, name: str, seconds: float, *flags: str, dry: tuple[str, ...] = DRY_TRAIN) -> Check:
    words = ("bench.gpu_checks", "train", "--config", name, "--steps", "5", *flags)
    return Check(number, f"steps-{name}", f"5 steps of configs/{name}.toml", words, dry, seconds, TRAIN_FIGURES, ALL_FINITE)


def _train_check(number: int, name: str, what: str, seconds: float, flags: str, **bounds: Mapping[str, float]) -> Check:
    words = ("bench.gpu_checks", "train", "--config", "arithmetic-permix", "--steps", "5", "--more-flags=" + flags)
    return Check(
        number, name, what, words, DRY_TRAIN, seconds, (*TRAIN_FIGURES, *bounds.get("at_most", {})),
        ALL_FINITE | dict(bounds.get("at_most", {})), bounds.get("at_least", NO_BOUNDS),
    )  # fmt: skip


def _answers_check(number: int, name: str, what: str, seconds: float, *flags: str, **bounds: Mapping[str, float]) -> Check:
    words = ("bench.gpu_checks", "answers", *flags)
    figures = ("equal_answers", "parted_gap", "accuracy", "accuracy_cpu", "cells_per_second")
    return Check(number, name, what, words, DRY_CELLS, seconds, figures, **bounds)


CHECKS: tuple[Check, ...] = (
    *(
        Check(
            number, f"step-{tokens}", f"a training step against TRL's and its flops floor, prompts of {tokens} tokens",
            ("bench.train_step", "--model", "{model}", "--prompt-tokens", f"{tokens}"), DRY_STEP, seconds, STEP_FIGURES,
            at_most={"logp_difference_float32": 1e-4},
        )
        for number, tokens, seconds in ((1, 60, 110), (2, 300, 120))
    ),
    _steps_check(3, "arithmetic-permix", 45),
    _steps_check(4, "gsm8k-permix-gpu", 70, "--data", "{data}/gsm8k"),
    _steps_check(5, "math-permix-lora-gpu", 70, "--data", "{data}/math"),
    _steps_check(6, "arithmetic-rlvr", 35),
    _steps_check(7, "arithmetic-sft", 25, dry=DRY_SUPERVISED),
    _steps_check(8, "arithmetic-sft-personas", 25, dry=DRY_SUPERVISED),
    _steps_check(9, "arithmetic-seqkd", 40, dry=DRY_TEACHER),
    _answers_check(
        10, "stability-float32", "stability in float32 against the CPU's answers", 45, "--dtype", "float32",
        at_most={"parted_gap": 1e-2}, at_least={"equal_answers": 0.95},
    ),
    _answers_check(
        11, "stability-bfloat16", "stability in bfloat16 against the CPU's answers", 40, "--dtype", "bfloat16",
        at_most={"accuracy_outside_cpu_interval": 0.0},
    ),
    Check(
        12, "grid", "the grid against transformers' own generation", ("bench.gpu_checks", "grid"), DRY_CELLS, 60,
        ("wall_ratio", "wall_ratio_per_token", "equal_answers", "cells_per_second_ours", "cells_per_second_transformers"),
        at_least={"equal_answers": 0.9},
    ),
    _answers_check(
        13, "vllm-greedy", "vLLM in process: stability in bfloat16 against the CPU's answers", 120, "--dtype", "bfloat16",
        "--backend", "vllm", at_most={"accuracy_outside_cpu_interval": 0.0},
    ),
    _answers_check(
        14, "vllm-float32", "vLLM in process: stability in float32 against the CPU's answers", 120, "--dtype", "float32",
        "--backend", "vllm", at_most={"parted_gap": 1e-2}, at_least={"equal_answers": 0.95},
    ),
    Check(
        15, "vllm-sampled", "vLLM in process: seeds, top-p, a closed iterator, JSON schemas", ("bench.gpu_checks", "vllm"),
        DRY_CELLS, 120, ("equal_answers", "answers_of_asked", "schema_replies_valid"),
        at_least={"answers_of_asked": 1.0, "schema_replies_valid": 1.0, "equal_answers": 0.9},
    ),
    _answers_check(
        16, "stability-batch7", "as 10 in batches of 7", 60, "--dtype", "float32", "--flags=--model.batch-size=7",
        at_most={"parted_gap": 1e-2}, at_least={"equal_answers": 0.95},
    ),
    Check(
        17, "fidelity-top-p", "seeded sampling with top-p", ("bench.gpu_checks", "fidelity"), DRY_CELLS, 45,
        ("answers_of_asked", "cells_per_second"), at_least={"answers_of_asked": 1.0},
    ),
    Check(
        18, "resume", "5 steps, interrupted after step 2 and started again", ("bench.gpu_checks", "resume", "--steps", "5"),
        ("--steps", "2", "--after", "1", *DRY_TRAIN[2:]), 80, ("steps", "interrupted_after"), at_most={"steps_missing": 0.0},
    ),
    _train_check(19, "beta", "a KL term", 50, "--train.beta=0.04", at_most={"kl_of_first_step": 1e-3}),
    _train_check(20, "lora", "LoRA; the saved model answers without peft", 50, "--train.lora-rank=8"),
    _train_check(21, "dev-eval", "dev evaluations, of which the best is kept", 60, "--dev-eval.every=2 --dev-eval.select=best"),
    _train_check(
        22, "vllm-train", "rollouts by TRL's vLLM", 120, "--train.use-vllm", at_most={"rollout_logprob_gap": 0.05},
    ),
)  # fmt: skip
"""All checks in order of value, as in docs/gpu.md."""


def main() -> None:
    options = parser().parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # without a network every look-up at the hub would wait for a timeout
    BODIES[options.body](options)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Runs one check of bench.gpu.")
    parser.add_argument("body", choices=list(BODIES), help="the check, or a part of the set-up")
    parser.add_argument("--model", default="bundled", help="bundled, or a model folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder of this check")
    parser.add_argument("--config", default="arithmetic-permix", help="a file of configs/, without .toml")
    parser.add_argument(
        "--data", type=Path, help="the data set of that file; arithmetic replaces it if the folder does not exist"
    )
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps")
    parser.add_argument("--after", type=int, default=2, help="the step after which a training is interrupted")
    parser.add_argument("--answers", type=Path, help="the file of the CPU's answers")
    parser.add_argument("--cells", type=int, help="the number of cells, for a small run")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="type of the weights")
    parser.add_argument("--backend", default="transformers", help="backend of the model")
    parser.add_argument("--flags", default="", help="more options of the permix command, separated by blanks")
    parser.add_argument("--more-flags", default="", help="the same; both are added")
    return parser


def not_possible(reason: str) -> SystemExit:
    """Print the reason and return the exception that ends the check with `NOT_POSSIBLE`."""
    print(reason, file=sys.stderr)
    return SystemExit(NOT_POSSIBLE)


ROOT = Path(__file__).resolve().parents[1]


def run_permix(words: Sequence[str]) -> None:
    """Run a permix command in this process, with its output on stderr: stdout is for figures. Raises SystemExit if it fails."""
    from permix import cli

    with contextlib.redirect_stdout(sys.stderr):
        status = cli.run_cli(list(words))
    if status:
        raise SystemExit(status)  # permix has written the reason as the last line on stderr


# Training


def train_words(options: argparse.Namespace) -> list[str]:
    """Return the arguments of `permix train`. They replace the configuration's model, and its task if the data are missing."""
    words = [
        "train",
        str(ROOT / "configs" / f"{options.config}.toml"),
        "--out",
        str(options.out / "run"),
        "--model.name",
        options.model,
    ]
    words += ["--plan.steps", str(options.steps)]
    if options.data is not None and options.data.exists():
        words += ["--task.path", str(options.data)]
    elif not options.config.startswith("arithmetic"):
        words += ["--task.name", "arithmetic", "--task.n", "1000", "--task.levels", "add-1", "sub-1", "mul-1", "add-1x3", "add-2"]
    return [*words, *options.flags.split(), *options.more_flags.split()]


def train(options: argparse.Namespace) -> None:
    """Train some steps of a configuration and print figures of its log. Raises SystemExit if the log lacks a step."""
    words = train_words(options)
    if "--train.use-vllm" in words:
        require_vllm()
    run_permix(words)
    show_training(options)
    if "--train.lora-rank=8" in words:
        show_answer(str(options.out / "run" / "model"))


def show_training(options: argparse.Namespace) -> None:
    """Print the figures of a training's log. Raises SystemExit if the log lacks a step."""
    log = read_log(options.out / "run" / "log.jsonl")
    task = "its own" if options.data and options.data.exists() else "arithmetic"
    show("steps", len(log), config=options.config, task=task)
    values = [line[name] for line in log for name in ("loss", "grad_norm", "kl") if line.get(name) is not None]
    show("not_finite", sum(not math.isfinite(value) for value in values), of=len(values))
    seconds = [sum(line["seconds"].values()) for line in log if line.get("seconds")]
    if seconds:
        show("seconds_per_step", statistics.median(seconds[1:] or seconds), first=round(seconds[0], 2), n=len(seconds))
    rewards = [line["reward"] for line in log if line.get("reward") is not None]
    if rewards:
        show("reward_first", rewards[0])
        show("reward_last", rewards[-1])
    if log and log[0].get("kl") is not None:
        show("kl_of_first_step", abs(log[0]["kl"]))
    gaps = [line["rollout_logprob_gap"] for line in log if line.get("rollout_logprob_gap") is not None]
    if gaps:
        show("rollout_logprob_gap", max(gaps))
    show("peak_memory_gib", peak_bytes() / 2**30)
    if len(log) != options.steps:
        raise SystemExit(f"log.jsonl has {len(log)} of {options.steps} steps")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a training log; none if there is no log yet. A line that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def show_answer(folder: str) -> None:
    """Let the model in `folder` answer one question, and print the number of its tokens. Raises SystemExit if it fails."""
    from permix.inference import load_model
    from permix.types import Completion, Message, Request, Sampling

    request = Request((Message(role="user", content="What is 2 + 3?"),), 0)
    (answer,) = load_model(folder).generate([request], Sampling(max_new_tokens=16))
    if not isinstance(answer.result, Completion):
        raise SystemExit(f"{folder}: {answer.result}")
    show("answer_tokens", answer.result.completion_tokens or 0)


def resume(options: argparse.Namespace) -> None:
    """Interrupt a training by SIGINT after step `--after`, start it again, and check that the log has each step once."""
    words, log = train_words(options), options.out / "run" / "log.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "permix", *words], stdout=sys.stderr, cwd=ROOT)
    while process.poll() is None and len(read_log(log)) < options.after:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status = process.wait()
    logged = len(read_log(log))
    if status not in (0, 130):
        raise SystemExit(f"the interrupted training ended with {status}")
    show("interrupted_after", logged, status=status)
    run_permix(words)
    steps = [line["step"] for line in read_log(log)]
    show("steps", len(steps))
    show("steps_missing", sum(steps.count(step) != 1 for step in range(min(steps), min(steps) + options.steps)))


# Answers


def stability_words(options: argparse.Namespace, dtype: str) -> list[str]:
    """Return the arguments of `permix stability`; with --cells, of a small run."""
    words = ["stability", str(ROOT / "configs" / "stability-arithmetic.toml"), "--out", str(options.out / "run")]
    words += ["--model.name", options.model, "--model.dtype", dtype, "--model.backend", options.backend]
    if options.cells is not None:
        words += f"--task.n {max(1, options.cells // 2)} --personas.n 1 --resamples 100 --sampling.max-new-tokens 16".split()
    return [*words, *options.flags.split()]


def prepare(options: argparse.Namespace) -> None:
    """Write the CPU's answers in float32 to `--answers`: texts, accuracy with its interval, and the hash of the weights."""
    from permix.evals.stability import measure_stability
    from permix.inference.hf import resolve_model_source
    from permix.storage.files import write_json

    weights = weights_hash(Path(resolve_model_source(options.model)))
    run_permix(stability_words(options, "float32"))
    run = options.out / "run"
    mean = measure_stability(run).mean
    texts = [[*key, text] for key, text in read_answers(run).items()]
    write_json(options.answers, {"weights": weights, "accuracy": [mean.value, mean.low, mean.high], "answers": texts})
    show("answers", len(texts))


def weights_hash(folder: Path) -> str:
    """Return a hash of all tensors, with their names, types and shapes.

    Other files of the folder are not hashed: their bytes depend on the version of transformers.
    """
    import torch
    from safetensors import safe_open

    by_name = dict[str, Path]()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            by_name |= dict.fromkeys(tensors.keys(), file)
    if not by_name:
        raise not_possible(f"{folder} has no weights in safetensors files")
    sha = hashlib.sha256()
    for name in sorted(by_name):
        with safe_open(by_name[name], "pt") as tensors:
            values = tensors.get_tensor(name).contiguous()
        sha.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        sha.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def read_answers(run: Path) -> dict[tuple[Any, ...], str]:
    """Return the completion of each cell of a run, by the cell's key."""
    from permix.storage.run_dir import RunReader

    cells = RunReader(run).cells
    return {tuple(key): cell.completion.text for key, cell in cells.items() if cell.completion is not None}


def answers(options: argparse.Namespace) -> None:
    """Run a stability evaluation on this device and compare it with the CPU's answers.

    Printed are the share of equal texts, the accuracy against the CPU's interval, and the largest logit gap where texts differ.
    """
    from permix.evals.stability import measure_stability
    from permix.inference.hf import resolve_model_source

    if options.backend == "vllm":
        require_vllm()
    if options.answers is None or not options.answers.exists():
        raise not_possible("the file of the CPU's answers is missing: write it with --prepare, and name it with --answers")
    cpu = json.loads(options.answers.read_text(encoding="utf-8"))
    source = resolve_model_source(options.model)
    if cpu["weights"] != weights_hash(Path(source)):
        raise not_possible(f"{options.answers} holds the answers of other weights; write it again with --prepare")
    started = time.perf_counter()
    run_permix(stability_words(options, options.dtype))
    seconds = time.perf_counter() - started
    run = options.out / "run"
    cpu_texts = {tuple(key): text for *key, text in cpu["answers"]}
    texts = read_answers(run)
    if texts.keys() != cpu_texts.keys():
        raise SystemExit(f"{len(texts)} cells have an answer on this device, {len(cpu_texts)} on the CPU")
    different = [key for key, text in texts.items() if text != cpu_texts[key]]
    show("equal_answers", 1 - len(different) / len(texts), n=len(texts))
    show("cells_per_second", len(texts) / seconds, loading="included")
    value, (_, low, high) = measure_stability(run).mean.value, cpu["accuracy"]
    assert value is not None, "every cell has an answer"
    show("accuracy", value)
    show("accuracy_cpu", cpu["accuracy"][0], low=low, high=high)
    show("accuracy_outside_cpu_interval", max(low - value, value - high, 0.0))
    gap = largest_logit_gap(source, run, different, cpu_texts, texts)
    show("parted_gap", gap, n=min(len(different), MAX_DIVERGENCES), of=len(different))


MAX_DIVERGENCES = 50
"""The largest number of differing answers whose logit gap is computed."""


def largest_logit_gap(
    source: str, run: Path, keys: Sequence[tuple[Any, ...]], cpu_texts: Mapping[Any, str], texts: Mapping[Any, str]
) -> float:
    """Return the largest logit gap, in float32, at the first different tokens of the answers to these cells; 0 without a cell."""
    from bench.grid import find_divergence
    from bench.grid_arms import logit_gaps
    from permix.inference.chat_template import encode_chat, encode_completion
    from permix.inference.hardware import pick_device
    from permix.inference.hf import load_tokenizer
    from permix.storage.run_dir import RunReader

    tokenizer, cells = load_tokenizer(source), {tuple(key): cell for key, cell in RunReader(run).cells.items()}
    divergences = []
    for key in islice(keys, MAX_DIVERGENCES):
        first, second = (encode_completion(by_key[key], tokenizer) for by_key in (cpu_texts, texts))
        if first != second:  # different texts may be encoded as the same tokens
            prompt = encode_chat(tokenizer, cells[key].messages)
            divergences.append(find_divergence(prompt, first, second, tokenizer.eos_token_id))
    return max(logit_gaps(source, divergences, pick_device()), default=0.0) if divergences else 0.0


def fidelity(options: argparse.Namespace) -> None:
    """Sample answers in character with top-p, and print the share of cells that got an answer."""
    from permix.storage.run_dir import RunReader

    run = options.out / "run"
    words = ["fidelity", str(ROOT / "configs" / "fidelity-builtin.toml"), "--out", str(run), "--model.name", options.model]
    words += ["--sampling.top-p", "0.9"]
    if options.cells is not None:
        words += [
            "--n-questions",
            "10",
            "--folds",
            "2",
            "--personas.n",
            "2",
            "--resamples",
            "100",
            "--sampling.max-new-tokens",
            "8",
        ]
    started = time.perf_counter()
    run_permix(words)
    cells = RunReader(run).cells.values()
    show("answers_of_asked", sum(cell.completion is not None for cell in cells) / len(cells), n=len(cells))
    show("cells_per_second", len(cells) / (time.perf_counter() - started), loading="included")


# Generation


def arithmetic_requests(n: int) -> list[Any]:
    """Return `n` requests: held-out personas × held-out questions with the prompts of configs/stability-arithmetic.toml."""
    from permix.config import StabilityConfig, build_config, read_config_values
    from permix.evals.grid import PromptFormat, build_grid
    from permix.personas.pool import select_personas
    from permix.tasks import load_questions
    from permix.types import Request

    values = read_config_values(ROOT / "configs" / "stability-arithmetic.toml")
    config = build_config(StabilityConfig, values, source="configs/stability-arithmetic.toml")
    task, questions = load_questions(config.task)
    personas = select_personas(config.personas).personas
    cells = build_grid(personas, questions, PromptFormat(task.prompt, "you_are", empty_system_prompt=False), samples=1, seed=0)
    chosen = cells[:: max(1, len(cells) // n)][:n]
    return [Request(cell.messages, cell.seed) for cell in chosen]


GRID_CELLS, GRID_TOKENS, GRID_BATCH = 640, 64, 64
"""The size of the check `grid`: cells, most tokens of an answer, and rows of a batch of transformers."""


def grid(options: argparse.Namespace) -> None:
    """Compare wall seconds of permix's generation and of transformers' `generate` in padded batches, with one loaded model."""
    import torch

    from permix.config import ModelConfig
    from permix.inference.hardware import set_threads
    from permix.inference.hf import HFModel
    from permix.types import Completion, Sampling

    set_threads(None)
    requests = arithmetic_requests(options.cells or GRID_CELLS)
    sampling = Sampling(max_new_tokens=8 if options.cells else GRID_TOKENS)
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    model = HFModel(ModelConfig.model_validate({"name": options.model, "dtype": dtype}))
    arms: dict[str, Callable[[Sequence[Any]], tuple[list[str], int]]] = {}

    def permix_answers(requests: Sequence[Any]) -> tuple[list[str], int]:
        by_index = dict(model.generate(requests, sampling))
        results = [by_index[index] for index in range(len(requests))]
        completions = [result for result in results if isinstance(result, Completion)]
        if len(completions) < len(results):
            raise SystemExit(f"{len(results) - len(completions)} of {len(results)} requests failed")
        return [completion.text for completion in completions], sum(
            completion.completion_tokens or 0 for completion in completions
        )

    arms["transformers"] = lambda requests: transformers_answers(model, requests, sampling.max_new_tokens)
    arms["ours"] = permix_answers
    for arm in arms.values():
        arm(requests[: min(len(requests), GRID_BATCH)])  # warm up
    seconds: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    tokens: dict[str, int] = {}
    for name, arm in arms.items():
        synchronize()
        started = time.perf_counter()
        texts[name], tokens[name] = arm(requests)
        synchronize()
        seconds[name] = time.perf_counter() - started
        show(f"cells_per_second_{name}", len(requests) / seconds[name], tokens=tokens[name], seconds=round(seconds[name], 3))
    settings = {"n": len(requests), "new_tokens": sampling.max_new_tokens, "dtype": dtype}
    ratio = seconds["transformers"] / seconds["ours"]
    show("wall_ratio", ratio, **settings)
    show("wall_ratio_per_token", ratio * tokens["ours"] / max(tokens["transformers"], 1), **settings)
    equal = sum(ours == theirs for ours, theirs in zip(texts["ours"], texts["transformers"], strict=True))
    show("equal_answers", equal / len(requests), **settings)


def transformers_answers(model: Any, requests: Sequence[Any], new_tokens: int) -> tuple[list[str], int]:
    """Return the texts that `generate` gives, in the order of the requests, and the number of their tokens.

    Requests are sorted by the length of their prompts and put into batches of `GRID_BATCH`.
    """
    import torch

    from permix.inference.chat_template import decode_completion, encode_chat
    from permix.inference.generation import stop_token_ids

    stop_ids = stop_token_ids(model.network, model.tokenizer)
    prompts = [encode_chat(model.tokenizer, request.messages) for request in requests]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    texts, n_tokens = [""] * len(prompts), 0
    for start in range(0, len(order), GRID_BATCH):
        indices = order[start : start + GRID_BATCH]
        batch = model.tokenizer.pad({"input_ids": [prompts[index] for index in indices]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            rows_B_T = model.network.generate(
                **batch, do_sample=False, max_new_tokens=new_tokens, eos_token_id=stop_ids, temperature=None, top_p=None,
                top_k=None, pad_token_id=model.tokenizer.pad_token_id,
            )  # fmt: skip
        for index, row in zip(indices, rows_B_T[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((position + 1 for position, token in enumerate(row) if token in stop_ids), len(row))
            texts[index] = decode_completion(model.tokenizer, row[:end], stop_ids)
            n_tokens += end
    return texts, n_tokens


def require_vllm() -> None:
    """End the check if vllm is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise not_possible("vllm is not installed")


SCORE_SCHEMA = {"type": "object", "properties": {"score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}}, "required": ["score"]}


def vllm(options: argparse.Namespace) -> None:
    """Check that vLLM repeats sampled answers by seed, works on after an iterator was closed, and keeps to a JSON schema."""
    require_vllm()
    from permix.config import ModelConfig
    from permix.inference import load_model
    from permix.types import Completion, Sampling

    requests = arithmetic_requests(options.cells or 256)
    model = load_model(ModelConfig(name=options.model, backend="vllm"))
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=32)
    for _ in islice(model.generate(requests, sampling), 1):
        pass  # closing the iterator aborts the other requests
    first, again = (dict(model.generate(requests, sampling)) for _ in range(2))
    completed = sum(isinstance(result, Completion) for result in first.values())
    show("answers_of_asked", completed / len(requests), n=len(requests))
    show("equal_answers", sum(first[index] == again[index] for index in first) / len(requests), n=len(requests))
    with_schema = [request._replace(schema=SCORE_SCHEMA) for request in requests[:32]]
    replies = [answer.result for answer in model.generate(with_schema, sampling)]
    show("schema_replies_valid", sum(map(keeps_schema, replies)) / len(replies), n=len(replies))


def keeps_schema(reply: Any) -> bool:
    """Return whether a completion is an object of `SCORE_SCHEMA`, or the beginning of an object that was cut off."""
    text, finish = getattr(reply, "text", ""), getattr(reply, "finish", None)
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        return isinstance(value, dict) and value.get("score") in range(1, 6)
    return finish == "length" and re.match(r"\s*\{", text) is not None


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes; on a GPU that of its allocations there."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def device(_: argparse.Namespace) -> None:
    """Print the device, its memory, the versions of torch and Python, and the revision, as one JSON object."""
    import platform

    import torch

    from permix.storage.run_dir import source_revision

    has_gpu = torch.cuda.is_available()
    memory_gib = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if has_gpu else None
    machine = {
        "device": torch.cuda.get_device_name() if has_gpu else f"CPU, {os.cpu_count()} cores",
        "gpus": torch.cuda.device_count(), "memory_gib": memory_gib, "torch": torch.__version__,
        "python": platform.python_version(), "revision": source_revision(),
    }  # fmt: skip
    print(json.dumps(machine))


def tiny(options: argparse.Namespace) -> None:
    """Write the tiny model of the tests to `--out`."""
    from tests.tiny import make_folder

    make_folder(options.out)


BODIES: dict[str, Callable[[argparse.Namespace], None]] = {
    body.__name__: body for body in (train, resume, prepare, answers, fidelity, grid, vllm, device, tiny)
}


def figures_of(text: str) -> Iterator[dict[str, Any]]:
    """Yield the figures among the lines that a check printed."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value.get("figure"), str) and isinstance(value.get("value"), int | float):
                yield value


if __name__ == "__main__":
    main()
