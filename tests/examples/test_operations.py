"""What people do with streams, on the version of datasets that is installed: ours against datasets' own.

The oracle is datasets' own stream, `IterableDataset.from_generator` over the same examples in the same shards with the
same features. Whatever it gives after an operation ours gives too, in the same order, pictures equal to the bit; so it
is after a resume. What it cannot do itself in some versions stands in LIMITS, and is tested to fail there.

`python -m tests.support.docs_tables` writes LIMITS into docs/recipes.md as a table.
"""

from __future__ import annotations

import gc
import io
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, Value, concatenate_datasets, interleave_datasets
from datasets.distributed import split_dataset_by_node
from packaging.version import Version
from PIL import Image as Pictures
from torch.utils.data import DataLoader

import laion_face
from laion_face_builder.sandbox import WRITER, Sandbox, SandboxSpec

IMAGES = ("none", "fetch", "tars")
SHARDS = 4


def version(of: str) -> tuple[int, ...]:
    return Version(of).release[:2]


HERE = version(datasets.__version__)


def has_two_faces(example: dict[str, Any]) -> bool:
    return len(example["faces"]) > 1


def every_third(example: dict[str, Any], index: int) -> bool:
    return index % 3 == 0


def odd_ones(batch: dict[str, list[Any]]) -> list[bool]:
    return [len(url) % 2 == 1 for url in batch["url"]]


def size_of(example: dict[str, Any]) -> dict[str, Any]:
    picture = example["image"]
    return {"size": None if picture is None else [*picture.size, len(picture.getbands())]}


def captions_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"words": [len((caption or "").split()) for caption in batch["caption"]]}


def two_of_each(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"sample_id": [sample_id for sample_id in batch["sample_id"] for _ in "ab"]}


def same(example: Any) -> Any:
    return example


def with_types(ds: Any, **types: Any) -> Features:
    return Features({**ds.features, **types})


NUMBERS = ["sample_id", "part", "faces", "faces_aligned"]


class Operation(NamedTuple):
    """`make` makes a dataset of a stream and a call that gives another; `needs` is what IterableDataset must have."""

    make: Callable[[Any, Any], Any]
    read: Callable[[Any], Iterable[Any]] = iter
    needs: str = "map"
    has_state: bool = True


def batches_of(ds: Any, **how: Any) -> Iterable[Any]:
    return ds.iter(batch_size=4, **how)


def as_parquet(ds: Any) -> Iterable[Any]:
    with io.BytesIO() as file:
        ds.to_parquet(file)
        return [pq.read_table(io.BytesIO(file.getvalue()))]


def as_pandas(ds: Any) -> Any:
    # Before 4.8 it always gives batches.
    return pd.concat(list(ds.to_pandas(batched=True, batch_size=4)))


def loader(ds: Any, workers: int = 0) -> Iterable[Any]:
    return iter(DataLoader(ds, batch_size=4, num_workers=workers, collate_fn=list))


