"""Pages in a real browser: Chromium without a window, in a profile of its own that goes with the test."""

import os
import shutil
import subprocess
import tempfile
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


def look_at(page, size=(1250, 1600)):
    """Open the page in a file; return what the browser made of it."""
    with profile() as folder:
        picture = folder / "screenshot.png"
        width, height = size
        shot = chromium(folder, f"--screenshot={picture}", f"--window-size={width},{height}", Path(page).as_uri())
        with Image.open(picture) as image:
            pixels = image.convert("RGB")
    with profile() as folder:
        dump = chromium(folder, "--dump-dom", Path(page).as_uri())
    complaints = [line for line in (shot.stderr + dump.stderr).splitlines() if "CONSOLE" in line]
    return Seen(dump.stdout, pixels, complaints)


@contextmanager
def profile():
    with tempfile.TemporaryDirectory(prefix="laion-face-browser-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def chromium(folder, *arguments):
    command = next((found for name in _NAMES if (found := shutil.which(name))), None)
    assert command is not None, "no Chromium or Chrome here: `make browser` says what to do"
    return subprocess.run(
        [command, *_FLAGS, f"--user-data-dir={folder}", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
