"""`permix view DIR`: the page of a folder of runs, on this machine, until Ctrl-C."""

import errno
import os
import threading

from permix.config import ViewStage
from permix.errors import ConfigError
from permix.escape import visible
from permix.view.folder import Folder
from permix.view.server import HOST, Server

WAKES_S = 0.25
"""The system may hand Ctrl-C to any thread, and this one hears of it only when it wakes."""


def view(config: ViewStage) -> None:
    """Serve until Ctrl-C, which ends it as it should. Raises ConfigError for a folder or a port that cannot be had."""
    refuse_no_folder(config)
    folder = Folder(config.runs)
    server = open_server(folder, config.port)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    try:  # Ctrl-C comes to this thread, which does nothing but wait: it never breaks into a request
        folder.start()
        serving.start()
        print(f"{server.url}  shows the runs below {visible(str(config.runs))}; Ctrl-C ends it", flush=True)
        while serving.is_alive():
            serving.join(WAKES_S)
    except KeyboardInterrupt:
        print("\npermix view: ended; the runs go on")
    finally:
        server.shutdown()
        server.server_close()
        folder.stop()


def refuse_no_folder(config: ViewStage) -> None:
    """Raises ConfigError where there is nothing to look at."""
    if not config.runs.is_dir():
        raise ConfigError(f"runs = {config.runs}: no such folder; give the folder that holds your run directories")


def open_server(folder: Folder, port: int) -> Server:
    """Raises ConfigError naming the port where the system does not give it."""
    try:
        return Server(folder, port)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
        raise ConfigError(
            f"port = {port}: cannot be opened on {HOST}: {reason}; give another, or --port 0 for a free one"
        ) from error
