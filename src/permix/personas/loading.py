"""Read personas and open-ended questions from files, and check every field.

Fields of a persona:

    text    a noun phrase that completes "You are ..."        required
    id      any printable name                                default: a slug and a short digest of the text
    tags    a list of names; the first one is the kind        default: none (in CSV separated by ; or |)
    split   "train", "dev" or "heldout"                       default: none
    weight  a finite number above 0                           default: 1

Questions have `text`, `id`, `tags` and `split`; either all questions of a file have a split, or no question has one. The first
bad row raises DataError naming file, line, field, value and valid values. A text may contain newlines and tabs. Every
other control character, lone surrogate, line separator and bidirectional override is refused, so that texts can be printed
safely.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from permix.errors import ConfigError, DataError
from permix.storage.rows import SourceRow, parse_rows, quote_value, read_rows, valid_names_hint
from permix.types import SPLITS, Persona, Question, Split, canonical_text, digest

BUILTIN_KINDS = ("expert", "neutral", "harmful", "character")

POOL_SUFFIXES = (".toml", ".jsonl", ".csv")

QUESTION_SUFFIXES = (".toml", ".jsonl", ".txt")


_ItemT = TypeVar("_ItemT", Persona, Question)

_FieldCheck = Callable[[object], object]


_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def read_personas(source: str | Path) -> tuple[Persona, ...]:
    """Read the personas of "builtin" or of a .toml, .jsonl or .csv file, in the order of the file.

    Raises DataError for the first bad row.
    """
    if str(source) == "builtin":
        rows = [row for kind in BUILTIN_KINDS for row in _builtin_rows(f"{kind}.toml", "persona")]
    else:
        rows = read_rows(Path(source), "persona", POOL_SUFFIXES)
    if str(source).lower().endswith(".csv"):
        rows = [SourceRow(row.where, _parse_csv_fields(row.fields)) for row in rows]
    return _require_unique_ids(rows, [Persona.model_validate(_checked_fields(row, _PERSONA_CHECKS)) for row in rows])


def build_personas(items: Iterable[str | Persona | Mapping[str, object]]) -> tuple[Persona, ...]:
    """Personas made in Python: texts that complete "You are ...", records, or mappings with the fields of a file's row.

    Raises DataError, naming the place of the first bad item, or if there are no items.
    """
    fields: list[dict[str, object]] = [
        {"text": one} if isinstance(one, str) else one.model_dump(mode="json") if isinstance(one, Persona) else dict(one)
        for one in items
    ]
    rows = [SourceRow(f"personas[{index}]", one) for index, one in enumerate(fields)]
    if not rows:
        raise DataError('personas: is empty; give at least one text that completes "You are ..."')
    return _require_unique_ids(rows, [Persona.model_validate(_checked_fields(row, _PERSONA_CHECKS)) for row in rows])


def build_open_questions(items: Iterable[str | Question]) -> tuple[Question, ...]:
    """Open-ended questions made in Python, without a gold answer. Raises DataError for a bad or repeated question."""
    rows, questions = [], []
    for index, one in enumerate(items):
        fields: dict[str, object] = {"id": one.id, "text": one.text} if isinstance(one, Question) else {"text": one}
        rows.append(SourceRow(f"questions[{index}]", fields))
        questions.append(Question.model_validate({"task": "roleplay", "gold": "", **_checked_fields(rows[-1], _QUESTION_CHECKS)}))
    _require_distinct_texts(rows, questions)
    return _require_unique_ids(rows, questions)


def load_roleplay(source: str | Path = "builtin", split: Split = "heldout") -> tuple[Question, ...]:
    """Open-ended questions without a gold answer: "builtin", or a .toml, .jsonl or .txt file (one question per line).

    Returns the questions of one split in the order of the file, or all questions if the file has no splits. Raises DataError for
    a bad row, and ConfigError if the file has splits but no question in this one.
    """
    if str(source) == "builtin":
        rows = _builtin_rows("roleplay.toml", "question")
    else:
        rows = read_rows(Path(source), "question", QUESTION_SUFFIXES)
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


def _parse_csv_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Convert CSV texts to the fields' types. A weight that is not a number stays text, and the check refuses it."""
    typed = dict(fields)
    if "tags" in typed:
        typed["tags"] = [tag.strip() for tag in re.split(r"[;|]", str(typed["tags"])) if tag.strip()]
    if "weight" in typed:
        with suppress(ValueError):
            typed["weight"] = float(str(typed["weight"]))
    return typed


def _checked_fields(row: SourceRow, checks: Mapping[str, _FieldCheck]) -> dict[str, object]:
    """Check the row's fields and return them. A null counts as absent, and an absent id is derived from the text."""
    for key in row.fields:
        if key not in checks:
            raise DataError(f"{row.where}: unknown key {quote_value(key)}; {valid_names_hint(key, checks)}")
    if row.fields.get("text") is None:
        raise DataError(f"{row.where}: text is missing; every row must have one")
    checked: dict[str, object] = {}
    for key, value in row.fields.items():
        if value is None:
            continue
        try:
            checked[key] = checks[key](value)
        except ValueError as error:
            raise DataError(f"{row.where}: {key} = {quote_value(value)}: {error}") from error
    return {"id": derive_id(str(checked["text"])), **checked}


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
    for place, char in enumerate(text := value.replace("\r\n", "\n").strip()):
        if (char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")) or char in _BIDI:
            raise ValueError(
                f"contains U+{ord(char):04X} at character {place + 1}; newline and tab are the only control characters allowed"
            )
    return text


def check_persona_text(value: object) -> str:
    """Like `check_plain_text`, for a persona: raises ValueError also if the text starts with "You are"."""
    text = check_plain_text(value)
    if re.match(r"you(\s+are|['’]re)\b", text, re.IGNORECASE):
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
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf or value > 1e300:
        raise ValueError("must be a number above 0 and at most 1e300")
    return float(value)


_QUESTION_CHECKS: dict[str, _FieldCheck] = {
    "id": _check_id,
    "text": check_plain_text,
    "tags": _check_tags,
    "split": _check_split_name,
}

_PERSONA_CHECKS: dict[str, _FieldCheck] = {
    "id": _check_id,
    "text": check_persona_text,
    "tags": _check_tags,
    "split": _check_split_name,
    "weight": _check_weight,
}
