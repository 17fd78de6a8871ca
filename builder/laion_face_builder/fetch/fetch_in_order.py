"""Pictures fetched ahead of the consumer: each item of a stream of rows is paired with its picture.

`ordered` gives them in the order of the items, `arriving` as the pictures come.

The look-ahead is larger than what is in flight. With 5 % of the addresses timing out after 10 s and 256 in flight, a
look-ahead of 256 gives 27 pictures/s, one of 4,096 gives 305: the item that is waited for holds up all that are done
behind it. In order of arrival nothing is held up, and the look-ahead bounds how many slow ones are under way at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.fetcher import Fetcher, Stream, Ticket
from laion_face_builder.images.pictures import Picture
from laion_face_builder.options import Ahead

Item = TypeVar("Item")
#: A picture, why there is none, or None for an item without an address.
Outcome = Picture | PictureError | None

#: Items pulled at once: one wake-up of the fetcher for all of them.
_BATCH = 64
#: So many are fetched ahead at first. It doubles with each so many that are taken, and whenever the consumer has waited
#: so many seconds: who looks at five examples asks for a few more, and who waits for a slow host soon has them all.
_FIRST_WINDOW, _PATIENCE = 16, 0.25
#: Items without an address that may wait between those with one, for each of the look-ahead; and where none has one.
_PASSING_THROUGH, _PASSING_ALONE = 16, 256


def ordered(
    items: Iterable[Item],
    fetcher: Fetcher,
    *,
    url_of: Callable[[Item], str | None],
    lookahead: int = Ahead.lookahead,
    max_buffer_bytes: int = Ahead.max_buffer_bytes,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Yield each item with its picture, why there is none, or None for an item without an address; in order.

    Fetching goes on in the background while the consumer is busy. Dropped or closed, the generator ends what it has
    under way. What `items` raises is raised in its place, after everything before it.

    Args:
        items: pulled lazily, a few at a time, in the consumer's thread.
        fetcher: does the fetching; its `concurrency` is how many are in flight.
        url_of: the address of an item's picture; None for an item that needs none and costs nothing.
        lookahead: items with an address that are under way or done ahead of the consumer, of all streams that `fetcher`
            serves at a time.
        max_buffer_bytes: of their pictures that are arriving or done. The next in order always comes, however large.
    """
    stream = fetcher.stream(max_buffer_bytes)
    queue = _Queue(_Intake(iter(items), stream, url_of, lookahead), stream)
    try:
        while queue.fill():
            item, ticket = queue.pop()
            yield item, (_outcome(stream, ticket) if ticket is not None else None)
    finally:
        stream.close()


