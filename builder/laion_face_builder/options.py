"""Every option, once: its name, default and meaning; and the frozen, validated object that all packages work with.

`OptionFields` are the raw values as a config, a call or the command line carries them. `Options.of` checks them all and
gives value objects. datasets sets config fields after `__post_init__`, so nothing is checked before `Options.of`.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.images.geometry import RESIZE_MODES, Resizing
from laion_face_builder.images.modes import MODES
from laion_face_builder.images.pictures import MAX_PIXELS
from laion_face_builder.index.exclusion import Exclusion, exclusion_of, read_exclusion
from laion_face_builder.index.filters import Filters
from laion_face_builder.layout import CONFIG_PARTS, ROW_GROUPS, DataDir, parse_parts
from laion_face_builder.shown import ShownFields
from laion_face_builder.sources.hub import Token, checked_token
from laion_face_builder.sources.sources import Upstream
from laion_face_builder.values import Range, absolute, as_written, place

ALWAYS, FETCHED, READ, NEVER = "always", "fetched", "read", "never"
#: When an option is part of an Arrow cache's id, and why. A dataset's rows are the same for the same id.
#: READ: what it leads to is what counts, and that has a fingerprint, which is in the id. FETCHED: with images="fetch";
#: what it let through into tars is in these, by content.
DEFINES = {
    "source_repo": (READ, "the index says what it was made from"),
    "source_revision": (READ, "the same"),
    "metadata": (READ, "the same"),
    "index": (READ, "the same index gives the same rows wherever it lies"),
    "parts": (ALWAYS, "which rows"),
    "shards_per_part": (NEVER, "the order of the rows is the same"),
    "min_score": (ALWAYS, "which rows"),
    "min_face_size": (ALWAYS, "which rows"),
    "min_face_area": (ALWAYS, "which rows"),
    "min_faces": (ALWAYS, "which rows"),
    "max_faces": (ALWAYS, "which rows"),
    "min_width": (ALWAYS, "which rows"),
    "min_height": (ALWAYS, "which rows"),
    "nsfw": (ALWAYS, "which rows"),
    "min_similarity": (ALWAYS, "which rows"),
    "exclude": (ALWAYS, "which rows; by what is on the list, not by its path"),
    "images": (ALWAYS, "none, fetched or stored; which stored ones, their fingerprint says"),
    "on_error": (ALWAYS, "whether failures leave rows"),
    "on_size_change": (ALWAYS, "which rows, and where faces are"),
    "resize_mode": (ALWAYS, "which pictures"),
    "image_size": (ALWAYS, "which pictures, if they are resized"),
    "resize_only_if_bigger": (ALWAYS, "which pictures, if they are resized"),
    "blur_faces": (ALWAYS, "which pixels"),
    "mode": (ALWAYS, "which pixels"),
    "order": (NEVER, "an Arrow cache is made in the index's order"),
    "concurrency": (NEVER, "how fast: the same answers give the same rows"),
    "lookahead": (NEVER, "how fast"),
    "max_buffer_bytes": (NEVER, "how fast"),
    "cache_images": (NEVER, "where from: these are answers of the same hosts to the same options"),
    "cache_bytes": (NEVER, "the same"),
    "timeout": (FETCHED, "slow hosts' rows come or fail"),
    "retries": (FETCHED, "rows whose first try failed come or fail"),
    "max_bytes": (FETCHED, "large files' rows come or fail"),
    "max_pixels": (FETCHED, "large pictures' rows come or fail"),
    "per_host": (NEVER, "how fast: a host gets the same requests, waiting in our queue takes nothing from timeout"),
    "outage_patience": (NEVER, "when a run without a network ends; no row is counted as failed for it"),
    "user_agent_token": (FETCHED, "sites allow or refuse by this name"),
    "allow_private_hosts": (FETCHED, "rows at addresses that are not public come or fail"),
    "trust_proxy": (FETCHED, "the proxy decides then which addresses are reached"),
}  # fmt: skip
IMAGE_MODES = ("auto", "fetch", "download", "none")
ON_ERROR = ("skip", "null", "raise")
ON_SIZE_CHANGE = ("rescale", "drop", "keep")
ORDERS = INDEX_ORDER, ARRIVAL_ORDER = "index", "arrival"
NSFW_VALUES = ("UNLIKELY", "UNSURE", "NSFW")
#: Options that are addresses or paths; `exclude` and `images` are too, among other things.
_PLACES = ("source_repo", "metadata", "index", "cache_images")
#: What no picture, machine or network has: nearly always a slip, or another unit.
_MOST_BYTES = 1_000_000_000_000_000
_MOST_PIXELS = 1_000_000_000_000
_MOST_SIDE = 100_000_000
_MOST_FACES = 1_000_000
_MOST_TELLING = 100_000


def option(
    default: Any,
    text: str,
    *,
    kind: type = str,
    group: str,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a dataclass field with its meaning in a line, the type and range of one value, and its display group."""
    valid = None if least is None else Range(kind, least, most)
    # An end that only slips reach is said when it is reached.
    is_telling = most is not None and most <= _MOST_TELLING
    text = f"{text}; {valid.text}" if valid is not None and is_telling else text
    return field(default=default, metadata={"help": text, "kind": kind, "group": group, "valid": valid})


