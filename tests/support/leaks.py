"""Look for words in every byte of files, however it is written there; nothing is known of whose files they are.

Looked at are the bytes as they lie, and the pages of Parquet files (dictionaries, too) and gzip without compression.
Words are looked for as text, as JSON, HTML and addresses escape them, in hexadecimal digits and in base64.
"""

import base64
import gzip
import html
import json
from collections import defaultdict
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: Words are of so many bytes at least.
_START = 8


def spellings(word):
    """Return a text, or bytes, in all ways in which it might be written."""
    data = word.encode() if isinstance(word, str) else word
    found = {data, data.hex().encode()}
    if isinstance(word, str):
        for text in (json.dumps(word)[1:-1], json.dumps(word).replace("/", "\\/")[1:-1], html.escape(word), repr(word)):
            found.add(text.encode("utf-8", "surrogatepass"))
        found |= {quote(word).encode(), quote(word, safe="").encode()}
    for shift in range(3):
        # Of the base64 of something longer, what does not depend on its neighbours.
        encoded = base64.b64encode(b"\0" * shift + data)
        middle = encoded[(0, 2, 3)[shift] : len(encoded) - 4]
        if len(middle) > 10:
            found |= {middle, middle.replace(b"+", b"-").replace(b"/", b"_")}
    return {one for one in found if len(one) >= _START}


def views(path):
    """Yield the bytes of a file, and what is in them once more without compression."""
    data = path.read_bytes()
    yield data
    if data[:4] == b"PAR1" and data[-4:] == b"PAR1":
        yield from _pages(path, data)
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)


def leaks(places, words):
    """Return (file, word) for each word that is found, once a file; `words` maps what they are called to them."""
    wanted = {spelling: name for name, word in words.items() for spelling in spellings(word)}
    by_start = defaultdict(list)
    for spelling in wanted:
        by_start[spelling[:_START]].append(spelling)
    starts = np.sort(np.frombuffer(b"".join(by_start), "<u8"))
    found = set()
    for place in places:
        for path in sorted(path for path in place.rglob("*") if path.is_file() and not path.is_symlink()):
            for view in (path.name.encode(), *views(path)):
                found |= {(str(path), wanted[spelling]) for spelling in _found_in(view, starts, by_start)}
    return sorted(found)


def _found_in(data, starts, by_start):
    """Yield the spellings that are in the bytes; they are told by their first eight, which are looked up everywhere."""
    for shift in range(min(_START, max(len(data) - _START + 1, 0))):
        numbers = np.frombuffer(data, "<u8", (len(data) - shift) // _START, shift)
        places = np.minimum(np.searchsorted(starts, numbers), len(starts) - 1)
        for number in np.flatnonzero(starts[places] == numbers).tolist():
            at = shift + number * _START
            yield from (one for one in by_start[data[at : at + _START]] if data.startswith(one, at))


def _pages(path, data):
    with pq.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups):
            for number in range(file.metadata.num_columns):
                yield from _pages_of(file.metadata.row_group(group).column(number), data)


def _pages_of(column, data):
    """Yield the pages of a column of a row group without compression."""
    at = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        at = min(at, column.dictionary_page_offset)
    stop = at + column.total_compressed_size
    while at < stop:
        header, at = _struct(data, at)
        page, plain = data[at : at + header[3]], header[2]
        at += header[3]
        levels = header[8].get(5, 0) + header[8].get(6, 0) if 8 in header else 0
        if column.compression == "UNCOMPRESSED" or (8 in header and not header[8].get(7, True)):
            yield page
        elif plain > levels:
            yield pa.Codec(column.compression.lower()).decompress(page[levels:], plain - levels).to_pybytes()


def _varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def _struct(data, at):
    """Read a struct of Thrift's compact protocol: (values by the number of their field, where it ends)."""
    found, number = {}, 0
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at += 1
        if step:
            number += step
        else:
            number, at = _varint(data, at)
            number = (number >> 1) ^ -(number & 1)
        found[number], at = _value(data, at, kind)
    return found, at + 1


def _value(data, at, kind):
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        value, at = _varint(data, at)
        return (value >> 1) ^ -(value & 1), at
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    assert kind == 12, "no page header has anything else"
    return _struct(data, at)