def arriving(
    items: Iterable[Item],
    fetcher: Fetcher,
    *,
    url_of: Callable[[Item], str | None],
    lookahead: int = Ahead.lookahead,
    max_buffer_bytes: int = Ahead.max_buffer_bytes,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Yield each item as soon as its picture has come or failed; those without an address as soon as they are pulled.

    Otherwise as `ordered`, with the same arguments. Any picture that the consumer takes makes room in the buffer; the
    oldest picture under way always comes, however large. What `items` raises is raised after everything before it.
    """
    stream = fetcher.stream(max_buffer_bytes, by_arrival=True)
    crowd = _Crowd(_Intake(iter(items), stream, url_of, lookahead), stream)
    try:
        while crowd.fill():
            item, ticket = crowd.pop()
            yield item, (_outcome(stream, ticket) if ticket is not None else None)
    finally:
        stream.close()


def _outcome(stream: Stream, ticket: Ticket) -> Picture | PictureError:
    try:
        return stream.take(ticket)
    except PictureError as error:
        # Kept by the consumer for its counts: the frames of the fetch need not live as long.
        return error.with_traceback(None)


class _Intake(Generic[Item]):
    """Pulls items and starts their fetches, a few at a time."""

    def __init__(
        self, items: Iterator[Item], stream: Stream, url_of: Callable[[Item], str | None], lookahead: int
    ) -> None:
        self._items, self._stream, self._url_of = items, stream, url_of
        self._lookahead, self._window, self._taken = lookahead, min(lookahead, _FIRST_WINDOW), 0
        self._error: BaseException | None = None
        self.is_over = False

    def has_room(self, tickets: int, waiting: int) -> bool:
        """Say whether more items are to be pulled.

        Args:
            tickets: items with an address that are under way or done and not yet given out.
            waiting: all items that were pulled and not yet given out.
        """
        if not tickets:  # As pictures from tars have it: there is nothing to wait for.
            return waiting < _PASSING_ALONE
        most, window = self._stream.part_of(self._lookahead), self._room
        enough = tickets + _batch(window) > window or waiting >= _PASSING_THROUGH * most
        return not enough and not self._stream.is_full

    @property
    def may_grow(self) -> bool:
        """Whether more would be fetched ahead if the consumer waited."""
        return not self.is_over and self._window < self._lookahead

    def grow(self) -> None:
        """Double the number of items that are fetched ahead, up to the look-ahead."""
        self._window, self._taken = min(2 * self._window, self._lookahead), 0

    def count_taken(self) -> None:
        """Count an item with an address that was given out; grow after so many as are fetched ahead."""
        self._taken += 1
        if self._taken >= self._window:
            self.grow()

    @property
    def _room(self) -> int:
        return min(self._window, self._stream.part_of(self._lookahead))

    def pull(self) -> Iterator[tuple[Item, Ticket | None]]:
        """Pull the next few items, start their fetches, and return both; fewer or none once the items are over."""
        pulled: list[tuple[Item, str | None]] = []
        try:
            batch = _batch(self._room)
            while len(pulled) < batch:
                item = next(self._items)
                pulled.append((item, self._url_of(item)))
        except StopIteration:
            self.is_over = True
        except BaseException as error:  # raised again in its place, behind the items before it
            self.is_over, self._error = True, error
        urls = [url for _, url in pulled if url is not None]
        tickets = iter(self._stream.submit(urls) if urls else ())
        return ((item, next(tickets) if url is not None else None) for item, url in pulled)

    def end(self) -> None:
        """Raise what the items raised, if they did, once everything before it is given out."""
        if self._error is not None:
            raise self._error


def _batch(window: int) -> int:
    return max(1, min(_BATCH, window // 4))


class _Queue(Generic[Item]):
    """Items in order with their tickets."""

    def __init__(self, intake: _Intake[Item], stream: Stream) -> None:
        self._intake, self._stream = intake, stream
        self._waiting: deque[tuple[Item, Ticket | None]] = deque()
        self._tickets = 0

    def pop(self) -> tuple[Item, Ticket | None]:
        """Take out the first item, with its ticket."""
        found = self._waiting.popleft()
        if found[1] is not None:
            self._tickets -= 1
            self._intake.count_taken()
        return found

    def fill(self) -> bool:
        """Pull more items, until there are enough or the first one is done. Return False once there are none left."""
        self._pull()
        while self._waiting and self._intake.may_grow and not self._is_first_done_soon():
            self._intake.grow()
            self._pull()
        if not self._waiting:
            self._intake.end()
        return bool(self._waiting)

    def _pull(self) -> None:
        while not self._intake.is_over and self._intake.has_room(self._tickets, len(self._waiting)):
            for found in self._intake.pull():
                self._waiting.append(found)
                self._tickets += found[1] is not None
            if self._waiting and self._is_first_done():
                break

    def _is_first_done(self) -> bool:
        ticket = self._waiting[0][1]
        return ticket is None or ticket.done()

    def _is_first_done_soon(self) -> bool:
        ticket = self._waiting[0][1]
        return ticket is None or self._stream.is_done_within(ticket, _PATIENCE)


class _Crowd(Generic[Item]):
    """Items in order of arrival: those whose pictures are under way, and those that pass without one."""

    def __init__(self, intake: _Intake[Item], stream: Stream) -> None:
        self._intake, self._stream = intake, stream
        self._passing: deque[Item] = deque()
        # Linked, so that the oldest is found at once however many behind it are gone.
        self._under_way: OrderedDict[Ticket, Item] = OrderedDict()

    def pop(self) -> tuple[Item, Ticket | None]:
        """Take out an item without an address, else wait for one whose picture has come or failed."""
        if self._passing:
            return self._passing.popleft(), None
        ticket = self._stream.next_done(next(iter(self._under_way)))
        self._intake.count_taken()
        return self._under_way.pop(ticket), ticket

    def fill(self) -> bool:
        """Pull more items, until there are enough or one can be given out. Return False once there are none left."""
        self._pull()
        while self._under_way and not self._passing and self._intake.may_grow and not self._is_one_done_soon():
            self._intake.grow()
            self._pull()
        if not len(self):
            self._intake.end()
        return bool(len(self))

    def _pull(self) -> None:
        while not self._intake.is_over and self._intake.has_room(len(self._under_way), len(self)):
            for item, ticket in self._intake.pull():
                if ticket is None:
                    self._passing.append(item)
                else:
                    self._under_way[ticket] = item
            if self._passing or self._stream.has_done:
                break

    def _is_one_done_soon(self) -> bool:
        return self._stream.has_done_within(next(iter(self._under_way)), _PATIENCE)

    def __len__(self) -> int:
        return len(self._passing) + len(self._under_way)
