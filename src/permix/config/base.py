"""Define the base of every configuration class, and read configuration files.

Errors name the file, the field, its value and the valid values.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from permix.errors import ConfigError, closest_match


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
        `n` of `permix train`, not of `TaskConfig`."""
        if not isinstance(values, Mapping):
            return values
        return {name: _merge_with_default(cls.model_fields.get(name), value) for name, value in values.items()}


def _merge_with_default(field: FieldInfo | None, value: Any) -> Any:
    default = field.default if field else None
    if isinstance(default, BaseModel) and isinstance(value, Mapping):
        return default.model_dump(exclude_unset=True) | dict(value)
    return value


_ConfigT = TypeVar("_ConfigT", bound=BaseModel)


CONFIG_SUFFIXES = (".toml", ".json")


def load_config(cls: type[_ConfigT], path: Path) -> _ConfigT:
    """Read a TOML or JSON file into `cls`. Raises ConfigError naming the file, the field, its value and the valid values."""
    return build_config(cls, read_config_values(path), source=str(path))


def read_config_values(path: Path) -> dict[str, Any]:
    """The content of a TOML file or of a run's config.json. Raises ConfigError if the file is missing or not valid."""
    kind = "JSON" if path.suffix == ".json" else "TOML"
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: not a {kind} file but a folder, a pipe or a device")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (ValueError, RecursionError) as error:  # bad syntax, bytes that are not UTF-8, too deep nesting, too long a number
        raise ConfigError(f"{path}: not a {kind} file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: contains a {type(values).__name__}, not an object")
    return values


def build_config(cls: type[_ConfigT], values: Mapping[str, Any], *, source: str, partial: bool = False) -> _ConfigT:
    """Validate a mapping, as read from TOML or JSON, into `cls`. Raises ConfigError, prefixed with `source`.

    `partial` says that flags will still override some values: fields that are derived from other fields are not filled yet.
    """
    check_unknown_keys(cls, values, source=source)
    try:
        return cls.model_validate(values, context={"draft": partial})
    except ValidationError as error:
        raise ConfigError(f"{source}: {format_validation_error(error)}") from error


def check_unknown_keys(cls: type[BaseModel], values: Mapping[str, Any], *, source: str, prefix: str = "") -> None:
    """Raise ConfigError for the first key that `cls` does not have, naming the nearest known one."""
    for key, value in values.items():
        if key not in cls.model_fields:
            near = closest_match(key, cls.model_fields, cutoff=0.5)
            hint = f"did you mean {prefix}{near}?" if near else f"known: {', '.join(cls.model_fields)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {hint}")
        inner = cls.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            check_unknown_keys(inner, value, source=source, prefix=f"{prefix}{key}.")


def format_validation_error(error: ValidationError) -> str:
    """A pydantic error as text: for each field its path, its value and what is wrong, separated by semicolons."""
    lines = []
    for one in error.errors():
        field = ".".join(str(part) for part in one["loc"]) or "configuration"
        shown = "" if isinstance(one["input"], (dict, BaseModel)) else f" = {one['input']!r}"
        lines.append(f"{field}{shown}: {one['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
