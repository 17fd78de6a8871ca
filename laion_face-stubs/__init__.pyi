"""Types of `laion_face` for mypy and pyright: a single module has no other place for them.

`images=` takes a folder as a path (`pathlib.Path`) here, and when it runs as a plain string too: otherwise no checker
could tell a folder from a slip like "ftch". Nothing of the package is imported: checkers would read torch for it.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar, overload

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Unpack

_Batch = TypeVar("_Batch")
_Picture = TypeVar("_Picture", Image.Image, NDArray[np.uint8])
_Face: TypeAlias = Mapping[str, Any]
_Floats: TypeAlias = NDArray[np.float64]

# options: written by `python tests/support/stubs.py`

_Config: TypeAlias = Literal["20M", "50M"]

class _Options(TypedDict, total=False):
    source_repo: str | os.PathLike[str]
    source_revision: str | None
    metadata: str | os.PathLike[str]
    index: str | os.PathLike[str] | None
    parts: str | int | Iterable[int] | None
    shards_per_part: int
    min_score: float | None
    min_face_size: float | None
    min_face_area: float | None
    min_face_share: float | None
    min_faces: int | None
    max_faces: int | None
    max_faces_in_picture: int | None
    min_width: int | None
    min_height: int | None
    nsfw: Literal["UNLIKELY", "UNSURE", "NSFW"] | Iterable[Literal["UNLIKELY", "UNSURE", "NSFW"]] | None
    min_similarity: float | None
    min_caption_words: int | None
    caption_matches: str | None
    caption_excludes: str | None
    include: str | os.PathLike[str] | Iterable[Any] | None
    exclude: str | os.PathLike[str] | Iterable[Any] | None
    join: str | os.PathLike[str] | Iterable[Any] | None
    join_how: str
    max_copies: int | None
    images: Literal["auto", "fetch", "download", "none"] | os.PathLike[str]
    on_error: Literal["skip", "null", "raise"]
    on_size_change: Literal["rescale", "drop", "keep"]
    keep_faces: Literal["all", "counting", "largest"]
    mode: Literal["RGB", "L"] | None
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]
    image_size: int
    resize_only_if_bigger: bool
    blur_faces: bool
    order: Literal["index", "arrival"]
    concurrency: int
    lookahead: int
    max_buffer_bytes: int
    cache_images: str | os.PathLike[str] | None
    cache_bytes: int
    timeout: float
    retries: int
    max_bytes: int
    max_pixels: int
    isolate_decoder: bool
    per_host: int
    outage_patience: float
    user_agent_token: str | None
    contact: str | None
    respect: str
    allow_private_hosts: bool
    trust_proxy: bool

class _Fields:
    source_repo: str | os.PathLike[str]
    source_revision: str | None
    metadata: str | os.PathLike[str]
    index: str | os.PathLike[str] | None
    parts: str | int | Iterable[int] | None
    shards_per_part: int
    min_score: float | None
    min_face_size: float | None
    min_face_area: float | None
    min_face_share: float | None
    min_faces: int | None
    max_faces: int | None
    max_faces_in_picture: int | None
    min_width: int | None
    min_height: int | None
    nsfw: Literal["UNLIKELY", "UNSURE", "NSFW"] | Iterable[Literal["UNLIKELY", "UNSURE", "NSFW"]] | None
    min_similarity: float | None
    min_caption_words: int | None
    caption_matches: str | None
    caption_excludes: str | None
    include: str | os.PathLike[str] | Iterable[Any] | None
    exclude: str | os.PathLike[str] | Iterable[Any] | None
    join: str | os.PathLike[str] | Iterable[Any] | None
    join_how: str
    max_copies: int | None
    images: Literal["auto", "fetch", "download", "none"] | os.PathLike[str]
    on_error: Literal["skip", "null", "raise"]
    on_size_change: Literal["rescale", "drop", "keep"]
    keep_faces: Literal["all", "counting", "largest"]
    mode: Literal["RGB", "L"] | None
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]
    image_size: int
    resize_only_if_bigger: bool
    blur_faces: bool
    order: Literal["index", "arrival"]
    concurrency: int
    lookahead: int
    max_buffer_bytes: int
    cache_images: str | os.PathLike[str] | None
    cache_bytes: int
    timeout: float
    retries: int
    max_bytes: int
    max_pixels: int
    isolate_decoder: bool
    per_host: int
    outage_patience: float
    user_agent_token: str | None
    contact: str | None
    respect: str
    allow_private_hosts: bool
    trust_proxy: bool

# end of options

class _BuilderOptions(_Options, total=False):
    cache_dir: str | os.PathLike[str] | None
    data_dir: str | os.PathLike[str] | None
    token: str | bool | None
    storage_options: dict[str, Any] | None

class _LoadOptions(_BuilderOptions, total=False):
    keep_in_memory: bool | None
    download_config: datasets.DownloadConfig | None
    download_mode: datasets.DownloadMode | str | None
    verification_mode: datasets.VerificationMode | str | None

class LaionFaceError(Exception): ...
class OptionError(LaionFaceError, ValueError): ...

class Report:
    filtered: int
    yielded: int
    failed: Counter[str]
    hosts: Counter[str]
    excluded: int
    def __init__(
        self,
        filtered: int = 0,
        yielded: int = 0,
        failed: Counter[str] = ...,
        hosts: Counter[str] = ...,
        excluded: int = 0,
    ) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def failure_rate(self) -> float: ...
    def add(self, other: Report) -> Report: ...
    def as_dict(self) -> dict[str, Any]: ...
    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report: ...

class LaionFaceConfig(_Fields, datasets.BuilderConfig):
    def __init__(
        self,
        name: _Config,
        version: str | None = None,
        data_dir: str | None = None,
        data_files: None = None,
        description: str | None = None,
        **options: Unpack[_Options],
    ) -> None: ...

class LaionFace(datasets.GeneratorBasedBuilder):
    config: LaionFaceConfig
    def __init__(self, *, config_name: _Config, **options: Unpack[_BuilderOptions]) -> None: ...

@overload
def load_dataset(
    name: _Config, *, split: str | datasets.Split, streaming: Literal[True], **options: Unpack[_LoadOptions]
) -> datasets.IterableDataset: ...
@overload
def load_dataset(
    name: _Config, *, split: None = None, streaming: Literal[True], **options: Unpack[_LoadOptions]
) -> datasets.IterableDatasetDict: ...
@overload
def load_dataset(
    name: _Config,
    *,
    split: str | datasets.Split,
    streaming: Literal[False] = False,
    num_proc: int | None = None,
    **options: Unpack[_LoadOptions],
) -> datasets.Dataset: ...
@overload
def load_dataset(
    name: _Config,
    *,
    split: None = None,
    streaming: Literal[False] = False,
    num_proc: int | None = None,
    **options: Unpack[_LoadOptions],
) -> datasets.DatasetDict: ...
@overload
def load_dataset(
    name: _Config,
    *,
    split: str | datasets.Split | datasets.ReadInstruction | list[str] | None = None,
    streaming: bool,
    num_proc: int | None = None,
    **options: Unpack[_LoadOptions],
) -> Any: ...
def report(dataset: Any) -> Report: ...
def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]: ...
def in_step(batches: Iterable[_Batch]) -> Iterator[_Batch]: ...

class _Transformed(Generic[_Picture]):
    image: _Picture
    matrix: _Floats
    landmarks: _Floats
    face: dict[str, Any] | None
    def points(self, points: Any) -> _Floats: ...
    def moved(self, face: _Face) -> dict[str, Any]: ...

def align_face(
    image: _Picture, landmarks: Any, size: int = 112, template: str = "arcface", *, fill: int = 0
) -> _Transformed[_Picture]: ...
def crop_face(
    image: _Picture,
    face: _Face,
    margin: float = 0.25,
    size: int | tuple[int, int] | None = None,
    *,
    fill: int = 0,
) -> _Transformed[_Picture]: ...
def crop_faces(
    batch: Mapping[str, list[Any]],
    size: int | tuple[int, int] = 224,
    margin: float = 0.25,
    template: str | None = None,
    largest_face_only: bool = False,
) -> dict[str, list[Any]]: ...
def draw_faces(
    image: _Picture,
    faces: Iterable[_Face],
    *,
    aligned: bool = True,
    blank: bool = False,
    boxes: bool = True,
    landmarks: bool = True,
    mesh: bool = False,
    scores: bool = True,
) -> _Picture: ...

class _Look:
    example: Mapping[str, Any]
    @property
    def picture(self) -> Image.Image | None: ...

def look(example: Mapping[str, Any]) -> _Look: ...

class _ExportCounts:
    rows: int
    filtered: int
    excluded: int
    pictures: int
    pieces: int
    bytes: int
    failed: Counter[str]

def export(name: _Config | None, out: str | os.PathLike[str], **options: Any) -> _ExportCounts: ...

__version__: str
__all__: list[str]
