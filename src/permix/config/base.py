"""What every configuration class is built on.

From a file's content to a stage, with errors that name the field, the value and what would be valid.
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
    """Base of every configuration class."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _merge_stage_defaults(cls, values: Any) -> Any:
        """A section given in part keeps what its stage sets otherwise: a training [task] without `n` has training's `n`."""
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
    """Read a file into `cls`. Raises ConfigError naming the file, the field, the value and what would be valid."""
    return build_config(cls, read_config_values(path), source=str(path))


def read_config_values(path: Path) -> dict[str, Any]:
    """The content of a TOML file, or of the config.json that a run left."""
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: not a {kind} file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not an object")
    return values


def build_config(cls: type[_ConfigT], values: Mapping[str, Any], *, source: str, partial: bool = False) -> _ConfigT:
    """Validate a plain mapping, as read from TOML or JSON, into `cls`.

    A draft is what flags are still laid over: what depends on another field and was not given stays open in it.
    """
    check_unknown_keys(cls, values, source=source)
    try:
        return cls.model_validate(values, context={"draft": partial})
    except ValidationError as error:
        raise ConfigError(f"{source}: {format_validation_error(error)}") from error


def check_unknown_keys(cls: type[BaseModel], values: Mapping[str, Any], *, source: str, prefix: str = "") -> None:
    """Raise ConfigError for the first key that `cls` does not have, naming the nearest one that it has."""
    for key, value in values.items():
        if key not in cls.model_fields:
            near = closest_match(key, cls.model_fields, cutoff=0.5)
            hint = f"did you mean {prefix}{near}?" if near else f"known: {', '.join(cls.model_fields)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {hint}")
        inner = cls.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            check_unknown_keys(inner, value, source=source, prefix=f"{prefix}{key}.")


def format_validation_error(error: ValidationError) -> str:
    """A pydantic error as one line a field: its path, the value, what is wrong."""
    lines = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"]) or "configuration"
        shown = "" if isinstance(one["input"], (dict, BaseModel)) else f" = {one['input']!r}"
        lines.append(f"{where}{shown}: {one['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
