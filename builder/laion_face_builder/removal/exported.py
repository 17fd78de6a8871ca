"""Take rows out of the folder of an export: pictures, crops, captions, lines and rows of tables leave, the rest stays.

Shards that have none of the rows are left as they are. Those that have any are written again from what is in them, so
that nothing is fetched again. The next export goes on in the folder: what it asks for is noted as it is now.

Where a part is not wholly exported, all of its shards are taken out and made anew by the next export: shards are row
ranges, and the rows of those that are missing could not be told any more once rows have left the index.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laion_face_builder import progress
from laion_face_builder.errors import NotPrepared
from laion_face_builder.examples.walk import Shard
from laion_face_builder.export.export_ledger import Ledger, shard_name
from laion_face_builder.export.shard_sinks import discard, shard_path
from laion_face_builder.export.side_lists import COUNT, METADATA, README, write_lists
from laion_face_builder.files import digest, in_use, locked, read_fingerprint
from laion_face_builder.index.removals import STAMP, Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.options.export_options import FILES, ExportOptions
from laion_face_builder.removal.exported_shards import ExportedSample, ExportedShard, named_among, named_samples


@dataclass(frozen=True)
class ExportResult:
    """What became of the folder of an export.

    Attributes:
        samples: how many were taken out.
        rewritten: how many shards had any.
        anew: how many shards were taken out whole, and are to be exported again.
    """

    out: Path
    samples: int
    rewritten: int
    anew: int

    def __str__(self) -> str:
        said = f"{self.out}: {self.samples:,} samples taken out of {self.rewritten:,} shards"
        again = f"; {self.anew:,} shards of parts that were not whole are made anew by the next export"
        return said + (again if self.anew else "")


def remove_from_export(out: Path, data: DataDir | None, removals: Removals) -> ExportResult:
    """Take what is removed out of an export, once DATA_DIR has none of it.

    Args:
        data: the DATA_DIR that was exported; None if it is not here.
        removals: what is taken down: DATA_DIR's own, or one that was made for this folder alone.

    Raises:
        NotPrepared: the folder has no export; BadFile: its ledger or a table cannot be read; DiskError: no room.
    """
    ledger = Ledger(out)
    _request_of(ledger)  # no lock is left where there is no export
    with in_use(ledger.path("export"), f"{out}: in use; waiting", alone=True), locked(ledger.path("manifest.json")):
        _remove_left(out)
        request = _request_of(ledger)
        how = ExportOptions(**request["export"])
        now = _as_asked_now(request, data, removals)
        samples = rewritten = anew = 0
        shards = ledger.shards()
        with progress.bar("look through", len(shards), "shard") as bar:
            for part in sorted(map(int, request["parts"])):
                of_part = [shard for shard in shards if shard.part == part]
                named = {shard: _named(out, how, shard, removals.removed) for shard in of_part}
                is_whole = all(ledger.counts_of(shard) is not None for shard in of_part)
                samples += sum(map(len, named.values()))
                then, since = (one["parts"][str(part)].get(STAMP) for one in (request, now))
                if is_whole or (then == since and not any(named.values())):
                    rewritten += sum(_take_out(ledger, how, shard, gone) for shard, gone in named.items())
                else:
                    anew += sum(_discard(ledger, how, shard) for shard in of_part)
                bar.update(len(of_part))
        has_changed = ledger.note(now)
        if rewritten or anew or has_changed or _has_old_lists(ledger, how, removals.removed):
            write_lists(ledger, how, ledger.write_manifest())
    return ExportResult(out, samples, rewritten, anew)


def _request_of(ledger: Ledger) -> dict[str, Any]:
    request = ledger.request()
    if request is None:
        raise NotPrepared(
            f"{ledger.out}: there is no export, which would have {ledger.path('request.json').name} in it"
        )
    return request


def _remove_left(out: Path) -> None:
    """Remove what killed exports left, which may have any row in it."""
    for left in [*out.rglob(".*.partial")]:
        discard(left)


def _named(out: Path, how: ExportOptions, shard: Shard, removed: Removed) -> list[ExportedSample]:
    found = ExportedShard(out, shard_name(shard), how.layout)
    return named_samples(found, removed)


def _take_out(ledger: Ledger, how: ExportOptions, shard: Shard, gone: Sequence[ExportedSample]) -> int:
    """Take samples out of a whole shard, and put its counts right; return 1 if there was anything to do."""
    counts = ledger.counts_of(shard)
    if counts is None:
        return 0
    exported = ExportedShard(ledger.out, shard_name(shard), how.layout)
    if gone:
        exported.take_out({sample.sample_id for sample in gone})
    if not gone and exported.pieces == counts.pieces:
        return 0
    left = exported.counted()
    # Killed in between, the counts are still those of before.
    counts.rows -= counts.pictures - left.pictures
    counts.pieces, counts.pictures, counts.bytes = left.pieces, left.pictures, left.bytes
    ledger.finish(shard, counts, None)
    return 1


def _discard(ledger: Ledger, how: ExportOptions, shard: Shard) -> int:
    """Take a whole shard out of the export; return 1 if it was there."""
    was_there = ledger.counts_of(shard) is not None
    ledger.path(f"{shard_name(shard)}.json").unlink(missing_ok=True)
    ledger.path(f"{shard_name(shard)}.list").unlink(missing_ok=True)
    discard(shard_path(ledger.out, how.layout, shard_name(shard)))
    return int(was_there)


def _as_asked_now(request: dict[str, Any], data: DataDir | None, removals: Removals) -> dict[str, Any]:
    """Return what an export that goes on asks for: of the same parts, without the rows that are gone."""
    if data is None:
        return request
    parts = {part: _identity(made_from, data, int(part), removals) for part, made_from in request["parts"].items()}
    return {**request, "parts": parts, **({STAMP: removals.removed.digest} if removals.removed else {})}


def _identity(made_from: dict[str, Any], data: DataDir, part: int, removals: Removals) -> dict[str, Any]:
    index = read_fingerprint(data.index(part))
    stamp = {} if index is None else {STAMP: index[STAMP]} if STAMP in index else {}
    pictures = read_fingerprint(data.sidecar(part))
    if pictures is not None and made_from["pictures"] in removals.pictures_before(part, now := digest(pictures)):
        made_from = {**made_from, "pictures": now}
    return {**made_from, **stamp}


def _has_old_lists(ledger: Ledger, how: ExportOptions, removed: Removed) -> bool:
    """Say whether a killed removal left the lists as they were: the README is the last, before it metadata.jsonl."""
    pieces = sum(counts.pieces for shard in ledger.shards() if (counts := ledger.counts_of(shard)) is not None)
    readme, path = ledger.out / README, ledger.out / METADATA
    if not readme.exists() or f"\n{COUNT.format(pieces)}" not in readme.read_text(encoding="utf-8"):
        return True
    if how.layout != FILES or not path.exists():
        return False
    with path.open(encoding="utf-8") as lines:
        return any(True for _ in named_among((ExportedSample.of(json.loads(line)) for line in lines), removed))
