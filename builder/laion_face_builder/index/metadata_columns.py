"""Convert metadata columns of whatever type to the index's: ids, texts, sizes, numbers. Vectorised."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import BadFile

#: From here on a float64 cannot tell neighbours apart, so no id of LAION's can be that large.
ID_LIMIT = 2**53
#: The same limit for narrower floats.
_EXACT_BELOW = {pa.float16(): 2**11, pa.float32(): 2**24}
_NO_ID = ("", "nan", "none", "null", "<na>")
_PLAIN_ID = r"^[+-]?[0-9]{1,16}(\.0*)?$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


class SampleIds(NamedTuple):
    """Ids of some rows: values int64[n], valid bool[n]; a value that is not valid (null, NaN) means nothing."""

    values: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]


def parse_ids(array: pa.Array, file: str) -> SampleIds:
    """Read ids from whole numbers, floats, decimals or text of either; null, NaN, "", "None" and the like are no id.

    Raises:
        BadFile: an id with a fraction or of 2**53 and up, a float too narrow for its ids, or a column of another type.
    """
    array, kind = plain(array)
    if pa.types.is_null(kind):
        return SampleIds(np.zeros(len(array), np.int64), np.zeros(len(array), np.bool_))
    if is_text(kind):
        return _ids_of_texts(as_text(array, file, "SAMPLE_ID")[0], file)
    if pa.types.is_floating(kind):
        floats = array.to_numpy(zero_copy_only=False)
        _refuse_rounded(floats, kind, file)
        return _ids_of_floats(floats.astype(np.float64, copy=False), file)
    if pa.types.is_integer(kind):
        return _ids_of_integers(array, file)
    if pa.types.is_decimal(kind):
        return _ids_of_texts(array.cast(pa.string()), file)
    raise BadFile(
        file,
        found=f"sample ids of type {kind}",
        expected="whole numbers, floats, decimals or text",
        way_out="Use another copy of the metadata.",
    )


def _refuse_rounded(floats: npt.NDArray[Any], kind: pa.DataType, file: str) -> None:
    limit = _EXACT_BELOW.get(kind)
    if limit is not None and (rounded := floats[np.isfinite(floats) & (np.abs(floats) >= limit)]).size:
        raise BadFile(
            file,
            found=f"sample ids of type {kind}, such as {rounded[0].item():.0f}",
            expected="int64, float64 or text",
            way_out=f"From {limit} on this type has lost digits: use another copy of the metadata.",
        )


def _ids_of_integers(array: pa.Array, file: str) -> SampleIds:
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    values = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    _refuse(values[(values >= ID_LIMIT) | (values <= -ID_LIMIT)], file)
    return SampleIds(values.astype(np.int64, copy=False), valid)


def _ids_of_floats(floats: npt.NDArray[np.float64], file: str) -> SampleIds:
    valid = ~np.isnan(floats)
    values = np.where(valid, floats, 0.0)
    _refuse(values[(np.abs(values) >= ID_LIMIT) | (np.floor(values) != values)], file)
    return SampleIds(values.astype(np.int64), valid)


def _ids_of_texts(texts: pa.Array, file: str) -> SampleIds:
    texts = pc.utf8_trim_whitespace(texts)
    absent = pc.or_(texts.is_null(), pc.is_in(pc.utf8_lower(texts), pa.array(_NO_ID)))
    valid = pc.invert(absent).to_numpy(zero_copy_only=False)
    texts = pc.if_else(absent, "0", texts)
    plainly = pc.match_substring_regex(texts, _PLAIN_ID)
    digits = pc.replace_substring_regex(pc.if_else(plainly, texts, "0"), r"^\+|\.0*$", "")
    values = digits.cast(pa.int64()).to_numpy(zero_copy_only=False).copy()
    for row in np.flatnonzero(~plainly.to_numpy(zero_copy_only=False)):
        values[row] = _id_of_text(texts[int(row)].as_py(), file)
    _refuse(values[np.abs(values) >= ID_LIMIT], file)
    return SampleIds(values, valid)


def _id_of_text(text: str, file: str) -> int:
    """Read an id such as "1.5e12"; anything else is refused."""
    try:
        number = Decimal(text)
        if abs(number) < ID_LIMIT and number == number.to_integral_value():
            return int(number)
    except (InvalidOperation, ValueError):
        pass
    raise _bad_id(text, file)


def _refuse(wrong: npt.NDArray[Any], file: str) -> None:
    if len(wrong):
        raise _bad_id(wrong[0].item(), file)


def _bad_id(value: object, file: str) -> BadFile:
    return BadFile(
        file,
        found=f"the sample id {value!r:.80}",
        expected="whole numbers below 2**53",
        way_out="Use another copy of the metadata.",
    )


def as_text(array: pa.Array, file: str, column: str) -> tuple[pa.Array, int]:
    """Return (string array, number of values that were not UTF-8 and have U+FFFD in their places now).

    Raises:
        BadFile: the column is not of text.
    """
    array, kind = plain(array)
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string()), 0
    if not is_text(kind):
        raise _bad_type(file, column, kind, "text")
    raw = array.cast(pa.binary())
    try:
        return raw.cast(pa.string()), 0
    except pa.ArrowInvalid:  # One bad caption in thirteen million must not end the part.
        return _mended(raw)


def _mended(raw: pa.Array) -> tuple[pa.Array, int]:
    values = raw.to_pylist()
    texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
    bad = sum(1 for value, text in zip(values, texts, strict=True) if text is not None and text.encode() != value)
    return pa.array(texts, pa.string()), bad


def as_sizes(array: pa.Array, file: str, column: str) -> pa.Array:
    """Read pixels as int32; a value that no picture can have is unknown, so null.

    Such values are 0, a negative number, a fraction, NaN, 2**31 and up, and text that is no number.

    Raises:
        BadFile: the column is neither of numbers nor of text.
    """
    values = _floats(array, file, column)
    with np.errstate(invalid="ignore"):
        possible = (values >= 1) & (values < 2**31) & (np.floor(values) == values)
    return pa.array(np.where(possible, values, 0).astype(np.int32), mask=~possible)


def as_floats(array: pa.Array, file: str, column: str) -> pa.Array:
    """Read numbers as float64; NaN, infinity and text that is no number are null.

    Raises:
        BadFile: the column is neither of numbers nor of text.
    """
    values = _floats(array, file, column)
    return pa.array(values, mask=~np.isfinite(values))


def _floats(array: pa.Array, file: str, column: str) -> npt.NDArray[np.float64]:
    """Return the numbers, NaN where there is none."""
    array, kind = plain(array)
    if is_text(kind):
        array = _numbers_of_texts(as_text(array, file, column)[0])
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.string())  # Arrow's own way to float64 is off by a bit for a quarter of all values.
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise _bad_type(file, column, kind, "numbers")
    return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _numbers_of_texts(texts: pa.Array) -> pa.Array:
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None)


def plain(array: pa.Array) -> tuple[pa.Array, pa.DataType]:
    """Return the array without a dictionary or views, and its type."""
    if pa.types.is_dictionary(array.type):
        if _is_view(array.type.value_type):
            array = pa.DictionaryArray.from_arrays(array.indices, _viewless(array.dictionary))
        array = array.dictionary_decode()
    array = _viewless(array)
    return array, array.type


def viewless(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with string views (of Polars and newer tools) as bytes: Arrow cannot filter or take views."""
    if not any(map(_is_view, batch.schema.types)):
        return batch
    return pa.RecordBatch.from_arrays([_viewless(array) for array in batch.columns], batch.schema.names)


def _viewless(array: pa.Array) -> pa.Array:
    return array.cast(pa.binary()) if _is_view(array.type) else array


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether `kind` is one of Arrow's types of text or bytes."""
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in tests)


def _bad_type(file: str, column: str, kind: pa.DataType, expected: str) -> BadFile:
    return BadFile(
        file,
        found=f"column {column} of type {kind}",
        expected=expected,
        way_out="Use another copy of the metadata, or one converted with the original types.",
    )
