"""Forecast what `laion-face remove` would take out of a DATA_DIR; see `forecast`."""

from __future__ import annotations

from laion_face_builder.errors import OptionError
from laion_face_builder.forecast import Amount, Disk, Forecast, Step
from laion_face_builder.index.removals import Removals
from laion_face_builder.index.staged import staging_folders
from laion_face_builder.removal.elsewhere import removed_there
from laion_face_builder.removal.removal_request import RemovalRequest, TakenDown
from laion_face_builder.removal.remove import begun, require_folder, with_gone_since
from laion_face_builder.removal.rows import named_rows, names_of, parts_with_rows


def forecast_removal(request: RemovalRequest) -> Forecast:
    """Say what `remove.remove` would do in DATA_DIR with the same request.

    Raises:
        As `remove.remove`, before it writes anything.
    """
    data = request.data
    require_folder(data)
    if request.from_metadata is not None and "://" in request.from_metadata:
        raise OptionError("--from-metadata: --dry-run fetches nothing; name metadata of this machine, or leave it out")
    request = with_gone_since(request)
    before, there = Removals.of(data), removed_there(request)
    removed = begun(before, request, there).removed
    names = names_of(None if there else request.listed, before, removed)
    steps, write = list[Step](), Amount()
    for part in parts_with_rows(data):
        named = named_rows(data, part, names, removed)
        if len(named.ids):
            written = sum(path.stat().st_size for path in (data.ids(part), data.faces(part)) if path.exists())
            written += data.index(part).stat().st_size if data.index(part).exists() else 0
            write += Amount(written, is_exact=False)
            steps.append(Step(f"part {part}", "made anew", str(TakenDown("without", named.counts))))
        else:
            steps.append(Step(f"part {part}", "used as it is", "has none of it"))
    if write.count:
        places = [data.sources, *staging_folders(data)]
        steps += [Step(path.name, "removed", "may have rows of it") for path in places if path.exists()]
    further = (*request.targets, *map(str, request.exports), *map(str, filter(None, (request.cache_images,))))
    steps += [Step(place, "depends", "what it has is looked through then") for place in further]
    return Forecast("remove", tuple(steps), (Disk.of(data.root, write),))