@dataclass(repr=False)
class OptionFields(ShownFields):
    """The options as given. Every one has a default; None means that there is no such limit or filter."""

    source_repo: str | os.PathLike[str] = option(
        "FacePerceiver/laion-face", "Hub repo, or local folder, of the id list and the detections", group="source"
    )
    source_revision: str | None = option(None, "its revision (branch, tag or commit); default: main", group="source")
    metadata: str | os.PathLike[str] = option(
        "laion/relaion400m",
        "LAION-400M metadata: Hub dataset id, hf:// or http(s) folder, or local folder",
        group="source",
    )
    index: str | os.PathLike[str] | None = option(
        None, "a published index, folder or Hub id: then no other source is needed", group="source"
    )
    parts: str | int | Iterable[int] | None = option(
        None, 'parts to use, such as "0,2,5-7"; default: all of the config\'s', group="which"
    )
    shards_per_part: int = option(
        ROW_GROUPS, "logical shards of each part", kind=int, group="which", least=1, most=100_000
    )
    min_score: float | None = option(
        None, "a face counts from this detection score on", kind=float, group="filter", least=0, most=1
    )
    min_face_size: float | None = option(
        None,
        "a face counts if the short side of its box has so many pixels",
        kind=float,
        group="filter",
        least=0,
        most=_MOST_SIDE,
    )
    min_face_area: float | None = option(
        None, "a face counts if its box covers this share of the picture", kind=float, group="filter", least=0, most=1
    )
    min_faces: int | None = option(
        None,
        "fewest counting faces; default: 1 if a face threshold is given, else 0",
        kind=int,
        group="filter",
        least=0,
        most=_MOST_FACES,
    )
    max_faces: int | None = option(None, "most counting faces", kind=int, group="filter", least=0, most=_MOST_FACES)
    min_width: int | None = option(
        None, "least width of the original picture, pixels", kind=int, group="filter", least=0, most=_MOST_SIDE
    )
    min_height: int | None = option(
        None, "least height of the original picture, pixels", kind=int, group="filter", least=0, most=_MOST_SIDE
    )
    nsfw: str | Iterable[str] | None = option(
        None, f"allowed values of LAION's nsfw tag, of {', '.join(NSFW_VALUES)}", group="filter"
    )
    min_similarity: float | None = option(
        None, "least CLIP similarity of picture and text", kind=float, group="filter", least=-1, most=1
    )
    exclude: str | os.PathLike[str] | Iterable[Any] | None = option(
        None,
        "file of sample ids, URLs, hosts, SHA-256s or MD5s to leave out; in Python also these themselves",
        group="filter",
    )
    images: str | os.PathLike[str] = option(
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
    image_size: int = option(
        256, "the size that they are resized to, pixels", kind=int, group="resize", least=1, most=16_384
    )
    resize_only_if_bigger: bool = option(False, "smaller pictures keep their size", kind=bool, group="resize")
    blur_faces: bool = option(
        False, "faces are blurred; pictures whose boxes may not fit are left out", kind=bool, group="resize"
    )
    order: str = option(
        INDEX_ORDER,
        'examples of a stream come in the order of the "index", or on "arrival" of their pictures',
        group="stream",
    )
    concurrency: int = option(
        256, "pictures that are fetched at the same time", kind=int, group="transfer", least=1, most=10_000
    )
    lookahead: int = option(
        4096,
        "rows fetched ahead; more than concurrency, or one slow host holds up all",
        kind=int,
        group="stream",
        least=1,
        most=10_000_000,
    )
    max_buffer_bytes: int = option(
        512_000_000,
        "memory for pictures that were fetched ahead, bytes",
        kind=int,
        group="stream",
        least=1,
        most=_MOST_BYTES,
    )
    cache_images: str | os.PathLike[str] | None = option(
        None, "folder that keeps fetched pictures between epochs", group="stream"
    )
    cache_bytes: int = option(
        50_000_000_000, "how much it may hold, bytes", kind=int, group="stream", least=1, most=_MOST_BYTES
    )
    timeout: float = option(
        30.0, "seconds for one picture, everything included", kind=float, group="transfer", least=0.001, most=86_400
    )
    retries: int = option(
        1, "further tries for what can pass (timeouts, 429, 5xx)", kind=int, group="transfer", least=0, most=100
    )
    max_bytes: int = option(
        32_000_000, "largest picture file, bytes", kind=int, group="transfer", least=1, most=_MOST_BYTES
    )
    max_pixels: int = option(
        MAX_PIXELS, "largest picture, pixels", kind=int, group="transfer", least=1, most=_MOST_PIXELS
    )
    per_host: int = option(
        32,
        "most requests to one host at a time, of all your processes on a machine; it starts with 8",
        kind=int,
        group="transfer",
        least=1,
        most=10_000,
    )
    outage_patience: float = option(
        600.0,
        "seconds that a lost network, or a free file descriptor, is waited for; 0 gives up at once",
        kind=float,
        group="transfer",
        least=0,
        most=10_000_000,
    )
    user_agent_token: str | None = option(None, "name under which sites may address or refuse you", group="transfer")
    allow_private_hosts: bool = option(
        False, "also connect to addresses that are not public", kind=bool, group="transfer"
    )
    trust_proxy: bool = option(
        False, "go through your own proxy, which then has to refuse private addresses", kind=bool, group="transfer"
    )

    def __setattr__(self, name: str, value: Any) -> None:
        """Turn iterators, which can be read only once, into tuples: datasets asks for the options several times."""
        super().__setattr__(name, tuple(value) if isinstance(value, Iterator) else value)


@dataclass(frozen=True)
class Transfer:
    """How pictures are fetched; `DEFINES` says which of these options define the data that come out, and when."""

    timeout: float
    retries: int
    max_bytes: int
    max_pixels: int
    per_host: int
    outage_patience: float
    user_agent_token: str | None
    allow_private_hosts: bool
    trust_proxy: bool


@dataclass(frozen=True)
class Ahead:
    """How far fetching runs ahead of a stream's reader, in which order examples come, and what is kept."""

    order: str
    concurrency: int
    lookahead: int
    max_buffer_bytes: int
    cache_images: str | None
    cache_bytes: int


@dataclass(frozen=True, repr=False)
class Options(ShownFields):
    """All options of one dataset, validated. Hashable, comparable, picklable."""

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
        token: Token = None,
    ) -> Options:
        """Check everything in `given`, and return it as options.

        Raises:
            OptionError: names the option, the value and the valid ones; BadFile: a line of the exclusion list.
        """
        if config not in CONFIG_PARTS:
            raise OptionError(f"config {config!r}: valid are {', '.join(CONFIG_PARTS)}")
        given = _plain(given)
        _check_remaking(given)
        return cls(
            config=config,
            data=DataDir.at(data_dir),
            upstream=Upstream(
                _place("source_repo", given.source_repo),
                given.source_revision,
                _place("metadata", given.metadata),
                checked_token(token),
            ),
            index=None if given.index is None else _place("index", given.index),
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
            ahead=_ahead(given),
        )

    def defining(self) -> dict[str, Any]:
        """Return the options that define which examples come and how: never where from, how fast or under which name.

        See `DEFINES`. Equal meanings give equal values, however they are spelled.
        """
        # Only what is not the default: caches of earlier versions stay good.
        changed = {"resize": self.resizing.as_dict(), "blur_faces": self.blur_faces, "mode": self.mode}
        is_fetched = self.images == "fetch"
        defining = {
            "parts": self.parts,
            "filters": self.filters.as_dict(),
            "images": self.images if self.images in ("none", "fetch") else "stored",
            "on_error": self.on_error,
            "on_size_change": self.on_size_change,
            **{name: value for name, value in changed.items() if value},
            # Always there, if empty: earlier versions kept what other bounds let through under one and the same id.
            **({"fetched": self._fetched()} if is_fetched else {}),
        }
        return {name: _one_spelling(value) for name, value in defining.items()}

    def _fetched(self) -> dict[str, Any]:
        """Return the bounds of fetching that change which rows come, where they are not the default."""
        given = {name: getattr(self.transfer, name) for name, (when, _) in DEFINES.items() if when == FETCHED}
        return {name: value for name, value in given.items() if value != getattr(OptionFields, name)}


