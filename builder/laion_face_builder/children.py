"""How Python child processes are started: they import what is installed, never what lies in the current folder.

img2dataset brings a package called `dataclasses` of 2018 into site-packages. It must not come before the standard
library, as it would if a child were told by PYTHONPATH where our package is: installed, it is found without.
"""

from __future__ import annotations

import sys

#: Python 3.10 has no "safe path" alone: there the environment's PYTHON… variables are left out, too.
_ISOLATED = "-P" if sys.version_info >= (3, 11) else "-I"


def python(*arguments: str) -> list[str]:
    """Return the command that runs this very Python with `arguments`, isolated from the folder that it is run in."""
    return [sys.executable, _ISOLATED, *arguments]


def interpreter() -> str:
    """Return the path of this Python, for libraries that start it themselves, as Spark does."""
    return sys.executable
