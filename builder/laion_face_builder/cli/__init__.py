"""The command line. Data go to stdout, talk and progress to stderr; a known error is one line and a non-zero exit."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from laion_face_builder.cli.arguments import make_parser
from laion_face_builder.cli.talk import talk_to_stderr
from laion_face_builder.errors import LaionFaceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, 1 after a known error, 130 after Ctrl-C."""
    given = make_parser().parse_args(arguments)
    talk_to_stderr()
    try:
        return int(given.run(given) or 0)
    except LaionFaceError as error:
        print(f"laion-face: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("laion-face: interrupted; run the same command again to go on", file=sys.stderr)
        _leave_threads(130)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        sys.stderr.close()
        return 0


def _leave_threads(code: int) -> None:
    """Ends the program at once if threads are at work: Python would wait for them, and all files are whole anyway."""
    if threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