def option_names() -> tuple[str, ...]:
    """Return the names of all options."""
    return tuple(f.name for f in dataclasses.fields(OptionFields))


def refuse_unknown(names: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raise OptionError for a name that is no option, with the nearest ones; `also` are valid besides."""
    valid = [*option_names(), *also]
    for name in names:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise OptionError(f"unknown option {name!r}: {hint}valid are {', '.join(sorted(valid))}")


def _plain(given: OptionFields) -> OptionFields:
    """Return the options as plain text and numbers, each checked by itself."""
    values = {spec.name: _plain_value(spec, getattr(given, spec.name)) for spec in dataclasses.fields(OptionFields)}
    plain = OptionFields(**values)
    if plain.min_faces is not None and plain.max_faces is not None and plain.min_faces > plain.max_faces:
        raise OptionError(f"min_faces={plain.min_faces} is more than max_faces={plain.max_faces}: nothing would pass")
    return plain


def _plain_value(spec: dataclasses.Field[Any], value: Any) -> Any:
    kind, valid = spec.metadata["kind"], spec.metadata["valid"]
    if value is None and spec.default is None:
        return None
    if kind is bool and not isinstance(value, bool):
        raise OptionError(f"{spec.name}={as_written(value)}: expected True or False")
    if valid is not None:
        valid.check(spec.name, value)
        # Those of NumPy are no JSON; an int stays one, since it is in fingerprints.
        return value if isinstance(value, (int, float)) else kind(value)
    if spec.name in _PLACES:
        return place(spec.name, value)
    if spec.name in ("source_revision", "user_agent_token") and not isinstance(value, str):
        raise OptionError(f"{spec.name}={as_written(value)}: expected text, not {type(value).__name__}")
    return value


def _check_remaking(given: OptionFields) -> None:
    mode = _one_of("resize_mode", given.resize_mode, RESIZE_MODES)
    if mode != "no" and given.images == "fetch":
        raise OptionError(f"resize_mode={mode!r}: pictures that are fetched keep their size; valid is 'no'")
    if "://" in str(given.cache_images):
        raise OptionError(f"cache_images={given.cache_images!r}: expected a local folder")
    if given.blur_faces and given.cache_images is not None:
        raise OptionError(
            "cache_images keeps pictures as they came, faces and all: it does not go with blur_faces. Leave one out"
        )


def _one_spelling(value: Any) -> Any:
    """Write equal numbers alike: 64, 64.0 and NumPy's are one filter."""
    if isinstance(value, dict):
        return {name: _one_spelling(one) for name, one in value.items()}
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    return int(number) if float(number).is_integer() else number


def _filters(given: OptionFields) -> Filters:
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(Filters)}
    values["nsfw"] = _nsfw(given.nsfw)
    values["exclude"] = None if given.exclude is None else _exclusion(given.exclude)
    return Filters(**values)


