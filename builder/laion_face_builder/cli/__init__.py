"""The command line: `laion-face`, `python -m laion_face` and `python -m laion_face_builder` all call `main`.

Data go to stdout, messages and progress to stderr; an error that a user can cause is one line and a non-zero exit code.
Importing this imports no other module, so that `main` handles Ctrl-C from the first moment on.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give its exit code.

    0 for success; 1 after an error that a user can put right; 2 if the command line is not valid; 70 after a bug of
    ours; 130 after Ctrl-C; 143 after SIGTERM.

    Args:
        arguments: what is typed after the program's name; None means those of this process, which was started for the
            command: then `main` also handles its signals and standard streams.
    """
    is_own = arguments is None
    try:
        from laion_face_builder.cli import ending

        if is_own:
            ending.take_over_signals()
        from laion_face_builder.cli.failures import guarded

        return guarded(list(sys.argv[1:] if arguments is None else arguments), is_own_process=is_own)
    except KeyboardInterrupt:
        from laion_face_builder.cli import ending

        return ending.interrupted(is_own_process=is_own)
