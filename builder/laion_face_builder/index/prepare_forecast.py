"""Forecast what `laion-face prepare` would do, from upstream or from a published index; see `forecast`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from laion_face_builder.errors import LaionFaceError, StateConflict
from laion_face_builder.files import Fingerprint
from laion_face_builder.forecast import Amount, Deed, Disk, Forecast, Step
from laion_face_builder.index.copying import CopyPlan
from laion_face_builder.index.costs import Costs
from laion_face_builder.index.ids import lacks_ids
from laion_face_builder.index.prepare import at_once, sources_have_removed
from laion_face_builder.index.prepare_plan import PartPlan, Passed, changes, look_up_parts
from laion_face_builder.index.staged import written_by_now
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.shown import ranges
from laion_face_builder.sources import data_store
from laion_face_builder.sources.copied_file import CopiedFile
from laion_face_builder.sources.sources import Upstream


def forecast_prepare(
    data: DataDir,
    parts: Sequence[int],
    upstream: Upstream,
    *,
    discard_sources: bool = False,
    processes: int | None = None,
) -> Forecast:
    """Say what `prepare.prepare` would do with the same arguments.

    Upstream is asked for listings, sizes and access. Local sources are hashed if files made from them are there.

    Raises:
        OptionError, SourceError, BadFile: as `prepare` before it fetches anything.
    """
    with data_store.at_work(data) as here:
        discard = sources_have_removed(here) or discard_sources
        return _forecast(here, parts, upstream, discard, at_once(processes))


def _forecast(
    data: DataDir, parts: Sequence[int], upstream: Upstream, discard_sources: bool, side_by_side: int
) -> Forecast:
    found = look_up_parts(data, parts, upstream, is_dry=True)
    plans = [plan for plan in found if isinstance(plan, PartPlan)]
    jobs = [plan for plan in plans if not plan.is_done]
    conflicts = dict(_conflicts(jobs))
    steps = [_step(one, conflicts) for one in found]
    if not jobs:
        write, fetch, notes, refusal = Amount(), Amount(), ["prepared, nothing to do"] * bool(plans), None
    else:
        costs = Costs.of(jobs)
        fetch, write = Amount(costs.fetched, costs.is_stated), Amount(costs.fetched + costs.written, False)
        notes = [f"to download: {costs.to_download()}", *([costs.to_read()] if costs.read else [])]
        refusal = next(iter(conflicts.values()), None) or _no_room(costs, data, discard_sources, side_by_side)
    if refusal is None:
        steps += _also(data, jobs)
        steps += [Step(_below(data, path), "removed", "nothing waits there") for path in _freed(data, jobs)]
        steps += _discarded(data, plans) if discard_sources else []
    disks = (Disk.of(data.root, write),) if data.address is None else ()
    notes += [f"to write: {write.of_bytes()} at {data.where}"] if data.address is not None else []
    return Forecast("prepare", tuple(steps), disks, fetch, notes=tuple(notes), refusal=refusal)


def forecast_copy(data: DataDir, parts: Sequence[int], place: str, token: str | None = None) -> Forecast:
    """Say what `copying.copy_parts` would do with the same arguments; of the published index footers are read."""
    steps: list[Step] = []
    fetch = write = Amount()
    refusal: LaionFaceError | None = None
    for part in parts:
        try:
            plan = CopyPlan.of(data, part, place, token)
            plan.refuse_conflict()
        except LaionFaceError as error:  # Those before it are copied, those after it are not.
            steps.append(Step(f"part {part}", "refused", str(error)))
            refusal = error
            break
        steps.append(Step(f"part {part}", *_copied(plan)))
        if not plan.is_done:
            write += Amount(plan.size, is_exact=False)
            fetch += Amount(plan.size, is_exact=False) if plan.is_remote else Amount()
    return Forecast("prepare", tuple(steps), (Disk.of(data.root, write),), fetch, refusal=refusal)


def _copied(plan: CopyPlan) -> tuple[Deed, str]:
    if plan.is_done:
        return "used as it is", ""
    if plan.ours is None:
        return "made", f"copied from {plan.place}"
    return "made anew", f"{plan.place} has another one"


def _conflicts(jobs: Iterable[PartPlan]) -> Iterator[tuple[int, StateConflict]]:
    for job in jobs:
        try:
            job.refuse_conflict()
        except StateConflict as error:
            yield job.part, error


def _step(one: PartPlan | Passed, conflicts: dict[int, StateConflict]) -> Step:
    name = f"part {one.part}"
    if isinstance(one, Passed):
        return Step(name, "used as it is", one.why)
    if one.part in conflicts:
        return Step(name, "refused", str(conflicts[one.part]))
    return Step(name, *_deed(one))


def _deed(plan: PartPlan) -> tuple[Deed, str]:
    """Say what becomes of a part's files; of those that are there and are made anew also why."""
    data, part = plan.data, plan.part
    lacking = {
        name: path
        for name, path, lacks in (
            ("ids", data.ids(part), plan.lacks_ids),
            ("faces", data.faces(part), plan.lacks_faces),
            ("index", data.index(part), plan.lacks_index),
        )
        if lacks
    }
    # Fingerprints are only looked up for files that are there: sources may have to be hashed for them.
    wanted = {
        name: getattr(plan, f"{name}_fingerprint") for name, path in lacking.items() if data_store.has(data, path)
    }
    why = "; ".join(f"{name}: {_why(data, path, wanted.get(name))}" for name, path in lacking.items())
    if not lacking:
        return "used as it is", ""
    if None in wanted.values():
        return "depends", why
    return ("made anew" if wanted else "made"), why


def _why(data: DataDir, path: Path, wanted: Fingerprint | None) -> str:
    ours = data_store.fingerprint(data, path)
    if ours is None:
        return "not there"
    if wanted is None:
        return "whether its sources changed shows once they have been fetched"
    return changes(ours, wanted)


def _also(data: DataDir, jobs: Sequence[PartPlan]) -> list[Step]:
    """List the other parts whose ids are made too, since the id list is read once for all."""
    if not any(job.lacks_ids for job in jobs):
        return []
    asked, content = {job.part for job in jobs}, jobs[0].content(jobs[0].id_list)
    others = [part for part in ALL_PARTS if part not in asked and lacks_ids(data, part, content)]
    named = ranges(others, ", ")
    return [Step(f"ids of parts {named}", "made", "the id list is read once, for all parts")] if others else []


def _freed(data: DataDir, jobs: Sequence[PartPlan]) -> list[Path]:
    """List the staging folders whose parts are all written in the end."""
    written = {job.part for job in jobs}
    return written_by_now(data, lambda part: part in written or data_store.has(data, data.index(part)))


def _discarded(data: DataDir, plans: Sequence[PartPlan]) -> list[Step]:
    """List the copies that would be removed: those that are there; those fetched by the run go as well."""
    files = [file for plan in plans for file in (plan.id_list, plan.detections, *plan.metadata.files)]
    places = dict.fromkeys(file.place(data.sources) for file in files if isinstance(file, CopiedFile))
    return [Step(_below(data, path), "removed", "--discard-sources") for path in places if path.exists()]


def _below(data: DataDir, path: Path) -> str:
    return path.relative_to(data.root).as_posix()


def _no_room(costs: Costs, data: DataDir, discard_sources: bool, side_by_side: int) -> LaionFaceError | None:
    try:
        costs.check_room(data, discard_sources, side_by_side)
    except LaionFaceError as error:
        return error
    return None
