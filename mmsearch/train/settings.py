"""Settings of a training, from names and values as a TOML file has them."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mmsearch.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)
else:
    Settings = TypeVar("Settings")


def with_values(defaults: Settings, given: Mapping[str, Any]) -> Settings:
    """The defaults but for what is given. Raises UsageError for a name that is none, or a value of another type."""
    names = [each.name for each in dataclasses.fields(defaults)]
    for name, value in given.items():
        if name not in names:
            raise UsageError(f"'{name}' is no setting here; there are {', '.join(names)}.")
        wanted = type(getattr(defaults, name))
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            kind = {str: "text", int: "a whole number", float: "a number"}[wanted]
            raise UsageError(f"{name} is {kind}, not {value!r}.")
    return dataclasses.replace(defaults, **given)
