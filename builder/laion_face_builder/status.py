"""What is prepared and downloaded in a DATA_DIR, and what proves its joins. Reads footers, proofs and sidecars only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from laion_face_builder.errors import BadFile
from laion_face_builder.files import human_size, require_readable
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.joined_columns import MATCHED
from laion_face_builder.index.side_table import side_tables
from laion_face_builder.index.writer import proof_path
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import opened, table_of
from laion_face_builder.shown import ranges, short
from laion_face_builder.sources import data_store


@dataclass(frozen=True)
class PartStatus:
    """What there is of one part; None where there is nothing.

    Attributes:
        ids, faces, rows: samples on the part's list, with detections, and in the index.
        proof: of the join: `index.proof.Proof.as_dict` and what it was made from; None too for an index that came
            without one.
        tars, tar_bytes: files with pictures, and their sizes together.
        pictures: samples by what became of their picture; "ok" are usable pictures.
    """

    part: int
    ids: int | None
    faces: int | None
    rows: int | None
    proof: dict[str, Any] | None
    tars: int
    tar_bytes: int
    pictures: dict[str, int] | None

    @property
    def is_begun(self) -> bool:
        """Whether there is more of it than its list, which all parts get at once."""
        return any(one is not None for one in (self.faces, self.rows, self.pictures)) or self.tars > 0

    @classmethod
    def of(cls, data: DataDir, part: int) -> PartStatus:
        """Read the status of one part.

        Raises:
            BadFile: a file of ours cannot be read.
        """
        tars = [size for path, size in data_store.below(data, data.tars(part)).items() if path.suffix == ".tar"]
        return cls(
            part,
            _rows(data, data.ids(part)),
            _rows(data, data.faces(part)),
            _rows(data, data.index(part)),
            _proof(data, part),
            len(tars),
            sum(tars),
            _pictures(data, data.sidecar(part)),
        )


@dataclass(frozen=True)
class TableStatus:
    """A table that was joined, as it lies beside the index.

    Attributes:
        folder: where its parts lie, below DATA_DIR.
        parts: their numbers.
        rows: of all of them, as many as the index has.
        bytes: sizes of its files together.
        columns: what it brings, as examples have it.
    """

    folder: str
    parts: list[int]
    rows: int
    bytes: int
    columns: list[str]

    @classmethod
    def all(cls, data: DataDir) -> list[TableStatus]:
        """Read the status of every table that was joined.

        Raises:
            BadFile: a file of ours cannot be read.
        """
        return [cls._of(data, folder, parts) for folder, parts in side_tables(data).items()]

    @classmethod
    def _of(cls, data: DataDir, folder: Path, parts: Mapping[int, Path]) -> TableStatus:
        rows, names = 0, dict[str, None]()
        for path in parts.values():
            with data_store.opened(data, path) as source, opened(source, path) as file:
                rows += file.metadata.num_rows
                names |= dict.fromkeys(name for name in file.schema_arrow.names if name != MATCHED)
        size = sum(data_store.size(data, path) or 0 for path in parts.values())
        return cls(folder.relative_to(data.root).as_posix(), sorted(parts), rows, size, list(names))


def lines(data: DataDir, parts: Iterable[int]) -> Iterator[str]:
    """Yield a header, a line for every part that is begun, one for all others, a sum, and a line for every table."""
    yield data.where
    found: dict[bool, list[PartStatus]] = {True: [], False: []}
    for part in parts:
        with data_store.at_work(data) as here:
            status = PartStatus.of(here, part)
        found[status.is_begun].append(status)
    if found[True]:
        heads = ("listed", "with faces", "indexed", "found", "fit", "left out", "swapped", "tars", "size")
        yield _columns("part", heads) + "  usable samples"
        yield from map(_line, found[True])
    if found[False]:
        yield _waiting_line(found[False])
    prepared = sum(status.rows is not None for status in found[True])
    yield f"{prepared} of {sum(map(len, found.values()))} parts are prepared"
    if found[True]:
        yield "listed, with faces, indexed, left out, swapped: numbers of samples"
    if prepared:
        yield "found: listed samples that the metadata has; fit: faces that lie in their pictures"
    with data_store.at_work(data) as here:
        tables = TableStatus.all(here)
    yield from map(_table_line, tables)


def as_json(data: DataDir, parts: Iterable[int]) -> dict[str, Any]:
    """Return the status of the parts for programs; shares are numbers between 0 and 1."""
    with data_store.at_work(data) as here:
        return {
            "data_dir": data.where,
            "parts": [asdict(PartStatus.of(here, part)) for part in parts],
            "tables": [asdict(table) for table in TableStatus.all(here)],
        }


def _waiting_line(waiting: Sequence[PartStatus]) -> str:
    listed = sum(status.ids or 0 for status in waiting)
    named = "part" if len(waiting) == 1 else "parts"
    said = f"{named} {ranges([status.part for status in waiting], ', ')}: not begun"
    return said + (f", {listed:,} samples listed" if listed else "")


def _table_line(table: TableStatus) -> str:
    numbers, names = ranges(table.parts), short(", ".join(table.columns), 80)
    return f"{table.folder}: parts {numbers}, {table.rows:,} rows, {human_size(table.bytes)}; columns {names or '-'}"


def _line(status: PartStatus) -> str:
    proof = status.proof or {}
    left_out = [proof.get(f"{why}_rows") for why in ("repeated", "ambiguous", "disproved")]
    cells = (
        *map(_number, (status.ids, status.faces, status.rows)),
        *(_percent(proof.get(share)) for share in ("coverage", "fit")),
        _number(sum(count or 0 for count in left_out) if proof else None),
        _number(proof.get("swapped_rows")),
        str(status.tars),
        human_size(status.tar_bytes) if status.tars else "-",
    )
    return _columns(str(status.part), cells) + f"  {_usable(status.pictures)}"


def _columns(first: str, others: Sequence[str]) -> str:
    widths = (10, 10, 9, 7, 7, 8, 8, 5, 9)
    return f"{first:>4}" + "".join(f"  {text:>{width}}" for text, width in zip(others, widths, strict=True))


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _rows(data: DataDir, path: Path) -> int | None:
    if not data_store.has(data, path):
        return None
    with data_store.opened(data, path) as source, opened(source, path) as file:
        return int(file.metadata.num_rows)


def _proof(data: DataDir, part: int) -> dict[str, Any] | None:
    path = proof_path(data.index(part))
    if not data_store.has(data, data.index(part)) or not data_store.has(data, path):
        return None
    try:
        return dict(json.loads(data_store.bring(data, path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        require_readable(path, error)
        raise BadFile(
            path,
            found=f"no JSON ({error})",
            expected="the proof of a join, as `laion-face prepare` writes it",
            way_out=f"Remove it and {data.index(part).name} beside it, and run `laion-face prepare` again.",
        ) from error


def _pictures(data: DataDir, sidecar: Path) -> dict[str, int] | None:
    if not data_store.has(data, sidecar):
        return None
    counts = pc.value_counts(table_of(data_store.bring(data, sidecar), ["status"])["status"]).to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counts, key=lambda item: -item["counts"])}


def _usable(pictures: dict[str, int] | None) -> str:
    if pictures is None:
        return "-"
    failed = [f"{reason} {count:,}" for reason, count in pictures.items() if reason != Reason.OK]
    shown = f" ({', '.join(failed[:4])})" if failed else ""
    return f"{pictures.get(Reason.OK, 0):,} of {sum(pictures.values()):,}{shown}"
