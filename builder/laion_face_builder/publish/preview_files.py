"""Write the preview: one small file with the first pictures of the parts, to show what the index is about."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from laion_face_builder.errors import NotPrepared
from laion_face_builder.examples import parts
from laion_face_builder.examples.example import Example
from laion_face_builder.files import Fingerprint, make_fingerprint, stamped, written_whole
from laion_face_builder.options import Options
from laion_face_builder.publish.image_files import as_table, checked_example, example_steps
from laion_face_builder.publish.tables import EXAMPLES, writer_of

MOST_ROWS = 1000
_ROWS_A_GROUP = 100


def check_preview(options: Options) -> None:
    """Check that there are pictures to show.

    Raises:
        NotPrepared: no part has pictures.
    """
    if not pictured_parts(options):
        raise NotPrepared(
            f"{options.data.root}: no part has pictures to show. Run `laion-face download` first, or drop --preview"
        )


def pictured_parts(options: Options) -> list[int]:
    """List those of the parts that have pictures on disk."""
    return [part for part in options.parts if options.data.sidecar(part).exists()]


def preview_fingerprint(options: Options, rows: int) -> Fingerprint:
    """Give the fingerprint of what the preview is made from."""
    made_from = {str(part): parts.identity(options, part) for part in pictured_parts(options)}
    return make_fingerprint("preview", rows=rows, parts=made_from, filters=options.filters.as_dict())


def write_preview(path: Path, options: Options, rows: int, fingerprint: Fingerprint) -> None:
    """Write the first `rows` examples that have a picture; fewer if there are no more."""
    schema = stamped(EXAMPLES, fingerprint)
    examples = itertools.islice(_pictured(options, pictured_parts(options)), rows)
    with written_whole(path) as partial, writer_of(partial, schema) as writer:
        while held := list(itertools.islice(examples, _ROWS_A_GROUP)):
            writer.write_table(as_table(held).cast(schema), row_group_size=len(held))


def _pictured(options: Options, chosen: Sequence[int]) -> Iterator[Example]:
    for part in chosen:
        for step in example_steps(options, part, 0):
            example = checked_example(step.row, options.transfer.max_pixels)
            if example is not None and example["image"] is not None:
                yield example
