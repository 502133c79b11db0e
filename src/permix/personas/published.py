"""Read the persona files that people have, and name the fields of their rows as permix does.

A file is .jsonl, .csv, .tsv, .json, .parquet or .toml, a character card in a .png, or a folder of cards (.json, .png). Its rows:

    text or system                      permix's own form (`permix.personas.loading`); other columns are refused
    any columns, `personas.column`      the text is in the column that the option names; a dot leads into an object (data.bio)
    persona, input persona              PersonaHub
    act and prompt                      prompts.csv of awesome-chatgpt-prompts; the prompt is a whole system prompt
    one of `TEXT_COLUMNS`               RoleBench (desc), CharacterBench (character_profile), ...; two of them are refused
    one other column of texts           beside a name and permix's own fields; not in .csv and .tsv
    a character card                    version 1, 2 or 3; see `_card_fields`

A .json file holds a list of texts or of such rows, or an object: one row, one list, or names with their texts or profiles
(RoleBench, CharacterEval). A profile that is an object becomes one line for each of its fields.

The names of columns may differ in case from those above, as `ID,System`. In all forms but the first, `id`, `tags`, `split` and
`weight` keep their meaning and other columns are left out. A row without `id` has its name as id, if no two names are equal.
`{{char}}` and `{{user}}` become the name and "the user". Of rows with equal texts the first is kept.
"""

import base64
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from permix.errors import DataError
from permix.storage.rows import (
    CSV_SUFFIXES,
    SourceRow,
    decode_text,
    field_value,
    parquet_rows,
    parse_json,
    quote_value,
    read_rows,
)
from permix.types import canonical_text

POOL_SUFFIXES = (".toml", ".jsonl", ".csv", ".tsv", ".json", ".parquet", ".png")

CARD_SUFFIXES = (".json", ".png")

OWN_TEXT_FIELDS = ("text", "system")

OWN_FIELDS = ("id", "tags", "split", "weight")

PERSONAHUB_COLUMNS = ("persona", "input persona", "input_persona")

PROMPT_COLUMNS = ("system_prompt", "system prompt", "systemPrompt")
"""Columns of whole system prompts."""

TEXT_COLUMNS = (
    *("profile", "character_profile", "role_profile", "persona_description", "desc", "description", "character_description"),
    *("bio", "biography", "personality", *PROMPT_COLUMNS),
)

NAME_COLUMNS = ("name", "role", "role_name", "character", "character_name", "char_name", "act", "title")

LIST_KEYS = ("personas", "persona", "characters", "roles", "data", "rows", "train", "test")
"""Keys of a JSON object that holds nothing but a list of rows."""


class PoolRows(NamedTuple):
    """Rows with permix's fields, and notes on what was read: the column, columns left out, repeated texts."""

    rows: list[SourceRow]
    notes: tuple[str, ...] = ()


def read_pool_rows(path: Path, column: str | None = None) -> PoolRows:
    """The rows of a pool's file or folder. Raises DataError if it cannot be read, or if it is not clear where the texts are."""
    raw = list(_folder_rows(path)) if path.is_dir() else _file_rows(path)
    if not raw:
        raise DataError(f"{path}:1: the file contains no persona; it needs at least one")
    written = {name: None for row in raw for name in row.fields}  # a dict keeps the order of the columns
    spellings = {} if any(_is_card(row.fields) for row in raw) else _known_spellings(path, list(written), column)
    raw = [SourceRow(row.where, {spellings.get(key, key): value for key, value in row.fields.items()}) for row in raw]
    fields = {spellings.get(name, name): name for name in written}
    if column is None and any(name in fields for name in OWN_TEXT_FIELDS):
        is_csv = path.suffix.lower() in CSV_SUFFIXES
        return PoolRows([SourceRow(row.where, _parse_texts(row.fields)) for row in raw] if is_csv else raw)
    cards = [] if column is not None else [row for row in raw if _is_card(row.fields)]
    if cards and len(cards) == len(raw):
        converted = [SourceRow(row.where, _card_fields(row)) for row in raw]
        return _without_repeats(path, converted, [f"read as {len(raw)} character card{'s' * (len(raw) > 1)}"])
    chosen = _text_column(path, raw, fields, column)
    unused = [shown for name, shown in fields.items() if name not in (chosen.partition(".")[0], *OWN_FIELDS, *NAME_COLUMNS)]
    note = f"personas are read from column {fields.get(chosen, chosen)!r}" + (
        f"; not used: {', '.join(unused[:8])}" if unused else ""
    )
    is_prompt = chosen in PROMPT_COLUMNS or (column is None and chosen == "prompt" and "act" in fields)
    target = "system" if is_prompt else "text"
    return _without_repeats(path, [_row_with_text(row, chosen, target) for row in raw], [note])


