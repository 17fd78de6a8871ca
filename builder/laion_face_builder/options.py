"""Every option, once: its name, default and meaning; and the frozen, validated object that the rooms work with.

`OptionFields` are the raw values as a config, a call or the command line carries them. `Options.of` checks them all and
gives value objects. datasets sets config fields after `__post_init__`, so nothing is checked before `Options.of`.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.images.frames import RESIZE_MODES, Resizing
from laion_face_builder.images.modes import MODES
from laion_face_builder.images.pictures import MAX_PIXELS
from laion_face_builder.index.exclusion_file import read_exclusion
from laion_face_builder.index.filters import Filters
from laion_face_builder.layout import CONFIG_PARTS, ROW_GROUPS, DataDir, parse_parts
from laion_face_builder.upstream.sources import Upstream

IMAGE_MODES = ("auto", "fetch", "download", "none")
ON_ERROR = ("skip", "null", "raise")
ON_SIZE_CHANGE = ("rescale", "drop", "keep")
NSFW_VALUES = ("UNLIKELY", "UNSURE", "NSFW")
_POSITIVE = (
    "shards_per_part",
    "concurrency",
    "lookahead",
    "max_buffer_bytes",
    "cache_bytes",
    "timeout",
    "max_bytes",
    "max_pixels",
    "per_host",
    "image_size",
)


def option(default: Any, text: str, *, kind: type = str, group: str) -> Any:
    """A dataclass field with its one-line meaning, the type of one value and the group that it is shown in."""
    return field(default=default, metadata={"help": text, "kind": kind, "group": group})


@dataclass
class OptionFields:
    """The options as given. Every one has a default; None means that there is no such limit or filter."""

    source_repo: str = option(
        "FacePerceiver/laion-face", "Hub repo, or local folder, of the id list and the detections", group="source"
    )
    source_revision: str | None = option(None, "its revision (branch, tag or commit); default: main", group="source")
    metadata: str = option(
        "laion/relaion400m",
        "LAION-400M metadata: Hub dataset id, hf:// or http(s) folder, or local folder",
        group="source",
    )
    index: str | None = option(
        None, "a published index, folder or Hub id: then no other source is needed", group="source"
    )
    parts: str | int | Iterable[int] | None = option(
        None, 'parts to use, such as "0,2,5-7"; default: all of the config\'s', group="which"
    )
    shards_per_part: int = option(ROW_GROUPS, "logical shards of each part", kind=int, group="which")
    min_score: float | None = option(None, "a face counts from this detection score on", kind=float, group="filter")
    min_face_size: float | None = option(
        None, "a face counts if the short side of its box has so many pixels", kind=float, group="filter"
    )
    min_face_area: float | None = option(
        None, "a face counts if its box covers this share of the picture (0..1)", kind=float, group="filter"
    )
    min_faces: int | None = option(
        None, "fewest counting faces; default: 1 if a face threshold is given, else 0", kind=int, group="filter"
    )
    max_faces: int | None = option(None, "most counting faces", kind=int, group="filter")
    min_width: int | None = option(None, "least width of the original picture, pixels", kind=int, group="filter")
    min_height: int | None = option(None, "least height of the original picture, pixels", kind=int, group="filter")
    nsfw: str | Iterable[str] | None = option(
        None, f"allowed values of LAION's nsfw tag, of {', '.join(NSFW_VALUES)}", group="filter"
    )
    min_similarity: float | None = option(None, "least CLIP similarity of picture and text", kind=float, group="filter")
    exclude: str | None = option(None, "file of sample ids, URLs, hosts, SHA-256s or MD5s to leave out", group="filter")
    images: str = option(
        "auto", '"auto", "fetch", "download", "none", or the folder of an existing img2dataset output', group="pictures"
    )
    on_error: str = option("skip", 'a picture that failed: "skip", "null" (image None) or "raise"', group="pictures")
    on_size_change: str = option(
        "rescale", 'a picture that changed its size: "rescale", "drop" or "keep"', group="pictures"
    )
    mode: str | None = option(
        None, 'pictures in one mode, "RGB" or "L", transparency over white; default: each as it is', group="pictures"
    )
    resize_mode: str = option(
        "no", f"how pictures are resized when downloaded, as img2dataset: {', '.join(RESIZE_MODES)}", group="resize"
    )
    image_size: int = option(256, "the size that they are resized to, pixels", kind=int, group="resize")
    resize_only_if_bigger: bool = option(False, "smaller pictures keep their size", kind=bool, group="resize")
    blur_faces: bool = option(
        False, "faces are blurred; pictures whose boxes may not fit are left out", kind=bool, group="resize"
    )
    concurrency: int = option(256, "pictures that are fetched at the same time", kind=int, group="stream")
    lookahead: int = option(
        4096, "rows fetched ahead; more than concurrency, or one slow host holds up all", kind=int, group="stream"
    )
    max_buffer_bytes: int = option(
        512_000_000, "memory for pictures that were fetched ahead, bytes", kind=int, group="stream"
    )
    cache_images: str | None = option(None, "folder that keeps fetched pictures between epochs", group="stream")
    cache_bytes: int = option(50_000_000_000, "how much it may hold, bytes", kind=int, group="stream")
    timeout: float = option(30.0, "seconds for one picture, everything included", kind=float, group="transfer")
    retries: int = option(1, "further tries for what can pass (timeouts, 429, 5xx)", kind=int, group="transfer")
    max_bytes: int = option(32_000_000, "largest picture file, bytes", kind=int, group="transfer")
    max_pixels: int = option(MAX_PIXELS, "largest picture, pixels", kind=int, group="transfer")
    per_host: int = option(8, "connections to one host at a time", kind=int, group="transfer")
    user_agent_token: str | None = option(None, "name under which sites may address or refuse you", group="transfer")
    allow_private_hosts: bool = option(
        False, "also connect to addresses that are not public", kind=bool, group="transfer"
    )
    trust_proxy: bool = option(
        False, "go through your own proxy, which then has to refuse private addresses", kind=bool, group="transfer"
    )


@dataclass(frozen=True)
class Transfer:
    """How pictures are fetched; never defines which data come out."""

    timeout: float
    retries: int
    max_bytes: int
    max_pixels: int
    per_host: int
    user_agent_token: str | None
    allow_private_hosts: bool
    trust_proxy: bool


@dataclass(frozen=True)
class Ahead:
    """How far fetching runs ahead of a stream's reader, and what it keeps."""

    concurrency: int
    lookahead: int
    max_buffer_bytes: int
    cache_images: str | None
    cache_bytes: int


