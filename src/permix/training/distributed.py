"""Processes that train as one: how many they are, which one speaks, what they agree on, and how they end.

torchrun and `accelerate launch` start them and name each in its environment. A process alone is the trivial case, and needs no
torch for it. The main process is the only one that writes. The first process that fails says why and the others leave without a
word, so that one mistake is one message.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

from permix.errors import PermixError
from permix.inference.hardware import pick_device, set_passive_threads

_T = TypeVar("_T")


PROCESS_GROUP_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others, while one of them hashes a model or asks it in character."""


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    return rank() == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes, and leave them at the end of the block, however it comes. Within another such block: nothing.

    After the last statement they leave in step; after an error this one breaks off, so that whoever waits for it wakes up. Where
    another process failed before this one, SystemExit takes the place of the error.
    """
    if "RANK" not in os.environ or _is_initialized():
        yield
        return
    set_passive_threads()
    from accelerate import PartialState
    from torch import distributed

    # Left to itself accelerate counts physical cores, which not every machine knows.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    PartialState(cpu=pick_device() == "cpu", timeout=PROCESS_GROUP_TIMEOUT)
    failures = _FailureCounter()
    try:
        yield
        barrier()
    except SystemExit:
        raise
    except BaseException as error:
        _ignore_sigint()
        first = failures.count_failure()
        if distributed.group.WORLD is not None:
            distributed.group.WORLD.abort()
        if not first:
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        if is_peer_lost(error):
            raise PermixError(
                "another process of this run ended without a word, killed perhaps; what was done is kept, run the same command "
                "to go on"
            ) from error
        raise
    finally:
        distributed.destroy_process_group()


def is_peer_lost(error: BaseException) -> bool:
    """Whether this is how gloo and NCCL say that a process they waited for is gone."""
    signs = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _is_initialized() -> bool:
    from torch import distributed

    return bool(distributed.is_initialized())


def _ignore_sigint() -> None:
    """Ctrl-C comes twice under torchrun, from the terminal and from torchrun; the second must not break the end of the first."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _FailureCounter:
    """A counter in the store that all processes met at. It outlives each of them where torchrun keeps it."""

    def __init__(self) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._key = f"permix/failures/{start}"
        self._store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, wait_for_workers=False)

    def count_failure(self) -> bool:
        """Count this process's failure; whether it is the first. When the store is gone, its keeper has failed before."""
        try:
            return int(self._store.add(self._key, 1)) == 1
        except RuntimeError:
            return False


@contextlib.contextmanager
def main_process_output() -> Iterator[None]:
    """What every process would print alike is printed by the main one alone."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def barrier() -> None:
    """Until every process is here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The main process goes through the block before the others begin it: what it makes there, they find."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def broadcast(value: _T) -> _T:
    """The main process's value, in every process. It is pickled on its way; tensors must lie on the CPU."""
    if world_size() == 1:
        return value
    from torch import distributed

    box: list[Any] = [value if is_main() else None]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def all_gather(value: _T) -> list[_T]:
    """Every process's value, in their order, in every process. Pickled as in `broadcast`."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    boxes: list[Any] = [None] * world_size()
    distributed.all_gather_object(boxes, value)
    return boxes


def all_reduce_sum(value: float) -> float:
    """Over all processes."""
    return sum(all_gather(value))