_TEXT_NAMES = (*OWN_TEXT_FIELDS, *PERSONAHUB_COLUMNS, "prompt", *TEXT_COLUMNS)

_KNOWN_NAMES = {name.lower(): name for name in (*_TEXT_NAMES, *OWN_FIELDS, *NAME_COLUMNS)}


def _known_spellings(path: Path, columns: Sequence[str], given: str | None) -> dict[str, str]:
    """For each column whose name differs in case from one that permix knows: the known name. `given` is `personas.column`.

    A column of texts under its exact name goes before others: beside `persona`, a column `Text` is not the text. Raises DataError
    if two columns that are read differ in case only.
    """
    has_text = given is not None or any(name in columns for name in _TEXT_NAMES)
    found: dict[str, str] = {}
    taken = {name: name for name in columns if name in _KNOWN_NAMES.values()}
    for name in columns:
        known = _KNOWN_NAMES.get(name.lower())
        if known is None or name in taken or name == given:
            continue
        if (other := taken.get(known)) is not None and known != given:
            raise DataError(f"{path}:1: the columns {other!r} and {name!r} differ in case only; rename one of them")
        if known not in _TEXT_NAMES or not has_text:
            found[name], taken[known] = known, name
    return found


def _text_column(path: Path, rows: Sequence[SourceRow], columns: Mapping[str, str], given: str | None) -> str:
    """The column of the texts. Raises DataError, listing the columns, if none or several could be it.

    `columns`: each name with its spelling in the file.
    """
    listed = ", ".join(list(columns.values())[:20])
    if given is not None:
        if any(field_value(row.fields, given) is not None for row in rows):
            return given
        others = [name for name, shown in columns.items() if shown.lower() == given.lower()]
        if len(others) == 1:
            return others[0]
        if others:
            raise DataError(
                f"{path}:1: personas.column = {given!r}: the columns {' and '.join(map(repr, others))} differ in case only"
            )
        raise DataError(f"{path}:1: personas.column = {given!r}: no row has such a column; columns: {listed}")
    known = [name for name in PERSONAHUB_COLUMNS if name in columns][:1]
    if not known and "act" in columns and "prompt" in columns:
        known = ["prompt"]
    known = known or [name for name in TEXT_COLUMNS if name in columns]
    if not known and path.suffix.lower() not in CSV_SUFFIXES:  # there a file without header would lose its first persona
        others = [name for name in columns if name not in (*OWN_FIELDS, *NAME_COLUMNS)]
        known = others if len(others) == 1 and all(isinstance(row.fields.get(others[0]), str) for row in rows) else []
    if len(known) == 1:
        return known[0]
    found = f"several columns may hold the texts ({', '.join(known)})" if known else "no column 'text', and no other known one"
    raise DataError(f"{path}:1: {found}; name the column with personas.column (--personas.column NAME); columns: {listed}")


def _row_with_text(row: SourceRow, column: str, target: str) -> SourceRow:
    value, name = field_value(row.fields, column), _name_of(row.fields)
    if value is None:
        raise DataError(f"{row.where}: {column} is missing; every row must have one")
    text = _flatten(value)
    fields = _parse_texts({key: row.fields[key] for key in OWN_FIELDS if row.fields.get(key) is not None and key != column})
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    return SourceRow(row.where, {"name": name, **fields, target: fill_macros(text, name) if isinstance(text, str) else text})


def _parse_texts(fields: Mapping[str, object]) -> dict[str, object]:
    """Read tags and weight from texts, as CSV has them. A weight that is not a number stays text, and is refused later."""
    typed = dict(fields)
    if isinstance(tags := typed.get("tags"), str):
        typed["tags"] = [tag.strip() for tag in re.split(r"[;|]", tags) if tag.strip()]
    if isinstance(weight := typed.get("weight"), str):
        with suppress(ValueError):
            typed["weight"] = float(weight)
    return typed


def _name_of(fields: Mapping[str, Any]) -> str | None:
    """The name of a row's persona, if it has a printable one."""
    names = (str(fields[key]).strip() for key in NAME_COLUMNS if isinstance(fields.get(key), str))
    return next((name for name in names if name and name.isprintable()), None)


def _flatten(value: object) -> object:
    """A profile as text: an object becomes one line for each field, a list of texts one line for each. Other values stay."""
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_flatten_inline(inner)}" for key, inner in value.items() if inner not in (None, "", [], {}))
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return value


