"""Pages in a real browser: Chromium without a window, in a profile of its own that goes with the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_NAMES = (os.environ.get("CHROMIUM") or "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page: its elements afterwards, its pixels, and what it complained about."""

    dom: str
    picture: Image.Image
    complaints: list[str]


def look_at(page: Path, size: tuple[int, int] = (1250, 1600)) -> Seen:
    """Open the page in a file; return what the browser made of it."""
    with profile() as folder:
        picture = folder / "screenshot.png"
        width, height = size
        shot = chromium(folder, f"--screenshot={picture}", f"--window-size={width},{height}", page.as_uri())
        with Image.open(picture) as image:
            pixels = image.convert("RGB")
    with profile() as folder:
        dump = chromium(folder, "--dump-dom", page.as_uri())
    complaints = [line for line in (shot.stderr + dump.stderr).splitlines() if "CONSOLE" in line]
    return Seen(dump.stdout, pixels, complaints)


@contextmanager
def profile() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="laion-face-browser-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def command() -> str | None:
    """Return the program; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = command()
    assert program is not None, "no Chromium or Chrome here: `make browser` says what to do"
    return subprocess.run(
        [program, *_FLAGS, f"--user-data-dir={folder}", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
