"""Describe columns as `dataset_info` does, and read them back: manifests keep those beside ours in this form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

#: Of these the name is known without asking `datasets`, which takes long to import.
_NAMES = {"float": "float32", "double": "float64", "string": "string", "bool": "bool", "binary": "binary"}
Feature = dict[str, Any]


def features_of(schema: pa.Schema) -> list[Feature]:
    """Give the `features` of dataset_info for a schema."""
    return [_feature(field.name, field.type) for field in schema]


def schema_of_features(features: Sequence[Mapping[str, Any]]) -> pa.Schema:
    """Give the schema that `features_of` was given."""
    return pa.schema([(feature["name"], _kind(feature)) for feature in features])


def _feature(name: str, kind: pa.DataType) -> Feature:
    return {"name": name, "dtype": "image"} if name == "image" else {"name": name, **_of(kind)}


def _of(kind: pa.DataType) -> Feature:
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_of(field.type)} for field in kind]}
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)):
        return {"dtype": _dtype(kind)}
    value = _of(kind.value_type)
    inner = next(iter(value.values())) if value.keys() & {"struct", "dtype"} else value
    return {"list": inner, **({"length": kind.list_size} if pa.types.is_fixed_size_list(kind) else {})}


def _dtype(kind: pa.DataType) -> str:
    name = str(kind)
    if name in _NAMES or pa.types.is_integer(kind):
        return _NAMES.get(name, name)
    from datasets import Features

    return str(Features.from_arrow_schema(pa.schema([("x", kind)]))["x"].dtype)


def _kind(feature: Mapping[str, Any]) -> pa.DataType:
    if "struct" in feature:
        return pa.struct([(one["name"], _kind(one)) for one in feature["struct"]])
    if "list" not in feature:
        return _kind_named(feature["dtype"])
    inner = feature["list"]
    if isinstance(inner, str):
        return pa.list_(_kind_named(inner))
    return pa.list_(_kind({"struct": inner} if isinstance(inner, list) else inner))


def _kind_named(dtype: str) -> pa.DataType:
    from datasets import Value

    return Value(dtype).pa_type
