"""Define the base of every configuration class, and read configuration files.

Errors name the file, the field, its value and the valid values.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from permix.errors import ConfigError, closest_match
from permix.sanitize import detect_encoding, escape_control, redact_secrets, truncate


class ConfigSection(BaseModel):
    """Base of every configuration class: immutable; unknown keys, infinite numbers and NaN are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        # Attribute docstrings are help texts, and tyro would print their line breaks.
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())

    @model_validator(mode="before")
    @classmethod
    def _merge_stage_defaults(cls, values: Any) -> Any:
        """Fill a section that is given in part from its stage's own defaults: a [task] of `permix train` without `n` has the
        `n` of `permix train`, not of `TaskConfig`. Refuse values that no field can have."""
        if not isinstance(values, Mapping):
            return values
        for name, value in values.items():
            _check_representable(name, value)
            if name in cls.model_fields and (error := describe_blank(name, cls.model_fields[name], value)):
                raise ValueError(error)
        return {name: _merge_with_default(cls.model_fields.get(name), value) for name, value in values.items()}


MAX_INTEGER = 2**63 - 1
"""Largest integer of a configuration: what a TOML file, numpy and a Parquet file can all hold."""


def _check_representable(name: str, value: Any) -> None:
    """Raise ValueError for a text that no path can hold, and for an integer that numpy cannot hold."""
    if isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError(f"{name}: must be an integer between -(2^63 - 1) and 2^63 - 1")
    for text in value if isinstance(value, list | tuple) else (value,):
        if isinstance(text, str | Path) and "\x00" in str(text):
            raise ValueError(f"{name} = {quote_input(text)}: holds a NUL, which no path can hold; leave it out")


def describe_blank(name: str, field: FieldInfo, value: Any) -> str | None:
    """What is wrong with an empty text where one is needed, or with a list that holds one; None for any other value.

    A shell makes an empty text of a variable that is not set. As a path it would be the current folder.
    """
    if isinstance(value, list | tuple):
        return next(filter(None, (describe_blank(f"{name}.{at}", field, one) for at, one in enumerate(value))), None)
    kinds = annotation_types(field.annotation)
    if any(isinstance(one, BeforeValidator) for one in field.metadata):  # it reads the text itself, and says what is valid
        return None
    if field.default == "" or not kinds & {str, Path} or not isinstance(value, str) or value.strip():
        return None
    default = field.get_default()
    left_out = f" (default: {default})" if isinstance(default, str | Path) else ""
    return f"{name} = {quote_input(value)}: is empty; give a {'path' if Path in kinds else 'text'}, or leave it out{left_out}"


def annotation_types(annotation: Any) -> set[Any]:
    """The types in a field's annotation, at any depth: {str, NoneType} of `str | None`."""
    inner = [one for one in get_args(annotation) if one is not Ellipsis]
    return {found for one in inner for found in annotation_types(one)} if inner else {annotation}


def _merge_with_default(field: FieldInfo | None, value: Any) -> Any:
    default = field.default if field else None
    if isinstance(default, BaseModel) and isinstance(value, Mapping):
        return default.model_dump(exclude_unset=True) | dict(value)
    return value


_ConfigT = TypeVar("_ConfigT", bound=BaseModel)


CONFIG_SUFFIXES = (".toml", ".json")

MAX_CONFIG_BYTES = 10_000_000
"""Longest configuration file that is read; one with a thousand lists of runs has less than 1 MB."""


def load_config(cls: type[_ConfigT], path: Path) -> _ConfigT:
    """Read a TOML or JSON file into `cls`. Raises ConfigError naming the file, the field, its value and the valid values."""
    return build_config(cls, read_config_values(path), source=str(path))


def read_config_values(path: Path) -> dict[str, Any]:
    """The content of a TOML file or of a run's config.json. Raises ConfigError if the file is missing or not valid."""
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: not a {kind} file but a folder, a pipe or a device")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: longer than {MAX_CONFIG_BYTES / 1e6:g} MB; is this a configuration file?")
        text = content.decode(detect_encoding(content))
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a {kind} file: nested too deeply") from error
    except (ValueError, OSError) as error:  # a syntax error, text that is neither UTF-8 nor UTF-16, too many digits, a folder
        raise ConfigError(f"{path}: not a {kind} file: {escape_control(str(error))}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: contains a {type(values).__name__}, not an object")
    return values


