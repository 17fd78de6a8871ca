"""Prepare the index from upstream: ids, faces, rows by part, index.

Each file is written whole and carries what it was made from, so a run that was killed goes on with the first one that
is missing. Metadata by part is joined part by part. Whole metadata is read once for all parts (see `staged`), then the
parts are put together. What is done (see `steps`) is done in threads, or by the workers of a distributor. One process
works on a part, or on whole metadata, at a time; others wait and find it done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from laion_face_builder import progress
from laion_face_builder.distribute import TaskPool
from laion_face_builder.errors import StateConflict, WorkerDied
from laion_face_builder.files import locked, locked_if_free, needing, remove_partials
from laion_face_builder.index import steps
from laion_face_builder.index.costs import Costs
from laion_face_builder.index.prepare_plan import PartPlan, plan_parts
from laion_face_builder.index.removals import settled
from laion_face_builder.index.staged import staging_folder, written_by_now
from laion_face_builder.index.steps import Contents, MakeIds, MakePart, StageFile, Steps
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.parallel import cores, in_order
from laion_face_builder.sources import data_store
from laion_face_builder.sources.sources import Upstream
from laion_face_builder.values import Range

#: Files, and parts, worked on at the same time unless more are asked for.
MOST_AT_ONCE = 4
_PROCESSES = Range(int, 1, 1_000)


def prepare(
    data: DataDir,
    parts: Sequence[int],
    upstream: Upstream,
    *,
    discard_sources: bool = False,
    processes: int | None = None,
    distributor: str | None = None,
) -> None:
    """Make ids, faces and index of `parts`, as far as they are not there yet from these very sources.

    Logs what it will fetch and read before it does. If upstream does not answer, a part that is there already is used
    as it is.

    Args:
        data: where the files go; for an address, every file is made in a worker's scratch folder and sent there.
        discard_sources: free each downloaded file once all that is made from it is written. Local files stay.
        processes: files, and parts, that are worked on at the same time; None means one a processor, at most
            `MOST_AT_ONCE`, or what a cluster has: a full part takes up to 1.3 GB of memory.
        distributor: runs the steps, one of `distribute.DISTRIBUTORS`; None means threads, for an address processes.

    Raises:
        OptionError: `processes` is out of range, or there is no such distributor.
        SourceError: a source cannot be had; BadFile, UnsafePickle: it is not what it has to be.
        JoinRefused: the metadata's rows are not those that the faces were found in.
        StateConflict: pictures were downloaded for an index from other sources.
        WorkerDied: the same step ended its worker again and again.
        LaionFaceError: the disk has no room.
    """
    side_by_side = at_once(processes)
    with data_store.at_work(data) as here:
        discard_sources = sources_have_removed(here) or discard_sources
        plans = plan_parts(here, parts, upstream)
        jobs = [plan for plan in plans if not plan.is_done]
        for job in jobs:
            job.refuse_conflict()
        if jobs:
            costs = Costs.of(jobs)
            costs.say(here)
            costs.check_room(here, discard_sources, side_by_side)
            room = costs.most_written(discard_sources, side_by_side)
            with needing(room), _Crew(distributor or ("processes" if data.address else None), processes) as crew:
                run = _Preparation(here, discard_sources, crew)
                run.make_parts(run.make_ids(jobs))
        elif plans:
            logger.info("parts %s: prepared, nothing to do", ", ".join(str(plan.part) for plan in plans))
        _free_staged(here)
        for plan in plans if discard_sources else ():
            for file in (plan.id_list, plan.detections, *plan.metadata.files):
                file.discard(here.sources)


def sources_have_removed(data: DataDir) -> bool:
    """Tell whether upstream's files have rows that were taken down: then no copy of them stays.

    Raises:
        StateConflict: a removal was begun and is not finished; or DATA_DIR is at an address, where none is kept to.
    """
    removals = settled(data)
    if removals.done and data.address is not None:
        raise StateConflict(
            f"{data.where}/{data.removed.name}: rows were taken down from it, which is kept to in a folder of this "
            "machine only. Copy it to one, prepare there, and copy it back."
        )
    return removals.removed.has_rows


def at_once(processes: int | None) -> int:
    """Return how many files, and parts, are worked on at the same time.

    Raises:
        OptionError: `processes` is less than 1.
    """
    if processes is not None:
        _PROCESSES.check("processes", processes)
    return processes or min(cores(), MOST_AT_ONCE)


class _Preparation:
    """One call of `prepare`."""

    def __init__(self, data: DataDir, discard: bool, crew: _Crew) -> None:
        self._data = data
        self._discard = discard
        self._crew = crew

    def make_ids(self, jobs: Sequence[PartPlan]) -> list[PartPlan]:
        """Make the ids of all 32 parts; return the jobs, which know the list's content then."""
        return self._knowing(jobs, self._crew.all([MakeIds(jobs[0], self._discard, tuple(jobs))]))

    def make_parts(self, jobs: Sequence[PartPlan]) -> None:
        """Make faces and index of every part."""
        if jobs[0].metadata.is_whole:
            self._from_whole(jobs)
        else:
            self._side_by_side(jobs, threads=max(1, self._crew.at_once // len(jobs)))

    def _from_whole(self, jobs: Sequence[PartPlan]) -> None:
        data = self._data
        with locked(data.staging, f"waiting for another run that reads the metadata into {data.root}"):
            if not any(job.lacks_index for job in jobs):  # The index was there, or another run made it meanwhile.
                self._side_by_side(jobs)
                return
            ids = jobs[0].content(jobs[0].id_list) or ""
            folder, parts = staging_folder(data, ids, [job.part for job in jobs if job.lacks_index])
            jobs = self._knowing(jobs, self._stage(jobs[0], folder.name, parts))
            for job in jobs:
                job.refuse_conflict()
            self._side_by_side(jobs, staged=folder.name)

    def _stage(self, job: PartPlan, folder: str, parts: tuple[int, ...]) -> Iterator[Contents]:
        """Read all metadata files in one pass, and yield what each contains."""
        remove_partials(self._data.staging / folder)
        files = job.metadata.files
        found = self._crew.all([StageFile(job, self._discard, number, folder, parts) for number in range(len(files))])
        sizes = {file.name: file.size or 0 for file in files}
        with progress.bar("metadata", sum(sizes.values()), "B") as bar:
            for contents in found:
                bar.update(sum(sizes[name] for name in contents))
                yield contents
        steps.forget()

    def _side_by_side(self, jobs: Sequence[PartPlan], *, threads: int = 1, staged: str | None = None) -> None:
        numbered = enumerate(jobs, 1)
        todo = [MakePart(job, self._discard, number, len(jobs), threads, staged) for number, job in numbered]
        with progress.bar("prepare", len(jobs)) as bar:
            for _ in self._crew.all(todo):
                bar.update()

    @staticmethod
    def _knowing(jobs: Sequence[PartPlan], found: Iterable[Contents]) -> list[PartPlan]:
        known = {name: content for contents in found for name, content in contents.items()}
        return [dataclasses.replace(job, known={**job.known, **known}) for job in jobs]


class _Crew:
    """What does the steps: threads of this process, or the workers of a distributor."""

    def __init__(self, distributor: str | None, processes: int | None) -> None:
        self.at_once = at_once(processes)
        # A cluster knows itself how much it can do.
        count = self.at_once if distributor == "processes" else processes
        self._workers = TaskPool(distributor, count) if distributor is not None else None

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *how: object) -> None:
        if self._workers is not None:
            self._workers.__exit__(*how)

    def all(self, todo: Sequence[Steps]) -> Iterator[Contents]:
        """Run the steps, and yield what each found out about the sources."""
        if self._workers is None:
            yield from in_order(lambda step: step.run(), todo, self.at_once)
            return
        for done in self._workers.each(steps.run_apart, todo):
            if isinstance(done.error, WorkerDied):
                raise WorkerDied(f"{done.task}: {done.error}") from done.error
            yield done.result()


def _free_staged(data: DataDir) -> None:
    """Remove staged rows of parts that are all written; those of a pass that can go on for more parts stay."""
    if not data_store.below(data, data.staging):
        return
    with locked_if_free(data.staging) as is_ours:
        for folder in written_by_now(data, lambda part: data_store.has(data, data.index(part))) if is_ours else ():
            data_store.remove(data, folder)
