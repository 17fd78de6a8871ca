"""LAION-Face for Hugging Face `datasets`: 20 or 50 million image-text pairs with face boxes, landmarks and scores.

    import laion_face
    ds = laion_face.load_dataset("20M", split="train", streaming=True)

This file holds the configs, the builder and the public names. The work is done in the package laion_face_builder.
datasets < 4 can read this very file as a loading script.
"""

from __future__ import annotations

if __name__ == "__main__":  # python -m laion_face; before the imports, which take seconds
    from laion_face_builder.cli import main

    raise SystemExit(main())

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import laion_face_builder  # From: laion-face
from laion_face_builder.examples import arrow  # From: laion-face
from laion_face_builder.examples import loading  # From: laion-face
from laion_face_builder.errors import LaionFaceError  # From: laion-face
from laion_face_builder.errors import OptionError  # From: laion-face
from laion_face_builder.examples import report as reports  # From: laion-face
from laion_face_builder.examples import stream  # From: laion-face
from laion_face_builder.examples._compat import HookedBuilder  # From: laion-face
from laion_face_builder.examples.collate import collate  # From: laion-face
from laion_face_builder.examples.stream import in_step  # From: laion-face
from laion_face_builder.export.calling import export  # From: laion-face
from laion_face_builder.inspect.look import look  # From: laion-face
from laion_face_builder.layout import CONFIG_PARTS  # From: laion-face
from laion_face_builder.options import OptionFields  # From: laion-face
from laion_face_builder.options import Options  # From: laion-face
from laion_face_builder.examples.walk import Plan  # From: laion-face
from laion_face_builder.examples.report import Report  # From: laion-face
from laion_face_builder.examples.walk import Shard  # From: laion-face
from laion_face_builder.schema import example_features  # From: laion-face
from laion_face_builder.transforms.alignment import align_face  # From: laion-face
from laion_face_builder.transforms.crops import crop_face  # From: laion-face
from laion_face_builder.transforms.crops import crop_faces  # From: laion-face
from laion_face_builder.transforms.drawing import draw_faces  # From: laion-face

__all__ = [
    "LaionFace",
    "LaionFaceConfig",
    "LaionFaceError",
    "OptionError",
    "Report",
    "align_face",
    "collate",
    "crop_face",
    "crop_faces",
    "draw_faces",
    "export",
    "in_step",
    "load_dataset",
    "look",
    "report",
]

_CITATION = """\
@article{zheng2021farl,
  title={General Facial Representation Learning in a Visual-Linguistic Manner},
  author={Zheng, Yinglin and Yang, Hao and Zhang, Ting and Bao, Jianmin and Chen, Dongdong and Huang, Yangyu and
          Yuan, Lu and Chen, Dong and Zeng, Ming and Wen, Fang},
  journal={arXiv preprint arXiv:2112.03109},
  year={2021}
}
"""


