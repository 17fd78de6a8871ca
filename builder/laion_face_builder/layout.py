"""The parts of the data set, and where their files lie in DATA_DIR.

DATA_DIR/
  sources/…                       what was downloaded from upstream; `--discard-sources` frees each once it is used
  staging/…                       rows of whole metadata, by part, until the last part is written
  ids/part-000NN.parquet          sample_id, sorted
  faces/part-000NN.parquet        sample_id, faces; sorted by sample_id
  index/part-000NN.parquet        the index: metadata and faces in one table
  index/part-000NN.json           the proof of the join that made it
  joined/HEX/part-000NN.parquet   a table that people join (HEX stands for its place), in the order of the index
  images/part-000NN/              tars as img2dataset writes them, retry-1/ … for later rounds
  images/part-000NN.fingerprint   what the downloads were made with
  images/part-000NN.parquet       the sidecar: where each row's picture lies
  removed.json                    what was taken down, as hashes: nothing that is made here later has it again
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.shown import ranges, shown
from laion_face_builder.values import absolute, as_written, folder

#: LAION-400M's metadata, the id list and the detections all come in the same 32 parts.
ALL_PARTS = tuple(range(32))
#: The 20-million subset (LAION-Face README).
PARTS_OF_20M = (0, 2, 5, 8, 13, 15, 17, 18, 21, 22, 24, 25, 28)
CONFIG_PARTS: dict[str, tuple[int, ...]] = {"20M": PARTS_OF_20M, "50M": ALL_PARTS}

#: Row groups of an index part, and the default number of the builder's shards a part.
ROW_GROUPS = 128

DATA_DIR_VARIABLE = "LAION_FACE_DATA_DIR"


def row_group_bounds(rows: int, groups: int = ROW_GROUPS) -> list[tuple[int, int]]:
    """Return start and end row of each row group of a part; fewer than `groups` only if it has fewer `rows`."""
    groups = min(groups, rows)
    return [(rows * g // groups, rows * (g + 1) // groups) for g in range(groups)]


def parse_parts(parts: str | int | Iterable[int] | None, config: str) -> tuple[int, ...]:
    """Return the parts meant by "0,2,5-7", ints or None (all of the config's), ascending.

    Raises:
        OptionError: not a part of `config`, or not to be understood.
    """
    valid = CONFIG_PARTS[config]
    if parts is None:
        return valid
    try:
        chosen = sorted(set(_expand(parts)))
    except OptionError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f'parts={as_written(parts)}: expected something like "0,2,5-7" or a list of ints') from error
    wrong = [part for part in chosen if part not in valid]
    if wrong or not chosen:
        named = f"{as_written(wrong)} not in config {config}" if wrong else "none given"
        raise OptionError(f"parts={as_written(parts)}: {named}; its parts are {ranges(valid, ', ')}")
    return tuple(chosen)


def _expand(parts: Any) -> Iterable[int]:
    if isinstance(parts, numbers.Integral):
        return [_whole(parts)]
    if not isinstance(parts, str):
        return [] if isinstance(parts, bytes) else [_whole(part) for part in parts]
    found: list[int] = []
    for piece in parts.split(",") if parts.strip() else ():
        first, dash, last = piece.strip().partition("-")
        found += _between(int(first), int(last)) if dash else [int(first)]
    return found


def _between(first: int, last: int) -> list[int]:
    """List the parts from `first` to `last`; of those beyond any part, which are refused, only these two."""
    if last < first:
        raise OptionError(f"parts={first}-{last}: runs backwards; expected {last}-{first}")
    return [first, *range(first, min(last, ALL_PARTS[-1])), last]


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{value!r} is not an int")
    return int(value)


def default_data_dir() -> Path:
    """Return $LAION_FACE_DATA_DIR, else laion-face under the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    if chosen := os.environ.get(DATA_DIR_VARIABLE):
        return absolute(chosen)
    return absolute(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "laion-face"


@dataclass(frozen=True)
class DataDir:
    """The folder where prepared parts live; gives paths, touches no file.

    Attributes:
        root: the folder; with an address, a local one to work in (`upstream.kept`).
        address: of an fsspec folder that the files are kept in; None if that is `root`.
    """

    root: Path
    address: str | None = None

    @classmethod
    def at(cls, path: str | os.PathLike[str] | None) -> DataDir:
        """Return the DataDir of the folder at `path`, made absolute; None means the default place.

        Raises:
            OptionError: `path` is no path of this machine, or a file is there.
        """
        if path is not None:
            return cls(folder("data_dir", path))
        return cls(folder(DATA_DIR_VARIABLE if os.environ.get(DATA_DIR_VARIABLE) else "data_dir", default_data_dir()))

    @classmethod
    def kept_at(cls, place: str | os.PathLike[str] | None) -> DataDir:
        """Return the DataDir of a folder, as `at`, or of an fsspec address, which has no `root` before work begins.

        Raises:
            OptionError: as `at`.
        """
        return cls(Path(), place) if isinstance(place, str) and "://" in place else cls.at(place)

    @property
    def where(self) -> str:
        """The folder or address as people are shown it, without a password."""
        return str(self.root) if self.address is None else shown(self.address)

    @property
    def sources(self) -> Path:
        """The folder of downloads from upstream."""
        return self.root / "sources"

    @property
    def staging(self) -> Path:
        """The folder of metadata rows on their way to the index."""
        return self.root / "staging"

    @property
    def removed(self) -> Path:
        """The file that remembers what was taken down."""
        return self.root / "removed.json"

    def ids(self, part: int) -> Path:
        """Return the path of the part's sample ids."""
        return self.root / "ids" / f"part-{part:05d}.parquet"

    def faces(self, part: int) -> Path:
        """Return the path of the part's detections."""
        return self.root / "faces" / f"part-{part:05d}.parquet"

    def index(self, part: int) -> Path:
        """Return the path of the part's index."""
        return self.root / "index" / f"part-{part:05d}.parquet"

    def joined(self, key: str) -> Path:
        """Return the folder of a table that is joined, laid out in the order of the index."""
        return self.root / "joined" / key

    def tars(self, part: int) -> Path:
        """Return the folder of the part's tars."""
        return self.root / "images" / f"part-{part:05d}"

    def images_fingerprint(self, part: int) -> Path:
        """Return the path of the fingerprint of the part's downloads.

        It lies beside their folder and is not called .json: img2dataset crashes on a foreign one.
        """
        return self.root / "images" / f"part-{part:05d}.fingerprint"

    def sidecar(self, part: int) -> Path:
        """Return the path of the part's sidecar, which says where each row's picture lies."""
        return self.root / "images" / f"part-{part:05d}.parquet"
