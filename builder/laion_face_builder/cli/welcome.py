"""The screen of `laion-face` without a command: what is there, and the next steps. Only names of files are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from laion_face_builder.layout import ALL_PARTS, PARTS_OF_20M, DataDir
from laion_face_builder.shown import ranges


def lines(data: DataDir) -> Iterator[str]:
    """Yield the lines of the screen."""
    prepared = [part for part in ALL_PARTS if data.index(part).exists()]
    downloaded = [part for part in prepared if data.sidecar(part).exists()]
    parts = _listed(downloaded or prepared or [0])
    next_one = 3 if downloaded else 2 if prepared else 1
    yield "LAION-Face: 50 million image-text pairs with face boxes, landmarks and scores"
    yield ""
    yield f"In {data.root}: {_what_is_there(prepared, downloaded)}."
    yield "(What is in another DATA_DIR: laion-face status --data-dir DATA_DIR)"
    yield ""
    config = "20M" if _all_in_20m(downloaded or prepared) else "50M"
    for number, step in enumerate(_steps(config, parts), 1):
        yield f"{'->' if number == next_one else '  '} {number}. {step}"
    yield ""
    yield "laion-face demo    tries all of this on a miniature, on this machine"
    yield "laion-face --help  lists every command"


def _steps(config: str, parts: str) -> Iterator[str]:
    yield f"Prepare the index:  laion-face prepare {config} --parts {parts}"
    yield f"Download pictures:  laion-face download {config} --parts {parts}   (or skip this: streams fetch them)"
    yield f'Load, in Python:    laion_face.load_dataset("{config}", parts="{parts}", split="train", streaming=True)'


def _what_is_there(prepared: Sequence[int], downloaded: Sequence[int]) -> str:
    if not prepared:
        return "nothing is prepared yet"
    if not downloaded:
        return f"{_named(prepared)} prepared, no pictures downloaded"
    return f"{_named(prepared)} prepared, pictures of {_named(downloaded)} downloaded"


def _named(parts: Sequence[int]) -> str:
    return f"part{'s' if len(parts) > 1 else ''} {_listed(parts)}"


def _listed(parts: Sequence[int]) -> str:
    return ranges(parts)


def _all_in_20m(parts: Sequence[int]) -> bool:
    return set(parts) <= set(PARTS_OF_20M)
