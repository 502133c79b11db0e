"""Merge the logs of another program into one grid, convert its scores to verdicts, and read a run for export.

Merging: a reader turns each log into a `LogSource` with permix cells. `merge_logs` accepts only logs that asked the same model
the same questions in the same way; else it raises DataError naming the field that differs. Cells that one persona lacks are
allowed: they count as missing. A setting that a log does not have is not compared, and the merged run does not have it either.

Logs may come from anybody, and may be damaged. `read_log_bytes` reads regular files up to a size; `guard_values` turns values of
a wrong type or depth into a DataError.

Verdicts: 1 is right and 0 is wrong, in every form that the programs use. NaN and None mean no score. Any other value raises
DataError, since rounding it would invent a result.

Export: `read_exportable_run` uses the records alone, and refuses a run that the other program's log format cannot hold.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from permix.config import ImportedSamplingConfig
from permix.errors import ConfigError, DataError
from permix.evals.grid import MAX_GRID_CELLS, GridResults, grid_results
from permix.evals.stability import read_rounds
from permix.storage.files import read_file_state
from permix.storage.rows import quote_value
from permix.storage.run_dir import RunReader
from permix.types import Cell, CellKey, Persona, Question, Verdict, canonical_text, digest


class ExportableRun(NamedTuple):
    """The input of the writers: a run's configuration, identity, time of creation (ISO 8601) and grid."""

    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    created: str
    results: GridResults

    @property
    def model(self) -> str:
        return str(self.config["model"]["name"])

    @property
    def task(self) -> str:
        return str(self.identity["task"])

    @property
    def file_date(self) -> str:
        """The time of creation as both programs write it into file names."""
        return self.created[:19].replace(":", "-")

    @property
    def sampling(self) -> Mapping[str, Any]:
        sampling: Mapping[str, Any] = self.config["sampling"]
        return sampling

    def cells_of_persona(self, persona_id: str | None) -> list[Cell]:
        """The recorded cells of one persona, ordered by question and sample."""
        cells = (
            self.results.get_cell(persona_id, question, sample)
            for question in self.results.question_ids
            for sample in range(self.results.samples)
        )
        return [cell for cell in cells if cell is not None]


def read_exportable_run(path: Path) -> ExportableRun:
    """Read a stability run. Raises DataError if it has another stage, no records, rounds, several templates, or contexts."""
    run = RunReader(path)
    if run.stage != "stability":
        raise DataError(f"{path}: config.json has stage {run.config.get('stage')!r}; only stability runs can be exported")
    identity, results = run.identity, grid_results(run)
    if not results.grid_summaries:
        raise DataError(f"{path}: has no records yet")
    if read_rounds(path):
        raise DataError(f"{path}: is a sequential run (budget, precision); a log can only hold a full grid")
    if results.templates != ("",):
        raise DataError(f"{path}: uses {len(results.templates)} templates; a log can only hold one")
    if results.contexts != ("",):
        raise DataError(f"{path}: uses {len(results.contexts)} contexts; a log can only hold a run without contexts")
    return ExportableRun(run.config, identity, run.provenance["created"], results)


def slug(text: str) -> str:
    """A readable part of a file name, made from the text; different texts can have the same slug."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:40]


INSPECT_GRADES = {"C": True, "I": False, "N": False}
"""inspect_ai's letters: correct, incorrect, no answer. Its P, partially correct, is neither right nor wrong."""


