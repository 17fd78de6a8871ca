"""The command line: `laion-face`, `python -m laion_face` and `python -m laion_face_builder` all come to `main`.

Data go to stdout, talk and progress to stderr; whatever a user can cause is one line and a non-zero exit.
Importing this imports nothing else, so that Ctrl-C finds `main` at work from the first moment on.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give its exit code.

    0; 1 after what a user can put right; 2 if it cannot be understood; 70 after a mistake of ours; 130 after Ctrl-C;
    143 after SIGTERM.

    Args:
        arguments: what is typed after the program's name; None means that this process was started for it, and
            its signals and standard streams are ours to settle.
    """
    is_own = arguments is None
    try:
        from laion_face_builder.cli import ending

        if is_own:
            ending.take_over_signals()
        from laion_face_builder.cli.defence import guarded

        return guarded(list(sys.argv[1:] if arguments is None else arguments), is_own_process=is_own)
    except KeyboardInterrupt:
        from laion_face_builder.cli import ending

        return ending.interrupted(is_own_process=is_own)
