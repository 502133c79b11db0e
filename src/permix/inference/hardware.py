"""Set threads and memory allocation, and choose device and precision. torch is imported only in functions that need it."""

import contextlib
import ctypes
import gc
import os
import sys
from typing import TYPE_CHECKING, Literal

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