def to_verdict(value: Any, extracted: str | None, *, field: str, where: str, can_rescore: bool = True) -> Verdict:
    """Convert a score of another program. Raises DataError, naming field and value, if it is neither 0, 1 nor missing.

    can_rescore: whether there is an answer that permix could score; the error then names --answer.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Verdict(correct=None, extracted=extracted, error=f"{field} is {value}: not scored")
    if isinstance(value, str) and value in INSPECT_GRADES:
        return Verdict(correct=INSPECT_GRADES[value], extracted=extracted)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return Verdict(correct=bool(value), extracted=extracted)
    again = ", or score every answer again with --answer" if can_rescore else ""
    raise DataError(
        f"{where}: {field} = {value!r}: a verdict is right or wrong (1 or 0, true or false, C or I); choose another score with "
        f"--metric{again}"
    )


def select_option(found: list[str], wanted: str | None, *, field: str, where: str) -> str:
    """`wanted`, or the only option. Raises DataError, naming the options, if `found` lacks it or `wanted` is needed."""
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted in found:
        return str(wanted)
    known = ", ".join(found) or "none"
    if wanted is None and found:
        raise DataError(f"{where}: more than one {field}: {known}; choose with --{field}")
    raise DataError(f"{where}: {field} {'is missing' if wanted is None else f'= {wanted!r}: is not in the log'}; it has {known}")


NO_PERSONA_NAME = "none"
"""The persona name on the command line that means no persona."""


class NamedLogPath(NamedTuple):
    """One "NAME=PATH" or "PATH" of a configuration. `name` is None if the log itself names its persona."""

    name: str | None
    path: Path

    @property
    def persona_id(self) -> str | None:
        """The persona of an entry with a name; None means no persona."""
        return None if self.name == NO_PERSONA_NAME else self.name


class LoggedCell(NamedTuple):
    """A cell of a log. `question_text` is the question without the persona, or None if the log does not separate the two.

    `where` names the place in the log, for messages.
    """

    cell: Cell
    question_text: str | None
    where: str


class LogSource(NamedTuple):
    """One log: the settings that must be equal in all logs, its personas (id → text), and its cells.

    `model` is None if the log does not name it. `details` holds all further settings that must be equal. `question_ids` are all
    questions asked, also those without a cell. `permix_identity` is the identity of the permix run that the log was exported
    from. `notes` are sentences that the user must read.
    """

    where: str
    model: str | None
    task: str
    sampling: ImportedSamplingConfig
    scorer: str
    details: Mapping[str, Any]
    personas: Mapping[str, str]
    logged_cells: Sequence[LoggedCell]
    question_ids: Sequence[str] = ()
    samples: int = 1
    default_system: str | None = None
    permix_identity: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def shared_settings(self) -> dict[str, Any]:
        """The settings that are known and must be equal in all logs."""
        known = {} if self.model is None else {"model": self.model, "permix": dict(self.permix_identity or {})}
        return known | {"task": self.task, "sampling": self.sampling.model_dump(), "judge": self.scorer} | dict(self.details)


class MergedLogs(NamedTuple):
    """The grid of all sources. `first` is the first source whose model is unknown, else the first: it describes the run."""

    first: LogSource
    personas: tuple[Persona, ...]
    questions: tuple[Question, ...]
    samples: int
    cells: tuple[Cell, ...]
    default_system: str | None
    notes: tuple[str, ...]


MAX_SETTINGS_DEPTH = 50


@contextlib.contextmanager
def guard_values(where: str) -> Iterator[None]:
    """Turn a value of a wrong type, or one that is nested too deeply, into a DataError that names the place."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "value"
        raise DataError(f"{where}: {field} = {quote_value(first['input'])}: {first['msg']}") from error
    except RecursionError as error:
        raise DataError(f"{where}: a value is nested too deeply") from error


