"""The shell command that makes what is missing, for error messages: ready to be typed."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from laion_face_builder.index.exclusion import Exclusion
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.shown import shown

#: Which options each command takes besides CONFIG, --parts and --data-dir, by their groups.
_GROUPS = {"prepare": ("source",), "download": ("source", "filter", "resize", "transfer")}


def command(name: str, options: Options, parts: Sequence[int]) -> str:
    """Give `laion-face prepare 20M --parts 0,2 --data-dir …` for just these sources, filters and sizes.

    Tokens are left out. Where an address has a password, there is *** for the user to fill in.

    Args:
        name: "prepare" or "download".
        options: of the dataset that lacks something.
        parts: which of its parts lack it.
    """
    words = ["laion-face", name, options.config, "--parts", listed(parts), "--data-dir", options.data.where]
    values = _values(options)
    for spec in dataclasses.fields(OptionFields):
        value = values.get(spec.name, spec.default)
        if spec.metadata["group"] in _GROUPS[name] and value != spec.default:
            words += [f"--{spec.name.replace('_', '-')}", *([] if value is True else [_typed(value)])]
    return shlex.join(words)


def listed(parts: Sequence[int]) -> str:
    """Give "0,2" for parts 0 and 2, as --parts takes them."""
    return ",".join(map(str, parts))


def _values(options: Options) -> Mapping[str, Any]:
    upstream, size = options.upstream, options.resizing
    return {
        "source_repo": upstream.source_repo,
        "source_revision": upstream.source_revision,
        "metadata": os.fspath(upstream.metadata_place),
        "index": options.index,
        "resize_mode": size.mode,
        "image_size": size.size,
        "resize_only_if_bigger": size.only_if_bigger,
        "blur_faces": options.blur_faces,
        **vars(options.filters),
        **vars(options.transfer),
    }


def _typed(value: object) -> str:
    if isinstance(value, Exclusion):
        return value.name if os.path.isabs(value.name) else "FILE_WITH_THESE"
    return ",".join(value) if isinstance(value, tuple) else shown(str(value))