OPERATIONS: dict[str, Operation] = {
    "iteration": Operation(lambda ds, _: ds),
    "filter": Operation(lambda ds, _: ds.filter(has_two_faces)),
    "filter(with_indices)": Operation(lambda ds, _: ds.filter(every_third, with_indices=True)),
    "filter(batched)": Operation(lambda ds, _: ds.filter(odd_ones, batched=True, batch_size=3)),
    "take": Operation(lambda ds, _: ds.take(7)),
    "skip": Operation(lambda ds, _: ds.skip(5)),
    "shuffle(buffer_size=1)": Operation(lambda ds, _: ds.shuffle(seed=3, buffer_size=1)),
    "shuffle(buffer_size=10)": Operation(lambda ds, _: ds.shuffle(seed=3, buffer_size=10)),
    "map": Operation(lambda ds, _: ds.map(size_of)),
    "map(batched)": Operation(lambda ds, _: ds.map(captions_of, batched=True, batch_size=4)),
    "map(batched), more rows": Operation(
        lambda ds, _: ds.select_columns(["sample_id"]).map(two_of_each, batched=True, batch_size=3)
    ),
    "map(remove_columns)": Operation(lambda ds, _: ds.map(size_of, remove_columns=["image", "faces"])),
    "map(features)": Operation(lambda ds, _: ds.map(same, features=ds.features)),
    "cast": Operation(lambda ds, _: ds.cast(with_types(ds, similarity=Value("float32"), part=Value("int64")))),
    "cast_column(Image(decode=False))": Operation(lambda ds, _: ds.cast_column("image", Image(decode=False))),
    "cast_column(Image(mode='RGB'))": Operation(lambda ds, _: ds.cast_column("image", Image(mode="RGB"))),
    "cast_column of numbers": Operation(lambda ds, _: ds.cast_column("original_width", Value("int64"))),
    "select_columns": Operation(lambda ds, _: ds.select_columns(["image", "caption"])),
    "rename_column": Operation(lambda ds, _: ds.rename_column("caption", "text")),
    "rename_columns": Operation(lambda ds, _: ds.rename_columns({"image": "picture", "url": "address"})),
    "remove_columns": Operation(lambda ds, _: ds.remove_columns(["url", "faces"])),
    "repeat": Operation(lambda ds, _: ds.repeat(2)),
    "concatenate_datasets": Operation(lambda ds, another: concatenate_datasets([ds, another()])),
    "interleave_datasets": Operation(lambda ds, another: interleave_datasets([ds, another().skip(3)])),
    "interleave_datasets(probabilities)": Operation(
        lambda ds, another: interleave_datasets([ds, another()], probabilities=[0.7, 0.3], seed=5)
    ),
    "batch": Operation(lambda ds, _: ds.batch(4)),
    "with_format('torch')": Operation(lambda ds, _: ds.select_columns(NUMBERS).with_format("torch")),
    "with_format('torch'), pictures": Operation(
        lambda ds, _: ds.cast_column("image", Image(mode="RGB")).with_format("torch")
    ),
    "with_format('numpy')": Operation(lambda ds, _: ds.with_format("numpy")),
    "with_format('arrow')": Operation(lambda ds, _: ds.with_format("arrow")),
    "with_format('pandas')": Operation(lambda ds, _: ds.with_format("pandas")),
    "with_format('polars')": Operation(lambda ds, _: ds.remove_columns("image").with_format("polars")),
    "with_format('polars'), pictures": Operation(lambda ds, _: ds.with_format("polars")),
    "decode(False)": Operation(lambda ds, _: ds.decode(False)),
    "decode(num_threads=2)": Operation(lambda ds, _: ds.decode(num_threads=2)),
    "split_dataset_by_node": Operation(lambda ds, _: split_dataset_by_node(ds, 1, 2)),
    "split_dataset_by_node, unevenly": Operation(lambda ds, _: split_dataset_by_node(ds, 1, 3)),
    "shard": Operation(lambda ds, _: ds.shard(2, 1)),
    "reshard": Operation(lambda ds, _: ds.reshard(), needs="reshard"),
    "iter(batch_size=)": Operation(lambda ds, _: ds, batches_of),
    "iter(drop_last_batch=True)": Operation(lambda ds, _: ds, partial(batches_of, drop_last_batch=True)),
    "iter(batch_size=), arrow": Operation(lambda ds, _: ds.with_format("arrow"), batches_of),
    "to_parquet": Operation(lambda ds, _: ds, as_parquet, needs="to_parquet", has_state=False),
    "to_pandas": Operation(lambda ds, _: ds, lambda ds: [as_pandas(ds)], needs="to_pandas", has_state=False),
    "column access": Operation(lambda ds, _: ds["caption"], needs="__getitem__", has_state=False),
    "DataLoader": Operation(lambda ds, _: ds, loader),
    "shuffle, then map": Operation(lambda ds, _: ds.shuffle(seed=3, buffer_size=5).map(size_of)),
    "take, then filter": Operation(lambda ds, _: ds.take(9).filter(has_two_faces)),
    "filter, then cast": Operation(lambda ds, _: ds.filter(has_two_faces).cast_column("part", Value("int64"))),
    "map, then filter": Operation(lambda ds, _: ds.map(size_of).filter(has_two_faces)),
}


