"""`laion-face stats`: the counts as a table, as JSON, and as a self-contained page with plots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from laion_face_builder.files import human_size, written_whole
from laion_face_builder.inspect import plots
from laion_face_builder.inspect.audit import Audit
from laion_face_builder.inspect.audit_shown import audit_json, audit_lines, audit_page
from laion_face_builder.inspect.counts import OTHER_HOSTS, Kept, Stats
from laion_face_builder.inspect.html import rendered
from laion_face_builder.shown import ranges

MOST_SHOWN = 15
#: Name in `counts.EDGES`, title, unit, and what is counted.
_SPREADS = (
    ("faces a picture", "Faces per picture", "faces in the picture", "samples"),
    ("face size", "Face size", "short side of the box, pixels", "faces"),
    ("score", "Detection score", "score", "faces"),
    ("picture size", "Picture size", "short side of the original, pixels", "samples"),
)


def lines(stats: Stats, audit: Audit | None = None) -> Iterator[str]:
    """Yield the lines of the table for a terminal."""
    yield from _counted_lines(stats)
    if audit is not None:
        yield from audit_lines(audit)


def _counted_lines(stats: Stats) -> Iterator[str]:
    total, filters = stats.total, stats.options.filters.as_dict()
    chosen = ", ".join(f"{name}={v:g}" if isinstance(v, float) else f"{name}={v}" for name, v in filters.items())
    yield f"{stats.options.config}, parts {ranges(stats.options.parts)}; {chosen or 'no filter'}"
    yield f"\n{'':28}{'all':>15}{'kept':>15}{'share':>9}"
    for _, name, both, show in _figures(stats):
        yield f"{name:28}{show(both.all):>15}{show(both.kept):>15}{both.share:>9.1%}"
    if stats.options.filters.exclude is not None:
        yield f"{'on the exclusion list':28}{total.excluded:>15,}"
    if len(total.dropped) > 1:
        yield "\nLeft out by each filter alone"
        yield from (f"  {name:26}{number:>15,}" for name, number in total.dropped.most_common())
    if stats.options.max_copies is not None:
        yield f"\nBytes that more than {stats.options.max_copies:,} addresses give (SHA-256): addresses"
        yield from (f"  {sha256}{addresses:>15,}" for sha256, addresses in list(stats.copies.items())[:MOST_SHOWN])
    for key, title, unit, of in _SPREADS:
        yield f"\n{title} ({unit}): {of}"
        yield from (f"  {label:26}{every:>15,.0f}{kept:>15,.0f}" for label, every, kept in total.spreads[key].bins)
    if not total.asked:
        yield f"\n{_why_no_pictures(stats)}"
        return
    yield f"\n{'Usable pictures, of kept':28}{'asked for':>15}{'usable':>15}{'share':>9}"
    yield f"{'all parts':28}{total.asked:>15,}{total.usable:>15,}{total.usable / total.asked:>9.1%}"
    for part, (asked, usable) in stats.by_part.items():
        yield f"{f'part {part}':28}{asked:>15,}{usable:>15,}{usable / asked:>9.1%}"
    yield "\nWhy the others failed"
    yield from (f"  {reason:26}{number:>15,}" for reason, number in total.reasons.most_common())
    yield f"\n{'Hosts with the most pictures':38}{'asked for':>15}{'usable':>15}"
    yield from (f"  {host:36}{asked:>15,}{usable:>15,}" for host, asked, usable in _hosts(stats))


def as_json(stats: Stats, audit: Audit | None = None) -> dict[str, Any]:
    """Give everything as plain values; of the hosts only those that are shown."""
    total = stats.total
    return {
        "config": stats.options.config,
        "parts": list(stats.options.parts),
        "filters": stats.options.filters.as_dict(),
        **{key: {"all": round(both.all), "kept": round(both.kept)} for key, _, both, _ in _figures(stats)},
        "excluded": total.excluded,
        "dropped": dict(total.dropped.most_common()),
        "copies": [{"sha256": sha256, "addresses": addresses} for sha256, addresses in stats.copies.items()],
        "spreads": {
            key: [{"bin": label, "all": int(every), "kept": int(kept)} for label, every, kept in spread.bins]
            for key, spread in total.spreads.items()
        },
        "asked": total.asked,
        "usable": total.usable,
        "failed": dict(total.reasons.most_common()),
        "by_part": {part: {"asked": asked, "usable": usable} for part, (asked, usable) in stats.by_part.items()},
        "hosts": [{"host": host, "asked": asked, "usable": usable} for host, asked, usable in _hosts(stats)],
        "audit": audit and audit_json(audit),
    }


def write_page(file: Path, stats: Stats, command: str, audit: Audit | None = None) -> None:
    """Write the page to `file`."""
    with written_whole(file) as partial:
        partial.write_text(stats_page(stats, command, audit), encoding="utf-8", errors="replace")


def stats_page(stats: Stats, command: str, audit: Audit | None = None) -> str:
    """Make the page.

    Args:
        command: what the page was made with, shown in it.
        audit: what a second detector said, if it was asked.
    """
    filters = stats.options.filters
    spreads = [(stats.total.spreads[key], title, unit, of) for key, title, unit, of in _SPREADS]
    numbers = stats.options.parts
    return rendered(
        "stats.html",
        config=stats.options.config,
        parts=f"part{'s' if len(numbers) > 1 else ''} {ranges(numbers, ', ')}",
        excluded=None if filters.exclude is None else stats.total.excluded,
        command=command,
        tiles=list(_tiles(stats)),
        about_bytes=_about_bytes(stats),
        spread_plots=[
            plots.spread_plot(title, unit, of, spread, is_filtered=not filters.is_empty)
            for spread, title, unit, of in spreads
        ],
        spread_tables=[
            {"title": title, "head": (unit, f"{of}, all", "kept"), "rows": map(_numbers, spread.bins)}
            for spread, title, unit, of in spreads
        ],
        pictures=_pictures(stats) if stats.total.asked else None,
        why_no_pictures=_why_no_pictures(stats),
        audit=audit and audit_page(audit),
    )


def _pictures(stats: Stats) -> dict[str, Any]:
    """Give what the page says of the pictures that were asked for."""
    total, hosts = stats.total, _hosts(stats)
    return {
        "asked": total.asked,
        "usable": total.usable,
        "share": total.usable / total.asked,
        "of": "" if stats.options.filters.is_empty else " of kept samples",
        "share_of_hosts": sum(asked for _, asked, _ in hosts) / total.asked,
        "plots": [*_reason_plots(total.reasons.most_common(MOST_SHOWN)), _part_plot(stats), _host_plot(hosts)],
        "by_part": [_numbers((str(part), *both)) for part, both in stats.by_part.items()],
        "reasons": map(_numbers, total.reasons.most_common()),
        "hosts": map(_numbers, hosts),
    }


def _why_no_pictures(stats: Stats) -> str:
    if stats.total.pictures.all:
        return "No picture of a sample that is kept was asked for."
    return "No pictures have been downloaded here yet: run laion-face download, then this again."


def _reason_plots(reasons: list[tuple[str, int]]) -> Iterator[plots.Plot]:
    if reasons:
        failed = [number for _, number in reasons]
        yield plots.bars("Why pictures failed", "samples", [why for why, _ in reasons], [0] * len(failed), failed)


def _part_plot(stats: Stats) -> plots.Plot:
    rates = [usable / asked for asked, usable in stats.by_part.values()]
    return plots.shares("Usable pictures by part (link rot)", "part", list(map(str, stats.by_part)), rates)


def _host_plot(hosts: list[tuple[str, int, int]]) -> plots.Plot:
    names, usable = [host for host, _, _ in hosts], [good for _, _, good in hosts]
    bad = [asked - good for _, asked, good in hosts]
    return plots.bars("Hosts with the most pictures", "samples", names, usable, bad)


def _tiles(stats: Stats) -> Iterator[dict[str, str]]:
    for _, name, both, show in _figures(stats):
        of = "" if stats.options.filters.is_empty else f", of {show(both.all)} ({both.share:.1%})"
        yield {"value": show(both.kept), "name": f"{name}{of}"}


def _about_bytes(stats: Stats) -> str:
    return (
        "Index bytes are compressed, a sample having its row group's average. Picture bytes are the number of samples, "
        f"times {human_size(stats.bytes_a_picture)} a picture: "
        + ("the average of those that are here." if stats.total.pictures.all else "what such pictures usually have.")
    )


def _figures(stats: Stats) -> Iterator[tuple[str, str, Kept, Any]]:
    """Yield each figure: its key, its name, its numbers of everything and of what is kept, and how to write them."""
    total, size = stats.total, stats.bytes_a_picture
    yield "samples", "samples", total.samples, _number
    yield "faces", "faces", total.faces, _number
    yield "index_bytes", "index", total.index_bytes, human_size
    yield "picture_bytes", "pictures, about", Kept(total.samples.all * size, total.samples.kept * size), human_size


def _hosts(stats: Stats) -> list[tuple[str, int, int]]:
    total = stats.total
    named = [(host, asked) for host, asked in total.hosts.most_common(MOST_SHOWN + 1) if host != OTHER_HOSTS]
    return [(host, asked, total.usable_hosts[host]) for host, asked in named[:MOST_SHOWN]]


def _numbers(row: tuple[Any, ...]) -> list[str]:
    """Write the numbers of a table's row; the first column is a name."""
    return [row[0], *map(_number, row[1:])]


def _number(value: float | np.number[Any]) -> str:
    return f"{value:,.0f}"
