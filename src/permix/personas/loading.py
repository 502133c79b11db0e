"""Read personas and open-ended questions from files, and check every field.

Fields of a persona:

    text    a noun phrase that completes "You are ..."        required, or system
    system  a whole system prompt                             in place of text
    id      any printable name                                default: a slug and a short digest of the text
    tags    a list of names; the first one is the kind        default: none (in CSV separated by ; or |)
    split   "train", "dev" or "heldout"                       default: none
    weight  a finite number above 0                           default: 1

A text that begins with "You are" is a whole system prompt too. A whole prompt is sent as it is, without the template's "You are"
(`permix.prompts.persona_message`). White space at the ends of a text is left out, and its line ends become newlines.
`permix.personas.published` reads files whose rows have other fields.

Questions have `text`, `id`, `tags` and `split`; either all questions of a file have a split, or no question has one. The first
bad row raises DataError naming file, line, field, value and valid values. A text may contain newlines and tabs. Every
other control character, lone surrogate, line separator and bidirectional override is refused, so that texts can be printed
safely.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypeVar

from permix.errors import ConfigError, DataError
from permix.personas.published import PoolRows, read_pool_rows
from permix.prompts import begins_with_you_are
from permix.storage.rows import (
    SourceRow,
    given_fields,
    given_items,
    is_data_frame,
    is_missing_value,
    is_real_number,
    is_whole_number,
    parse_rows,
    quote_value,
    read_rows,
    valid_names_hint,
)
from permix.types import SPLITS, Persona, Question, Split, canonical_text, digest

BUILTIN_KINDS = ("expert", "neutral", "harmful", "character")

QUESTION_SUFFIXES = (".toml", ".jsonl", ".txt")


_ItemT = TypeVar("_ItemT", Persona, Question)

_FieldCheck = Callable[[object], object]


_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class ReadPool(NamedTuple):
    """The personas of a file in its order, and notes on what was read."""

    personas: tuple[Persona, ...]
    notes: tuple[str, ...]


def read_pool_file(source: str | Path, column: str | None = None) -> ReadPool:
    """Read the personas of "builtin" or of a file or folder; `permix.personas.published` lists the forms.

    `column` names the column of the texts. Raises DataError for the first bad row.
    """
    if str(source) == "builtin":
        read = PoolRows([row for kind in BUILTIN_KINDS for row in _builtin_rows(f"{kind}.toml", "persona")])
    else:
        read = read_pool_rows(Path(source), column)
    personas = _require_unique_ids(read.rows, [_persona_of_row(row) for row in read.rows])
    return ReadPool(personas, (*read.notes, *_repeated_text_notes(read.rows, personas)))


def _repeated_text_notes(rows: Sequence[SourceRow], personas: Sequence[Persona]) -> Iterator[str]:
    """A note if personas of different ids have equal texts, which names the first such pair."""
    first: dict[str, tuple[SourceRow, Persona]] = {}
    repeats = list[tuple[SourceRow, Persona]]()
    for row, persona in zip(rows, personas, strict=True):
        if first.setdefault(canonical_text(persona.text), (row, persona))[1] is not persona:
            repeats.append((row, persona))
    if repeats:
        row, persona = repeats[0]
        earlier_row, earlier = first[canonical_text(persona.text)]
        others = f"; {len(repeats)} personas repeat an earlier text" if len(repeats) > 1 else ""
        yield (
            f"{row.where}: persona {persona.id!r} has the text of {earlier.id!r} at {earlier_row.where}, so one text counts as "
            f"two personas; remove one of them{others}"
        )


def read_personas(source: str | Path, column: str | None = None) -> tuple[Persona, ...]:
    """The personas of `read_pool_file`."""
    return read_pool_file(source, column).personas


def build_personas(items: Iterable[str | Persona | Mapping[str, object]]) -> tuple[Persona, ...]:
    """Personas made in Python: texts that complete "You are ...", records, or mappings with the fields of a file's row; also the
    rows of a data frame.

    Raises DataError, naming the place of the first bad item, or if there are no items.
    """
    given = given_items(items, "personas", f'must be "builtin", a file, a pool, or a list of which each item {_A_PERSONA}')
    rows = [SourceRow(f"personas[{index}]", _given_persona_fields(index, one)) for index, one in enumerate(given)]
    if not rows:
        raise DataError('personas: is empty; give at least one text that completes "You are ..."')
    return _require_unique_ids(rows, [_persona_of_row(row) for row in rows])


_A_PERSONA = 'must be a text that completes "You are ...", a dict with text or system, or a permix.Persona'


def _given_persona_fields(index: int, given: object) -> dict[str, object]:
    """The fields of an item, without values that are missing, as in a table with gaps."""
    if isinstance(given, str):
        return {"text": given}
    if isinstance(given, Persona):
        fields = given.model_dump(mode="json")
        return {
            ("system" if given.whole_prompt and key == "text" else key): fields[key] for key in fields if key != "whole_prompt"
        }
    if not isinstance(given, Mapping):
        raise DataError(f"personas[{index}] = {quote_value(given)}: {_A_PERSONA}")
    fields = {key: value for key, value in given_fields(given).items() if not is_missing_value(value)}
    return fields | ({"id": str(fields["id"])} if is_whole_number(fields.get("id")) else {})


def _persona_of_row(row: SourceRow) -> Persona:
    is_system = row.fields.get("system") is not None
    if is_system and row.fields.get("text") is not None:
        raise DataError(f"{row.where}: has both text and system; give one of them")
    fields = _checked_fields(row, _PERSONA_CHECKS, "system" if is_system else "text")
    text = str(fields.pop("system" if is_system else "text"))
    return Persona.model_validate({**fields, "text": text, "whole_prompt": is_system or begins_with_you_are(text)})


def build_open_questions(items: Iterable[str | Question]) -> tuple[Question, ...]:
    """Open-ended questions made in Python, without a gold answer. Raises DataError for a bad or repeated question."""
    if is_data_frame(items):
        raise DataError('questions: is a data frame; give the texts of its column, such as list(frame["question"])')
    given = given_items(items, "questions", 'must be "builtin", a file, or a list of texts')
    rows, questions = [], []
    for index, one in enumerate(given):
        fields: dict[str, object] = {"id": one.id, "text": one.text} if isinstance(one, Question) else {"text": one}
        rows.append(SourceRow(f"questions[{index}]", fields))
        questions.append(Question.model_validate({"task": "roleplay", "gold": "", **_checked_fields(rows[-1], _QUESTION_CHECKS)}))
    _require_distinct_texts(rows, questions)
    return _require_unique_ids(rows, questions)


def load_roleplay(source: str | Path = "builtin", split: Split = "heldout", *, has_builtin: bool = True) -> tuple[Question, ...]:
    """Open-ended questions without a gold answer: "builtin", or a .toml, .jsonl or .txt file (one question per line).

    Without `has_builtin` "builtin" is a path like any other. Returns the questions of one split in the order of the file, or all
    questions if the file has no splits. Raises DataError for a bad row, and ConfigError if the file has splits but no question
    in this one.
    """
    if has_builtin and str(source) == "builtin":
        rows = _builtin_rows("roleplay.toml", "question")
    else:
        rows = read_rows(Path(source), "question", QUESTION_SUFFIXES, has_builtin=has_builtin)
    fields = [_checked_fields(row, _QUESTION_CHECKS) for row in rows]
    splits = [row_fields.pop("split", None) for row_fields in fields]
    all_questions = [Question.model_validate({"task": "roleplay", "gold": "", **row_fields}) for row_fields in fields]
    _require_distinct_texts(rows, all_questions)
    questions = _require_unique_ids(rows, all_questions)
    if not any(splits):
        return questions
    _check_split_on_all_rows(rows, splits)
    chosen = tuple(question for question, row_split in zip(questions, splits, strict=True) if row_split == split)
    if not chosen:
        counts = Counter(splits)
        raise ConfigError(
            f"{source}: split = {split!r}: has none of the {len(questions)} questions "
            f"({', '.join(f'{name} {counts[name]}' for name in SPLITS)})"
        )
    return chosen


def _require_distinct_texts(rows: Sequence[SourceRow], questions: Sequence[Question]) -> None:
    first: dict[str, str] = {}
    for row, question in zip(rows, questions, strict=True):
        if (earlier := first.setdefault(question.content_hash, row.where)) != row.where:
            raise DataError(f"{row.where}: text = {quote_value(question.text)}: repeats {earlier}; questions must be distinct")


def _check_split_on_all_rows(rows: Sequence[SourceRow], splits: Sequence[object]) -> None:
    for row, split in zip(rows, splits, strict=True):
        if split is None:
            raise DataError(
                f"{row.where}: split is missing, but other questions have one; give a split to all questions or to no question"
            )


def _builtin_rows(name: str, table: str) -> list[SourceRow]:
    return parse_rows(f"builtin {name}", ".toml", (files("permix.personas") / name).read_bytes(), table)


def _checked_fields(row: SourceRow, checks: Mapping[str, _FieldCheck], text_field: str = "text") -> dict[str, object]:
    """Check the row's fields and return them. A null counts as absent, and an absent id is derived from the text."""
    for key in row.fields:
        if key not in checks:
            raise DataError(f"{row.where}: unknown key {quote_value(key)}; {valid_names_hint(key, checks)}")
    if row.fields.get(text_field) is None:
        raise DataError(f"{row.where}: {text_field} is missing; every row must have one")
    checked: dict[str, object] = {}
    for key, value in row.fields.items():
        if value is None:
            continue
        try:
            checked[key] = checks[key](value)
        except ValueError as error:
            raise DataError(f"{row.where}: {key} = {quote_value(value)}: {error}") from error
    return {"id": derive_id(str(checked[text_field])), **checked}


