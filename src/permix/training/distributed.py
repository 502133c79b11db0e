"""Lets several processes train as one: their number and rank, collective operations, and one error message if one fails.

torchrun and `accelerate launch` start the processes and set RANK and WORLD_SIZE. Without these there is one process, and torch is
not imported. Only the main process (rank 0) writes files. The first process that fails prints its error, and the others exit
silently: one mistake gives one message.
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
"""Longest wait for another process. The main one may hash a model or generate reference answers while the others wait."""


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    return rank() == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group for the block, and leave it at the end. Inside another such block this does nothing.

    After success all processes leave together. After an error this process aborts the group, so that others that wait for it wake
    up. Raises SystemExit instead of the error if another process failed first, and PermixError if another process was killed.
    """
    if "RANK" not in os.environ or _is_initialized():
        yield
        return
    set_passive_threads()
    from accelerate import PartialState
    from torch import distributed

    # Without this, accelerate counts physical cores, which not every machine reports.
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
        first = failures.count_failure()  # before abort: the others fail because of it, and must find the count at 1
        if distributed.group.WORLD is not None:
            distributed.group.WORLD.abort()
        if not first:
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        if is_peer_lost(error):
            raise PermixError(
                "another process of this run ended without an error message; it may have been killed. Finished work is kept; "
                "run the same command to continue"
            ) from error
        raise
    finally:
        distributed.destroy_process_group()


def is_peer_lost(error: BaseException) -> bool:
    """Whether gloo or NCCL raised this error because a process that they waited for has ended."""
    signs = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _is_initialized() -> bool:
    from torch import distributed

    return bool(distributed.is_initialized())


def _ignore_sigint() -> None:
    """Under torchrun Ctrl-C arrives twice, from the terminal and from torchrun; the second must not interrupt the cleanup."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _FailureCounter:
    """Counts failed processes in the store of the process group. Under torchrun the store outlives each process."""

    def __init__(self) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        # torchrun may restart all processes with the same store: each start needs a count of its own.
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._key = f"permix/failures/{start}"
        self._store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, wait_for_workers=False)

    def count_failure(self) -> bool:
        """Count this process's failure; returns whether it is the first. If the store is gone, its process failed first."""
        try:
            return int(self._store.add(self._key, 1)) == 1
        except RuntimeError:
            return False


@contextlib.contextmanager
def main_process_output() -> Iterator[None]:
    """Discard the output of all processes but the main one inside the block."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The main process finishes the block before the others begin it, so they find the files that it makes."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def broadcast(value: _T) -> _T:
    """The main process's value, in every process. It is pickled, so tensors must be on the CPU. Collective: all must call it."""
    if world_size() == 1:
        return value
    from torch import distributed

    values: list[Any] = [value if is_main() else None]
    distributed.broadcast_object_list(values, src=0)
    return values[0]  # type: ignore[no-any-return]


def all_gather(value: _T) -> list[_T]:
    """The values of all processes by rank, in every process. Pickled and collective as in `broadcast`."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def all_reduce_sum(value: float) -> float:
    """The sum over all processes, in every process."""
    return sum(all_gather(value))
