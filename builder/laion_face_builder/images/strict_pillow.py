"""Pillow without its process-wide leniency and without its warnings, for as long as a thread is in the `with` block."""

from __future__ import annotations

import os
import threading
import warnings

from PIL import ImageFile


class StrictPillow:
    """A context manager: while any thread is inside, Pillow does not warn, and passes no half picture as whole.

    Both are process-wide in Python and Pillow, so the first one in sets them and the last one out restores them. With
    one `catch_warnings` a thread, two threads could restore each other's filters in the wrong order, for good.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._truncated = False
        self._warnings: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._warnings is None:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                self._truncated = True
                ImageFile.LOAD_TRUNCATED_IMAGES = False

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._warnings is not None:
                self._warnings.__exit__(None, None, None)
                self._warnings = None
                if self._truncated:
                    self._truncated = False
                    ImageFile.LOAD_TRUNCATED_IMAGES = True


#: The one for this process.
STRICT = StrictPillow()
