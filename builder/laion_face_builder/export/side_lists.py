"""Write the lists in the folder of an export, by which other programs read it, from what the ledger has of each shard.

OUT/
  metadata.jsonl   "files": what `datasets`' imagefolder takes for columns: file_name, text, and the example's own
  prompt.jsonl     "files" with condition pictures: ControlNet's source, target, prompt
  open_clip.csv    "files": open_clip's --train-data: filepath and title, with tabs between; run it in OUT
  README.md        which of the files are data, for `load_dataset(OUT)`; and what it is, for people
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from laion_face_builder.export.export_ledger import ExportCounts, Ledger, shard_name
from laion_face_builder.export.shard_sinks import line_of, shard_path
from laion_face_builder.files import written_whole
from laion_face_builder.images.stripping import EXTENSIONS
from laion_face_builder.options.export_options import FILES, ExportOptions

METADATA, PROMPTS, OPEN_CLIP, README = "metadata.jsonl", "prompt.jsonl", "open_clip.csv", "README.md"
#: How the README says how much there is.
COUNT = "{:,} samples"

_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: {paths}
---

# Faces of LAION-Face

{count} from LAION-Face, written by `laion-face export`: what was asked, the counts, and why pictures failed are in
`__export__/manifest.json`.

These are pictures of people who were not asked. They belong to their owners; ids and detections are CC-BY-4.0, the
metadata come under LAION's terms.
"""


def write_lists(ledger: Ledger, how: ExportOptions, total: ExportCounts) -> None:
    """Write the lists over all shards that are whole; they are there whole or as they were."""
    if how.layout == FILES:
        _write_files_lists(ledger, how)
    with written_whole(ledger.out / README) as partial:
        paths = json.dumps(_data_paths(ledger.out, how))
        partial.write_text(_CARD.format(paths=paths, count=COUNT.format(total.pieces)), encoding="utf-8")


def _write_files_lists(ledger: Ledger, how: ExportOptions) -> None:
    with ExitStack() as stack:

        def opened(name: str) -> Any:
            partial = stack.enter_context(written_whole(ledger.out / name))
            return stack.enter_context(partial.open("w", encoding="utf-8", errors="replace", newline=""))

        metadata, clip = opened(METADATA), opened(OPEN_CLIP)
        table = csv.writer(clip, dialect="excel-tab", lineterminator="\n")
        table.writerow(["filepath", "title"])
        prompts = opened(PROMPTS) if how.draw is not None else None
        for line, values in _lines(ledger):
            metadata.write(line)
            table.writerow([values["file_name"], " ".join(values["text"].split())])
            if prompts is not None:
                names = {"source": "conditioning_image_file_name", "target": "file_name", "prompt": "text"}
                prompts.write(line_of({name: values[of] for name, of in names.items()}))


def _lines(ledger: Ledger) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for shard in ledger.shards():
        path = ledger.path(f"{shard_name(shard)}.list")
        if ledger.counts_of(shard) is None or not path.exists():
            continue
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield line, json.loads(line)


def _data_paths(out: Path, how: ExportOptions) -> list[str]:
    """List the patterns of the data's files, each of which fits some: `datasets` wants that."""
    if how.layout != FILES:
        return [shard_path(Path(), how.layout, "part-*").as_posix()]
    extensions = [one for one in EXTENSIONS.values() if any(out.glob(f"part-*/*.{one}"))]
    return [*(f"part-*/*.{one}" for one in extensions), METADATA]