def derive_id(text: str) -> str:
    """The id of a row without id: the text's ASCII words in kebab case, and a digest of the normalized text."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9]+", plain))[:40].strip("-")
    return f"{slug or 'text'}-{digest(canonical_text(text), length=8)}"


def _require_unique_ids(rows: list[SourceRow], items: list[_ItemT]) -> tuple[_ItemT, ...]:
    first: dict[str, str] = {}
    for row, item in zip(rows, items, strict=True):
        if (earlier := first.setdefault(item.id, row.where)) != row.where:
            raise DataError(
                f"{row.where}: id = {quote_value(item.id)}: used before at {earlier}; ids (and texts without id) must be unique"
            )
    return tuple(items)


def check_plain_text(value: object) -> str:
    """The text without white space at its ends. Raises ValueError if it is not a text, empty, or has control characters."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    text = value.replace("\r\n", "\n").strip()
    if bad := _NOT_PRINTABLE.search(text):
        raise ValueError(
            f"contains U+{ord(bad[0]):04X} at character {bad.start() + 1}; newline and tab are the only control characters "
            "allowed"
        )
    return text


def check_persona_text(value: object) -> str:
    """Like `check_plain_text`, for a persona: raises ValueError also if the text starts with "You are"."""
    text = check_plain_text(value)
    if begins_with_you_are(text):
        raise ValueError('must complete "You are ...": leave out the "You are" at its start')
    return text


