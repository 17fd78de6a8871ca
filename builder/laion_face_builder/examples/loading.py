"""The glue between `datasets` and this package: the call to load, its checks, the cache's name, the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from laion_face_builder import progress
from laion_face_builder.errors import DiskError, LaionFaceError, NetworkOutage, OptionError
from laion_face_builder.examples import _compat, parts, ready, report
from laion_face_builder.examples.arrow import REPORT_KEY
from laion_face_builder.examples.walk import shards_per_part_for, world_size
from laion_face_builder.files import concerned, digest, disk_error
from laion_face_builder.layout import CONFIG_PARTS
from laion_face_builder.log import logger
from laion_face_builder.options import Options, refuse_unknown
from laion_face_builder.shown import chain

#: Arguments of `datasets.load_dataset` that make no sense here, and what to use instead.
REFUSED = {
    "data_files": "the files are known: use data_dir= for prepared parts, metadata= or index= for other sources",
    "features": "the columns are fixed: use .cast() or .cast_column() on the dataset",
    "revision": "use source_revision=",
    "save_infos": "use .info of the builder",
    "path": "the first argument is the config, as in load_dataset('20M')",
}
_BUILDER_ARGUMENTS = ("cache_dir", "data_dir", "token", "storage_options")
_LOAD_ARGUMENTS = ("split", "streaming", "num_proc", "keep_in_memory")
_PREPARE_ARGUMENTS = ("download_config", "download_mode", "verification_mode")


def load(builder_class: type[datasets.GeneratorBasedBuilder], name: str | None, given: dict[str, Any]) -> Any:
    """Load a dataset: the body of `laion_face.load_dataset`."""
    check_call(name, None, given)
    with _plain_errors(Path(given.get("cache_dir") or datasets.config.HF_DATASETS_CACHE)):
        return _load(builder_class, name, given)


@contextmanager
def _plain_errors(cache_dir: Path) -> Iterator[None]:
    """Raise the disk or network error that stopped an Arrow cache: datasets hides it behind an error of its own."""
    try:
        yield
    except LaionFaceError:
        raise  # it says what there is to say: the error of a library behind it is not looked at
    except Exception as error:
        cause = next((one for one in chain(error) if isinstance(one, (OSError, LaionFaceError))), None)
        if isinstance(cause, (DiskError, NetworkOutage)):
            raise cause from None
        if cause is None or isinstance(cause, LaionFaceError):
            raise
        if (file := concerned(cache_dir, cause)) is None:
            raise
        raise disk_error(file, cause) from error


def _load(builder_class: type[datasets.GeneratorBasedBuilder], name: str | None, given: dict[str, Any]) -> Any:
    load_with = {key: given.pop(key, None) for key in _LOAD_ARGUMENTS}
    prepare_with = {key: given.pop(key) for key in _PREPARE_ARGUMENTS if key in given}
    if load_with["streaming"] and load_with["num_proc"] is not None:
        raise OptionError("num_proc does not go with streaming=True: use DataLoader(ds, num_workers=…) instead")
    builder = builder_class(config_name=name, **{key: value for key, value in given.items() if value is not None})
    if load_with["streaming"]:
        return builder.as_streaming_dataset(split=load_with["split"])
    if "storage_options" in given:
        prepare_with["storage_options"] = given["storage_options"]
    builder.download_and_prepare(num_proc=load_with["num_proc"], **prepare_with)
    return builder.as_dataset(split=load_with["split"], in_memory=bool(load_with["keep_in_memory"]))


def check_call(name: str | None, custom_features: Any, given: dict[str, Any]) -> None:
    """Refuse arguments that `datasets` would silently ignore, or turn into a config of its own making.

    It is where a builder begins: from here on there is something to say, unless the user has set up logging.

    Raises:
        OptionError: says what is valid.
    """
    progress.talk_unless_configured()
    if name not in CONFIG_PARTS:
        named = isinstance(name, str) and name.upper() not in CONFIG_PARTS
        hint = f"; a published copy goes as load_dataset('20M', index={name!r})" if named else ""
        raise OptionError(f"config {name!r}: valid are {', '.join(CONFIG_PARTS)}{hint}")
    for key, instead in REFUSED.items():
        if given.get(key) is not None or (key == "features" and custom_features is not None):
            raise OptionError(f"{key}= is not taken: {instead}")
    also = ("name", "version", "description", "config_id", *_BUILDER_ARGUMENTS, *_LOAD_ARGUMENTS, *_PREPARE_ARGUMENTS)
    refuse_unknown([key for key in given if key not in REFUSED], also)


def config_id(options: Options, adopted: parts.Adopted | None = None) -> str:
    """Name the Arrow cache: the config, and a digest of what defines the data and, once ready, of what is read.

    Args:
        options: of the dataset.
        adopted: what `make_ready` gave; None before that.
    """
    read = [] if adopted is None else [parts.identity(options, part, adopted) for part in options.parts]
    return f"{options.config}-{digest({'options': options.defining(), 'read': read})}"


def make_ready(options: Options, *, streaming: bool) -> tuple[Options, parts.Adopted]:
    """Make what is missing, and give the options and the sidecars of an adopted folder; see `ready.make_ready`.

    Raises:
        NotPrepared: there are several ranks, and each would make the same.
    """
    if streaming:
        check_ranks(options)
    return ready.make_ready(options, streaming=streaming, is_joined=streaming and world_size() > 1)


def check_ranks(options: Options) -> None:
    """Check, if there are several ranks, that the parts are made and that the shards divide among the ranks.

    Raises:
        NotPrepared: they would all prepare the same parts.
    """
    world = world_size()
    if world == 1:
        return
    ready.require_made(options, f"WORLD_SIZE is {world}")
    shards = len(options.parts) * options.shards_per_part
    if shards % world:
        better = shards_per_part_for(len(options.parts), world, options.shards_per_part)
        logger.warning(
            "%d shards do not divide among %d ranks: datasets would make every rank read everything. "
            "Use shards_per_part=%d.",
            shards,
            world,
            better,
        )


def noted(stream: datasets.IterableDataset, report_folder: Path | None) -> datasets.IterableDataset:
    """Note in `stream` where its report is, so that it is still known after `.map` and the like."""
    _compat.note(stream, REPORT_KEY, str(report_folder))
    return stream


def report_of(dataset: Any) -> report.Report:
    """Find the report of a dataset: the body of `laion_face.report`.

    Raises:
        OptionError: not a dataset of this builder.
    """
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()))
    if noted_folder := _compat.noted(dataset, REPORT_KEY):
        return report.read(Path(noted_folder))
    for file in getattr(dataset, "cache_files", None) or []:
        folder = Path(file["filename"]).parent
        if (folder / report.REPORT_FILE).exists():
            return report.read(folder)
    raise OptionError("report() takes a dataset that laion_face.load_dataset or LaionFace made")
