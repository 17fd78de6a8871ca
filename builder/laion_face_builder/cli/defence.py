"""Turn whatever goes wrong in a command into one line for the user and an exit code.

`--debug` shows the traceback as well. It is looked for among the typed words, so that it also works for what fails
before anything is parsed.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from typing import TYPE_CHECKING

from laion_face_builder import progress
from laion_face_builder.cli import ending, output, talk
from laion_face_builder.cli.output import OutputFailed
from laion_face_builder.errors import LaionFaceError
from laion_face_builder.shown import hushed

if TYPE_CHECKING:
    import argparse

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
        with talk.silence() if getattr(given, "format", "") == "quiet" else nullcontext():
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
        from laion_face_builder.cli.os_errors import is_explained, sentence

        if isinstance(error, LaionFaceError):
            return 1, str(error)
        if isinstance(error, MemoryError):
            return 1, "there is not enough memory; run it again with fewer --processes, or where there is more"
        if isinstance(error, OSError) and is_explained(error):
            return 1, sentence(error, self._given)
        return MISTAKE_OF_OURS, (
            f"something went wrong that should not: {type(error).__name__}: {output.one_line(str(error))} - run it "
            "again with --debug for the traceback, and report that to the project"
        )
