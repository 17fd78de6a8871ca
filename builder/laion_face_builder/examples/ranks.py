"""Let several ranks end an epoch together.

How many examples a rank gets is not known beforehand: pictures fail, filters drop rows. But DDP waits in every step for
all ranks, and so for ever for one that has no more. So before each step the ranks ask each other.

torch takes seconds to import, and reading examples does not need it: it is imported when batches are asked for.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

logger = logging.getLogger("laion_face")

Batch = TypeVar("Batch")


def in_step(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Give batches as long as every rank has one: all ranks make the same number of steps.

        for batch in laion_face.in_step(loader):
            ...

    In each step the ranks add up one number, on the CPU (gloo), so that no GPU waits for it. What some ranks still have
    when the first one has no more is left out of this epoch, and rank 0 logs that. Nothing is read ahead: a state that
    is taken between two steps is that of the batches that were given. A state that is taken after the end may be beyond
    a batch that was left out; take it before, or begin the next epoch without one.

    Args:
        batches: a DataLoader, or whatever gives this rank's batches. All ranks have to call this at the same places.

    Yields:
        What `batches` gives. All of it if torch.distributed is not initialised, or there is one rank.
    """
    group = _group_of_processors()
    if group is None:
        yield from batches
        return
    iterator, steps = iter(batches), 0
    while True:
        batch = next(iterator, _NONE)
        having = _count(batch is not _NONE, group)
        if having < group.size():
            break
        yield batch  # type: ignore[misc]  # every rank has one, so this is not _NONE
        steps += 1
    _say_what_is_left(steps, having, group)


_NONE = object()


def _group_of_processors() -> Any:
    """Give all ranks as a gloo group of our own; None unless there are several ranks."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return _gloo(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _gloo(_world: object) -> Any:
    """Make the gloo group, once for each time that torch.distributed is initialised."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo")


def _count(has_one: bool, group: Any) -> int:
    """Count the ranks that have a batch."""
    import torch
    import torch.distributed as dist

    ones = torch.tensor([int(has_one)])
    dist.all_reduce(ones, group=group)
    return int(ones)


def _say_what_is_left(steps: int, having: int, group: Any) -> None:
    if having and group.rank() == 0:
        logger.info(
            "%d steps: then %d of %d ranks had no more batches, and what the others still had is left out",
            steps,
            group.size() - having,
            group.size(),
        )
