"""Set threads and memory allocation, and choose device, precision, and the sizes of batches and of training passes.

torch is imported only in functions that need it.
"""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


Precision = Literal["auto", "float32", "bfloat16"]


def set_passive_threads() -> None:
    """Make idle OpenMP threads sleep instead of spin. Call it before torch is imported; variables that are already set win.

    On a machine that also runs something else, spinning threads cost 5 to 20 times the work itself.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def tune_malloc() -> None:
    """Make glibc keep freed memory instead of returning every large tensor to the kernel.

    Otherwise a CPU training step spends a fifth of its time on page faults in the kernel. Does nothing without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 256 << 20)


def release_memory() -> None:
    """Free objects that only reference cycles keep alive (a trainer, its optimizer) and return freed memory to the kernel, and
    that of a GPU to its driver."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def set_threads(threads: int | None) -> int:
    """Set torch's number of threads and return it. None means this process's share of the cores that it may use."""
    set_passive_threads()
    tune_malloc()
    import torch

    count = threads or cores_per_process(len(os.sched_getaffinity(0)))
    torch.set_num_threads(count)
    return count


def cores_per_process(cores: int) -> int:
    """Whole cores for each process of a launcher (torchrun, accelerate) on this machine; at least 1."""
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty without a GPU or without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip() not in ("", "-1")]
    try:
        import torch
    except ModuleNotFoundError:
        return []
    return [str(number) for number in range(torch.cuda.device_count())]


def memory_limit() -> int:
    """Bytes of memory that this machine, or the container that this process is in, has."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in CGROUP_MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such version of cgroups, or "max"
            limits.append(int(Path(file).read_text(encoding="ascii")))
    return min(limits)


def free_memory() -> int:
    """Bytes of memory that this machine, or the container that this process is in, can still give."""
    import psutil

    free = [int(psutil.virtual_memory().available)]
    for limit, group in zip(CGROUP_MEMORY_LIMITS, CGROUP_MEMORY_USE, strict=True):
        with contextlib.suppress(OSError, ValueError):
            most = int(Path(limit).read_text(encoding="ascii"))
            free.append(most - _used_memory(*map(Path, group)))
    return max(0, min(free))


def _used_memory(usage: Path, statistics: Path) -> int:
    """Bytes that a container uses, without what it has read from files: the kernel drops that when memory is short. Without these
    files, what this process uses.
    """
    import psutil

    lines: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split() for line in statistics.read_text(encoding="ascii").splitlines())
    droppable = int(lines.get("total_inactive_file", lines.get("inactive_file", "0")))
    try:
        return int(usage.read_text(encoding="ascii")) - droppable
    except (OSError, ValueError):
        return int(psutil.Process().memory_info().rss)


CGROUP_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where versions 2 and 1 of Linux's control groups name a container's limit."""

CGROUP_MEMORY_USE = (
    ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.stat"),
)
"""Where they name what the container uses, and the kinds of memory that this is."""


def pick_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively; where it emulates bfloat16, it is slower than float32."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def pick_dtype(precision: Precision, device: str) -> "torch.dtype":
    import torch

    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


MIN_MICROBATCH_TOKENS = 1024
"""Tokens of a training pass on a CPU, where larger ones are no faster; also the least that is chosen for a GPU."""

MAX_MICROBATCH_TOKENS = 32768
"""Most tokens of a training pass that are chosen for a GPU."""

PASS_MEMORY_SHARE = 0.5
"""Share of a GPU's free memory that a training pass may take; the estimate of what it takes is a rule of thumb."""


JOBS_PER_GPU_VARIABLE = "PERMIX_JOBS_PER_GPU"
"""The environment variable by which `permix.pipelines.jobs` says how many processes share this one's GPU."""


def pick_microbatch_tokens(
    network: Any,
    *,
    bfloat16: bool,
    completions_per_prompt: int,
    checkpointing: bool,
    processes: int = 1,
    is_sharded: bool = False,
) -> int:
    """Most tokens of a training pass of this network on the device that it trains on.

    Call it when the network is loaded and its optimizer is not. `processes` train together; `is_sharded`: each holds a share of
    every weight (FSDP2, ZeRO-3).
    """
    if pick_device() == "cpu":
        return MIN_MICROBATCH_TOKENS
    try:
        text = network.config.get_text_config()
        layers, hidden, vocabulary = text.num_hidden_layers, text.hidden_size, text.vocab_size
    except AttributeError:
        return MIN_MICROBATCH_TOKENS
    # What docs/scale.md lists and is not in memory yet, in bytes for each parameter.
    share = processes if is_sharded else 1
    optimizer = 12 / share  # gradients and AdamW's two moments, float32
    buckets = 4 if processes > 1 and not is_sharded else 0  # DDP's
    copies = 4 if bfloat16 or is_sharded else 0  # for autocast and rollouts in bfloat16, or for rollouts of sharded weights
    needed = 0.0
    for one in network.parameters():
        count = getattr(one, "ds_numel", one.numel())  # DeepSpeed's parameters are empty outside a pass
        needed += copies * count
        needed += (optimizer + buckets) * count if one.requires_grad else 0
        needed += one.element_size() * count / share if one.device.type == "cpu" else 0  # not moved yet
    free = _free_gpu_bytes() / int(os.environ.get(JOBS_PER_GPU_VARIABLE, "1"))
    return microbatch_tokens_that_fit(
        PASS_MEMORY_SHARE * (free - needed), layers=layers, hidden=hidden, vocabulary=vocabulary,
        value_bytes=2 if bfloat16 else 4, completions_per_prompt=completions_per_prompt, checkpointing=checkpointing,
    )  # fmt: skip


