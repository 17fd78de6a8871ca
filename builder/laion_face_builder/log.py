"""The one logger of the package: no line leaves it with a password, a signature or a token in it."""

from __future__ import annotations

import logging

from laion_face_builder.shown import hushed


class _Hushing(logging.Filter):
    """A log filter that hushes lines: the last thing that happens to a line before anybody sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the secrets out of the text, and out of the traceback that comes with it; let every line pass."""
        text = record.getMessage()
        if (clean := hushed(text)) != text:
            record.msg, record.args = clean, None
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            if (clean := hushed(trace)) != trace:
                record.exc_text, record.exc_info = clean, None
        return True


logger = logging.getLogger("laion_face")
logger.addFilter(_Hushing())
logger.addHandler(logging.NullHandler())
