"""Send metrics to experiment trackers: tensorboard, wandb, trackio and mlflow.

A training sends the metrics of its steps, an evaluation the measures of its metrics.json. Each tracker writes below the run
directory, unless the user set the tracker's own environment variable. All use their own client objects, so nothing is left in the
environment or, but for trackio, in a library's global state for a later run in this process.

Contract: after `check_trackers` no tracker can end a run. A tracker that raises is named in one warning and gets nothing more;
the others go on. A run that is resumed continues its run in each tracker.
"""

import contextlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from permix.config import TRACKER_PACKAGES
from permix.errors import ConfigError
from permix.progress import print_status
from permix.sanitize import escape_control, redact_secrets, truncate
from permix.storage.run_dir import RunReader
from permix.types import digest

PROJECT = "permix"
"""The project (wandb, trackio) or experiment (mlflow) of all runs, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set."""

MAX_WARNING_CHARS = 300

MAX_PARAMETERS_PER_REQUEST = 100
MAX_PARAMETER_CHARS = 500
"""Bounds of mlflow."""


class TrackedRun(NamedTuple):
    """What a tracker needs to know about a run.

    `folder`: where trackers write. `id` is the same at each start of the run, and differs between runs of the same label.
    `config`: the resolved configuration.
    """

    folder: Path
    label: str
    id: str
    config: Mapping[str, Any]

    @property
    def unique_name(self) -> str:
        """The label and a part of the id, for a folder or a list that several runs share."""
        return f"{self.label.replace('/', '-')}-{self.id[:6]}"


class TrackerWriter(Protocol):
    """One run in one tracker. Each method may raise anything."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record the values of a step. Steps do not decrease, except between two starts of the run."""

    def close(self) -> None:
        """Write what is buffered."""


class _TensorBoard:
    """Writes event files by tensorboard's own writer, which needs neither torch nor TensorFlow."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
        folder = (Path(chosen).expanduser() if chosen else run.folder / "tensorboard") / run.unique_name
        folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._is_first = EventFileWriter(str(folder)), True

    def log(self, values: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        now = time.time()
        if self._is_first:  # drops the steps that an earlier start recorded and that are repeated now
            self._writer.add_event(Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)))
            self._is_first = False
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=now, step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """Writes to a run of wandb; offline with WANDB_MODE=offline."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.label,
            id=run.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            config=dict(run.config),
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Writes to trackio's database. trackio reads its folder once, when it is imported."""

    def __init__(self, run: TrackedRun) -> None:
        folder = Path(os.environ.get("TRACKIO_DIR") or run.folder / "trackio")
        with _environment("TRACKIO_DIR", str(folder)), contextlib.redirect_stdout(sys.stderr):
            import trackio
            from trackio.utils import TRACKIO_DIR

            if Path(TRACKIO_DIR).resolve() != folder.resolve():
                raise RuntimeError(
                    f"this process already writes to {TRACKIO_DIR}; run each command in a process of its own, or set TRACKIO_DIR"
                )
            self._run = trackio.init(PROJECT, name=run.unique_name, config=dict(run.config), resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


class _MLflow:
    """Writes to an mlflow store, by default an SQLite database."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            folder = (run.folder / "mlflow").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name, artifact_location=artifacts)
        earlier = self._client.search_runs([experiment], f"tags.`permix.run` = '{run.id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
            return
        self._id = self._client.create_run(experiment, run_name=run.label, tags={"permix.run": run.id}).info.run_id
        parameters = [
            Param(name, value) for name, value in flatten_settings(run.config).items() if len(value) <= MAX_PARAMETER_CHARS
        ]
        for start in range(0, len(parameters), MAX_PARAMETERS_PER_REQUEST):
            self._client.log_batch(self._id, params=parameters[start : start + MAX_PARAMETERS_PER_REQUEST])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(_mlflow_name(name), value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _mlflow_name(name: str) -> str:
    """mlflow allows letters, digits and "_-. :/" in the name of a metric."""
    return "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)


TRACKERS: Mapping[str, Callable[[TrackedRun], TrackerWriter]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
    "mlflow": _MLflow,
}
"""For each name that `report_to` may have: a function that opens a run in the tracker, or continues it."""


def check_trackers(names: Iterable[str], option: str) -> None:
    """Raise ConfigError for the first tracker whose package is not installed. `option`: the name of the setting."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{option} = {name}: the package {name} is not installed; pip install '{TRACKER_PACKAGES[name]}', or leave it out"
            )


class TrackerLog:
    """The trackers of one run. A tracker that raises is dropped with a warning."""

    def __init__(self, names: Iterable[str] = (), run: TrackedRun | None = None) -> None:
        self._writers: dict[str, TrackerWriter] = {}
        if run is None:
            return
        for name in names:
            with self._dropping(name):
                self._writers[name] = TRACKERS[name](run)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers among the values; others (texts, None, NaN, infinite numbers) are left out."""
        numbers = {name: float(value) for name, value in values.items() if _is_number(value)}
        for name, writer in list(self._writers.items()) if numbers else ():
            with self._dropping(name):
                writer.log(numbers, step)

    def close(self) -> None:
        while self._writers:
            name, writer = self._writers.popitem()
            with self._dropping(name):
                writer.close()

    @contextmanager
    def _dropping(self, name: str) -> Iterator[None]:
        """The boundary for errors of trackers: a network, a disk or a library that fails must not end a run."""
        try:
            yield
        except Exception as error:
            self._writers.pop(name, None)
            text = " ".join(escape_control(redact_secrets(str(error))).split())
            print_status(f"warning: {name}: {type(error).__name__}: {truncate(text, MAX_WARNING_CHARS)}; it gets no more metrics")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def open_trackers(names: Sequence[str], run: Path, label: str, folder: Path | None = None) -> Iterator[TrackerLog]:
    """The trackers of the run directory `run`, until the block ends. Raises nothing for a tracker that cannot be opened.

    They write below `folder`; below `run` when it is not given.
    """
    log = TrackerLog(names, _describe_run(run, label, folder or run) if names else None)
    try:
        yield log
    finally:
        log.close()


def log_measures(names: Sequence[str], run: Path, label: str, measures: Mapping[str, Any], folder: Path | None = None) -> None:
    """Send the measures of an evaluation, as in its metrics.json, to the trackers (`open_trackers`), as step 0."""
    with open_trackers(names, run, label, folder) as log:
        log.log(flatten_measures(measures), step=0)


def _describe_run(run: Path, label: str, folder: Path) -> TrackedRun:
    reader = RunReader(run)
    created = str(reader.provenance.get("created", ""))
    return TrackedRun(folder, label, digest(created, str(run.resolve())), json.loads(json.dumps(reader.config)))


def flatten_measures(measures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of metrics.json by path: "mean", and "mean/low" and "mean/high" for the ends of its interval.

    Lists, such as that of the personas, and texts are left out.
    """
    found: dict[str, float] = {}
    for name, value in measures.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            inner = flatten_measures(value, f"{path}/")
            if "value" in value:  # an estimate: its value has the name of the measure
                inner = {path if key == f"{path}/value" else key: number for key, number in inner.items()}
            found |= inner
        elif _is_number(value):
            found[path] = float(value)
    return found


def flatten_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings by dotted name, as texts; those that are not set are left out."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flatten_settings(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = str(value)
    return found


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable in the block, then restore it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
