"""What `laion-face stats --audit` found: as lines of a table, as JSON, and as a section of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from laion_face_builder.inspect import plots
from laion_face_builder.inspect.agreement import IOU, Agreement, Band, bands
from laion_face_builder.inspect.audit import Audit
from laion_face_builder.shown import ranges

CAUTION = (
    "Agreement is not truth: both may miss a face, and both may take for one what is none. The intervals (95 %, "
    "Wilson) take faces as independent; those of one picture are not, and the true ones are a little wider."
)
_UNIT = "short side of the box in the picture looked at, pixels"


def audit_lines(audit: Audit) -> Iterator[str]:
    """Yield the lines of the table for a terminal."""
    found = audit.found
    yield f"\n{_about(audit)}"
    yield f"\n{'LAION-Face, found again':28}{'faces':>15}{'found':>15}{'share':>9}  {'95 % interval':>15}"
    yield from _rows([Band("all faces", found.ours.faces, found.ours.found)])
    for title, some in (("score", bands(found.by_score)), (_UNIT, bands(found.by_size))):
        yield f"by {title}"
        yield from _rows(some, "  ")
    yield f"\n{f'{audit.detector}, in LAION-Face':28}{'faces':>15}{'there':>15}{'share':>9}  {'95 % interval':>15}"
    yield from _rows([Band("all faces", found.theirs.faces, found.theirs.found)])
    yield "by score"
    yield from _rows(bands(found.others), "  ")
    yield CAUTION


def _rows(some: Sequence[Band], indent: str = "") -> Iterator[str]:
    for band in some:
        yield f"{indent + band.name:28}{band.faces:>15,}{band.found:>15,}{_share(band):>9}  {_interval(band):>15}"


def _share(band: Band) -> str:
    return f"{band.share:.1%}" if band.faces else "-"


def _interval(band: Band) -> str:
    low, high = band.interval
    return f"{100 * low:.1f} to {100 * high:.1f}" if band.faces else "-"


def _about(audit: Audit) -> str:
    """Say what was looked at, in one sentence or two."""
    found = audit.found
    where = "from the web" if audit.is_fetched else "from tars"
    left_out = [f"{found.unplaced:,} of another shape than the metadata says"] * bool(found.unplaced)
    left_out += [f"{number:,} {reason}" for reason, number in found.failed.most_common(3)]
    numbers = ranges(audit.parts)
    return (
        f"{audit.detector} on {found.pictures:,} pictures {where}, parts {numbers}; faces are the same if their boxes "
        f"overlap with an IoU of {IOU:g} or more." + (f" Left out: {', '.join(left_out)}." if left_out else "")
    )


def audit_json(audit: Audit) -> dict[str, Any]:
    """Give everything as plain values."""
    found = audit.found
    return {
        "detector": audit.detector,
        "weights_sha256": audit.weights_sha256,
        "iou": IOU,
        "from": "web" if audit.is_fetched else "tars",
        "parts": list(audit.parts),
        "asked": audit.rows,
        "pictures": found.pictures,
        "unplaced": found.unplaced,
        "failed": dict(found.failed.most_common()),
        "found_again": {
            "all": found.ours.as_dict(),
            "score": [band.as_dict() for band in bands(found.by_score)],
            "size": [band.as_dict() for band in bands(found.by_size)],
        },
        "there_too": {"all": found.theirs.as_dict(), "score": [band.as_dict() for band in bands(found.others)]},
    }


def audit_page(audit: Audit) -> dict[str, Any]:
    """Give what the page's section is made of."""
    found = audit.found
    tables = (
        ("Faces of LAION-Face found again, by score", "score", bands(found.by_score)),
        ("Faces of LAION-Face found again, by size", _UNIT, bands(found.by_size)),
        (f"Faces of {audit.detector} that LAION-Face has", "its score", bands(found.others)),
    )
    return {
        "about": _about(audit),
        "caution": CAUTION,
        "sums": [_sum(found.ours, "of LAION-Face's faces are found again"), _missing(audit.detector, found)],
        "plots": [_plot(title, unit, some) for title, unit, some in tables if any(band.faces for band in some)],
        "tables": [
            {"title": title, "head": (unit, "faces", "found", "share", "95 % interval"), "rows": map(_cells, some)}
            for title, unit, some in tables
        ],
    }


def _sum(band: Band, what: str) -> str:
    return f"{band.found:,} of {band.faces:,} {what} ({_share(band)}, interval {_interval(band)} %)."


def _missing(detector: str, found: Agreement) -> str:
    missing = found.theirs.faces - found.theirs.found
    return f"{_sum(found.theirs, f'faces of {detector} are in LAION-Face')} {missing:,} are not."


def _plot(title: str, unit: str, some: Sequence[Band]) -> plots.Plot:
    points = [(f"{band.name}\n{band.faces:,} faces", band.share, *band.interval) for band in some if band.faces]
    return plots.intervals(title, unit, points)


def _cells(band: Band) -> list[str]:
    return [band.name, f"{band.faces:,}", f"{band.found:,}", _share(band), _interval(band)]
