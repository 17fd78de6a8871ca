"""Options that differ in single fields, however deep these are nested."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Options = TypeVar("_Options", bound="DataclassInstance")


def but(options: _Options, **changed: Any) -> _Options:
    """Give the same options with other values of these fields, its own or those of the objects in it."""
    names = {spec.name for spec in dataclasses.fields(options)}
    own = {name: changed.pop(name) for name in names & changed.keys()}
    for name in names - own.keys():
        inner: Any = getattr(options, name)
        if dataclasses.is_dataclass(inner) and (theirs := _names(inner) & changed.keys()):
            own[name] = but(getattr(options, name), **{one: changed.pop(one) for one in theirs})
    if changed:
        raise TypeError(f"no such fields: {', '.join(changed)}")
    return dataclasses.replace(options, **own)


def _names(options: Any) -> set[str]:
    """Name the fields of the options, and of the objects in them."""
    values = {spec.name: getattr(options, spec.name) for spec in dataclasses.fields(options)}
    return set(values).union(*(_names(value) for value in values.values() if dataclasses.is_dataclass(value)))
