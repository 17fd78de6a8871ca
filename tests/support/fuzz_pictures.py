"""Damage pictures, their headers above all, and open them as everything here does that has a picture from the web."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, features

from laion_face_builder.errors import PictureError
from laion_face_builder.images import jpeg, pictures
from tests.support.fuzz_child import READ, SilentError
from tests.support.mutations import mutated

_MOST_PIXELS = 1_000_000
_SIZE = (40, 30)
#: Up to here there are headers, in most.
_HEAD = 700


@lru_cache(1)
def honest() -> list[bytes]:
    """Return small pictures of every format that is read, in its kinds."""
    return list(_made())


def _made() -> Iterator[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"exif": exif.tobytes()}
    plain = Image.linear_gradient("L").resize(_SIZE)
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("JPEG", "RGB", turned),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {"restart_marker_rows": 1}),
        ("PNG", "RGBA", turned),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {"lossless": True, **turned}),
        ("WEBP", "RGBA", {"quality": 50}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {}),
        *([("AVIF", "RGB", turned)] if features.check("avif") else []),
    ]
    for form, mode, how in kinds:
        out = io.BytesIO()
        plain.convert(mode).save(out, form, **how)
        yield out.getvalue()
    out = io.BytesIO()
    frames = [plain.rotate(10 * turn).convert("P") for turn in range(3)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    yield out.getvalue()


@dataclass(frozen=True)
class Pictures:
    """Changed pictures: refused with a reason, or what passed decodes to the size that was said, within the bound.

    Attributes:
        seed: other seeds have other changes.
    """

    seed: int = 0

    def ready(self, folder: Path) -> Callable[[int], str]:
        """See `fuzz_child.Trial`."""

        warnings.simplefilter("ignore")  # as Pillow's readers give them

        def attempt(number: int) -> str:
            rng = random.Random(f"{self.seed} {number}")
            data = mutated(rng, rng.choice(honest()), 0, rng.choice([30, _HEAD, None]))
            try:
                picture = jpeg.quick(data, max_pixels=_MOST_PIXELS) or pictures.inspect(data, max_pixels=_MOST_PIXELS)
            except PictureError as error:
                return error.reason
            if picture.width * picture.height > _MOST_PIXELS:
                raise SilentError(f"{picture.width} x {picture.height} pixels")
            # As `datasets` decodes it.
            image = Image.open(io.BytesIO(pictures.neutral(picture.data)))
            image.load()
            if image.size != (picture.width, picture.height):
                raise SilentError(f"{image.size}, {picture.width} x {picture.height} was said")
            return READ

        return attempt