def read_log_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a log. Raises DataError unless it is a readable regular file of at most `max_bytes`."""
    require_log_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def require_log_file(path: Path, max_bytes: int) -> None:
    """Raise DataError unless `path` is a regular file (a pipe or a device may never end) of at most `max_bytes`."""
    state = read_file_state(path)
    if state is None:
        raise DataError(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}")
    if state.size > max_bytes:
        raise DataError(f"{path}: has {state.size:,} bytes, more than the {max_bytes:,} that are read")


def parse_log_paths(arguments: Sequence[str], field: str) -> list[NamedLogPath]:
    """Parse the entries of `field`. Raises ConfigError for an empty name or path, and for a name or path that is given twice."""
    found = [_parse_log_path(one, field) for one in arguments]
    for kind, values in (("name", [one.name for one in found]), ("path", [one.path.resolve() for one in found])):
        known = [one for one in values if one is not None]
        for value in known:
            if known.count(value) > 1:
                raise ConfigError(f"{field}: the {kind} {str(value)!r} is given twice; give each persona its own logs")
    return found


def _parse_log_path(text: str, field: str) -> NamedLogPath:
    name, equals, path = text.partition("=")
    if not equals:
        name, path = "", text
    if not path.strip() or (equals and not name.strip()):
        raise ConfigError(f"{field} = {text!r}: give NAME=PATH, {NO_PERSONA_NAME}=PATH for no persona, or a PATH")
    return NamedLogPath(name.strip() or None, Path(path).expanduser())


def merge_logs(sources: Sequence[LogSource], same_question: str) -> MergedLogs:
    """Merge all sources into one grid. Raises DataError, naming field and log, if two sources do not belong to one run, or if a
    persona has no question in common with the others.

    same_question: a clause for that error, which says when two samples of these logs ask the same question.
    """
    first = next((source for source in sources if source.model is None), sources[0])
    _require_equal_settings(sources)
    personas = _merge_personas(sources)
    by_key = _require_unique_cells(one for source in sources for one in source.logged_cells)
    if not by_key:
        raise DataError(f"{first.where}: has no answers")
    _require_shared_questions(list(by_key.values()), same_question)
    questions = _merge_questions(first, [one for source in sources for one in source.question_ids], list(by_key.values()))
    samples = max(*(source.samples for source in sources), *(key.sample + 1 for key in by_key), 1)
    if (n_cells := (len(personas) + 1) * len(questions) * samples) > MAX_GRID_CELLS:
        raise DataError(f"{first.where}: {samples} samples of each question make {n_cells:,} cells; is a sample's number wrong?")
    return MergedLogs(
        first=first,
        personas=personas,
        questions=questions,
        samples=samples,
        cells=tuple(one.cell for one in by_key.values()),
        default_system=next((source.default_system for source in sources if source.default_system is not None), None),
        notes=tuple(dict.fromkeys(note for source in sources for note in source.notes)),
    )


def _require_equal_settings(sources: Sequence[LogSource]) -> None:
    """Raise DataError if two sources that have a setting differ in it."""
    known: dict[str, tuple[Any, str]] = {}
    for source in sources:
        if _is_deeper(source.shared_settings, MAX_SETTINGS_DEPTH):
            raise DataError(f"{source.where}: its settings are nested more than {MAX_SETTINGS_DEPTH} levels deep")
        for name, value in source.shared_settings.items():
            first, where = known.setdefault(name, (value, source.where))
            require_equal_fields(first, value, where, source.where, name)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether a value has more than `depth` levels of objects and lists; without recursion, since it may have very many."""
    level = [value]
    for _ in range(depth):
        level = [child for one in level for child in _children(one)]
    return any(_children(one) for one in level)


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []


def require_equal_fields(first: Any, other: Any, first_where: str, other_where: str, field: str = "") -> None:
    """Raise DataError for the first field, at any depth, in which two descriptions differ."""
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*first, *other]):
            require_equal_fields(
                first.get(key), other.get(key), first_where, other_where, f"{field}.{key}" if field else str(key)
            )
    elif first != other:
        raise DataError(
            f"{other_where}: {field} = {quote_value(other)}, and {first_where} has {quote_value(first)}; "
            "all logs of a run must have the same settings"
        )


def _merge_personas(sources: Sequence[LogSource]) -> tuple[Persona, ...]:
    """All personas by first appearance. Raises DataError if a text has two names, or a name has two texts."""
    text_of: dict[str, tuple[str, str]] = {}
    id_of: dict[str, str] = {}
    for source in sources:
        for id, text in source.personas.items():
            known, where = text_of.setdefault(id, (text, source.where))
            if known != text:
                raise DataError(
                    f"{source.where}: persona {id!r} is {quote_value(text)}, and in {where} it is {quote_value(known)}"
                )
            if id_of.setdefault(text, id) != id:
                raise DataError(f"{source.where}: personas {id_of[text]!r} and {id!r} have the same text: {quote_value(text)}")
    return tuple(Persona(id=id, text=text) for id, (text, _) in text_of.items())