@dataclass(frozen=True)
class Options:
    """All options of one dataset, validated: what is in here is right. Hashable, comparable, picklable."""

    config: str
    data: DataDir
    upstream: Upstream
    index: str | None
    parts: tuple[int, ...]
    shards_per_part: int
    filters: Filters
    images: str
    on_error: str
    on_size_change: str
    mode: str | None
    resizing: Resizing
    blur_faces: bool
    transfer: Transfer
    ahead: Ahead

    @classmethod
    def of(
        cls,
        config: str,
        given: OptionFields,
        data_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> Options:
        """Checks everything in `given`.

        Raises:
            OptionError: names the option, the value and the valid ones; BadFile: a line of the exclusion list.
        """
        if config not in CONFIG_PARTS:
            raise OptionError(f"config {config!r}: valid are {', '.join(CONFIG_PARTS)}")
        _check_numbers(given)
        _check_remaking(given)
        return cls(
            config=config,
            data=DataDir.at(data_dir),
            upstream=Upstream(
                given.source_repo, given.source_revision, given.metadata, token if isinstance(token, str) else None
            ),
            index=given.index,
            parts=parse_parts(given.parts, config),
            shards_per_part=given.shards_per_part,
            filters=_filters(given),
            images=_images(given.images),
            on_error=_one_of("on_error", given.on_error, ON_ERROR),
            on_size_change=_one_of("on_size_change", given.on_size_change, ON_SIZE_CHANGE),
            mode=None if given.mode is None else _one_of("mode", given.mode, MODES),
            resizing=Resizing(given.resize_mode, given.image_size, given.resize_only_if_bigger),
            blur_faces=given.blur_faces,
            transfer=Transfer(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Transfer)}),
            ahead=Ahead(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Ahead)}),
        )

    def defining(self) -> dict[str, Any]:
        """The options that define which examples come out and how: never where from, how fast or under which name."""
        # Only what is not the default: caches of earlier versions stay good.
        changed = {"resize": self.resizing.as_dict(), "blur_faces": self.blur_faces, "mode": self.mode}
        return {
            "parts": self.parts,
            "filters": self.filters.as_dict(),
            "images": self.images if self.images in ("none", "fetch") else "stored",
            "on_error": self.on_error,
            "on_size_change": self.on_size_change,
            **{name: value for name, value in changed.items() if value},
        }