#: Those that this file is run on.
VERSIONS = ("3.6", "4.0", "4.4", "4.8", "5.0", "5.1", "5.2")


class Limit(NamedTuple):
    """What datasets itself cannot do in `versions`.

    `what` is "run" (it raises, or gives nothing) or "resume" (rows are lost or repeated after a resume).
    """

    versions: tuple[str, ...]
    what: str
    operations: tuple[str, ...]
    why: str

    def holds(self, what: str, operation: str) -> bool:
        return HERE in map(version, self.versions) and self.what == what and operation in self.operations


BEFORE_5 = VERSIONS[:4]
SAVED = ("to_parquet", "to_pandas")
LIMITS = (
    Limit(VERSIONS[:1], "run", ("column access",), "streams have no columns"),
    Limit(VERSIONS[:3], "run", ("reshard",), "streams cannot be cut further"),
    Limit(
        BEFORE_5,
        "run",
        ("iter(batch_size=)", "iter(drop_last_batch=True)"),
        "raises where a column has a null in one row and none in the next; ours work on 3.6, 4.0 and 4.4",
    ),
    Limit(
        VERSIONS,
        "run",
        ("iter(batch_size=), arrow",),
        "raises where a column has a null in one row and none in the next; ours work",
    ),
    Limit(VERSIONS[:1], "run", SAVED, "streams cannot be saved"),
    Limit(VERSIONS[1:], "run", SAVED, "raises where a column has a null in one row and none in the next; ours work"),
    Limit(VERSIONS, "run", ("with_format('polars'), pictures",), "raises where there is a column of pictures"),
    Limit(("4.8",), "run", ("split_dataset_by_node, unevenly",), "gives every row to rank 0 and none to the others"),
    Limit(VERSIONS[:5], "resume", ("shuffle(buffer_size=1)",), "loses the example in the buffer"),
    Limit(VERSIONS, "resume", ("shuffle(buffer_size=10)", "shuffle, then map"), "loses the examples in the buffer"),
)


def as_markdown(limits: Sequence[Limit] = LIMITS) -> str:
    """Format LIMITS as docs/recipes.md shows them."""
    lines = ["| operation on a stream | datasets | what datasets cannot |", "| --- | --- | --- |"]
    for limit in limits:
        names = ", ".join(f"`{name}`" for name in limit.operations)
        verb = "after a resume " if limit.what == "resume" else ""
        lines.append(f"| {names} | {', '.join(limit.versions)} | {verb}{limit.why} |")
    return "\n".join(lines)


#: Undecoded, by the name of the shard. Here, so that datasets does not pickle them to name a cache that it never makes.
EXAMPLES: dict[str, list[dict[str, Any]]] = {}


def generated(shards: list[str]) -> Any:
    for shard in shards:
        yield from EXAMPLES[shard]


@dataclass
class World:
    """Streams of the same examples: `ours[images]` and `theirs[images]`."""

    data_dir: str

    def load(self, images: str, **options: Any) -> Any:
        how = {"images": "auto" if images == "tars" else images, "retries": 0, "allow_private_hosts": True, **options}
        return laion_face.load_dataset("20M", parts="0", data_dir=self.data_dir, **{"split": "train", **how})

    @cached_property
    def ours(self) -> dict[str, Any]:
        return {images: self.load(images, streaming=True, shards_per_part=SHARDS) for images in IMAGES}

    @cached_property
    def theirs(self) -> dict[str, Any]:
        return {images: self._native(images) for images in IMAGES}

    def _native(self, images: str) -> Any:
        ours = self.ours[images]
        names = [f"{images} {number}" for number in range(SHARDS)]
        for number, name in enumerate(names):
            shard = ours._ex_iterable.shard_data_sources(SHARDS, number)
            EXAMPLES[name] = [example for _, example in shard]
        return IterableDataset.from_generator(generated, features=ours.features, gen_kwargs={"shards": names})


