"""What tests ask of streams: which ids come, and the state after some of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np


def ids_of(examples: Iterable[Any]) -> list[int]:
    return [example["sample_id"] for example in examples]


def flat_ids_of(examples: Iterable[Any]) -> list[int]:
    """Return the ids of examples, or of batches of them in whatever form."""
    return [sample_id for example in examples for sample_id in np.atleast_1d(example["sample_id"]).tolist()]


def read(ds: Any, count: int) -> tuple[list[int], dict[str, Any]]:
    """Return the first ids, and the state after them, as a file gives it back."""
    seen = ids_of(islice(iter(ds), count))
    return seen, json.loads(json.dumps(ds.state_dict()))


def ours_in(state: dict[str, Any]) -> dict[str, Any]:
    """Return our own part of a state, under whatever datasets has wrapped around it."""
    while "part" not in state:
        state = state["examples_iterable"]
    return state
