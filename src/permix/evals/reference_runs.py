"""Find the run whose answers train a classifier of personas, wherever the runs are now, and notice another one in its place.

The configuration of a run names its reference as it was given, often by a relative path, and the same path leads to another run
from another folder. So the reference is looked for where it is relative to the run, first as it was when the run was made. The
run's metrics.json has the `reference_mark` of the reference that they were computed with; a run with another mark is not taken.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from permix.errors import DataError
from permix.storage.files import read_json
from permix.storage.run_dir import RunReader, read_run_file
from permix.types import digest

MEASURED_BY_REFERENCE = {"reference": "identifiability", "character_reference": "right and in character"}
"""For each field that names a reference run: what is measured with it."""

_MARK_FIELD = "{}_mark"


def find_reference(run: Path, config: Mapping[str, Any], field: str = "reference") -> Path | None:
    """The run that the field of the run's configuration names; None if it names none. It does not depend on the current folder,
    unless the run is where it was made.

    Raises DataError if no run is found, or only runs that are not the one that the run was measured with.
    """
    configured = config.get(field)
    if configured is None:
        return None
    found = list(dict.fromkeys(one for one in _candidates(run, config, Path(configured)) if _is_other_run(one, run)))
    mark = _recorded_mark(run, field)
    if same := next((one for one in found if mark is None or reference_mark(one) in (None, mark)), None):
        return same
    if found:
        raise DataError(
            f"{run}: {found[0]} is another run than the reference run that it was measured with, so "
            f"{MEASURED_BY_REFERENCE[field]} cannot be measured; put the right {configured} next to this run, or repeat the "
            f"run's command to measure with {found[0]}"
        )
    raise DataError(
        f"{run}: its reference run {configured} was not found; {MEASURED_BY_REFERENCE[field]} cannot be measured without it"
    )


def _candidates(run: Path, config: Mapping[str, Any], configured: Path) -> Iterator[Path]:
    """Where the reference may be: at its place relative to the run, at the same place next to the run, at its recorded path."""
    out = config.get("out")
    if isinstance(out, str) and Path(out).is_absolute() == configured.is_absolute():
        yield Path(os.path.normpath(run.absolute() / os.path.relpath(configured, out)))
    parent = run.parent
    yield from (parent.parent / configured.parent.name / configured.name, parent / configured.name, configured)


def _is_other_run(path: Path, run: Path) -> bool:
    file = path / "config.json"
    return file.is_file() and bool(read_json(file).get("stage")) and path.resolve() != run.resolve()


def reference_mark(reference: Path) -> str | None:
    """Identifies a run, wherever it is: a hash of its identity and of the time when it was made. None without
    provenance.json."""
    born = RunReader(reference).provenance
    if "identity" not in born:
        return None
    identity = {key: value for key, value in born["identity"].items() if key != "strategy"}  # which may be added later
    return digest(str(born.get("created")), json.dumps(identity, sort_keys=True))


def describe_reference(run: Path, field: str = "reference") -> dict[str, str]:
    """The entry of metrics.json that identifies the run's reference; empty without a reference, or if it has no mark."""
    config = read_run_file(run / "config.json")
    reference = config.get(field)
    mark = None if reference is None else reference_mark(Path(reference))
    return {} if mark is None else {_MARK_FIELD.format(field): mark}


def _recorded_mark(run: Path, field: str) -> str | None:
    file = run / "metrics.json"
    mark = read_json(file).get(_MARK_FIELD.format(field)) if file.exists() else None
    return None if mark is None else str(mark)
