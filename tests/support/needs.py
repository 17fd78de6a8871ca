"""What tests need of this machine beside Python, and what is said where it is not: nothing is left out in silence."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tests.support import browser, git_server, held_calls

#: Runs a command with a network of its own.
ALONE = ("unshare", "--map-root-user", "--net")
#: Runs a command that may mount disks, which nobody else sees.
MOUNTING = ("unshare", "--map-root-user", "--mount")


@dataclass(frozen=True)
class Need:
    """`is_met` looks for it; `told` says which tests were left out, why, and how to run them."""

    is_met: Callable[[], bool]
    told: str


@cache
def _may_be_alone() -> bool:
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@cache
def _may_mount() -> bool:
    try:
        words = [*MOUNTING, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


#: By the mark of the tests that need it.
NEEDS = {
    "browser": Need(
        lambda: browser.command() is not None,
        "Tests that open pages were left out: no Chromium or Chrome here. `make test-browser` gets one and runs them.",
    ),
    "git_lfs": Need(
        git_server.has_lfs,
        "Tests of Croissant by URL were left out: no git-lfs here. `make git-lfs` gets it on Debian or Ubuntu.",
    ),
    "held_calls": Need(
        held_calls.is_possible,
        "Tests of failing disks were left out: no seccomp here that asks. It needs Linux since 5.5, x86-64 or ARM.",
    ),
    "own_disk": Need(
        _may_mount,
        f"Tests of full disks were left out: `{' '.join(MOUNTING)} mount` fails here. It needs Linux, user namespaces.",
    ),
    "own_network": Need(
        _may_be_alone,
        f"Tests of outages were left out: `{' '.join(ALONE)} true` fails here. It needs Linux with user namespaces.",
    ),
}


def unmet(chosen: str) -> dict[str, Need]:
    """Return what is not there. Marks that `chosen`, pytest's -m, names are left to it: what was asked for fails."""
    return {mark: need for mark, need in NEEDS.items() if mark not in chosen and not need.is_met()}