@pytest.fixture(scope="module")
def world(hub, tmp_path_factory):
    from laion_face_builder.examples import parts
    from laion_face_builder.index.prepare import prepare
    from laion_face_builder.options import OptionFields, Options

    folder = tmp_path_factory.mktemp("operations")
    spec = SandboxSpec(parts=(0,), rows=54, twisted=0.1, slow=0.01)
    with Sandbox.running(folder / "sandbox", spec, hub=hub, namespace="operations") as box:
        fields = OptionFields(parts="0", allow_private_hosts=True, source_repo=box.repo, metadata=box.metadata_repo)
        options = Options.of("20M", fields, folder / "data")
        prepare(options.data, options.parts, options.upstream)
        list(parts.download(options, parts.download_options(options, processes_count=1)))
        yield World(str(folder / "data"))


def plain(value: Any) -> Any:
    """Convert `value` so that == compares all that there is: types of numbers, pixels, schemas."""
    if isinstance(value, Pictures.Image):
        return "picture", value.mode, value.size, value.tobytes()
    if isinstance(value, torch.Tensor):
        return "tensor", plain(value.numpy())
    if isinstance(value, (np.ndarray, np.generic)):
        is_of_objects = value.dtype == object
        return str(value.dtype), value.shape, plain(value.tolist()) if is_of_objects else value.tobytes()
    if isinstance(value, (pa.Table, pl.DataFrame)):
        rows = value.to_pylist() if isinstance(value, pa.Table) else value.to_dicts()
        return str(value.schema), plain(rows)
    if isinstance(value, pd.DataFrame):
        return str(value.dtypes), plain(value.to_dict("list"))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float) and value != value:
        return "not a number"
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@dataclass
class Reading:
    """One operation on copies of a stream."""

    operation: Operation
    stream: Any

    def dataset(self) -> Any:
        return self.operation.make(deepcopy(self.stream), partial(deepcopy, self.stream))

    def whole(self) -> list[Any]:
        return [plain(item) for item in self.operation.read(self.dataset())]

    def resumed(self, stop: int) -> list[Any]:
        """Return what comes before `stop` items are read, and what comes after a resume there."""
        first, again = self.dataset(), self.dataset()
        before = [plain(item) for item in islice(self.operation.read(first), stop)]
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        return before + [plain(item) for item in self.operation.read(again)]


def tried(read: Callable[[], list[Any]]) -> list[Any] | Exception:
    try:
        return read()
    except Exception as error:
        return error


def is_limited(what: str, name: str) -> bool:
    return any(limit.holds(what, name) for limit in LIMITS)