def _flatten_inline(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_flatten_inline, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_repeats(path: Path, rows: Sequence[SourceRow], notes: Sequence[str]) -> PoolRows:
    """Leave out rows whose text an earlier row has, and make ids of names if all are different."""
    kept, first = list[SourceRow](), dict[str, str]()
    repeats: list[str] = []
    for row in rows:
        text = row.fields.get("text", row.fields.get("system"))
        earlier = first.setdefault(canonical_text(text), row.where) if isinstance(text, str) else row.where
        if earlier == row.where:
            kept.append(row)
        else:
            repeats.append(f"{row.where} of {earlier}")
    names = [row.fields.pop("name", None) for row in kept]
    if all(names) and len(set(names)) == len(names):
        for row, name in zip(kept, names, strict=True):
            row.fields.setdefault("id", name)
    if repeats:
        notes = [*notes, f"{len(repeats)} rows repeat an earlier text and are left out, such as {repeats[0]}"]
    return PoolRows(kept, tuple(f"{path}: {note}" for note in notes))


# Files


def _file_rows(path: Path) -> list[SourceRow]:
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".json", ".parquet", ".png"):
        return read_rows(path, "persona", POOL_SUFFIXES, has_builtin=True)
    if suffix == ".parquet":
        return parquet_rows(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if suffix == ".png":
        return [SourceRow(str(path), _card_of_png(path, raw))]
    return list(_json_rows(parse_json(decode_text(str(path), raw), str(path)), str(path)))


def _folder_rows(folder: Path) -> Iterator[SourceRow]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in CARD_SUFFIXES)
    if not files:
        raise DataError(
            f"{folder}: not a file but a directory without character cards ({', '.join(CARD_SUFFIXES)}); "
            f"give a {' / '.join(POOL_SUFFIXES)} file, or a folder of cards"
        )
    for file in files:
        yield from _file_rows(file)


