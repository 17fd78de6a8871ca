"""Turn whatever goes wrong in a command into one line for the user and an exit code.

`--debug` shows the traceback as well. It is looked for among the typed words, so that it also works for what fails
before anything is parsed.

Errors of the operating system are said in words: which file, what happened, what to do.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from laion_face_builder import progress
from laion_face_builder.cli import ending, output
from laion_face_builder.cli.output import OutputFailed
from laion_face_builder.errors import LaionFaceError
from laion_face_builder.layout import DataDir
from laion_face_builder.shown import hushed, short

if TYPE_CHECKING:
    import argparse

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "name another place with --data-dir or --out"
#: What happened, and what to do.
_MEANINGS = {
    errno.ENOSPC: ("no space is left on its disk", "free some space and run the same command again"),
    errno.EDQUOT: ("your quota on its disk is used up", "free some space and run the same command again"),
    errno.EFBIG: ("the file is larger than is allowed", "raise the limit (ulimit -f), or use another disk"),
    errno.EROFS: ("its disk is read-only", f"make it writable, or {_ELSEWHERE}"),
    errno.EACCES: ("permission denied", f"get yourself the right to read and write it, or {_ELSEWHERE}"),
    errno.EPERM: ("the system does not permit it", f"get yourself the right to read and write it, or {_ELSEWHERE}"),
    errno.ENOTDIR: ("a file is in its way where a folder has to be", f"move that file away, or {_ELSEWHERE}"),
    errno.EEXIST: ("a file is there where a folder has to be", f"move that file away, or {_ELSEWHERE}"),
    errno.EISDIR: ("a folder is there where a file has to be", "move it away, or name another file"),
    errno.ENOTEMPTY: ("the folder is not empty", "look what is in it, and move that away"),
    errno.ENOENT: ("there is no such file or folder", "look whether its name is right, and whether its disk is there"),
    errno.ENAMETOOLONG: ("the name is too long", "use a shorter path"),
    errno.ELOOP: ("its links lead in a circle", "mend them"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n 4096) and run the same command again"),
    errno.ENFILE: ("too many files are open on this machine", "close some programs and run the same command again"),
    errno.ENOMEM: ("there is not enough memory", "run it again with fewer --processes, or where there is more"),
    errno.EIO: ("its disk reports an error", "look what the system says of that disk"),
    errno.ESTALE: ("its network disk has lost it", "run the same command again"),
    errno.ETXTBSY: ("another program runs it", "end that program and run the same command again"),
    errno.EBUSY: ("another program uses it", "end that program and run the same command again"),
    errno.ENOLCK: ("its disk cannot lock files", f"use a local disk, or {_ELSEWHERE}"),
    errno.ENOTSUP: ("its disk cannot do that", f"use a local disk, or {_ELSEWHERE}"),
}


def is_explained(error: OSError) -> bool:
    """Say whether there is a sentence for the error: other OSErrors are bugs, of ours or of libraries."""
    return error.errno in _MEANINGS or error.filename is not None or _is_of_network(error)


def sentence(error: OSError, given: argparse.Namespace | None) -> str:
    """Say what happened to which file, and what to do.

    Args:
        given: the command's arguments, which say where it writes: not every error names its file.
    """
    if error.filename is None and _is_of_network(error):
        return f"the network: {error.strerror or error}; look whether it is there, and run the same command again"
    where = _named(error) or _place(given)
    what, way_out = _MEANINGS.get(error.errno or 0, (error.strerror or str(error), "put that right, and run it again"))
    free = f" ({_free(where)})" if error.errno in _FULL else ""
    return f"{where}: {what}{free}; {way_out}"


def _is_of_network(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or error.errno in (
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
    )


def _named(error: OSError) -> str:
    names = [name for name in (error.filename2, error.filename) if isinstance(name, str | bytes | os.PathLike)]
    return os.fsdecode(names[0]) if names else ""


def _place(given: argparse.Namespace | None) -> str:
    """Name that one of the places the command writes to which has the least room on its disk."""
    written = vars(given) if given is not None else {}
    named = [written[name] for name in ("out", "folder", "target") if isinstance(written.get(name), str | Path)]
    places = [Path(place).absolute() for place in named] + [DataDir.at(written.get("data_dir")).root]
    return str(min([*places, Path(tempfile.gettempdir())], key=lambda place: shutil.disk_usage(_existing(place)).free))


def _free(where: str) -> str:
    from laion_face_builder.files import human_size  # which imports pyarrow, and that may be what is missing

    folder = _existing(Path(where))
    return f"{human_size(shutil.disk_usage(folder).free)} free at {folder}"


def _existing(path: Path) -> Path:
    return next((place for place in (path, *path.parents) if place.is_dir()), Path())


MISTAKE_OF_OURS = 70


def guarded(words: list[str], *, is_own_process: bool) -> int:
    """Run the command that was typed and give its exit code. Only KeyboardInterrupt is raised."""
    output.survive_any_encoding()
    command = _Command(words)
    try:
        code = command.run()
    except KeyboardInterrupt:
        command.debug()
        raise
    except Exception as error:
        code = command.fail(error)
    return ending.settle(code) if is_own_process else code


class _Command:
    """One command: the typed words, and once they are parsed, their arguments."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._given: argparse.Namespace | None = None

    def run(self) -> int:
        from laion_face_builder.cli.arguments import make_parser
        from laion_face_builder.cli.parsing import parse

        try:
            self._given = given = parse(make_parser(), self._words)
        except SystemExit as ended:  # --help, --version, or what cannot be understood
            output.finish()
            return int(ended.code or 0)
        progress.talk_to_stderr()
        with output.silence() if getattr(given, "format", "") == "quiet" else nullcontext():
            code = int(given.run(given) or 0)
        output.finish()
        return code

    def debug(self) -> None:
        """Show the traceback of the exception being handled, if --debug was given."""
        if "--debug" in self._words and sys.stderr is not None:
            sys.stderr.write(hushed(traceback.format_exc()))

    def fail(self, error: Exception) -> int:
        """Say what went wrong, and give the exit code."""
        if isinstance(error, OutputFailed) and isinstance(error.error, BrokenPipeError):
            return 0  # The reader of our output has gone, as `| head` does.
        self.debug()
        code, message = self._explained(error)
        output.complain(message)
        return code

    def _explained(self, error: Exception) -> tuple[int, str]:
        if isinstance(error, OutputFailed):
            why = error.error.strerror or error.error
            return 1, f"standard output: {why}; send it somewhere else, and run the same command again"
        pass

        if isinstance(error, LaionFaceError):
            return 1, str(error)
        if isinstance(error, MemoryError):
            return 1, "there is not enough memory; run it again with fewer --processes, or where there is more"
        if isinstance(error, OSError) and is_explained(error):
            return 1, sentence(error, self._given)
        return MISTAKE_OF_OURS, (
            f"something went wrong that should not: {type(error).__name__}: {short(error, output.LONGEST)} - run it "
            "again with --debug for the traceback, and report that to the project"
        )
