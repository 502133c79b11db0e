"""`permix` and `python -m permix`: the command line. Launchers such as torchrun and `accelerate launch` start modules.

Only the standard library is imported before signals are handled, so that Ctrl-C during the imports leaves no traceback either.
"""

import os
import signal
import sys


def start() -> None:
    """Entry point of the process. Until the command line is imported nothing is to be saved, and a signal ends it at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: os._exit(128 + received))
    from permix import cli

    sys.argv[0] = "permix"
    cli.main()


if __name__ == "__main__":
    start()
