"""Define the options of a download: how a part is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from laion_face_builder.distribute import DISTRIBUTORS
from laion_face_builder.download.blur import JPEG_QUALITY
from laion_face_builder.errors import OptionError
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.geometry import RESIZE_MODES, Resizing
from laion_face_builder.options import OptionFields, Transfer
from laion_face_builder.parallel import cores
from laion_face_builder.values import Range

#: Opt-outs as fingerprints name them: another word here would make every download that was begun conflict.
_OPT_OUT = ("noai", "noimageai", "noindex", "noimageindex")
_MOST_PROCESSES = 16
#: Encoding that img2dataset knows -> least and most of its `encode_quality`, and ours. Of PNG it is zlib's effort.
_QUALITIES = {"jpg": (1, 100, JPEG_QUALITY), "png": (0, 9, 6), "webp": (1, 100, JPEG_QUALITY)}
ENCODE_FORMATS = tuple(_QUALITIES)


@dataclass(frozen=True)
class DownloadOptions:
    """How a part is downloaded.

    `samples_per_shard`, resizing, blurring and the encoding define what is on disk: they cannot change once a part has
    been started. Everything else may differ from run to run. Without resizing and blurring every original byte is kept;
    with them img2dataset's resizer decodes each picture and encodes it again.

    Args:
        processes_count: processes that fetch and write; None means one a core, 16 at most, or what a cluster has.
        distributor: what runs these processes, one of `distribute.DISTRIBUTORS`.
        concurrency: pictures fetched at the same time, by all processes together; on a cluster, by each worker.
        samples_per_shard: samples in one tar.
        timeout: seconds for one picture, everything included.
        retries: further tries after errors that may pass; see `retry_failed` for later rounds.
        outage_patience: seconds that a lost network is waited for, before the download ends and says so.
        max_bytes: a picture file may have; larger ones fail.
        max_pixels: a picture may have; larger ones fail. Another value looks through the tars again, without fetching;
            larger ones come only with `retry_failed`.
        per_host: connections to one host at a time.
        user_agent_token: a name under which sites may address or refuse you.
        resize_mode: what img2dataset does to the size of each picture, one of `geometry.RESIZE_MODES`.
        image_size: the size that each picture then has, pixels.
        resize_only_if_bigger: smaller pictures keep their size.
        blur_faces: whether img2dataset blurs faces. Pictures whose boxes may not fit are left out, on disk too.
        encode_format: of pictures that are encoded again: jpg, png or webp.
        encode_quality: of those pictures, 1 to 100, by default 95; for png zlib's effort, 0 to 9, by default 6.
        allow_private_hosts: also connect to addresses that are not public.
        trust_proxy: go through the proxy that the environment names, which then has to refuse private addresses.
        ignore_space: start even if the disk is clearly too small.
    """

    processes_count: int | None = None
    distributor: str = "processes"
    concurrency: int = OptionFields.concurrency
    samples_per_shard: int = 10_000
    timeout: float = OptionFields.timeout
    retries: int = OptionFields.retries
    outage_patience: float = OptionFields.outage_patience
    max_bytes: int = OptionFields.max_bytes
    max_pixels: int = OptionFields.max_pixels
    per_host: int = OptionFields.per_host
    user_agent_token: str | None = OptionFields.user_agent_token
    resize_mode: str = OptionFields.resize_mode
    image_size: int = OptionFields.image_size
    resize_only_if_bigger: bool = OptionFields.resize_only_if_bigger
    blur_faces: bool = OptionFields.blur_faces
    encode_format: str = "jpg"
    encode_quality: int | None = None
    allow_private_hosts: bool = OptionFields.allow_private_hosts
    trust_proxy: bool = OptionFields.trust_proxy
    ignore_space: bool = False

    def __post_init__(self) -> None:
        for name, valid in _VALID.items():
            if (value := getattr(self, name)) is not None or name != "processes_count":
                valid.check(name + _TYPED.get(name, ""), value)
        if self.distributor not in DISTRIBUTORS:
            raise OptionError(f"distributor={self.distributor!r}: expected one of {', '.join(DISTRIBUTORS)}")
        self._check_encoding()

    def _check_encoding(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise OptionError(f"resize_mode={self.resize_mode!r}: valid are {', '.join(RESIZE_MODES)}")
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
    def resizing(self) -> Resizing:
        """The three options on size, as one."""
        return Resizing(self.resize_mode, self.image_size, self.resize_only_if_bigger)

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
            "opt_out": sorted(_OPT_OUT),
            **{name: value for name, value in again.items() if value},
            **encode,
        }

    def limits(self, processes: int) -> FetchLimits:
        """Return the limits of each process's fetches, if there are so many processes.

        Raises:
            OptionError: the environment names a proxy that is not trusted.
        """
        transfer = Transfer(**{spec.name: getattr(self, spec.name) for spec in fields(Transfer)})
        return FetchLimits.of(transfer, concurrency=-(-self.concurrency // processes))


#: What is valid; for fields that are options of a dataset too, `options` says it.
_VALID = {
    "processes_count": Range(int, 1, 1_000),
    "samples_per_shard": Range(int, 1, 1_000_000),
} | {
    spec.name: spec.metadata["valid"]
    for spec in fields(OptionFields)
    if spec.metadata["valid"] is not None and spec.name in DownloadOptions.__dataclass_fields__
}
#: Options that have another name on the command line, and that name.
_TYPED = {"processes_count": " (--processes)"}
#: How many rounds over failed samples may be asked for.
RETRY_FAILED = Range(int, 0, 1_000)