def _exclusion(given: Any) -> Exclusion:
    if isinstance(given, (str, os.PathLike)):
        path = absolute(place("exclude", given))
        if not path.is_file():
            found = "it is a folder" if path.is_dir() else "there is no such file"
            raise OptionError(f"exclude={as_written(given)}: {found}; one entry goes as exclude=[…]")
        return read_exclusion(str(path))
    if isinstance(given, (bytes, bytearray, Mapping)) or not isinstance(given, Iterable):
        raise OptionError(f"exclude={as_written(given)}: expected a file, or a list of ids, URLs, hosts and hashes")
    return exclusion_of(given)


def _nsfw(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, Iterable):
        raise OptionError(f"nsfw={as_written(given)}: valid are {', '.join(map(repr, NSFW_VALUES))}")
    values = given.split(",") if isinstance(given, str) else list(given)
    chosen = tuple(sorted({str(value).strip().upper() for value in values}))
    if not chosen:
        raise OptionError(
            f"nsfw={as_written(given)}: nothing would pass; valid are {', '.join(map(repr, NSFW_VALUES))}"
        )
    for value in chosen:
        _one_of("nsfw", value, NSFW_VALUES)
    return chosen


def _images(given: Any) -> str:
    if isinstance(given, str) and given in IMAGE_MODES:
        return given
    folder = absolute(place("images", given)) if isinstance(given, (str, os.PathLike)) else None
    if folder is None or not folder.is_dir():
        valid = ", ".join(map(repr, IMAGE_MODES))
        raise OptionError(f"images={as_written(given)}: valid are {valid}, or a folder that exists")
    return str(folder)


def _ahead(given: OptionFields) -> Ahead:
    ahead = Ahead(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Ahead)})
    _one_of("order", ahead.order, ORDERS)
    folder = ahead.cache_images
    return ahead if folder is None else dataclasses.replace(ahead, cache_images=str(absolute(folder)))


def _place(name: str, given: str | os.PathLike[str]) -> str:
    """Return the absolute path, if it is a path and not an address or the name of a Hub dataset; else the text."""
    text = place(name, given)
    is_path = text.startswith((".", "~", os.sep)) or os.path.exists(text)
    return str(absolute(text)) if is_path and "://" not in text else text


def _one_of(name: str, value: Any, valid: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in valid:
        raise OptionError(f"{name}={as_written(value)}: valid are {', '.join(map(repr, valid))}")
    return value
