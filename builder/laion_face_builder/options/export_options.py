"""Define the options of an export: what is written of each example, and in which layout."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.options.fields import COUNTING_FACES, LARGEST_FACE, option
from laion_face_builder.options.tree import Options
from laion_face_builder.transforms.alignment import TEMPLATES, USUAL_SIZES
from laion_face_builder.values import Range, one_of

LAYOUTS = FILES, WEBDATASET, JSONL, PARQUET = "files", "webdataset", "jsonl", "parquet"
DRAWINGS = DRAWN_LANDMARKS, DRAWN_BOXES, DRAWN_MESH = "landmarks", "boxes", "mesh-on-black"
#: Pillow's names of the formats that crops are encoded in.
CROP_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
#: Options that have another name on the command line, and that name.
EXPORT_TYPED = {"layout": "--as"}
#: Of pictures that are cut out: what is larger is a slip.
_SIDE = Range(int, 1, 8192)


@dataclass(frozen=True)
class ExportOptions:
    """What is written of each example, and how.

    Without `crop` and `align` whole pictures are written, with the very pixels that they came with; with one of these,
    each face that counts becomes a picture of its own. Names are sample ids, and the face's number in its picture.

    Raises:
        OptionError: a value is not valid, or means nothing beside the others.
    """

    layout: str = option(
        FILES,
        f"what to write, of {', '.join(LAYOUTS)}: pictures as files with captions and lists; tars; lists alone; tables "
        "with the pictures in them",
        group="export",
    )
    crop: bool = option(
        False, "cut out the faces that count, each with a margin, not turned", kind=bool, group="export"
    )
    align: str | None = option(
        None, f"turn and cut out the faces that count, onto a template of {', '.join(TEMPLATES)}", group="export"
    )
    size: int | None = option(
        None,
        "width and height of the pictures of faces, pixels; default: with --crop their own, with --align that of the "
        "template, " + ", ".join(f"{name} {size:,}" for name, size in USUAL_SIZES.items()),
        group="export",
        valid=_SIDE,
    )
    margin: float | None = option(
        None,
        "room around a face that is cropped, on each side, as a share of its box's longer side; default: 0.25",
        group="export",
        valid=Range(float, 0, 10),
    )
    largest_face: bool = option(
        False, "take of each picture only the face with the largest box, of those that count", kind=bool, group="export"
    )
    draw: str | None = option(
        None,
        f"add a picture on black for a model to be conditioned on, with the faces' {', '.join(DRAWINGS)}",
        group="export",
    )
    crop_format: str = option("jpg", f"format of pictures of faces, of {', '.join(CROP_FORMATS)}", group="export")
    crop_quality: int = option(
        95, "quality of pictures of faces as jpg and webp", group="export", valid=Range(int, 1, 100)
    )

    def __post_init__(self) -> None:
        one_of("layout", self.layout, LAYOUTS)
        one_of("crop_format", self.crop_format, tuple(CROP_FORMATS))
        for name, valid in (("align", TEMPLATES), ("draw", DRAWINGS)):
            if getattr(self, name) is not None:
                one_of(name, getattr(self, name), valid)
        for spec in fields(self):
            if spec.metadata["valid"] is not None and getattr(self, spec.name) is not None:
                spec.metadata["valid"].check(spec.name, getattr(self, spec.name))
        self._check_together()

    def _check_together(self) -> None:
        if self.crop and self.align is not None:
            raise OptionError("crop and align: a face is cut out one way or the other; leave one of them out")
        if self.margin is not None and not self.crop:
            raise OptionError(f"margin={self.margin}: goes with crop; a template has its own")
        if self.size is not None and not self.of_faces:
            raise OptionError(f"size={self.size}: goes with crop or align; whole pictures keep their size")
        if self.largest_face and not (self.of_faces or self.draw):
            raise OptionError("largest_face: goes with crop, align or draw; keep_faces says which faces examples have")
        if self.layout == JSONL and (self.of_faces or self.draw):
            raise OptionError("layout='jsonl' has no pictures: crop, align and draw go with the other layouts")

    @property
    def of_faces(self) -> bool:
        """Whether pictures of faces are written, rather than whole pictures."""
        return self.crop or self.align is not None

    @property
    def sides(self) -> int | None:
        """Width and height of pictures of faces; None for their own pixels."""
        return self.size if self.size is not None or self.align is None else USUAL_SIZES[self.align]

    @property
    def keep_faces(self) -> str:
        """Which faces are cut out or drawn, as `OptionFields.keep_faces` says it."""
        return LARGEST_FACE if self.largest_face else COUNTING_FACES

    def as_dict(self) -> dict[str, Any]:
        """Return what is not the default, as plain values."""
        return {name: value for name, value in asdict(self).items() if value != getattr(ExportOptions, name)}

    def read_with(self, options: Options) -> Options:
        """Return the options to read the examples with.

        Raises:
            OptionError: images="download", which is for `laion-face download`; or there would be no pictures to write.
        """
        if options.images == "download":
            raise OptionError(
                "images='download': run `laion-face download` first; export reads what is there, or fetches"
            )
        if self.layout == JSONL:
            return replace(options, images="none") if options.images == "auto" else options
        if options.images == "none":
            raise OptionError(f"images='none': layout={self.layout!r} is of pictures; without them there is 'jsonl'")
        if options.on_error == "null":
            raise OptionError("on_error='null': a row without a picture is not exported; valid are 'skip' and 'raise'")
        return options