def _require_unique_cells(logged_cells: Iterable[LoggedCell]) -> dict[CellKey, LoggedCell]:
    by_key: dict[CellKey, LoggedCell] = {}
    for one in logged_cells:
        first = by_key.setdefault(one.cell.key, one)
        if first is not one:
            who = "no persona" if one.cell.persona_id is None else f"persona {one.cell.persona_id!r}"
            description = f"question {one.cell.question_id!r}, sample {one.cell.sample}, under {who}"
            raise DataError(f"{one.where}: {description}: occurs in {first.where} already")
    return by_key


def _require_shared_questions(logged_cells: Sequence[LoggedCell], same_question: str) -> None:
    """Raise DataError for a persona (or no persona) none of whose questions was asked under another one: each persona would have
    a grid of its own, and no measure would compare anything."""
    asked_under: dict[str, set[str | None]] = {}
    for one in logged_cells:
        asked_under.setdefault(one.cell.question_id, set()).add(one.cell.persona_id)
    if len(set[str | None]().union(*asked_under.values())) == 1:
        return
    compared = set[str | None]().union(*(personas for personas in asked_under.values() if len(personas) > 1))
    alone = next((one for one in logged_cells if one.cell.persona_id not in compared), None)
    if alone is not None:
        who = "no persona" if alone.cell.persona_id is None else f"persona {alone.cell.persona_id!r}"
        raise DataError(
            f"{alone.where}: {who}: no question that was asked with it was asked with another persona or with none, so there is "
            f"nothing to compare; {same_question}"
        )


def _merge_questions(source: LogSource, question_ids: Sequence[str], logged_cells: Sequence[LoggedCell]) -> tuple[Question, ...]:
    """All questions by first appearance; an unknown text is replaced by the id. Raises DataError if a text or gold differs.

    Logs that permix exported are not checked: the run was checked when it was made, and the persona may now be part of the text.
    """
    strict = source.permix_identity is None
    words = _value_by_question("question", logged_cells, [one.question_text for one in logged_cells], strict)
    golds = _value_by_question("target", logged_cells, [one.cell.gold for one in logged_cells], strict)
    ids = dict.fromkeys([*(one.cell.question_id for one in logged_cells), *question_ids])
    return tuple(Question(id=id, task=source.task, text=words.get(id) or id, gold=golds.get(id) or "") for id in ids)


def _value_by_question(
    field: str, logged_cells: Sequence[LoggedCell], values: Sequence[str | None], strict: bool
) -> dict[str, str]:
    """The first known value of each question; raises DataError where a later one differs, if `strict`."""
    first: dict[str, tuple[str, str]] = {}
    for one, value in zip(logged_cells, values, strict=True):
        if value is None:
            continue
        known, where = first.setdefault(one.cell.question_id, (value, one.where))
        if strict and known != value:
            description = f"question {one.cell.question_id!r}: {field}"
            raise DataError(f"{one.where}: {description} = {quote_value(value)}, and {where} has {quote_value(known)}")
    return {id: value for id, (value, _) in first.items()}


def scorer_of_log(permix_identity: Mapping[str, Any] | None, log_scorer: str) -> str:
    """The name of the scorer: the scorer of the exported run if `permix_identity` is given, else `log_scorer`."""
    return log_scorer if permix_identity is None else str(permix_identity.get("judge", "permix"))


def question_text_id(text: str) -> str:
    """The id of a question whose log has no id: a hash of its text."""
    return digest(canonical_text(text))


def to_json_value(value: Any) -> Any:
    """The value after a round trip through JSON, so that it compares equal with the content of a file; NaN becomes a text."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)
