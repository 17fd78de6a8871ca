"""The call of the export. What it takes is imported when it is called, so that `import laion_face` stays short."""

from __future__ import annotations

from typing import Any


def export(name: str | None, out: Any, **options: Any) -> Any:
    """Write pictures, or faces cut out of them, as files that other programs read; `laion-face export` does the same.

    What is whole in `out` from an earlier call is left as it is. Nothing is prepared or downloaded.

    Args:
        name: "20M" or "50M".
        out: folder to write to.
        options: data_dir, token; shards ("0/4") and processes; every field of `OptionFields` and of
            `laion_face_builder.options.export_options.ExportOptions`, such as layout, align, size, draw.

    Returns:
        What became of the rows of all that is in `out`: `laion_face_builder.export.export_ledger.ExportCounts`.

    Raises:
        OptionError: an option is unknown or its value is not valid.
        LaionFaceError: something is missing, the folder holds another export, the network was lost; see the message.
    """
    from laion_face_builder.export import exporter

    return exporter.call(name, out, options)
