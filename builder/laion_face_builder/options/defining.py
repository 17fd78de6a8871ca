"""Say which options define the examples that come, and so are part of the name of an Arrow cache, and why."""

from __future__ import annotations

import numbers
from typing import Any

ALWAYS, FETCHED, READ, NEVER = "always", "fetched", "read", "never"
#: When an option is part of an Arrow cache's id, and why. A dataset's rows are the same for the same id.
#: READ: what it leads to is what counts, and that has a fingerprint, which is in the id. FETCHED: with images="fetch";
#: what it let through into tars is in these, by content.
DEFINES = {
    "source_repo": (READ, "the index says what it was made from"),
    "source_revision": (READ, "the same"),
    "metadata": (READ, "the same"),
    "index": (READ, "the same index gives the same rows wherever it lies"),
    "parts": (ALWAYS, "which rows"),
    "shards_per_part": (NEVER, "the order of the rows is the same"),
    "min_score": (ALWAYS, "which rows"),
    "min_face_size": (ALWAYS, "which rows"),
    "min_face_area": (ALWAYS, "which rows"),
    "min_faces": (ALWAYS, "which rows"),
    "max_faces": (ALWAYS, "which rows"),
    "min_width": (ALWAYS, "which rows"),
    "min_height": (ALWAYS, "which rows"),
    "nsfw": (ALWAYS, "which rows"),
    "min_similarity": (ALWAYS, "which rows"),
    "exclude": (ALWAYS, "which rows; by what is on the list, not by its path"),
    "images": (ALWAYS, "none, fetched or stored; which stored ones, their fingerprint says"),
    "on_error": (ALWAYS, "whether failures leave rows"),
    "on_size_change": (ALWAYS, "which rows, and where faces are"),
    "resize_mode": (ALWAYS, "which pictures"),
    "image_size": (ALWAYS, "which pictures, if they are resized"),
    "resize_only_if_bigger": (ALWAYS, "which pictures, if they are resized"),
    "blur_faces": (ALWAYS, "which pixels"),
    "mode": (ALWAYS, "which pixels"),
    "order": (NEVER, "an Arrow cache is made in the index's order"),
    "concurrency": (NEVER, "how fast: the same answers give the same rows"),
    "lookahead": (NEVER, "how fast"),
    "max_buffer_bytes": (NEVER, "how fast"),
    "cache_images": (NEVER, "where from: these are answers of the same hosts to the same options"),
    "cache_bytes": (NEVER, "the same"),
    "timeout": (FETCHED, "slow hosts' rows come or fail"),
    "retries": (FETCHED, "rows whose first try failed come or fail"),
    "max_bytes": (FETCHED, "large files' rows come or fail"),
    "max_pixels": (FETCHED, "large pictures' rows come or fail"),
    "per_host": (NEVER, "how fast: a host gets the same requests, waiting in our queue takes nothing from timeout"),
    "outage_patience": (NEVER, "when a run without a network ends; no row is counted as failed for it"),
    "user_agent_token": (FETCHED, "sites allow or refuse by this name"),
    "allow_private_hosts": (FETCHED, "rows at addresses that are not public come or fail"),
    "trust_proxy": (FETCHED, "the proxy decides then which addresses are reached"),
}  # fmt: skip


def one_spelling(value: Any) -> Any:
    """Write equal numbers alike: 64, 64.0 and NumPy's are one filter."""
    if isinstance(value, dict):
        return {name: one_spelling(one) for name, one in value.items()}
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    return int(number) if float(number).is_integer() else number
