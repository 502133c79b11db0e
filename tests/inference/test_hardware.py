"""The sizes of a batch and of a training pass that are chosen for a device: by hand-checkable numbers, and by what a network, a
machine and a GPU report."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from permix.config import OptimConfig
from permix.inference import hardware
from permix.inference.hardware import (
    JOBS_PER_GPU_VARIABLE,
    MAX_MICROBATCH_TOKENS,
    MIN_MICROBATCH_TOKENS,
    batch_size_that_fits,
    free_memory,
    memory_limit,
    microbatch_tokens_that_fit,
    pick_batch_size,
    pick_microbatch_tokens,
)
from permix.inference.hf import load_causal_lm
from permix.training.trl_setup import choose_microbatch_tokens

SIZES: dict[str, Any] = {"layers": 2, "hidden": 8, "vocabulary": 10, "value_bytes": 2, "completions_per_prompt": 2}


@pytest.mark.parametrize(
    ("changes", "bytes_per_token"),
    [
        ({"checkpointing": False}, 2 * (17 + 8) * 8 * 2 + 16 * 10),
        ({"checkpointing": False, "value_bytes": 4}, 2 * (17 + 8) * 8 * 4 + 16 * 10),
        ({"checkpointing": False, "completions_per_prompt": 1}, 2 * (17 + 4) * 8 * 2 + 16 * 10),
        ({"checkpointing": True}, 2 * 8 * 2 + (17 + 8) * 8 * 2 + 16 * 10),
    ],
)
def test_tokens_that_fit_by_hand(changes: dict[str, Any], bytes_per_token: int) -> None:
    for tokens in (MIN_MICROBATCH_TOKENS, 5000, MAX_MICROBATCH_TOKENS):
        assert microbatch_tokens_that_fit(tokens * bytes_per_token, **SIZES | changes) == tokens
    assert microbatch_tokens_that_fit(5000 * bytes_per_token - 1, **SIZES | changes) == 4999


@pytest.mark.parametrize(
    ("free", "tokens"), [(-1e9, MIN_MICROBATCH_TOKENS), (0, MIN_MICROBATCH_TOKENS), (1e15, MAX_MICROBATCH_TOKENS)]
)
def test_tokens_that_fit_stay_within_bounds(free: float, tokens: int) -> None:
    assert microbatch_tokens_that_fit(free, **SIZES, checkpointing=False) == tokens


def test_on_a_cpu_it_is_a_constant(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "pick_device", lambda: "cpu")
    network = load_causal_lm(str(tiny_model), torch.float32, "cpu")
    assert pick_microbatch_tokens(network, bfloat16=False, completions_per_prompt=8, checkpointing=False) == 1024


def gpu_with(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int = 0, allocated: int = 0) -> None:
    """Pretend that there is a GPU with this memory."""
    monkeypatch.setattr(hardware, "pick_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _=None: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _=None: allocated)


@pytest.mark.parametrize(("processes", "is_sharded"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_on_a_gpu_half_of_the_memory_that_the_optimizer_leaves(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: bool, processes: int, is_sharded: bool, jobs: int
) -> None:
    network = load_causal_lm(str(tiny_model), torch.float32, "cpu")
    frozen = next(network.parameters())
    frozen.requires_grad_(False)
    config, count = network.config, sum(one.numel() for one in network.parameters())
    # The weights have not been moved yet. The frozen one gets no gradient and no moments, and has no place in DDP's buckets.
    each = 16 if processes > 1 and not is_sharded else 12
    to_come = (4 * count + each * (count - frozen.numel())) / (processes if is_sharded else 1)
    to_come += 4 * count if bfloat16 or is_sharded else 0
    value_bytes = 2 if bfloat16 else 4
    a_token = config.num_hidden_layers * (17 + 12) * config.hidden_size * value_bytes + 16 * config.vocab_size
    monkeypatch.setenv(JOBS_PER_GPU_VARIABLE, str(jobs))
    gpu_with(monkeypatch, jobs * (int(to_come) + 2 * 3000 * a_token) - 500, reserved=700, allocated=100)
    settings: Any = {
        "bfloat16": bfloat16, "completions_per_prompt": 3, "checkpointing": False, "processes": processes,
        "is_sharded": is_sharded,
    }  # fmt: skip
    assert pick_microbatch_tokens(network, **settings) == 3000
    gpu_with(monkeypatch, jobs * int(to_come))
    assert pick_microbatch_tokens(network, **settings) == MIN_MICROBATCH_TOKENS


def test_the_setting_goes_before_the_choice(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_causal_lm(str(tiny_model), torch.float32, "cpu")
    gpu_with(monkeypatch, 10**12)
    settings: Any = {"completions_per_prompt": 8, "bfloat16": False}
    assert choose_microbatch_tokens(OptimConfig(microbatch_tokens=77), network, **settings) == 77
    assert choose_microbatch_tokens(OptimConfig(), network, **settings) == MAX_MICROBATCH_TOKENS


@pytest.mark.parametrize(
    ("written", "limit"), [("max\n", 8e9), ("5000000000\n", 5e9), ("9223372036854771712\n", 8e9), (None, 8e9)]
)
def test_the_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, limit: float) -> None:
    file = tmp_path / "memory.max"
    if written is not None:
        file.write_text(written, encoding="ascii")
    monkeypatch.setattr(hardware, "CGROUP_MEMORY_LIMITS", (str(tmp_path / "none"), str(file)))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 8_000_000, "SC_PAGE_SIZE": 1000}[name])
    assert memory_limit() == limit


def test_a_network_that_does_not_name_its_sizes_gets_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_with(monkeypatch, 10**12)
    network = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=8, vocab_size=10)))
    settings: Any = {"bfloat16": True, "completions_per_prompt": 8, "checkpointing": False}
    assert pick_microbatch_tokens(network, **settings) == MIN_MICROBATCH_TOKENS


def test_a_containers_free_memory_counts_what_it_has_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops that when memory is short; version 1 of control groups adds up the groups below under another name."""
    available = SimpleNamespace(available=9_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: available)
    limit, usage, kinds = (tmp_path / name for name in ("limit", "usage", "stat"))
    monkeypatch.setattr(hardware, "CGROUP_MEMORY_LIMITS", ("none", str(limit)))
    monkeypatch.setattr(hardware, "CGROUP_MEMORY_USE", (("none", "none"), (str(usage), str(kinds))))
    assert free_memory() == 9_000, "no container"
    for text, free in (
        ("anon 500\ninactive_file 300\n", 8_000 - 1_000 + 300),
        ("inactive_file 10\ntotal_inactive_file 400\n", 7_400),
        ("anon 500\n", 7_000),
    ):
        limit.write_text("8000\n")
        usage.write_text("1000\n")
        kinds.write_text(text)
        assert free_memory() == free
    available.available = 600
    assert free_memory() == 600, "the machine has less"
    usage.write_text("9000\n")
    assert free_memory() == 0
    limit.write_text("max\n")
    assert free_memory() == 600


