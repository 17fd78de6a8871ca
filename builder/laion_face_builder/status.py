"""What is prepared and downloaded in a DATA_DIR, a line a part. Reads footers and sidecars only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.files import human_size
from laion_face_builder.layout import DataDir


def lines(data: DataDir, parts: Iterable[int]) -> Iterator[str]:
    """A header, a line for every part, and a sum."""
    parts = list(parts)
    yield f"{data.root}"
    yield f"{'part':>4}  {'ids':>9}  {'faces':>9}  {'index':>9}  {'tars':>5}  {'size':>9}  usable pictures"
    prepared = 0
    for part in parts:
        prepared += data.index(part).exists()
        yield _line(data, part)
    yield f"{prepared} of {len(parts)} parts are prepared"


def _line(data: DataDir, part: int) -> str:
    counts = [_rows(path) for path in (data.ids(part), data.faces(part), data.index(part))]
    tars = list(data.tars(part).rglob("*.tar"))
    size = human_size(sum(tar.stat().st_size for tar in tars)) if tars else "-"
    rows = "  ".join(f"{count:>9}" for count in counts)
    return f"{part:>4}  {rows}  {len(tars):>5}  {size:>9}  {_usable(data, part)}"


def _rows(path: object) -> str:
    try:
        return f"{pq.read_metadata(path).num_rows:,}"
    except FileNotFoundError:
        return "-"


def _usable(data: DataDir, part: int) -> str:
    sidecar = data.sidecar(part)
    if not sidecar.exists():
        return "-"
    status = pq.read_table(sidecar, columns=["status"])["status"]
    counts = {item["values"]: item["counts"] for item in pc.value_counts(status).to_pylist()}
    usable = counts.pop("ok", 0)
    failed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items(), key=lambda item: -item[1])[:4])
    return f"{usable:,} of {len(status):,}" + (f" ({failed})" if failed else "")