@pytest.fixture
def unclosed_loops():
    """Collect the event loops that datasets leaves behind with threads: here, and unheard."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.filterwarnings("ignore::ResourceWarning") if "threads" in name else ())


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", [marked(name) for name in OPERATIONS])
def test_operation(world, name, images, request):
    operation = OPERATIONS[name]
    if "threads" in name:
        request.getfixturevalue("unclosed_loops")
    if not hasattr(IterableDataset, operation.needs):
        assert is_limited("run", name)
        return
    ours = Reading(operation, world.ours[images])
    theirs = Reading(operation, world.theirs[images])
    expected = tried(theirs.whole)
    if is_limited("run", name):
        assert isinstance(expected, Exception) or not expected, "datasets can: the limit is gone"
        return
    assert not isinstance(expected, Exception), expected
    assert expected
    if not operation.has_state:
        assert ours.whole() == expected
        return
    assert ours.dataset().features == theirs.dataset().features
    assert ours.resumed(len(expected)) == expected
    # Where the pictures are from makes no difference to the state: the ends are tried once.
    for stop in {len(expected) // 2, *((1, len(expected)) if images == "tars" else ())}:
        by_them = tried(partial(theirs.resumed, stop))
        if stop == len(expected) // 2:
            assert (by_them == expected) == (not is_limited("resume", name)), "LIMITS is not right"
        assert tried(partial(ours.resumed, stop)) in (expected, by_them), stop


def as_parquet_file(ds: Any) -> Any:
    return next(iter(as_parquet(ds)))


#: How rows leave a stream as tables, and what of the version must be there for that.
TABLES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "to_parquet": ("to_parquet", as_parquet_file),
    "to_pandas": ("to_pandas", as_pandas),
    "to_polars": ("to_polars", lambda ds: pl.concat(ds.remove_columns("image").to_polars(batched=True, batch_size=4))),
    "to_list": ("to_list", lambda ds: ds.to_list()),
    "arrow": ("iter", lambda ds: pa.concat_tables(ds.with_format("arrow").iter(batch_size=4))),
}


def filtered_undecoded(ds: Any) -> Any:
    # Else datasets decodes each picture for the filter, and encodes it again when it is saved.
    return ds.cast_column("image", Image(decode=False)).filter(has_two_faces).skip(1).remove_columns("url")


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", TABLES)
def test_rows_are_saved_with_their_types_whatever_is_null(world, images, name):
    needs, save = TABLES[name]
    ours, features = world.ours[images], world.theirs[images].features
    rows = [row for name in sorted(EXAMPLES) if name.startswith(images) for row in EXAMPLES[name]]
    table = Dataset.from_list(rows, features=features)
    if not hasattr(IterableDataset, needs):
        assert needs not in SAVED or is_limited("run", needs)
        return
    for change in (lambda ds: ds, filtered_undecoded):
        assert plain(save(change(deepcopy(ours)))) == plain(save(change(table)))


def test_a_stream_is_pushed_to_the_hub(world, hub):
    if not hasattr(IterableDataset, "push_to_hub"):
        assert is_limited("run", "to_parquet")
        return
    world.ours["tars"].push_to_hub(f"{WRITER}/pushed", num_shards=2)
    again = datasets.load_dataset(f"{WRITER}/pushed", split="train", streaming=True)
    assert again.features == world.ours["tars"].features
    assert [plain(row) for row in again] == [plain(row) for row in world.theirs["tars"]]


def test_the_limits_are_of_this_version():
    assert HERE in map(version, VERSIONS), "say in LIMITS what this version cannot"
    assert {name for limit in LIMITS for name in limit.operations} <= set(OPERATIONS)


def test_batches_are_made_of_every_row(world):
    ds = world.ours["tars"]
    batches = tried(lambda: [batch["sample_id"] for batch in ds.iter(batch_size=4)])
    if HERE == (4, 8):
        assert isinstance(batches, pa.ArrowInvalid)
        return
    assert isinstance(batches, list)
    assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    assert list(chain.from_iterable(batches)) == [example["sample_id"] for example in ds]


@pytest.mark.parametrize("name", ["iteration", "filter", "map(batched)", "take"])
def test_data_loader_workers(world, name):
    def loaded(stream):
        return [plain(item) for item in loader(OPERATIONS[name].make(stream, None), workers=2)]

    assert loaded(world.ours["tars"]) == loaded(world.theirs["tars"])


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("split", ["train", "train[:10%]", "train[3:-2]", "train[50%:]"])
def test_slices_of_the_table(world, images, split, tmp_path):
    # The table is not streamed: `Dataset.from_list` of the same examples is the oracle.
    examples = [example for name in sorted(EXAMPLES) if name.startswith(images) for example in EXAMPLES[name]]
    features = world.theirs[images].features
    whole = Dataset.from_list(examples, features=features)
    table = world.load(images, split=split, cache_dir=str(tmp_path), shards_per_part=SHARDS)
    instruction = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(whole)})[0]
    expected = whole.select(range(instruction.from_ or 0, len(whole) if instruction.to is None else instruction.to))
    assert [plain(row) for row in table] == [plain(row) for row in expected]
    assert table.features == expected.features
    assert [plain(row) for row in table.to_iterable_dataset()] == [plain(row) for row in expected]


def test_a_stream_has_no_slices(world):
    with pytest.raises(ValueError, match=r"Bad split: train\[:10%\]"):
        world.load("none", split="train[:10%]", streaming=True)


if __name__ == "__main__":
    print(as_markdown())
