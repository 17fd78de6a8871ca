"""Define the steps of `prepare`, each resumed by its files, for threads here or workers anywhere.

A step knows its DATA_DIR and reads there what it needs; of one at an address it brings files, and sends what it makes.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_face_builder import progress
from laion_face_builder.errors import BadFile
from laion_face_builder.files import locked, remove_partials
from laion_face_builder.index.detections import write_faces
from laion_face_builder.index.faces import FaceTable
from laion_face_builder.index.ids import PartIds, lacks_ids, write_ids
from laion_face_builder.index.join import Join, join
from laion_face_builder.index.prepare_plan import PartPlan
from laion_face_builder.index.staged import is_staged, rows_of_part, stage, staged_file, staged_fingerprint, staged_rows
from laion_face_builder.index.withheld import Withheld, take_ids_out
from laion_face_builder.index.writer import proof_path, write_index
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import rows_in
from laion_face_builder.shown import shown
from laion_face_builder.sources import data_store
from laion_face_builder.sources.copied_file import RemoteFile

#: What the sources that a step has read contain, by name.
Contents = dict[str, str]


@dataclass(frozen=True)
class Steps(ABC):
    """One step, for a part or for several.

    Attributes:
        job: the plan of the part; of several parts, that of one of them.
        discard: free each downloaded file once all that is made from it is written.
    """

    job: PartPlan
    discard: bool

    @property
    def data(self) -> DataDir:
        """The DATA_DIR that the step works in."""
        return self.job.data

    @abstractmethod
    def run(self) -> Contents:
        """Make what is not there yet; return what the sources that were read contain."""

    def read(self, file: RemoteFile) -> tuple[Path, str]:
        """Return a file, fetched if need be, and the digest of its bytes."""
        path = file.fetch(self.data.sources)
        content = self.job.content(file)
        assert content is not None, "known once it has been fetched"  # noqa: S101 - says it to the type checker
        return path, content

    @contextmanager
    def reading(self, file: RemoteFile) -> Iterator[tuple[Path, str]]:
        """Give what `read` gives; a copy that the block cannot read is removed, and fetched again by the next run."""
        path, content = self.read(file)
        try:
            yield path, content
        except BadFile as error:
            if error.file == shown(str(path)):
                file.doubt(self.data.sources)
            raise

    def free(self, files: Iterable[RemoteFile]) -> None:
        """Free the copies of `files` if that was asked for; a scratch folder goes as a whole."""
        for file in files if self.discard else ():
            file.discard(self.data.sources)


@dataclass(frozen=True)
class MakeIds(Steps):
    """Makes the ids of all 32 parts, whichever are asked for: the big pickle is fetched and read once only.

    Attributes:
        jobs: the parts that are asked for.
    """

    jobs: tuple[PartPlan, ...] = ()

    def run(self) -> Contents:
        """Make the ids; those asked for come last: if they are there after a kill, the others are too."""
        data = self.data
        with locked(data.root / "ids" / "id-list"):
            if not any(replace(job, data=data).lacks_ids for job in self.jobs):
                content = self.job.content(self.job.id_list) or ""
            else:
                asked = {job.part for job in self.jobs}
                parts = sorted(ALL_PARTS, key=lambda part: part in asked)
                kept = Withheld.of(data).kept_ids
                with self.reading(self.job.id_list) as (path, content):
                    if missing := [part for part in parts if lacks_ids(data, part, content)]:
                        write_ids(path, data, missing, content, kept)
                for part in missing:
                    data_store.send(data, data.ids(part))
            self.free([self.job.id_list])
        return {self.job.id_list.name: content}

    def __str__(self) -> str:
        return "the sample ids"


@dataclass(frozen=True)
class StageFile(Steps):
    """Stages the rows of one file of whole metadata that some part wants.

    Attributes:
        number: number of the file, from 0 on.
        folder: name of the folder in which the rows wait, below `staging`.
        parts: the parts whose rows wait there.
    """

    number: int = 0
    folder: str = ""
    parts: tuple[int, ...] = ()

    @property
    def file(self) -> RemoteFile:
        """The metadata file that is staged."""
        return self.job.metadata.files[self.number]

    def run(self) -> Contents:
        """Stage the file, unless its rows wait already."""
        target = staged_file(self.data.staging / self.folder, self.number)
        ids = self.job.content(self.job.id_list) or ""
        if not is_staged(self.data, target, ids, self.parts, lambda: self.job.content(self.file)):
            with progress.nth("file", self.number + 1, len(self.job.metadata.files)):
                self.file.fetch(self.data.sources)
            with self.reading(self.file) as (path, content):
                stage(target, path, lookup(self.data, ids, self.parts), staged_fingerprint(ids, self.parts, content))
            data_store.send(self.data, target)
        content = self.job.content(self.file) or ""
        self.free([self.file])
        return {self.file.name: content}

    def __str__(self) -> str:
        return self.file.name


@dataclass(frozen=True)
class MakePart(Steps):
    """Makes faces and index of a part.

    Attributes:
        number: number of the part among those that are made, from 1 on.
        of: how many are made.
        threads: how many read metadata by part.
        staged: the folder in which rows of whole metadata wait, below `staging`.
    """

    number: int = 1
    of: int = 1
    threads: int = 1
    staged: str | None = None

    def run(self) -> Contents:
        """Make the faces and the index, as far as they are missing."""
        job, data, part = self.job, self.data, self.job.part
        with progress.nth("part", self.number, self.of), locked(data.index(part)):
            if job.lacks_faces:
                with self.reading(job.detections) as (path, content):
                    write_faces(path, data, part, content, Withheld.of(data).kept_ids)
                data_store.send(data, data.faces(part))
            self.free([job.detections])
            if job.lacks_index:
                rows = self._rows()
                if job.lacks_index:  # What was fetched may turn out to be what the index was made from.
                    self._write_index(rows)
            if not job.metadata.is_whole:
                self.free(job.metadata.files)
        return {}

    def _rows(self) -> pa.Table:
        job, data = self.job, self.data
        if self.staged is not None:
            files = range(len(job.metadata.files))
            return staged_rows(data, [staged_file(data.staging / self.staged, file) for file in files], job.part)
        with self.reading(job.metadata.files[0]) as (path, _):
            job.refuse_conflict()
            return rows_of_part(
                path, PartIds.read({job.part: data_store.bring(data, data.ids(job.part))}), self.threads
            )

    def _write_index(self, rows: pa.Table) -> None:
        data, part = self.data, self.job.part
        target, proof = data.index(part), proof_path(data.index(part))
        for path in (target, proof):
            remove_partials(path.parent, path.name)
        faces = FaceTable.read(data_store.bring(data, data.faces(part)), wanted=np.unique(rows["sample_id"].to_numpy()))
        joined = join(part, rows_in(data_store.bring(data, data.ids(part))), rows, faces)
        joined.proof.refuse_wrong(self.job.metadata.where)
        joined = self._without_removed(joined)
        fingerprint = self.job.index_fingerprint
        assert fingerprint is not None, "all sources have been read"  # noqa: S101 - says it to the type checker
        write_index(target, joined, fingerprint)
        for path in (proof, target):  # The proof first, so that no part is without one.
            data_store.send(data, path)
        logger.info("%s", joined.proof)
        for doubt in joined.proof.warnings():
            logger.warning("%s", doubt)

    def _without_removed(self, joined: Join) -> Join:
        """Leave out rows that were taken down by address; after the join, so that their twins stay as they are."""
        withheld = Withheld.of(self.data)
        if not withheld.removed.has_rows or (keep := withheld.kept_rows(self.job.part, joined.table)).all():
            return joined
        take_ids_out(self.data, self.job.part, joined.table["sample_id"].to_numpy()[~keep])
        return joined.without(~keep)

    def __str__(self) -> str:
        return f"part {self.job.part}"


def run_apart(step: Steps) -> Contents:
    """Run a step in a process, and maybe on a machine, of its own."""
    with data_store.at_work(step.data) as data:
        return replace(step, job=replace(step.job, data=data)).run()


#: What `lookup` returned last.
_known: dict[tuple[str, tuple[int, ...]], PartIds] = {}
_known_lock = threading.Lock()


def lookup(data: DataDir, ids: str, parts: Sequence[int]) -> PartIds:
    """Return the ids of these parts, read once in a process for all files: up to 0.5 GB.

    Args:
        ids: the content of the id list.
    """
    key = ids, tuple(parts)
    with _known_lock:
        if key not in _known:
            _known.clear()
            _known[key] = PartIds.read({part: data_store.bring(data, data.ids(part)) for part in parts})
        return _known[key]


def forget() -> None:
    """Free what `lookup` keeps."""
    _known.clear()
