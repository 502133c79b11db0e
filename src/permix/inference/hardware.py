"""What this machine can do: threads, device and precision, decided in one place. Imports torch only when asked."""

import contextlib
import ctypes
import gc
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


Precision = Literal["auto", "float32", "bfloat16"]


def set_passive_threads() -> None:
    """Let idle OpenMP threads sleep instead of spin. Must run before torch is imported; a setting of the user's own wins.

    Spinning threads cost 5 to 20 times the work itself on a machine with anything else running.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def tune_malloc() -> None:
    """Let glibc keep freed blocks instead of giving every large tensor back to the kernel and faulting it in again.

    Without it a fifth of a CPU training step is spent in the kernel. Elsewhere than on glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 256 << 20)


def release_memory() -> None:
    """Drop what only reference cycles hold (a trainer, its optimizer) and give the freed blocks back to the kernel."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def set_threads(threads: int | None) -> int:
    """Give torch a fixed number of threads and return it; when not given, this process's share of the cores it may use."""
    set_passive_threads()
    tune_malloc()
    import torch

    count = threads or cores_per_process(len(os.sched_getaffinity(0)))
    torch.set_num_threads(count)
    return count


def cores_per_process(cores: int) -> int:
    """Cores for each of the processes that a launcher started on this machine: whole ones, and at least one."""
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def pick_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 is a speed-up here rather than an emulation."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def pick_dtype(precision: Precision, device: str) -> "torch.dtype":
    import torch

    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
