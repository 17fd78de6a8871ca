"""Count what a published file has, while it is read once more to be hashed: the card's numbers, without a second pass.

Counts are `{name: {value: how often}}`, so that those of several files are added up. All are exact but the hosts':
those of one file are counted exactly, in memory for its distinct hosts and no more, and the `HOSTS` commonest are kept.
A sum over files is then too small by what a host has in files where it is not among these: "at least", the card says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.index.urls import are_plain, host_of, one_spelling, origins_of, place_of_origin

#: {name: {value: how often}}.
Counts = Mapping[str, Mapping[str, int]]

#: So many of a file's hosts are kept.
HOSTS = 100
#: The names that are counted, and in which order their values are shown; values of strangers are none of them.
UNKNOWN, OTHER = "unknown", "other"
FACES = ("0", "1", "2", "3", "4", "5-9", "10 and more")
FACE_SIZES = ("under 32", "32-63", "64-127", "128-255", "256 and more", UNKNOWN)
SHORT_SIDES = ("under 256", "256-511", "512-1023", "1024 and more", UNKNOWN)
NSFW = ("UNLIKELY", "UNSURE", "NSFW", UNKNOWN, OTHER)
LICENCES = ("?", UNKNOWN, OTHER)
#: Rows; those with a caption that is not empty, and bytes of these; those with a picture; all faces of all rows.
TOTALS = ("rows", "captions", "caption_bytes", "pictures", "faces")

_FACE_EDGES = (1, 2, 3, 4, 5, 10)
_FACE_SIZE_EDGES = (32, 64, 128, 256)
_SHORT_SIDE_EDGES = (256, 512, 1024)
#: Hosts are added up once so many rows of them wait.
_MOST_WAITING = 200_000


class FileCounts:
    """Adds up the tables of one file."""

    #: What is read of an index; of examples, `image` and the original's size too.
    COLUMNS = ("url", "caption", "n_faces", "max_face_size", "width", "height", "nsfw", "license")

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._hosts = _no_hosts()
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table with the columns of the index, or of examples."""
        for name, found in _counted(table).items():
            self._counts.setdefault(name, Counter()).update(found)
        self._waiting.append(_hosts_of(table["url"]))
        if sum(one.num_rows for one in self._waiting) > max(_MOST_WAITING, self._hosts.num_rows):
            self._add_hosts()

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts of all tables that were added; values that do not occur are left out."""
        self._add_hosts()
        # Of equally common ones the first by name, so that the same rows give the same text.
        order = [("rows", "descending"), ("host", "ascending")]
        commonest = self._hosts.sort_by(order).slice(0, HOSTS).to_pydict()
        counts = {name: {value: n for value, n in found.items() if n} for name, found in self._counts.items()}
        return {**counts, "hosts": dict(zip(commonest["host"], commonest["rows"], strict=True))}

    def _add_hosts(self) -> None:
        found = pa.concat_tables([self._hosts, *self._waiting]).group_by("host").aggregate([("rows", "sum")])
        self._hosts, self._waiting = found.select(["host", "rows_sum"]).rename_columns(["host", "rows"]), []


def sum_of(counts: Iterable[Counts]) -> dict[str, dict[str, int]]:
    """Add up the counts of several files."""
    total: dict[str, Counter[str]] = {}
    for one in counts:
        for name, found in one.items():
            total.setdefault(name, Counter()).update(found)
    return {name: dict(found) for name, found in total.items()}


def _counted(table: pa.Table) -> dict[str, dict[str, int]]:
    faces = table["n_faces"].fill_null(0).to_numpy()
    before = "original_" if "original_width" in table.column_names else ""
    sides = pc.min_element_wise(table[f"{before}width"], table[f"{before}height"], skip_nulls=False)
    lengths = pc.binary_length(table["caption"]).fill_null(0)
    pictures = table.num_rows - table["image"].null_count if "image" in table.column_names else 0
    captions = [pc.sum(one).as_py() or 0 for one in (pc.greater(lengths, 0), lengths)]
    totals = (table.num_rows, *captions, pictures, int(faces.sum()))
    return {
        "totals": dict(zip(TOTALS, totals, strict=True)),
        "faces": _binned(faces, _FACE_EDGES, FACES),
        # A picture without faces has no largest one.
        "face_sizes": _binned(table["max_face_size"].to_numpy()[faces > 0], _FACE_SIZE_EDGES, FACE_SIZES),
        "short_sides": _binned(sides.to_numpy(), _SHORT_SIDE_EDGES, SHORT_SIDES),
        "nsfw": _known(table["nsfw"], NSFW),
        "licences": _known(table["license"], LICENCES),
    }


_Numbers = npt.NDArray[np.floating | np.integer]


def _binned(values: _Numbers, edges: tuple[int, ...], names: tuple[str, ...]) -> dict[str, int]:
    """Count values between `edges`; NaN, as which nulls come, counts for the last name, if there is one more."""
    bins = np.digitize(values, edges)  # NaN is beyond all edges
    bins[np.isnan(values)] = len(edges) + 1
    return dict(zip(names, np.bincount(bins, minlength=len(names)).tolist(), strict=True))


def _known(column: pa.ChunkedArray, names: tuple[str, ...]) -> dict[str, int]:
    """Count the values that have a name, nulls and empty ones as UNKNOWN, and whatever else there is as OTHER."""
    found = dict.fromkeys(names, 0)
    for one in column.value_counts().to_pylist():
        value = one["values"] or UNKNOWN
        found[value if value in names else OTHER] += one["counts"]
    return found


def _no_hosts() -> pa.Table:
    return pa.schema([("host", pa.string()), ("rows", pa.int64())]).empty_table()


def _hosts_of(urls: pa.ChunkedArray) -> pa.Table:
    """Count the hosts of some addresses; those that name none that could be shown are left out."""
    found: Counter[str] = Counter()
    urls = urls.combine_chunks()
    plain = are_plain(urls)
    for one in origins_of(urls.filter(plain)).value_counts():
        found[place_of_origin(one["values"].as_py())[0]] += one["counts"].as_py()
    for url in urls.filter(pc.invert(plain)).to_pylist():
        found[one_spelling(host_of(url))] += 1
    named = {host: n for host, n in found.items() if host and set(host) <= _IN_HOSTS}
    return pa.table([list(named), list(named.values())], schema=_no_hosts().schema)


_IN_HOSTS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")
