"""All errors of this project, as one tree. Each message is one line: file, what was found, what was expected, way out.

LaionFaceError
├── OptionError            an option is unknown, or its value is not one of the valid ones (also a ValueError)
├── SourceError            something upstream cannot be had
│   ├── SourceNotFound     the repo, revision or file does not exist
│   ├── GatedSource        terms to accept or a token are missing
│   └── ChecksumError      the bytes are not those that upstream states
├── BadFile                a file is there, but is not what it has to be
│   └── UnsafePickle       a pickle names something that is not on the allow-list
├── DiskError              a file cannot be written: no room, no permission, something in its way (also an OSError)
├── JoinRefused            the metadata's rows are not those that the faces were found in
├── NotPrepared            what is asked for has not been prepared or downloaded
├── StateConflict          going on would throw away, or mix, what took days to make
├── PublishError           the place to publish to refuses, or cannot be reached
├── DownloadError          a download cannot go on
│   └── ShardsGivenUp      processes that make some of its shards go on dying
├── WorkerDied             a worker process ended without an answer to its task
├── NetworkOutage          no host answers: it is not the pictures' fault
├── PictureError           one picture cannot be used; `reason` is its short name in the counts
└── TransformError         a face or a picture that cannot be cropped, aligned or drawn (also a ValueError)
"""

from __future__ import annotations

import os

from laion_face_builder.shown import hushed, shown


class LaionFaceError(Exception):
    """Base of all errors that this project raises on purpose. `str()` is one line for a person, without any secret."""

    def __init__(self, *words: object) -> None:
        super().__init__(*(hushed(word) if isinstance(word, str) else word for word in words))


class OptionError(LaionFaceError, ValueError):
    """An option is unknown or its value is not valid. The message lists what is."""


class SourceError(LaionFaceError):
    """Something upstream cannot be had."""


class SourceNotFound(SourceError):
    """The repo, revision or file does not exist."""


class GatedSource(SourceError):
    """The terms of a gated repo have not been accepted, or no token was given."""


class ChecksumError(SourceError):
    """Downloaded bytes are not those that upstream states."""


class BadFile(LaionFaceError):
    """A file is not what it has to be.

    Args:
        file: the path or address of the file; kept as it may be shown.
        found: what is in it.
        expected: what has to be in it.
        way_out: what the user can do.
    """

    def __init__(self, file: str | os.PathLike[str], *, found: str, expected: str, way_out: str) -> None:
        self.file = shown(os.fspath(file))
        self.found = found
        self.expected = expected
        self.way_out = way_out
        super().__init__(f"{self.file}: found {found}, expected {expected}. {way_out}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive the trip back from a worker process otherwise.
        return (_rebuild_bad_file, (type(self), self.file, self.found, self.expected, self.way_out))


def _rebuild_bad_file(cls: type[BadFile], file: str, found: str, expected: str, way_out: str) -> BadFile:
    return cls(file, found=found, expected=expected, way_out=way_out)


class UnsafePickle(BadFile):
    """A pickle asks for something that is not on the allow-list. Nothing of it was run."""


class DiskError(LaionFaceError, OSError):
    """A file cannot be written. The message names it, what is wrong with its place, and the way out."""


class JoinRefused(LaionFaceError):
    """The metadata's rows are not those that the faces were found in. The message has the figures."""


class NotPrepared(LaionFaceError):
    """What is asked for has not been prepared or downloaded."""


class StateConflict(LaionFaceError):
    """Going on would throw away, or mix, what took days to make."""


class PublishError(LaionFaceError):
    """The place to publish to refuses, or cannot be reached. What was sent is kept; the same command goes on."""


class DownloadError(LaionFaceError):
    """A download cannot go on. What is finished is kept; the same command goes on."""


class ShardsGivenUp(DownloadError):
    """The processes that make some shards go on dying; all others of the part are finished."""


class WorkerDied(LaionFaceError):
    """A worker process ended without an answer: killed, out of memory, or a library crashed it."""


class NetworkOutage(LaionFaceError):
    """No host answers, for `outage_patience` seconds: not the pictures' fault, and none of them counts as failed."""


class PictureError(LaionFaceError):
    """One picture cannot be used.

    Args:
        reason: the short name under which it is counted, such as "http_404", "timeout", "not_an_image".
        detail: a sentence for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        # Not hushed: a picture's address is the data set's, and whoever looks into a failure needs all of it.
        Exception.__init__(self, f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.detail))


class TransformError(LaionFaceError, ValueError):
    """A face or a picture that cannot be cropped, aligned or drawn. The message says what it would have to be."""