RECORDED_FILES = {"config.json": "provenance.json", "study.json": "*/unit.json", "quickstart.json": "*/provenance.json"}
"""The configuration files that commands write into their folders, and what else lies there: such a file is no user's own."""


def require_own_folder(path: Path, config: BaseModel) -> None:
    """Raise ConfigError if a file that a command wrote into its folder names another folder than the one that it lies in.

    So it is for a folder that was moved or copied, and for a relative path in another current folder. The command would begin
    anew in the other folder, or go on with the original of a copy. `config`: the file's content, to whose folder no flag gives
    another value.
    """
    known = RECORDED_FILES.get(path.name)
    if known is None or not any(path.absolute().parent.glob(known)):
        return
    field, own = "out", path.parent
    named = getattr(config, "folder", None) or getattr(config, "out", None)
    if named is None:  # a judge's file lies in RUN/judges/LABEL
        field, named, own = "run", getattr(config, "run", None), path.absolute().parent.parent.parent
    if isinstance(named, Path) and named.resolve() != own.resolve():
        raise ConfigError(
            f"{path}: names another folder than its own, {field} = {named}: it was moved or copied, or the command was given in "
            f"another folder; give --{field} {own} to go on with what is there, or --{field} {named}"
        )


def build_config(cls: type[_ConfigT], values: Mapping[str, Any], *, source: str, partial: bool = False) -> _ConfigT:
    """Validate a mapping, as read from TOML or JSON, into `cls`. Raises ConfigError, prefixed with `source`.

    `partial` says that flags will still override some values: fields that are derived from other fields are not filled yet.
    """
    unknown, known = _split_known_keys(cls, values)
    try:
        config = cls.model_validate(known, context={"draft": partial})
    except (ValidationError, UnicodeEncodeError) as error:
        raise ConfigError(f"{source}: {'; '.join([*unknown, format_validation_error(error)])}") from error
    if unknown:
        raise ConfigError(f"{source}: {'; '.join(unknown)}")
    return config


def require_known_keys(cls: type[BaseModel], values: Mapping[str, Any], *, source: str) -> None:
    """Raise ConfigError, prefixed with `source`, for keys that `cls` does not have, at any depth."""
    unknown, _ = _split_known_keys(cls, values)
    if unknown:
        raise ConfigError(f"{f'{source}: ' if source else ''}{'; '.join(unknown)}")


def _split_known_keys(
    cls: type[BaseModel], values: Mapping[str, Any], prefix: str = "", root: type[BaseModel] | None = None
) -> tuple[list[str], dict[str, Any]]:
    """A message for each key that `cls` does not have, naming the nearest known one; and the values without these keys.

    `root`: the class of the whole file, where `cls` is one of its sections.
    """
    unknown, kept = [], {}
    for key, value in values.items():
        if key not in cls.model_fields:
            near = _nearest_key(key, prefix, cls, root or cls)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(cls.model_fields)}"
            unknown.append(f"unknown key {prefix}{truncate(escape_control(key), MAX_SHOWN_CHARS)}; {hint}")
            continue
        inner = cls.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            unknown_inside, value = _split_known_keys(inner, value, f"{prefix}{key}.", root or cls)
            unknown += unknown_inside
        kept[key] = value
    return unknown, kept


def _nearest_key(key: str, prefix: str, section: type[BaseModel], root: type[BaseModel]) -> str | None:
    """The known key that was probably meant, with its sections: one of the same section, or else of any section of the file.

    The cutoffs: `stpes` is `steps` (0.8) of another section rather than `save_dtype` (0.53) of its own.
    """
    if near := closest_match(key, section.model_fields, cutoff=0.7):
        return f"{prefix}{near}"
    places = [(name, f"{start}{name}") for owner, start in section_prefixes(root) for name in owner.model_fields]
    names = [name for name, _ in places]
    near = closest_match(key, names, cutoff=0.8)
    if near is not None and names.count(near) == 1:
        return dict(places)[near]
    near = closest_match(key, section.model_fields, cutoff=0.6)
    return f"{prefix}{near}" if near else None


