"""An example as a dataset yields it, without a dataset."""

from __future__ import annotations

from typing import Any

from PIL import Image

LANDMARKS = [[30.0, 40.0], [60.0, 40.0], [45.0, 55.0], [33.0, 70.0], [57.0, 70.0]]


def example(**given: Any) -> dict[str, Any]:
    """Make an example with one face on a plain picture."""
    image = given.pop("image", Image.new("RGB", (200, 160), (250, 240, 120)))
    width, height = image.size if image is not None else (None, None)
    return {
        "sample_id": 7,
        "part": 0,
        "image": image,
        "caption": "A caption",
        "faces": [{"box": [20.0, 20.0, 90.0, 100.0], "landmarks": LANDMARKS, "score": 0.875}],
        "url": "http://host.example/a.jpg",
        "width": width,
        "height": height,
        "original_width": 200,
        "original_height": 160,
        "faces_aligned": image is not None,
        "nsfw": "UNLIKELY",
        "similarity": 0.31,
        "license": "?",
        **given,
    }
