"""How a part is downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.images.pictures import MAX_PIXELS

#: Words in `X-Robots-Tag` by which a site opts out, as img2dataset has them.
OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
_MOST_PROCESSES = 16


def _one_a_core() -> int:
    return min(_MOST_PROCESSES, os.cpu_count() or 1)


@dataclass(frozen=True)
class DownloadOptions:
    """How a part is downloaded.

    `samples_per_shard` and `disallowed_header_directives` define what is on disk: they cannot change once a part has
    been started. Everything else may differ from run to run.

    Args:
        processes_count: processes of img2dataset; one a core, 16 at most, by default.
        thread_count: connections of each process at a time.
        samples_per_shard: samples in one tar.
        timeout: seconds for one try to get a picture, everything included.
        retries: further tries for a picture that fails, at once; see `retry_failed` for later rounds.
        max_bytes: a picture file may have; larger ones fail.
        max_pixels: a picture may have; larger ones fail. Another value looks through the tars again, without fetching.
        per_host: connections to one host at a time.
        user_agent_token: a name under which sites may address or refuse you.
        disallowed_header_directives: words in `X-Robots-Tag` by which a site opts out; () fetches all the same.
        allow_private_hosts: also connect to addresses that are not public.
        trust_proxy: go through the proxy that the environment names, which then has to refuse private addresses.
        stuck_after: seconds without a change on disk after which img2dataset is ended and started again.
        restarts: how often it is started again without having finished a single shard.
        check_processes: processes that look through finished tars meanwhile.
        ignore_space: start even if the disk is clearly too small.
    """

    processes_count: int = field(default_factory=_one_a_core)
    thread_count: int = 64
    samples_per_shard: int = 10_000
    timeout: float = 30.0
    retries: int = 1
    max_bytes: int = 32_000_000
    max_pixels: int = MAX_PIXELS
    per_host: int = 8
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] = OPT_OUT_DIRECTIVES
    allow_private_hosts: bool = False
    trust_proxy: bool = False
    stuck_after: float = 600.0
    restarts: int = 3
    check_processes: int = 1
    ignore_space: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name)!r}: expected more than 0")
        for name in ("retries", "restarts"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name}={getattr(self, name)!r}: expected 0 or more")

    def defining(self) -> dict[str, Any]:
        """What defines the files on disk, for the fingerprint."""
        return {
            "samples_per_shard": self.samples_per_shard,
            "opt_out": sorted(word.strip().lower() for word in self.disallowed_header_directives),
        }

    def settings(self) -> Mapping[str, Any]:
        """The arguments of `img2dataset.download` that follow from these options."""
        return {
            "processes_count": self.processes_count,
            "thread_count": self.thread_count,
            "number_sample_per_shard": self.samples_per_shard,
            # The proxy bounds the whole try; this one is per socket operation, and must not come first.
            "timeout": self.timeout + 5,
            "retries": self.retries,
            "user_agent_token": self.user_agent_token,
            "disallowed_header_directives": list(self.disallowed_header_directives),
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "output_format": "webdataset",
            "encode_format": "jpg",
            "resize_mode": "no",
            "disable_all_reencoding": True,
            "compute_hash": "sha256",
            # Its EXIF parser runs on whatever a host sends; our pass reads the one value that matters.
            "extract_exif": False,
            "enable_wandb": False,
            "incremental_mode": "incremental",
        }


_POSITIVE = (
    "processes_count",
    "thread_count",
    "samples_per_shard",
    "timeout",
    "max_bytes",
    "max_pixels",
    "per_host",
    "stuck_after",
    "check_processes",
)