def section_prefixes(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Each class of a section, at any depth, and what precedes its fields' names in a message: ("model." for `ModelConfig`)."""
    yield section, prefix
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from section_prefixes(field.annotation, f"{prefix}{name}.")


MAX_SHOWN_CHARS = 120

_MAY_HOLD_SECRETS = ("base_url", "api_key_env", "extra_body", "headers", "vllm_server_base_url")
"""Fields whose value is not repeated in an error."""

_TYPE_WORDS = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "string_": "must be a text",
    "path_": "must be a path",
    "tuple_": "must be a list",
    "list_": "must be a list",
    "dict_": "must be a section of fields",
    "model_": "must be a section of fields",
    "none_": "must be left out",
    "missing": "is missing",
    "extra_forbidden": "is not a known field",
    "finite_number": "must be a finite number",
}
"""For the beginning of pydantic's name for an error: what would be valid."""


def format_validation_error(error: ValidationError | UnicodeEncodeError, prefix: str = "") -> str:
    """A pydantic error as text: for each field its path, its value and what would be valid, separated by semicolons.

    `prefix` precedes each path, such as "model.".
    """
    if isinstance(error, UnicodeEncodeError):  # a validator's message quotes a lone surrogate, which pydantic cannot pass on
        return f"{prefix.rstrip('.') or 'configuration'}: a text holds a lone surrogate, which is no character; leave it out"
    lines = []
    for one in error.errors(include_url=False):
        place = ".".join(str(part) for part in one["loc"])
        field = truncate(escape_control(f"{prefix}{place}".rstrip(".")), MAX_SHOWN_CHARS) or "configuration"
        hidden = (
            one["type"] == "missing"
            or isinstance(one["input"], (dict, BaseModel))
            or place.rpartition(".")[2] in _MAY_HOLD_SECRETS
        )
        shown = "" if hidden else f" = {quote_input(one['input'])}"
        words = next((words for start, words in _TYPE_WORDS.items() if one["type"].startswith(start)), None)
        own_words = one["msg"].removeprefix("Value error, ").replace("Input should", "must")
        if words is None and place and own_words.startswith((f"{one['loc'][-1]} = ", f"{one['loc'][-1]}: ")):
            field, shown = field.rpartition(".")[0], ""  # the message itself begins with the field and its value
            lines.append(f"{field}{'.' * bool(field)}{_shorten_words(escape_control(own_words))}")
            continue
        of_section = words is None and isinstance(one["input"], Mapping | BaseModel) and _FIELD_FIRST.match(own_words)
        # Not where a study quotes the error of one of its parts, which begins with the name of the part.
        if of_section and not isinstance(one.get("ctx", {}).get("error", error).__cause__, ConfigError):
            lines.append(f"{prefix}{place}{'.' * bool(place)}{_shorten_words(escape_control(own_words))}")
            continue
        lines.append(f"{field}{shown}: {words or _shorten_words(escape_control(own_words))}")
    return "; ".join(lines)


_FIELD_FIRST = re.compile(r"[a-z][a-z0-9_.]*(?: = |: | is | holds | must )")


def _shorten_words(text: str) -> str:
    """The text with each word longer than `MAX_SHOWN_CHARS` cut: a message quotes values of any length."""
    return re.sub(rf"(\S{{{MAX_SHOWN_CHARS}}})\S+", r"\1…", text)


def _with_plain_paths(value: object) -> object:
    """The value with paths as texts, also in a list: PosixPath is no word of a configuration."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list):
        return [_with_plain_paths(one) for one in value]
    return tuple(_with_plain_paths(one) for one in value) if type(value) is tuple else value


def quote_input(value: object) -> str:
    """A value of a configuration for an error message: its repr without secrets, at most `MAX_SHOWN_CHARS` long."""
    try:
        shown = repr(_with_plain_paths(value))
    except (ValueError, RecursionError):
        return "(a number of thousands of digits)" if isinstance(value, int) else "(a value that is nested too deeply)"
    return truncate(escape_control(redact_secrets(shown)), MAX_SHOWN_CHARS)
