"""Items in order, their pictures fetched ahead: what lies between a stream of rows and the network.

The look-ahead is larger than what is in flight. With 5 % of the addresses timing out after 10 s and 256 in flight, a
look-ahead of 256 gives 27 pictures/s, one of 4,096 gives 305: the item that is waited for holds up all that are done
behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.fetcher import FetchedPicture, Fetcher, Stream, Ticket

Item = TypeVar("Item")

#: Items pulled at once: one wake-up of the fetcher for all of them.
_BATCH = 64
#: Items without an address that may wait between those with one, for each of the look-ahead.
_PASSING_THROUGH = 16


def ordered(
    items: Iterable[Item],
    fetcher: Fetcher,
    *,
    url_of: Callable[[Item], str | None],
    lookahead: int = 4096,
    max_buffer_bytes: int = 512_000_000,
) -> Generator[tuple[Item, FetchedPicture | PictureError | None], None, None]:
    """Each item with its picture, why there is none, or None for an item without an address; in the order of `items`.

    Fetching goes on in the background while the consumer is busy. Dropped or closed, the generator ends what it has
    under way. What `items` raises is raised in its place, after everything before it.

    Args:
        items: pulled lazily, a few at a time, in the consumer's thread.
        fetcher: does the fetching; its `concurrency` is how many are in flight.
        url_of: the address of an item's picture; None for an item that needs none and costs nothing.
        lookahead: items with an address that are under way or done ahead of the consumer.
        max_buffer_bytes: of pictures that are arriving or done. The next one in order always comes, however large.
    """
    stream = fetcher.stream(max_buffer_bytes)
    queue = _Queue(iter(items), stream, url_of, lookahead)
    try:
        while queue.fill():
            item, ticket = queue.pop()
            yield item, (_outcome(stream, ticket) if ticket is not None else None)
    finally:
        stream.close()


def _outcome(stream: Stream, ticket: Ticket) -> FetchedPicture | PictureError:
    try:
        return stream.take(ticket)
    except PictureError as error:
        # Kept by the consumer for its counts: the frames of the fetch need not live as long.
        return error.with_traceback(None)


class _Queue(Generic[Item]):
    """Items in order with their tickets."""

    def __init__(
        self, items: Iterator[Item], stream: Stream, url_of: Callable[[Item], str | None], lookahead: int
    ) -> None:
        self._waiting: deque[tuple[Item, Ticket | None]] = deque()
        self._items, self._stream, self._url_of = items, stream, url_of
        self._lookahead, self._batch = max(1, lookahead), max(1, min(_BATCH, lookahead // 4))
        self._tickets = 0
        self._error: BaseException | None = None
        self._is_over = False

    def pop(self) -> tuple[Item, Ticket | None]:
        """Takes out the first item."""
        found = self._waiting.popleft()
        self._tickets -= found[1] is not None
        return found

    def fill(self) -> bool:
        """Pulls more items, until there are enough or the first one is done. False once there are none left."""
        while not self._is_over and self._has_room():
            self._pull()
            if self._waiting and self._is_first_done():
                break
        if not self._waiting and self._error is not None:
            raise self._error
        return bool(self._waiting)

    def _has_room(self) -> bool:
        if not self._waiting:
            return True
        enough = (
            self._tickets + self._batch > self._lookahead or len(self._waiting) >= _PASSING_THROUGH * self._lookahead
        )
        return not enough and not self._stream.is_full

    def _is_first_done(self) -> bool:
        ticket = self._waiting[0][1]
        return ticket is None or ticket.done()

    def _pull(self) -> None:
        pulled: list[tuple[Item, str | None]] = []
        try:
            while len(pulled) < self._batch:
                item = next(self._items)
                pulled.append((item, self._url_of(item)))
        except StopIteration:
            self._is_over = True
        except BaseException as error:  # raised again in its place, behind the items before it
            self._is_over, self._error = True, error
        urls = [url for _, url in pulled if url is not None]
        tickets = iter(self._stream.submit(urls) if urls else ())
        for item, url in pulled:
            self._waiting.append((item, next(tickets) if url is not None else None))
            self._tickets += url is not None
