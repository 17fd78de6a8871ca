"""What sites refuse in robots.txt is counted in the same way by streams and downloads, and nobody asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import laion_face
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.part import download_part
from laion_face_builder.errors import StateConflict
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox.picture_hosts import PictureHost
from laion_face_builder.sandbox.serving import Answer
from laion_face_builder.sandbox.spec import Truth
from tests.download.test_download import make_host, stored, write_index
from tests.support.nested import but

OPTIONS = but(
    DownloadOptions(processes_count=1),
    **{"allow_private_hosts": True, "samples_per_shard": 20, "timeout": 5.0, "respect": "robots"},
)
Place = tuple[DataDir, PictureHost, list[Truth]]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Give an index whose pictures are all at one host, which forbids every second."""
    host, truths = make_host(80, tmp_path / "forbidden", failing=0, twisted=0)
    rules = "\n".join(f"Disallow: {truth.path}$" for truth in truths[::2])
    host.answers["/robots.txt"] = Answer(body=f"User-agent: *\n{rules}\n".encode())
    data = DataDir.at(tmp_path / "data")
    write_index(data, truths)
    try:
        yield data, host, truths
    finally:
        host.stop()


def test_streams_and_downloads_count_a_refusal_and_ask_once(place: Place) -> None:
    data, host, truths = place
    out = {truth.path for truth in truths[::2]}
    stream = laion_face.load_dataset(
        "20M",
        **{"split": "train", "streaming": True, "parts": "0", "index": str(data.index(0).parent), "images": "fetch"},
        **{"allow_private_hosts": True, "respect": "robots"},
    )
    came = [example["sample_id"] for example in stream]
    assert came == [truth.sample_id for truth in truths if truth.path not in out]
    assert laion_face.report(stream).failed == {"robots_disallowed": len(out)}
    result = download_part(data, 0, OPTIONS)
    assert result.ok == len(came)
    assert Counter(picture.status for picture in stored(data)) == {"ok": len(came), "robots_disallowed": len(out)}
    asked = Counter(request.path for request in host.log)
    assert not out & set(asked)
    # The stream's process asked, and so did the download's worker.
    assert asked["/robots.txt"] == 2

    # A refusal is final, and whether any is respected is part of what is on the disk.
    assert download_part(data, 0, but(OPTIONS, respect="headers"), retry_failed=1) == result
    with pytest.raises(StateConflict, match="opt_out"):
        download_part(data, 0, but(OPTIONS, respect="none"))