def test_a_containers_limit_holds_without_its_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    limit.write_text("8000\n")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=9_000))
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=900)))
    monkeypatch.setattr(hardware, "CGROUP_MEMORY_LIMITS", (str(limit),))
    monkeypatch.setattr(hardware, "CGROUP_MEMORY_USE", ((str(usage), "none"),))
    assert free_memory() == 7_100
    usage.write_text("2000\n")
    assert free_memory() == 6_000


ROW: dict[str, Any] = {"prompt_tokens": 50, "new_tokens": 14, "token_bytes": 100, "heads": 3, "vocabulary": 10}
"""A row of 2·100·(50 + 14) + 16·3·64 + 32·10 = 16,192 bytes if every answer has a prompt of its own."""


@pytest.mark.parametrize(
    ("free", "share", "rows"),
    [
        (16_192 * 32, 1.0, 32), (16_192 * 32 - 1, 1.0, 16), (16_192 * 63, 1.0, 32), (16_192 * 1e6, 1.0, 128),
        (16_192, 1.0, 16), (0, 1.0, 16),
        # A prompt of two answers is kept once: 2·100·(25 + 14) + 3,392 = 11,192 bytes.
        (11_192 * 32, 0.5, 32), (11_192 * 32 - 1, 0.5, 16),
    ],
)  # fmt: skip
def test_answers_that_fit_by_hand(free: float, share: float, rows: int) -> None:
    assert batch_size_that_fits(free, distinct_share=share, most=128, **ROW) == rows


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_batch_takes_its_share_of_the_free_memory(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, device: str, jobs: int
) -> None:
    """By the network's own device: one on a CPU counts the machine's memory where there is a GPU too."""
    config = load_causal_lm(str(tiny_model), torch.float32, "cpu").config
    network = SimpleNamespace(config=config, dtype=torch.float32, device=torch.device(device))
    size = config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * size * 4
    row = 2 * token_bytes * (9 * 2 // 3 + 10) + 16 * config.num_attention_heads * (9 + 10) + 32 * config.vocab_size
    prompts = [[1] * 9, [2] * 5, [1] * 9]  # two distinct ones, the longest of 9 tokens
    monkeypatch.setenv(JOBS_PER_GPU_VARIABLE if device == "cuda" else "LOCAL_WORLD_SIZE", str(jobs))
    for rows in (32, 64):
        gpu_with(monkeypatch, 2 * jobs * rows * row if device == "cuda" else 0)
        monkeypatch.setattr(hardware, "free_memory", lambda: 4 * jobs * rows * row if device == "cpu" else 0)  # noqa: B023
        assert pick_batch_size(network, prompts, 10) == rows
    gpu_with(monkeypatch, 10**12)
    monkeypatch.setattr(hardware, "free_memory", lambda: 10**12)
    most = {"cpu": 128, "cuda": 512}[device]
    assert pick_batch_size(network, prompts, 10) == most
    assert pick_batch_size(network, [], 10) == most
    by_layer = SimpleNamespace(**config.to_dict() | {"num_key_value_heads": [1, 2]})
    for unknown in (SimpleNamespace(), by_layer):
        network.config = SimpleNamespace(get_text_config=lambda: unknown)  # noqa: B023
        assert pick_batch_size(network, prompts, 10) == 64