def option_names() -> tuple[str, ...]:
    """The names of all options."""
    return tuple(f.name for f in dataclasses.fields(OptionFields))


def refuse_unknown(names: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raises OptionError for a name that is no option, with the nearest ones; `also` are valid besides."""
    valid = [*option_names(), *also]
    for name in names:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise OptionError(f"unknown option {name!r}: {hint}valid are {', '.join(sorted(valid))}")


def _check_numbers(given: OptionFields) -> None:
    for spec in dataclasses.fields(OptionFields):
        value, kind = getattr(given, spec.name), spec.metadata["kind"]
        if value is None and spec.default is None:
            continue
        if kind is bool and not isinstance(value, bool):
            raise OptionError(f"{spec.name}={value!r}: expected True or False")
        if kind in (int, float):
            _check_number(spec.name, value, kind)
    for name in _POSITIVE:
        if not getattr(given, name) > 0:
            raise OptionError(f"{name}={getattr(given, name)!r}: expected more than 0")
    if given.min_faces is not None and given.max_faces is not None and given.min_faces > given.max_faces:
        raise OptionError(f"min_faces={given.min_faces} is more than max_faces={given.max_faces}: nothing would pass")


def _check_remaking(given: OptionFields) -> None:
    mode = _one_of("resize_mode", given.resize_mode, RESIZE_MODES)
    if mode != "no" and given.images == "fetch":
        raise OptionError(f"resize_mode={mode!r}: pictures that are fetched keep their size; valid is 'no'")
    if given.blur_faces and given.cache_images is not None:
        raise OptionError(
            "cache_images keeps pictures as they came, faces and all: it does not go with blur_faces. Leave one out"
        )


def _check_number(name: str, value: Any, kind: type) -> None:
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted) or not float(value) == float(value):
        raise OptionError(f"{name}={value!r}: expected {'a whole number' if kind is int else 'a number'}")
    # CLIP similarity is a cosine: the only option that may be below zero.
    if value < 0 and name != "min_similarity":
        raise OptionError(f"{name}={value!r}: expected 0 or more")


def _filters(given: OptionFields) -> Filters:
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(Filters)}
    values["nsfw"] = _nsfw(given.nsfw)
    if given.exclude is not None:
        path = Path(given.exclude).expanduser().absolute()
        if not path.is_file():
            raise OptionError(f"exclude={given.exclude!r}: there is no such file")
        values["exclude"] = read_exclusion(str(path))
    return Filters(**values)


def _nsfw(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    values = given.split(",") if isinstance(given, str) else list(given)
    chosen = tuple(sorted({str(value).strip().upper() for value in values}))
    for value in chosen:
        _one_of("nsfw", value, NSFW_VALUES)
    return chosen


def _images(given: Any) -> str:
    if given in IMAGE_MODES:
        return str(given)
    folder = Path(os.fspath(given)).expanduser() if isinstance(given, (str, os.PathLike)) else None
    if folder is None or not folder.is_dir():
        valid = ", ".join(map(repr, IMAGE_MODES))
        raise OptionError(f"images={given!r}: valid are {valid}, or a folder that exists")
    return str(folder.absolute())


def _one_of(name: str, value: Any, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise OptionError(f"{name}={value!r}: valid are {', '.join(map(repr, valid))}")
    return str(value)
