"""Define the options of a download: how a part is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from laion_face_builder.distribute import DISTRIBUTORS
from laion_face_builder.download.blur import JPEG_QUALITY
from laion_face_builder.errors import OptionError
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.geometry import Resizing
from laion_face_builder.options import FetchOptions, OptionFields
from laion_face_builder.options.fields import NOTHING, option
from laion_face_builder.parallel import cores
from laion_face_builder.values import Range

#: Opt-outs as fingerprints name them: another word here would make every download that was begun conflict.
_OPT_OUT = ("noai", "noimageai", "noindex", "noimageindex")
_MOST_PROCESSES = 16
#: Encoding that img2dataset knows -> least and most of its `encode_quality`, and ours. Of PNG it is zlib's effort.
_QUALITIES = {"jpg": (1, 100, JPEG_QUALITY), "png": (0, 9, 6), "webp": (1, 100, JPEG_QUALITY)}
ENCODE_FORMATS = tuple(_QUALITIES)
#: Options that have another name on the command line, and that name.
TYPED = {"processes_count": "--processes"}


@dataclass(frozen=True)
class DownloadOptions:
    """How a part is downloaded.

    `samples_per_shard`, resizing, blurring, the encoding and whether refusals are respected at all define what is on
    disk: they cannot change once a part has been started. Everything else may differ from run to run. Without resizing
    and blurring every original byte is kept; with them img2dataset's resizer decodes each picture and encodes it again.
    Another `max_pixels` looks through the tars again, without fetching; larger pictures come only with `retry_failed`.

    Args:
        fetch: how pictures are fetched; `concurrency` is that of all processes together, on a cluster of each worker.
        resizing: what img2dataset does to their size.
        blur_faces: whether img2dataset blurs faces. Pictures whose boxes may not fit are left out, on disk too.
        others: as each says.

    Raises:
        OptionError: a value is not valid, or means nothing beside the others.
    """

    fetch: FetchOptions = FetchOptions()
    resizing: Resizing = Resizing()
    blur_faces: bool = OptionFields.blur_faces
    encode_format: str = option(
        "jpg", f"format of resized or blurred pictures, of {', '.join(ENCODE_FORMATS)}", group="encoding"
    )
    encode_quality: int | None = option(
        None,
        "quality of resized or blurred pictures, 1 to 100, for png zlib's effort, 0 to 9; default: 95, for png 6",
        kind=int,
        group="encoding",
    )
    processes_count: int | None = option(
        None,
        "processes that fetch and write; default: one for each core, at most 16, or as many as a cluster has",
        group="work",
        valid=Range(int, 1, 1_000),
    )
    distributor: str = option(
        DISTRIBUTORS[0],
        "where these processes run: on this machine, or on a Spark or Ray cluster, where each has the full concurrency",
        group="work",
    )
    samples_per_shard: int = option(10_000, "samples in one tar", group="work", valid=Range(int, 1, 1_000_000))
    ignore_space: bool = option(False, "start even if the disk is clearly too small", kind=bool, group="work")

    def __post_init__(self) -> None:
        for name, valid in _RANGES.items():
            if (value := getattr(self, name)) is not None or getattr(DownloadOptions, name) is not None:
                valid.check(f"{name} ({TYPED[name]})" if name in TYPED else name, value)
        if self.distributor not in DISTRIBUTORS:
            raise OptionError(f"distributor={self.distributor!r}: expected one of {', '.join(DISTRIBUTORS)}")
        self._check_encoding()

    def _check_encoding(self) -> None:
        if self.encode_format not in ENCODE_FORMATS:
            raise OptionError(f"encode_format={self.encode_format!r}: valid are {', '.join(ENCODE_FORMATS)}")
        least, most, _ = _QUALITIES[self.encode_format]
        if not least <= self.quality <= most:
            raise OptionError(f"encode_quality={self.encode_quality}: {self.encode_format} takes {least} to {most}")
        if not self.encodes_again and (self.encode_format, self.encode_quality) != ("jpg", None):
            raise OptionError(
                "encode_format and encode_quality go with resize_mode or blur_faces: else every original byte is kept"
            )

    @property
    def processes(self) -> int:
        """The processes on this machine, at most."""
        return self.processes_count or min(_MOST_PROCESSES, cores())

    @property
    def is_on_cluster(self) -> bool:
        """Whether the workers may be on other machines, and are not ours."""
        return self.distributor != "processes"

    @property
    def encodes_again(self) -> bool:
        """Whether pictures are decoded and encoded again; else their bytes are kept as they came."""
        return bool(self.resizing) or self.blur_faces

    @property
    def quality(self) -> int:
        """The quality of pictures that are encoded again: `encode_quality` or the format's default."""
        return _QUALITIES[self.encode_format][2] if self.encode_quality is None else self.encode_quality

    def defining(self) -> dict[str, Any]:
        """Return the options that define the files on disk, for the fingerprint."""
        # Of newer options only what is not the default: downloads that were begun before them go on.
        again = {"resize": self.resizing.as_dict(), "blur_faces": self.blur_faces}
        encode = {"encode": f"{self.encode_format} {self.quality}"} if self.encodes_again else {}
        return {
            "samples_per_shard": self.samples_per_shard,
            "opt_out": sorted(_OPT_OUT) if self.fetch.respect != NOTHING else [],
            **{name: value for name, value in again.items() if value},
            **encode,
        }

    def limits(self, processes: int) -> FetchLimits:
        """Return the limits of each process's fetches, if there are so many processes.

        Raises:
            OptionError: the environment names a proxy that is not trusted.
        """
        return FetchLimits.of(replace(self.fetch, concurrency=-(-self.fetch.concurrency // processes)))


_RANGES: dict[str, Range] = {
    spec.name: spec.metadata["valid"] for spec in fields(DownloadOptions) if spec.metadata.get("valid") is not None
}
#: How many rounds over failed samples may be asked for.
RETRY_FAILED = Range(int, 0, 1_000)
