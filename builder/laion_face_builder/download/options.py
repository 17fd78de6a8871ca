"""How a part is downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from laion_face_builder.download.blur import BOXES_COLUMN, JPEG_QUALITY, MOST_PIXELS
from laion_face_builder.errors import OptionError
from laion_face_builder.images.frames import RESIZE_MODES, Resizing
from laion_face_builder.images.pictures import MAX_PIXELS
from laion_face_builder.options import OptionFields
from laion_face_builder.values import Range

#: Words in `X-Robots-Tag` by which a site opts out, as img2dataset has them.
OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
_MOST_PROCESSES = 16
#: Encoding that img2dataset knows -> least and most of its `encode_quality`, and ours. Of PNG it is zlib's effort.
_QUALITIES = {"jpg": (1, 100, JPEG_QUALITY), "png": (0, 9, 6), "webp": (1, 100, JPEG_QUALITY)}
ENCODE_FORMATS = tuple(_QUALITIES)


def _one_a_core() -> int:
    return min(_MOST_PROCESSES, os.cpu_count() or 1)


@dataclass(frozen=True)
class DownloadOptions:
    """How a part is downloaded.

    `samples_per_shard`, `disallowed_header_directives`, resizing, blurring and the encoding define what is on disk:
    they cannot change once a part has been started. Everything else may differ from run to run. Without resizing and
    blurring every original byte is kept; with them img2dataset decodes each picture and encodes it again.

    Args:
        processes_count: processes of img2dataset; one a core, 16 at most, by default.
        thread_count: connections of each process at a time.
        samples_per_shard: samples in one tar.
        timeout: seconds for one try to get a picture, everything included.
        retries: further tries for a picture that fails, at once; see `retry_failed` for later rounds.
        max_bytes: a picture file may have; larger ones fail.
        max_pixels: a picture may have; larger ones fail. Another value looks through the tars again, without fetching;
            larger ones that would have been encoded again come only with `retry_failed`.
        per_host: connections to one host at a time.
        user_agent_token: a name under which sites may address or refuse you.
        disallowed_header_directives: words in `X-Robots-Tag` by which a site opts out; () fetches all the same.
        resize_mode: what img2dataset does to the size of each picture, one of `frames.RESIZE_MODES`.
        image_size: the size that it then has, pixels.
        resize_only_if_bigger: smaller pictures keep their size.
        blur_faces: whether it blurs faces. Pictures whose boxes may not fit are left out, on disk too.
        encode_format: of pictures that are encoded again: jpg, png or webp.
        encode_quality: likewise, 1 to 100, of png zlib's effort, 0 to 9; by default 95, of png 6.
        allow_private_hosts: also connect to addresses that are not public.
        trust_proxy: go through the proxy that the environment names, which then has to refuse private addresses.
        stuck_after: seconds without a change on disk after which img2dataset is ended and started again.
        restarts: how often it is started again without having finished a single shard.
        check_processes: processes that look through finished tars meanwhile.
        ignore_space: start even if the disk is clearly too small.
    """

    processes_count: int = field(default_factory=_one_a_core)
    thread_count: int = 64
    samples_per_shard: int = 10_000
    timeout: float = 30.0
    retries: int = 1
    max_bytes: int = 32_000_000
    max_pixels: int = MAX_PIXELS
    per_host: int = 8
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] = OPT_OUT_DIRECTIVES
    resize_mode: str = "no"
    image_size: int = 256
    resize_only_if_bigger: bool = False
    blur_faces: bool = False
    encode_format: str = "jpg"
    encode_quality: int | None = None
    allow_private_hosts: bool = False
    trust_proxy: bool = False
    stuck_after: float = 600.0
    restarts: int = 3
    check_processes: int = 1
    ignore_space: bool = False

    def __post_init__(self) -> None:
        for name, valid in _VALID.items():
            valid.check(name + _TYPED.get(name, ""), getattr(self, name))
        self._check_encoding()

    def _check_encoding(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise OptionError(f"resize_mode={self.resize_mode!r}: valid are {', '.join(RESIZE_MODES)}")
        if self.encode_format not in ENCODE_FORMATS:
            raise OptionError(f"encode_format={self.encode_format!r}: valid are {', '.join(ENCODE_FORMATS)}")
        least, most, _ = _QUALITIES[self.encode_format]
        if not least <= self._quality <= most:
            raise OptionError(f"encode_quality={self.encode_quality}: {self.encode_format} takes {least} to {most}")
        if not self.encodes_again and (self.encode_format, self.encode_quality) != ("jpg", None):
            raise OptionError(
                "encode_format and encode_quality go with resize_mode or blur_faces: else every original byte is kept"
            )

    @property
    def resizing(self) -> Resizing:
        """The three options on size, as one."""
        return Resizing(self.resize_mode, self.image_size, self.resize_only_if_bigger)

    @property
    def encodes_again(self) -> bool:
        """Whether pictures are decoded and encoded by img2dataset; else their bytes are kept as they came."""
        return bool(self.resizing) or self.blur_faces

    @property
    def _quality(self) -> int:
        return _QUALITIES[self.encode_format][2] if self.encode_quality is None else self.encode_quality

    def defining(self) -> dict[str, Any]:
        """What defines the files on disk, for the fingerprint."""
        # Of what came later only what is not the default: downloads that were begun before go on.
        again = {"resize": self.resizing.as_dict(), "blur_faces": self.blur_faces}
        encode = {"encode": f"{self.encode_format} {self._quality}"} if self.encodes_again else {}
        return {
            "samples_per_shard": self.samples_per_shard,
            "opt_out": sorted(word.strip().lower() for word in self.disallowed_header_directives),
            **{name: value for name, value in again.items() if value},
            **encode,
        }

    def settings(self) -> Mapping[str, Any]:
        """The arguments of `img2dataset.download` that follow from these options."""
        return {
            "processes_count": self.processes_count,
            "thread_count": self.thread_count,
            "number_sample_per_shard": self.samples_per_shard,
            # The proxy bounds the whole try; this one is per socket operation, and must not come first.
            "timeout": self.timeout + 5,
            "retries": self.retries,
            "user_agent_token": self.user_agent_token,
            "disallowed_header_directives": list(self.disallowed_header_directives),
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "output_format": "webdataset",
            **self._encoding(),
            "compute_hash": "sha256",
            # Its EXIF parser runs on whatever a host sends; our pass reads the one value that matters.
            "extract_exif": False,
            "enable_wandb": False,
            "incremental_mode": "incremental",
        }

    def _encoding(self) -> dict[str, Any]:
        if not self.encodes_again:
            return {"encode_format": "jpg", "resize_mode": "no", "disable_all_reencoding": True}
        return {
            "encode_format": self.encode_format,
            "encode_quality": self._quality,
            "resize_mode": self.resize_mode,
            "image_size": self.image_size,
            "resize_only_if_bigger": self.resize_only_if_bigger,
            "bbox_col": BOXES_COLUMN if self.blur_faces else None,
            # Our pass sees only what comes out; this is for what goes in.
            "max_image_area": self.max_pixels if self.resizing else min(self.max_pixels, MOST_PIXELS),
        }


#: Of the fields that are options of a dataset too, `options` knows what is valid.
_VALID = {
    "processes_count": Range(int, 1, 1_000),
    "thread_count": Range(int, 1, 10_000),
    "samples_per_shard": Range(int, 1, 1_000_000),
    "stuck_after": Range(float, 0.001),
    "restarts": Range(int, 0),
    "check_processes": Range(int, 1, 1_000),
} | {
    spec.name: spec.metadata["valid"]
    for spec in fields(OptionFields)
    if spec.metadata["valid"] is not None and spec.name in DownloadOptions.__dataclass_fields__
}
#: What the command line calls those that have another name there.
_TYPED = {"processes_count": " (--processes)", "thread_count": " (--threads)"}
#: Rounds over failed samples.
RETRY_FAILED = Range(int, 0, 1_000)