def _json_rows(value: Any, name: str) -> Iterator[SourceRow]:
    """The rows of a JSON value: a list, an object that is a row, or an object of names."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(inner := next(iter(value.values())), list):
        value = inner if next(iter(value)) in LIST_KEYS else value
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            if not isinstance(item, str | dict):
                raise DataError(f"{name}: row {number}: {quote_value(item)} is neither a text nor an object")
            yield SourceRow(f"{name}: row {number}", {"text": item} if isinstance(item, str) else item)
    elif not isinstance(value, dict) or not value:
        raise DataError(
            f"{name}:1: must be a list of texts or objects, or an object of names and texts, not {quote_value(value)}"
        )
    elif _is_card(value) or _is_row(value):
        yield SourceRow(f"{name}:1", value)
    elif columns := _columns_of_table(value):
        yield from (SourceRow(f"{name}: row {key}", {c: value[c].get(key) for c in value}) for key in columns)
    else:
        yield from _rows_of_names(value, name)


def _is_row(value: Mapping[str, Any]) -> bool:
    return any(isinstance(text, str) and _KNOWN_NAMES.get(key.lower()) in _TEXT_NAMES for key, text in value.items())


def _columns_of_table(value: Mapping[str, Any]) -> list[str]:
    """The row keys of a table that pandas wrote column by column ({"persona": {"0": ..., "1": ...}}); empty for anything else."""
    first = next(iter(value.values()))
    is_table = all(isinstance(one, dict) and list(one) == list(first) for one in value.values())
    return list(first) if is_table and all(key.isdecimal() for key in first) else []


def _rows_of_names(value: Mapping[str, Any], name: str) -> Iterator[SourceRow]:
    """One row for each name. Of a profile without a known column every field is part of the text."""
    for role, profile in value.items():
        where = f"{name}: {quote_value(role)}"
        if isinstance(profile, dict) and (_is_card(profile) or _is_row(profile)):
            yield SourceRow(where, {"name": role, **profile})
        else:
            yield SourceRow(where, {"name": role, "profile": profile})


# Character cards

CARD_FIELDS = ("description", "personality", "scenario", "first_mes", "mes_example")
"""Fields that all versions of a card have, beside the name. Example dialogue and greeting are no part of the persona."""

PYGMALION_FIELDS = {"char_name": "name", "char_persona": "description", "world_scenario": "scenario"}

USER_TEXT = "the user"

_MACRO = re.compile(r"\{\{\s*(char|charIfNotGroup|bot|user|original)\s*\}\}|<(char|bot|user)>", re.IGNORECASE)

_CARD_COMMENT = re.compile(r"\{\{//.*?\}\}", re.DOTALL)


def fill_macros(text: str, name: str | None) -> str:
    """Replace `{{char}}` and `<BOT>` by the name, `{{user}}` and `<USER>` by "the user". Without a name the text stays."""
    if name is None:
        return text

    def filled(macro: re.Match[str]) -> str:
        kind = (macro[1] or macro[2]).lower()
        if kind == "original":
            return ""
        if kind != "user":
            return name
        starts_sentence = re.search(r"(?:^|[.!?:\n])[\s*\"“]*$", text[: macro.start()])
        return USER_TEXT.capitalize() if starts_sentence else USER_TEXT

    return _MACRO.sub(filled, text)


def _is_card(fields: Mapping[str, Any]) -> bool:
    if str(fields.get("spec", "")).startswith("chara_card") and isinstance(fields.get("data"), dict):
        return True
    known = sum(name in fields for name in CARD_FIELDS)
    return ("name" in fields and known >= 2) or {"char_name", "char_persona"} <= set(fields)


def _card_fields(row: SourceRow) -> dict[str, object]:
    """The fields of a character card, of version 1 (flat, also Pygmalion's) or of 2 and 3 (in `data`).

    The persona is a whole prompt: the card's system prompt or else "You are NAME.", then description, personality and scenario.
    Raises DataError if they are all empty.
    """
    data: Any = row.fields["data"] if isinstance(row.fields.get("data"), dict) else row.fields
    card = {PYGMALION_FIELDS.get(key, key): value for key, value in data.items()}
    name = str(card.get("name") or row.fields.get("name") or "").strip()
    parts = {key: _card_text(row, card, key, str(card.get("nickname") or "").strip() or name) for key in CARD_PARTS}
    if not any(parts.values()):
        raise DataError(f"{row.where}: the card has no text in {', '.join(CARD_PARTS)}")
    opening = parts["system_prompt"] or f"You are {name}."
    heads = {"description": "", "personality": "Personality: ", "scenario": "Scenario: "}
    text = "\n\n".join([opening, *(head + parts[key] for key, head in heads.items() if parts[key])])
    return {"name": name if name.isprintable() else None, "system": text, "tags": _card_tags(card.get("tags"))}


CARD_PARTS = ("system_prompt", "description", "personality", "scenario")


def _card_text(row: SourceRow, card: Mapping[str, Any], key: str, name: str) -> str:
    value = card.get(key) or ""
    if not isinstance(value, str):
        raise DataError(f"{row.where}: {key} = {quote_value(value)}: must be a text")
    return fill_macros(_CARD_COMMENT.sub("", value), name).strip()


def _card_tags(tags: object) -> list[str]:
    """The card's tags in the form of permix's own: distinct printable names without ; and |."""
    texts = [re.sub(r"[;|\s]+", " ", tag).strip() for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return list(dict.fromkeys(tag for tag in texts if tag and tag.isprintable()))


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

CARD_CHUNKS = ("ccv3", "chara")
"""Keywords of the PNG text chunks that hold a card, the newest version first."""


def _card_of_png(path: Path, raw: bytes) -> dict[str, Any]:
    """The card in a PNG's text chunk, base64 of JSON. Raises DataError if there is none."""
    chunks = dict(_text_chunks(raw)) if raw.startswith(_PNG_SIGNATURE) else {}
    keyword = next((one for one in CARD_CHUNKS if one in chunks), None)
    if keyword is None:
        raise DataError(f"{path}: not a character card: the PNG has no text chunk {' or '.join(map(repr, CARD_CHUNKS))}")
    try:
        text = base64.b64decode(chunks[keyword]).decode()
    except ValueError as error:
        raise DataError(f"{path}: the text chunk {keyword!r} is not base64 of UTF-8: {error}") from error
    card = parse_json(text, f"{path} ({keyword})")
    if not isinstance(card, dict) or not _is_card(card):
        raise DataError(f"{path}: the text chunk {keyword!r} is not a character card: {quote_value(card)}")
    return card


def _text_chunks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """(keyword, text) of the tEXt chunks: each chunk is its length (4 bytes), its type (4), its data and a checksum (4)."""
    place = len(_PNG_SIGNATURE)
    while place + 8 <= len(raw):
        length, kind = struct.unpack(">I4s", raw[place : place + 8])
        if kind == b"tEXt":
            keyword, _, text = raw[place + 8 : place + 8 + length].partition(b"\0")
            yield keyword.decode("latin-1"), text
        place += length + 12