@dataclasses.dataclass(eq=False, repr=False)
class LaionFaceConfig(OptionFields, datasets.BuilderConfig):
    """A config: datasets' own fields (name, data_dir, …) and the options of `laion_face_builder.options`."""

    def options(self, token: str | bool | None = None) -> Options:
        """Give the validated options. Raises OptionError, which lists what is valid."""
        return Options.of(self.name, self, self.data_dir, token)

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Name the Arrow cache by what defines the data and by what is prepared, never by transport settings."""
        return loading.config_id(self.options())


class LaionFace(HookedBuilder):
    """The builder of configs 20M and 50M, one split: train.

    Creating one touches no file. `as_streaming_dataset` and `download_and_prepare` make what is missing in data_dir.
    """

    VERSION = "1.0.0"
    BUILDER_CONFIG_CLASS = LaionFaceConfig
    BUILDER_CONFIGS = [LaionFaceConfig(name=name, version="1.0.0") for name in CONFIG_PARTS]  # noqa: RUF012 datasets wants it so

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="The human-face subset of LAION-400M with face boxes, five landmarks and detection scores.",
            features=example_features(blur_faces=self.config.blur_faces, mode=self.config.mode),
            homepage="https://github.com/FacePerceiver/LAION-Face",
            license="ids and detections CC-BY-4.0; metadata LAION's terms; pictures their owners'",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        plan = self._plan()
        return [datasets.SplitGenerator(datasets.Split.TRAIN, {"shards": plan.shards(), "plan": plan})]

    def _generate_examples(self, shards: list[Shard], plan: Plan) -> Any:
        yield from stream.examples(plan, shards)

    # Validated once a call: an exclusion list that changes meanwhile changes nothing.
    _options: Options | None = None
    _report_folder: Path | None = None
    _adopted: Mapping[int, Path] | None = None

    def _plan(self) -> Plan:
        return Plan(self._options or self.config.options(self.token), self._report_folder, self._adopted or {})

    def as_streaming_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the parts that are not yet there, then give the stream(s). Iterating these prepares nothing."""
        self._options = self.config.options(self.token)
        super().as_streaming_dataset(*args, **kwargs)  # refuses a split that is not there, before hours of preparing
        self._make_ready(self._options, streaming=True)
        self._report_folder = reports.new_folder()
        return super().as_streaming_dataset(*args, **kwargs)

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Prepare the parts that are not yet there, then write the Arrow files."""
        self._make_ready(self.config.options(self.token), streaming=False)
        folder = self._use_cache(loading.config_id(self._plan().options, self._adopted))
        self._report_folder = reports.new_folder()
        arrow.discard_unfit(folder, self.dataset_name, self._plan().options)
        super().download_and_prepare(*args, **kwargs)

    def _make_ready(self, options: Options, *, streaming: bool) -> None:
        """Make what is missing; which columns there are is known only then."""
        options, self._adopted = loading.make_ready(options, streaming=streaming)
        self._options = options
        self.info.features = example_features(blur_faces=options.blur_faces, mode=options.mode, more=options.more)

    def _before_config(self, name: str | None, features: Any, given: dict[str, Any]) -> None:
        loading.check_call(name, features, given)

    def _stream_of(self, **kwargs: Any) -> stream.ExampleStream:
        return stream.ExampleStream(**kwargs)

    def _stream_made(self, rows: datasets.IterableDataset) -> datasets.IterableDataset:
        return loading.noted(rows, self._report_folder)

    def _before_writing(self, folder: str) -> None:
        arrow.emptied(folder)

    def _after_writing(self, folder: str) -> None:
        arrow.keep(self._plan(), folder)

    def _empty(self, split: Any) -> datasets.Dataset:
        return arrow.empty(self.info, split)

    def _dataset_made(self, dataset: datasets.Dataset, folder: str) -> datasets.Dataset:
        return arrow.noted(dataset, folder)


def load_dataset(name: str | None = None, **options: Any) -> Any:
    """Load LAION-Face as a `datasets` dataset, with the arguments of `datasets.load_dataset` and the config's options.

    Parts that are missing in data_dir are prepared here, streaming or not, and with images="download" their pictures
    are downloaded; the sizes are logged first. Iterating does neither: it raises NotPrepared if files have gone since.

    Args:
        name: "20M" or "50M".
        options: split, streaming, cache_dir, data_dir, num_proc, token, download_mode, verification_mode,
            keep_in_memory, storage_options, download_config of `datasets.load_dataset`; every field of
            `laion_face_builder.options.OptionFields`.

    Returns:
        What `datasets.load_dataset` returns: a Dataset or IterableDataset for a split, else a dict of them.

    Raises:
        OptionError: an option is unknown or its value is not valid.
        LaionFaceError: a source cannot be had, a file is bad, or pictures are missing; the message says what to do.
    """
    return loading.load(LaionFace, name, options)


def report(dataset: Any) -> Report:
    """Report what became of the rows behind a dataset of this builder: yielded, filtered, failed by reason."""
    return loading.report_of(dataset)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


__version__ = laion_face_builder.__version__
