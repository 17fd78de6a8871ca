"""List every option once, as it is given: its name, default, meaning and range.

`OptionFields` are the raw values as a config, a call or the command line carries them. Nothing is checked here, since
datasets sets config fields after `__post_init__`. `tree.Options.of` checks them all, and gives the objects that the
work is done with.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.images.geometry import IMAGE_SIZE, RESIZE_MODES, Resizing
from laion_face_builder.images.pictures import MAX_PIXELS
from laion_face_builder.layout import ROW_GROUPS
from laion_face_builder.shown import ShownFields
from laion_face_builder.sources.sources import DEFAULT_METADATA, DEFAULT_REPO
from laion_face_builder.values import Range

#: The name to fetch under when the user gives none; sites may address it in X-Robots-Tag.
USER_AGENT_TOKEN = "laion-face"  # noqa: S105 - not a secret
IMAGE_MODES = ("auto", "fetch", "download", "none")
ON_ERROR = ("skip", "null", "raise")
ON_SIZE_CHANGE = ("rescale", "drop", "keep")
JOIN_HOWS = LEFT, INNER = "left", "inner"
KEEP_FACES = ALL_FACES, COUNTING_FACES, LARGEST_FACE = "all", "counting", "largest"
ORDERS = INDEX_ORDER, ARRIVAL_ORDER = "index", "arrival"
#: What sites may refuse by: each has what stands before it, too.
RESPECTS = NOTHING, HEADERS, ROBOTS, EVERYTHING = "none", "headers", "robots", "all"
NSFW_VALUES = ("UNLIKELY", "UNSURE", "NSFW")
#: What no picture, machine or network has: nearly always a slip, or another unit.
_BYTES = Range(int, 1, 1_000_000_000_000_000)
_PIXELS = Range(int, 1, 1_000_000_000_000)
_SIDE = Range(int, 0, 100_000_000)
_FACES = Range(int, 0, 1_000_000)
_WORDS = Range(int, 0, 1_000_000)
_SHARE = Range(float, 0, 1)
_MOST_TELLING = 100_000


def option(
    default: Any, text: str, *, kind: type = str, group: str, valid: Range | None = None, is_repeated: bool = False
) -> Any:
    """Return a dataclass field with its meaning in a line, the type and range of one value, and its display group.

    Args:
        is_repeated: whether it may be given several times on the command line.
    """
    # An end that only slips reach is said when it is reached.
    is_telling = valid is not None and valid.most is not None and valid.most <= _MOST_TELLING
    text = f"{text}; {valid.text}" if valid is not None and is_telling else text
    kind = kind if valid is None else valid.kind
    told = {"help": text, "kind": kind, "group": group, "valid": valid, "is_repeated": is_repeated}
    return field(default=default, metadata=told)


@dataclass(repr=False)
class OptionFields(ShownFields):
    """The options as given. Every one has a default, which None means too; of most, None is no limit or filter."""

    source_repo: str | os.PathLike[str] = option(
        DEFAULT_REPO, "Hub dataset, or local folder, with the list of ids and the detections", group="source"
    )
    source_revision: str | None = option(
        None, "branch, tag or commit of source_repo, if that is a Hub dataset; default: main", group="source"
    )
    metadata: str | os.PathLike[str] = option(
        DEFAULT_METADATA,
        "LAION-400M's captions and addresses: a Hub dataset, an hf:// or http(s):// folder, or a local folder",
        group="source",
    )
    index: str | os.PathLike[str] | None = option(
        None, "published index to use instead of other sources: a folder or a Hub dataset", group="source"
    )
    parts: str | int | Iterable[int] | None = option(
        None, 'parts to use, such as "0,2,5-7"; default: all that the config has', group="which"
    )
    shards_per_part: int = option(
        ROW_GROUPS,
        "shards that each part is split into, to be shared out among ranks and workers",
        group="which",
        valid=Range(int, 1, 100_000),
    )
    min_score: float | None = option(None, "least detection score of a face that counts", group="filter", valid=_SHARE)
    min_face_size: float | None = option(
        None,
        "least short side of the box of a face that counts, pixels",
        group="filter",
        valid=Range(float, _SIDE.least, _SIDE.most),
    )
    min_face_area: float | None = option(
        None, "least area of the box of a face that counts, as a share of the picture", group="filter", valid=_SHARE
    )
    min_face_share: float | None = option(
        None,
        "least share that the box of a face that counts takes of the picture's width and of its height",
        group="filter",
        valid=_SHARE,
    )
    min_faces: int | None = option(
        None,
        "least number of faces that count; default: 1 if one of the four limits on faces is given, else 0",
        group="filter",
        valid=_FACES,
    )
    max_faces: int | None = option(None, "greatest number of faces that count", group="filter", valid=_FACES)
    max_faces_in_picture: int | None = option(
        None,
        "greatest number of faces in the picture, whether they count or not; 1 with min_faces=1 means exactly one face",
        group="filter",
        valid=_FACES,
    )
    min_width: int | None = option(None, "least width of the original picture, pixels", group="filter", valid=_SIDE)
    min_height: int | None = option(None, "least height of the original picture, pixels", group="filter", valid=_SIDE)
    nsfw: str | Iterable[str] | None = option(
        None, f"values of LAION's nsfw tag to keep, of {', '.join(NSFW_VALUES)}; default: all rows", group="filter"
    )
    min_similarity: float | None = option(
        None, "least CLIP similarity of picture and caption", group="filter", valid=Range(float, -1, 1)
    )
    min_caption_words: int | None = option(None, "least number of words of the caption", group="filter", valid=_WORDS)
    caption_matches: str | None = option(
        None, "regular expression (RE2) that is found in the caption; (?i) before it ignores case", group="filter"
    )
    caption_excludes: str | None = option(
        None, "regular expression (RE2) that is not found in the caption; no caption fails too", group="filter"
    )
    include: str | os.PathLike[str] | Iterable[Any] | None = option(
        None,
        "list of the only samples to keep, as for exclude; a hash is known once the picture is there",
        group="filter",
    )
    exclude: str | os.PathLike[str] | Iterable[Any] | None = option(
        None,
        "file of sample ids, URLs, hosts, SHA-256s or MD5s to leave out, one a line, or a column of that name, CSV or "
        "Parquet; on the command line - is the standard input; in Python also a list of these",
        group="filter",
    )
    join: str | os.PathLike[str] | Iterable[Any] | None = option(
        None,
        "table with a column sample_id or url, whose other columns come beside ours: a Parquet or CSV file, a folder, "
        "a Hub dataset, an hf:// or http(s):// address; NAME=… puts NAME_ before their names; in Python also a list, "
        "or a dict of names",
        group="join",
        is_repeated=True,
    )
    join_how: str = option(
        LEFT, 'samples without a row in every table of join: "left" keeps them, "inner" leaves them out', group="join"
    )
    max_copies: int | None = option(
        None,
        "most addresses that may give the very same bytes: if more do, they are a placeholder, and fail; counted over "
        "the tars in data_dir",
        group="pictures",
        valid=Range(int, 1, 1_000_000_000),
    )
    images: str | os.PathLike[str] = option(
        "auto",
        'where pictures come from: "fetch" (the web), "download" (tars in data_dir, made if missing), "auto" (the tars '
        'that are there; a stream fetches the rest), "none", or the folder of an img2dataset output',
        group="pictures",
    )
    on_error: str = option(
        "skip", 'what to do with a row whose picture failed: "skip" it, "null" its image, or "raise"', group="pictures"
    )
    on_size_change: str = option(
        "rescale",
        'what to do with a picture that has another size than the original: "rescale" its faces, "drop" its row if its '
        'shape is another too, or "keep" its faces unmoved',
        group="pictures",
    )
    keep_faces: str = option(
        ALL_FACES,
        'which faces an example has: "all" of its picture, those "counting" by the limits on faces, or the "largest" '
        "of these",
        group="pictures",
    )
    mode: str | None = option(
        None,
        'colour mode of all pictures, "RGB" or "L", transparency over white; default: as they are',
        group="pictures",
    )
    resize_mode: str = option(
        Resizing.mode, f"how to resize downloaded pictures, as img2dataset: {', '.join(RESIZE_MODES)}", group="resize"
    )
    image_size: int = option(
        Resizing.size, "size that pictures are resized to, pixels", group="resize", valid=IMAGE_SIZE
    )
    resize_only_if_bigger: bool = option(
        Resizing.only_if_bigger, "leave pictures smaller than image_size as they are", kind=bool, group="resize"
    )
    blur_faces: bool = option(
        False, "blur the faces; pictures whose boxes may not fit are left out", kind=bool, group="resize"
    )
    order: str = option(
        INDEX_ORDER,
        'order of a stream\'s examples: that of the "index", or of the "arrival" of their pictures',
        group="stream",
    )
    concurrency: int = option(256, "pictures to fetch at the same time", group="transfer", valid=Range(int, 1, 10_000))
    lookahead: int = option(
        4096,
        "rows to fetch ahead; take many more than concurrency, or one slow host holds up the others",
        group="stream",
        valid=Range(int, 1, 10_000_000),
    )
    max_buffer_bytes: int = option(
        512_000_000, "memory for pictures that were fetched ahead, bytes", group="stream", valid=_BYTES
    )
    cache_images: str | os.PathLike[str] | None = option(
        None, "folder to keep fetched pictures in between epochs; default: none are kept", group="stream"
    )
    cache_bytes: int = option(50_000_000_000, "most that cache_images may hold, bytes", group="stream", valid=_BYTES)
    timeout: float = option(
        30.0,
        "seconds that one picture may take, redirects and retries included",
        group="transfer",
        valid=Range(float, 0.001, 86_400),
    )
    retries: int = option(
        1,
        "further tries after failures that may pass: timeouts, HTTP 429 and 5xx",
        group="transfer",
        valid=Range(int, 0, 100),
    )
    max_bytes: int = option(32_000_000, "largest picture file to accept, bytes", group="transfer", valid=_BYTES)
    max_pixels: int = option(
        MAX_PIXELS, "largest picture to accept, width times height, pixels", group="transfer", valid=_PIXELS
    )
    isolate_decoder: bool = option(
        False,
        "decode ordinary JPEGs, too, once in a process of its own: one that kills or hangs its decoder costs its row",
        kind=bool,
        group="transfer",
    )
    per_host: int = option(
        32,
        "most requests to one host at the same time, by all your processes on this machine; it begins with 8",
        group="transfer",
        valid=Range(int, 1, 10_000),
    )
    outage_patience: float = option(
        600.0,
        "seconds to wait for a lost network, or for a free file descriptor; 0 gives up at once",
        group="transfer",
        valid=Range(float, 0, 10_000_000),
    )
    user_agent_token: str | None = option(
        None, f"name to fetch under, which sites may address or refuse; default: {USER_AGENT_TOKEN}", group="transfer"
    )
    contact: str | None = option(
        None, "e-mail or web address of yours that the User-Agent names, as Wikimedia and others ask", group="transfer"
    )
    respect: str = option(
        HEADERS,
        'what sites refuse by: "headers" of a picture (X-Robots-Tag, Content-Usage, tdm-reservation), "robots" (and '
        'robots.txt, before the picture is asked for), "all" (and tdmrep.json), or "none"',
        group="transfer",
    )
    allow_private_hosts: bool = option(
        False, "connect to addresses that are not public, too", kind=bool, group="transfer"
    )
    trust_proxy: bool = option(
        False,
        "go through the proxy that your environment names, which then has to refuse private addresses",
        kind=bool,
        group="transfer",
    )

    def __setattr__(self, name: str, value: Any) -> None:
        """Turn iterators, which can be read only once, into tuples: datasets asks for the options several times."""
        super().__setattr__(name, tuple(value) if isinstance(value, Iterator) else value)


#: The range of each option that is a number.
RANGES: dict[str, Range] = {
    spec.name: spec.metadata["valid"] for spec in dataclasses.fields(OptionFields) if spec.metadata["valid"] is not None
}


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
    "min_face_share": (ALWAYS, "which rows"),
    "min_faces": (ALWAYS, "which rows"),
    "max_faces": (ALWAYS, "which rows"),
    "max_faces_in_picture": (ALWAYS, "which rows"),
    "min_width": (ALWAYS, "which rows"),
    "min_height": (ALWAYS, "which rows"),
    "nsfw": (ALWAYS, "which rows"),
    "min_similarity": (ALWAYS, "which rows"),
    "min_caption_words": (ALWAYS, "which rows"),
    "caption_matches": (ALWAYS, "which rows"),
    "caption_excludes": (ALWAYS, "which rows"),
    "include": (ALWAYS, "which rows; by what is on the list, not by its path"),
    "max_copies": (ALWAYS, "which rows; how many addresses there are of bytes is read"),
    "exclude": (ALWAYS, "which rows; by what is on the list, not by its path"),
    "join": (READ, "which columns: the tables have fingerprints"),
    "join_how": (ALWAYS, "which rows"),
    "images": (ALWAYS, "none, fetched or stored; which stored ones, their fingerprint says"),
    "on_error": (ALWAYS, "whether failures leave rows"),
    "on_size_change": (ALWAYS, "which rows, and where faces are"),
    "keep_faces": (ALWAYS, "which faces"),
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
    "isolate_decoder": (ALWAYS, "rows whose picture kills its decoder come or fail"),
    "per_host": (NEVER, "how fast: a host gets the same requests, waiting in our queue takes nothing from timeout"),
    "outage_patience": (NEVER, "when a run without a network ends; no row is counted as failed for it"),
    "user_agent_token": (FETCHED, "sites allow or refuse by this name"),
    "contact": (FETCHED, "sites let in or not who names one"),
    "respect": (FETCHED, "rows of sites that refuse come or fail"),
    "allow_private_hosts": (FETCHED, "rows at addresses that are not public come or fail"),
    "trust_proxy": (FETCHED, "the proxy decides then which addresses are reached"),
}  # fmt: skip
