"""What every configuration class is built on."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo


class Section(BaseModel):
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
    def _kept_defaults(cls, values: Any) -> Any:
        """A section given in part keeps what its stage sets otherwise: a training [task] without `n` has training's `n`."""
        if not isinstance(values, Mapping):
            return values
        return {name: _over_default(cls.model_fields.get(name), value) for name, value in values.items()}


def _over_default(field: FieldInfo | None, value: Any) -> Any:
    default = field.default if field else None
    if isinstance(default, BaseModel) and isinstance(value, Mapping):
        return default.model_dump(exclude_unset=True) | dict(value)
    return value
