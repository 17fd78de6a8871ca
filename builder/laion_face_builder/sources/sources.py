"""Find each upstream file: ids and detections in one place, the metadata wherever it is.

The ids and detections are in a Hub dataset ("owner/name") or a local folder with the same files. The metadata release
moved often, so its place is an option too: a Hub dataset (with "@revision" if wanted), an hf://, http(s):// or other
fsspec folder, or a local folder. A local folder that exists wins over a Hub dataset of the same look. With
HF_HUB_OFFLINE Hub datasets come from huggingface_hub's cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from laion_face_builder.errors import OptionError, SourceError, SourceNotFound
from laion_face_builder.shown import ShownFields
from laion_face_builder.sources.copied_file import RemoteFile, local_file
from laion_face_builder.sources.hub import HubRepo, Token, hub_repo
from laion_face_builder.sources.hub_cache import CachedRepo
from laion_face_builder.sources.metadata_kinds import CANONICAL, CONVERTED, ByPart, Whole, part_of
from laion_face_builder.sources.metadata_places import find_metadata, hub_id, local_folder

__all__ = ["CANONICAL", "CONVERTED", "ByPart", "RemoteFile", "Upstream", "Whole", "hub_id", "part_of"]

DEFAULT_REPO = "FacePerceiver/laion-face"
DEFAULT_METADATA = "laion/relaion400m"

ID_LIST = "laion_face_ids.pth"
DETECTIONS = "sample2detect_{part}.pth"


@dataclass(frozen=True, repr=False)
class Upstream(ShownFields):
    """The places of the three kinds of source files; asks nobody before a file is asked for, and each listing once.

    Args:
        source_repo: the Hub dataset, or the local folder, with the id list and the detections.
        source_revision: the dataset's branch, tag or commit; None means "main".
        metadata_place: the place of LAION-400M's metadata, see the module.
        token: for the Hub; None means the one that `hf auth login` or HF_TOKEN gave, False none.
    """

    source_repo: str | os.PathLike[str] = DEFAULT_REPO
    source_revision: str | None = None
    metadata_place: str | os.PathLike[str] = DEFAULT_METADATA
    token: Token = field(default=None, repr=False)

    def id_list(self) -> RemoteFile:
        """Look up the file with the sample ids of all parts.

        Raises:
            SourceError: not to be had; GatedSource and SourceNotFound say more.
        """
        return self._pickle(ID_LIST)

    def detections(self, part: int) -> RemoteFile:
        """Look up the file with the faces of a part.

        Raises:
            SourceError: not to be had; GatedSource and SourceNotFound say more.
        """
        return self._pickle(DETECTIONS.format(part=part))

    def metadata_source(self) -> ByPart | Whole:
        """Find LAION-400M's metadata, once: one file a part, or files whose rows are of any part.

        Raises:
            SourceError: none there, of both kinds, or not to be had; OptionError: the place is not to be understood;
            BadFile: a local file that is not Parquet.
        """
        return self._metadata

    def metadata(self, part: int) -> RemoteFile:
        """Look up the one metadata file of a part.

        Raises:
            SourceError: as for `metadata_source`, or there is no file of a single part; OptionError, BadFile: likewise.
        """
        source = self.metadata_source()
        if isinstance(source, Whole):
            raise SourceError(
                f"{source.where}: its {len(source.files)} files ({source.files[0].name}, …) are no parts; expected "
                f"files such as {CANONICAL.format(part=part)}. Name a place that has them with metadata=."
            )
        return source.part(part)

    def _pickle(self, name: str) -> RemoteFile:
        if not isinstance(self._repo, Path):
            return self._repo.file(name)
        path = self._repo / name
        if not path.is_file():
            raise SourceNotFound(
                f"{path}: there is no such file; expected {ID_LIST} and {DETECTIONS.format(part='0')} … of "
                f"{DEFAULT_REPO} in the folder. Copy it there, or name another source_repo."
            )
        return local_file(path)

    @cached_property
    def _repo(self) -> HubRepo | CachedRepo | Path:
        place = os.fspath(self.source_repo)
        folder = local_folder(place, "source_repo", f"{ID_LIST} and {DETECTIONS.format(part='0')} …")
        if folder is None:
            return hub_repo(hub_id(place, "source_repo"), self.source_revision, self.token)
        if self.source_revision is not None:
            raise OptionError(f"source_revision={self.source_revision!r}: {folder} is a folder, which has no revisions")
        return folder

    @cached_property
    def _metadata(self) -> ByPart | Whole:
        return find_metadata(os.fspath(self.metadata_place), self.token)