def microbatch_tokens_that_fit(
    free_bytes: float, *, layers: int, hidden: int, vocabulary: int, value_bytes: int, completions_per_prompt: int,
    checkpointing: bool,
) -> int:  # fmt: skip
    """Tokens of a training pass whose activations and logits take at most `free_bytes`, within the two bounds above.

    A token keeps 17 hidden vectors in a layer (docs/scale.md), and 4 more for each completion of its prompt: attention on a GPU
    copies the keys and values of a prompt to each of its completions.
    """
    layer = (17 + 4 * completions_per_prompt) * hidden * value_bytes
    kept = layers * hidden * value_bytes + layer if checkpointing else layers * layer
    logits = 16 * vocabulary  # with their gradient, and both again in float32 where probabilities are computed
    return max(MIN_MICROBATCH_TOKENS, min(MAX_MICROBATCH_TOKENS, int(free_bytes / (kept + logits))))


def _free_gpu_bytes(device: "torch.device | None" = None) -> int:
    """Free memory of the GPU (the current one if not given), with what torch keeps for later tensors."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


DEFAULT_BATCH_SIZE = 64
"""Answers that are generated together where what they take is not known."""

MIN_BATCH_SIZE = 16
"""The least that is chosen: few answers reach the longest length at the same time, for which the estimate is made."""

MAX_BATCH_SIZE = {"cpu": 128, "cuda": 512}
"""Most answers that are generated together, by device."""

BATCH_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.5}
"""Share of the free memory that a batch of answers may take, by device; what it takes is estimated. On a CPU other processes
often begin to generate at the same time."""


def pick_batch_size(network: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """How many of these prompts (token ids) to answer together, for a network that reads a prompt once for all of its answers.

    A power of 2, so that a little more or less free memory does not change it, from `MIN_BATCH_SIZE` to `MAX_BATCH_SIZE`.
    """
    device = "cuda" if network.device.type == "cuda" else "cpu"
    try:
        text = network.config.get_text_config()
        heads, vocabulary = text.num_attention_heads, text.vocab_size
        key_heads = getattr(text, "num_key_value_heads", None) or heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        token_bytes = int(2 * text.num_hidden_layers * key_heads * size * network.dtype.itemsize)
    except (AttributeError, TypeError):  # TypeError: some configurations list a number for each layer
        return DEFAULT_BATCH_SIZE
    if device == "cuda":
        free = _free_gpu_bytes(network.device) / int(os.environ.get(JOBS_PER_GPU_VARIABLE, "1"))
    else:
        free = free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    first = prompts[: MAX_BATCH_SIZE[device]]  # prompts are read in order, and later ones may repeat more
    return batch_size_that_fits(
        BATCH_MEMORY_SHARE[device] * free, prompt_tokens=max(map(len, prompts), default=0), new_tokens=max_new_tokens,
        distinct_share=len(set(map(tuple, first))) / max(1, len(first)), token_bytes=token_bytes, heads=heads,
        vocabulary=vocabulary, most=MAX_BATCH_SIZE[device],
    )  # fmt: skip


def batch_size_that_fits(
    free_bytes: float, *, prompt_tokens: int, new_tokens: int, distinct_share: float, token_bytes: int, heads: int,
    vocabulary: int, most: int,
) -> int:  # fmt: skip
    """The largest power of 2 of answers whose KV cache, attention scores and logits take at most `free_bytes`, within bounds.

    `prompt_tokens`: of the longest prompt. `distinct_share`: distinct prompts for each answer. `token_bytes`: of a token's keys
    and values in all layers.
    """
    kv_cache = 2 * token_bytes * (distinct_share * prompt_tokens + new_tokens)  # twice: rows are copied when others join or leave
    scores = 16 * heads * (prompt_tokens + new_tokens)  # of one layer, in float32, and three more such tensors around the softmax
    logits = 32 * vocabulary  # in float32, with what sampling sorts and adds up
    rows = max(MIN_BATCH_SIZE, min(most, int(free_bytes / (kv_cache + scores + logits))))
    return 1 << (rows.bit_length() - 1)
