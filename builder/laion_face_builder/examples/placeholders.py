"""Know the placeholders among the pictures of a dataset, for `max_copies`.

They are counted over what lies in tars. Of pictures from the web nobody knows beforehand which are placeholders: of
these only such bytes are refused as the tars of this dataset have shown to be one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from laion_face_builder.download.copies import Copies, CopyCount
from laion_face_builder.errors import NotPrepared, OptionError
from laion_face_builder.examples import parts
from laion_face_builder.log import logger
from laion_face_builder.options import IMAGE_MODES, Options


def with_placeholders(options: Options, adopted: parts.Adopted | None = None) -> Options:
    """Return the options with the placeholders that `max_copies` names.

    Raises:
        NotPrepared, OptionError: see `copies_of`.
    """
    return (
        options if options.max_copies is None else replace(options, placeholders=frozenset(copies_of(options, adopted)))
    )


def copies_of(options: Options, adopted: parts.Adopted | None = None) -> Copies:
    """Count, of the bytes that more than `max_copies` addresses give, these addresses; {} without that option.

    Raises:
        OptionError: images="none"; NotPrepared: there are no tars of these parts to count in.
    """
    if options.max_copies is None:
        return {}
    if options.images == "none":
        raise OptionError("max_copies: says which pictures are placeholders, and images='none' has none. Leave one out")
    sidecars = _sidecars(options, adopted)
    missing = [part for part in options.parts if part not in sidecars]
    if not sidecars:
        raise NotPrepared(
            f"{options.data.where}: max_copies is counted over downloaded pictures, and no part has any. Of pictures "
            "from the web it cannot be known before they have come. Run "
            f"`{parts.command('download', options, missing)}` first, or leave it out."
        )
    if missing:
        logger.warning(
            "max_copies: no pictures of parts %s are in tars: of these, only placeholders that the other parts show "
            "are known",
            parts.listed(missing),
        )
    index_of = partial(parts.index_of, options)
    return CopyCount(sidecars, index_of, options.max_copies, options.data.root / "copies").found()


def _sidecars(options: Options, adopted: parts.Adopted | None) -> dict[int, Path]:
    if options.images not in IMAGE_MODES:
        return dict(parts.adopt(options) if adopted is None else adopted)
    found = {part: options.data.sidecar(part) for part in options.parts}
    return {part: sidecar for part, sidecar in found.items() if sidecar.exists()}