def _check_id(value: object) -> str:
    return _check_printable_name(value, "must be printable text without white space at its ends")


def _check_tags(value: object) -> tuple[str, ...]:
    valid = 'must be a list of distinct printable names without ; and |, such as ["expert", "numbers"]'
    if not isinstance(value, list):
        raise ValueError(valid)
    tags = tuple(_check_printable_name(tag, valid) for tag in value)
    if len(set(tags)) < len(tags) or re.search(r"[;|]", "".join(tags)):
        raise ValueError(valid)
    return tags


def _check_printable_name(value: object, valid: str) -> str:
    if not isinstance(value, str) or not value or value != value.strip() or not value.isprintable():
        raise ValueError(valid)
    return value


def _check_split_name(value: object) -> object:
    if value not in SPLITS:
        raise ValueError('must be "train", "dev" or "heldout"')
    return value


def _check_weight(value: object) -> float:
    number = float(value) if is_real_number(value) else math.nan  # type: ignore[arg-type]
    if not 0 < number <= 1e300:
        raise ValueError("must be a number above 0 and at most 1e300")
    return number


_QUESTION_CHECKS: dict[str, _FieldCheck] = {
    "id": _check_id,
    "text": check_plain_text,
    "tags": _check_tags,
    "split": _check_split_name,
}

_PERSONA_CHECKS: dict[str, _FieldCheck] = {
    "id": _check_id,
    "text": check_plain_text,
    "system": check_plain_text,
    "tags": _check_tags,
    "split": _check_split_name,
    "weight": _check_weight,
}
