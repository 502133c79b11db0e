"""Runs one command: signals, exit codes, errors as messages on stderr, and the JSON object of --json."""

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from permix import __version__
from permix.cli.commands import COMMANDS, OUTPUT_OPTIONS, OUTPUT_OPTIONS_HELP, Command
from permix.errors import EXTRA_OF_PACKAGE, ConfigError, IncompleteRunError, PermixError, closest_match, missing_package_error
from permix.progress import CommandOutput, command_output
from permix.storage.files import FULL_DISK_ERRNOS, write_error

INTERRUPTED_TEXT = "interrupted; finished work is saved, run the same command again to continue"


SAME_PRESS_S = 1.0
"""A signal this soon after the first one belongs to it: a terminal and a launcher both send Ctrl-C, and people press it twice."""


class _Signals:
    """Handles Ctrl-C and SIGTERM. The first raises KeyboardInterrupt, a later one ends the process at once."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._first_at, self._pid = 0.0, os.getpid()
        # A shell lets a job in the background ignore Ctrl-C.
        self._handled = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]

    def install(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in self._handled:
            # torchrun ends processes by SIGTERM. They may wait in C code for one that has ended, where no handler would run.
            under_torchrun = number == signal.SIGTERM and "LOCAL_RANK" in os.environ
            signal.signal(number, signal.SIG_DFL if under_torchrun else handler)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None or os.getpid() != self._pid:  # a forked process has nothing to end in order
            return self.end(number, frame)
        self.first, self._first_at = number, time.monotonic()
        raise KeyboardInterrupt

    def end(self, number: int, frame: FrameType | None = None) -> None:
        if os.getpid() == self._pid:
            if self.first is not None and time.monotonic() - self._first_at < SAME_PRESS_S:
                return
            with suppress(OSError, ValueError, RuntimeError):  # the signal may have come in the middle of a write
                sys.stdout.flush()
            with suppress(OSError):
                os.write(2, f"permix: {INTERRUPTED_TEXT}\n".encode())
        os._exit(128 + (self.first or number))

    def end_on_lost_interrupt(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """The `sys.unraisablehook`: Python drops a KeyboardInterrupt in some places, as in a callback of the import system."""
        if self.first is None or unraisable.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(unraisable)
            return
        self._first_at = 0.0
        self.end(self.first)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `permix` command. Without `argv` it runs the arguments of this process and handles its signals."""
    sys.exit(_run_process(sys.argv[1:]) if argv is None else run_cli(list(argv)))


def _run_process(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. No signal leaves a traceback, neither now nor while Python ends afterwards."""
    # numpy's own threads gain little on arrays of this size, and on a machine that does other work they wait by spinning. numpy
    # reads this on import. torch on x86 has other threads (MKL, OpenMP), which `threads` sets.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signals = _Signals()
    atexit.register(signals.install, signal.SIG_IGN)
    sys.unraisablehook = signals.end_on_lost_interrupt
    try:
        signals.install(signals.interrupt)
        code = run_cli(argv)
        signals.install(signals.end)
    except BaseException as error:
        signals.install(signals.end)
        if signals.first is None or isinstance(error, SystemExit):
            raise
        code = 130  # a library turned the interrupt into an error of its own, as numpy does while it is imported
        print(f"\npermix: {INTERRUPTED_TEXT}", file=sys.stderr)
    if code != 130 or signals.first is None:
        return code
    exec("")  # clears CPython's note of an interrupt inside an earlier exec(), for which it would end this process by SIGINT
    return 128 + signals.first


def run_cli(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. A PermixError, or an OSError that names a file, becomes a message on stderr.

    Other errors propagate.
    """
    wanted, argv = {word for word in argv if word in OUTPUT_OPTIONS}, [word for word in argv if word not in OUTPUT_OPTIONS]
    if not argv or argv[0] in ("-h", "--help"):
        argv = ["help"]
    as_json = "--json" in wanted and not {"help", "-h", "--help", "--version"} & set(argv)
    with command_output(as_json=as_json, is_quiet="--quiet" in wanted) as output:
        if output.is_quiet:
            os.environ["TQDM_DISABLE"] = "1"  # the bars of libraries
        output.result["command"] = argv[0]
        try:
            code = _run_command(argv, output)
        except SystemExit as error:  # tyro has printed what is wrong
            if error.code:
                _print_json(output, "the command line is not valid; stderr says why")
            raise
        _print_json(output)
        return code


def _print_json(output: CommandOutput, error: str | None = None) -> None:
    """With --json, print the object, with the first error of the command; of several processes the main one does."""
    output.result.setdefault("error", error)
    if os.environ.get("RANK", "0") == "0":
        try:
            output.print_json()
        except BrokenPipeError:
            _ignore_closed_pipe()


def _run_command(argv: Sequence[str], output: CommandOutput) -> int:
    try:
        if argv[0] in ("help", "--version"):
            print(usage_text() if argv[0] == "help" else __version__)
            sys.stdout.flush()
            return 0
        find_command(argv[0]).run(list(argv[1:]))
    except PermixError as error:
        print(f"permix {argv[0]}: {error}", file=sys.stderr)
        output.result |= {"error": str(error)} | ({"pending": error.pending} if isinstance(error, IncompleteRunError) else {})
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF_PACKAGE:
            raise
        missing = missing_package_error([package], "this")
        print(f"permix {argv[0]}: {missing}", file=sys.stderr)
        output.result["error"] = str(missing)
        return ConfigError.exit_code
    except BrokenPipeError:
        _ignore_closed_pipe()
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in FULL_DISK_ERRNOS:
            raise
        path = Path(os.fsdecode(error.filename or "a file"))
        is_full = error.errno in FULL_DISK_ERRNOS
        output.result["error"] = write_error(path, error) if is_full else f"{path}: {error.strerror}"
        print(f"permix {argv[0]}: {output.result['error']}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        output.result["error"] = INTERRUPTED_TEXT
        print(f"\npermix {argv[0]}: {INTERRUPTED_TEXT}", file=sys.stderr)
        return 130
    return 0


def _ignore_closed_pipe() -> None:
    """The reader closed the pipe. Python flushes stdout at exit, which must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usage_text() -> str:
    """The text of `permix --help`: every command with its description."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    usage = "usage: permix COMMAND [CONFIG.toml] [--section.field VALUE ...]"
    return "\n".join([usage, "", *lines, "", "permix COMMAND --help lists every option.", OUTPUT_OPTIONS_HELP])


def find_command(name: str) -> Command:
    """The command of this name. Raises ConfigError, naming the nearest command, if there is no such command."""
    if name not in COMMANDS:
        near = closest_match(name, COMMANDS)
        hint = f"did you mean {near}?" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    return COMMANDS[name]
