"""A permix command in a process of its own, which SIGKILL ends at a chosen moment: no handler, no flush, no clean-up."""

import functools
import importlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from permix import cli
from permix.inference import hardware


class Moment(NamedTuple):
    """Just after the `call`-th return of `function` ("module:Class.name"); `torn` cuts the end off the file it was given."""

    function: str
    call: int = 1
    torn: bool = False


PRELOAD = ["permix.training.grpo_trainer", "permix.evals.open_ended", "permix.report.builder"]


def command(*argv: str, dies: Moment | None = None) -> int | None:
    """Run `permix ARGV`; its exit code, or -9 when it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_run, args=(argv, dies))
    process.start()
    process.join(timeout=120)
    return process.exitcode


def _run(argv: Sequence[str], dies: Moment | None) -> None:
    float32_everywhere()
    if dies is not None:
        arm(dies)
    cli.main(argv)


def float32_everywhere() -> None:
    """bfloat16 rounds with the shape of a batch, which a restart changes; in float32 a flipped token is too rare to meet."""
    hardware.has_fast_bfloat16 = lambda device: False


def arm(moment: Moment) -> None:
    module, _, path = moment.function.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def mortal(*args: Any, **options: Any) -> Any:
        nonlocal calls
        result = original(*args, **options)
        calls += 1
        if calls == moment.call:
            if moment.torn:
                _tear(next(Path(one) for one in args if isinstance(one, str | Path)))
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, mortal)


def _tear(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 20)
