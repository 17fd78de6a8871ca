"""Inspect a picture from its bytes alone: whether it is one, how large it is, and which way up.

`inspect` is the one check for pictures that were fetched and pictures that lie in tars: whatever passes decodes in
`datasets.Image()`. `neutral` keeps `datasets.Image()` from turning a picture away from its boxes.

**The frame.** LAION-Face's boxes are in the frame that OpenCV's `imdecode(IMREAD_UNCHANGED)` gives. It ignores the
orientation of JPEG, PNG, WebP and AVIF, which Pillow and `datasets` apply. Of a TIFF both libraries apply tag 274 while
decoding, so it is part of the frame and nothing is to be undone (tried on OpenCV 4.14 and Pillow 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from io import BytesIO
from typing import IO, TYPE_CHECKING, TypeAlias

from PIL import Image, ImageFile

from laion_face_builder.errors import PictureError
from laion_face_builder.images import orientation
from laion_face_builder.images.apart import APART
from laion_face_builder.images.reasons import Reason
from laion_face_builder.images.strict_pillow import STRICT
from laion_face_builder.images.structure import check_exif, check_pixels, check_structure, exif_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from laion_face_builder.images.geometry import Size

#: Raster formats of the web. Nothing that runs a program (EPS: Ghostscript) and nothing exotic is ever tried.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: Below the size at which Pillow warns of decompression bombs (89 million), so what passes does not warn later.
MAX_PIXELS = 64_000_000

_TURNS: dict[object, int] = {turn: turn for turn in range(2, 9)}
#: What undoes each orientation. 6 and 8 undo each other, the others themselves.
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that decodes, and what its bytes say of it.

    Attributes:
        data: the bytes as given.
        format: Pillow's name: JPEG, MPO, PNG, WEBP, GIF, BMP, TIFF, AVIF.
        width: pixels, in the frame that `neutral(data)` decodes to.
        height: likewise.
        orientation: 1 to 8, how `datasets.Image()` would turn it; 0 if its metadata is broken, which makes
            `datasets.Image()` fail. Anything but 1 has to go through `neutral` before it is yielded.
        known_sha256: of the bytes, in hex, if somebody knows it; "" if not.
        fetched: width and height of what the host gave, before img2dataset encoded it again; None if not known.
        fetched_sha256: of the bytes that the host gave, "" if these are they, or not known.
        is_kept: whether no host was asked for it: it was kept from an earlier epoch.
    """

    data: bytes
    format: str
    width: int
    height: int
    orientation: int
    known_sha256: str = ""
    fetched: Size | None = None
    fetched_sha256: str = ""
    is_kept: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes, in hex; worked out when asked for."""
        return self.known_sha256 or sha256(self.data).hexdigest()


def inspect(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the picture (of an animation the first frame) once, and return what it is.

    It is decoded in a process of its own (`apart`).

    Raises:
        PictureError: "empty", "not_an_image", "too_many_pixels", "too_much_metadata", "too_much_memory", "slow_decode",
            "decode_timeout", "crashed_decoder", "truncated" or "undecodable".
    """
    most = _most_pixels(max_pixels)
    _factory(data, most)
    return Picture(data, **APART.call("inspect", data, max_pixels=most)[0])


def inspect_here(data: bytes, *, max_pixels: int | None) -> Picture:
    """Do the work of `inspect`, in this process, which a decoder may end."""
    with STRICT:
        image = opened(data, max_pixels)
        try:
            # A TIFF forgets its orientation when it is loaded.
            turned = _orientation(image) if image.format == "TIFF" else None
            image.load()
        except Exception as error:  # Pillow's decoders raise whatever their parsers trip over
            raise _refusal(error) from error
        orientation = _orientation(image) if turned is None else turned
        width, height = image.size
        if image.format == "TIFF" and orientation >= 5:
            width, height = height, width
        return Picture(data, str(image.format), width, height, orientation)


def neutral(data: bytes) -> bytes:
    """Return the same pixels in bytes that nobody turns: `datasets.Image()` decodes them to the frame of the boxes.

    Lossless: one value is changed, else metadata is left out, else (AVIF and the like) the pixels are written as PNG.

    Args:
        data: a picture that `inspect` passed.

    Returns:
        `data` itself if it is upright.

    Raises:
        PictureError: it cannot be opened after all.
    """
    if not orientation.may_be_turned(data):
        return data
    return APART.rewritten("neutral", data)


def neutral_here(data: bytes) -> bytes:
    """Do the work of `neutral`, in this process."""
    with STRICT:
        if _is_upright(data):
            return data
        for keep_metadata in (True, False):
            changed = orientation.without_orientation(data, keep_metadata=keep_metadata)
            if changed is not None and _is_upright(changed):
                return changed
        return _rewritten(data)


def opened(data: bytes, max_pixels: int | None = None) -> ImageFile.ImageFile:
    """Open the picture, with its header read, by one of the readers that are allowed.

    `Image.open` is not used: it warns, and it tries every plugin there is.

    Raises:
        PictureError: as `inspect`.
    """
    most = _most_pixels(max_pixels)
    factory = _factory(data, most)
    try:
        image = factory(BytesIO(data), "")
    except Exception as error:  # as in inspect
        raise _refusal(error) from error
    check_pixels(image.size, most)
    return image


def _is_upright(data: bytes) -> bool:
    image = opened(data)
    try:
        if image.format == "PNG":
            image.load()  # what stands behind the pixels counts too
    except Exception as error:  # as in inspect
        raise _refusal(error) from error
    return _orientation(image) == 1


def _orientation(image: ImageFile.ImageFile) -> int:
    """Return `Picture.orientation`, by asking exactly what `datasets.Image()` asks."""
    try:
        if image.format == "TIFF" and orientation.ORIENTATION_TAG in getattr(image, "tag_v2", ()):
            return 1
        check_exif(exif_of(image.info))
        return _TURNS.get(image.getexif().get(orientation.ORIENTATION_TAG), 1)
    except PictureError:
        raise
    except Exception:  # Pillow's EXIF reader raises anything on broken blocks, also from inside `datasets`
        return 0


def _rewritten(data: bytes) -> bytes:
    image = opened(data)
    try:
        orientation = _orientation(image)
        image.load()
        bare = image.copy()
        bare.info = {key: image.info[key] for key in ("icc_profile", "transparency", "gamma") if key in image.info}
        if image.format == "TIFF" and orientation in _UNDO:
            bare = bare.transpose(_UNDO[orientation])
        written = _encoded(bare)
    except Exception as error:  # as in inspect
        raise _refusal(error) from error
    if not _is_upright(written):
        raise PictureError(Reason.UNDECODABLE, f"the orientation of this {image.format} cannot be taken out")
    return written


def _encoded(image: Image.Image) -> bytes:
    # PNG knows no CMYK, LAB or floats; TIFF does.
    plain = image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
    out = BytesIO()
    if plain:
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, "TIFF")
    return out.getvalue()


_Factory: TypeAlias = "Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]"


@cache
def _plugins() -> tuple[tuple[_Factory, Callable[[bytes], object]], ...]:
    Image.init()
    found = [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]
    return tuple((factory, accept) for factory, accept in found if accept is not None)


def _most_pixels(max_pixels: int | None) -> int | None:
    # Above twice Image.MAX_IMAGE_PIXELS, which is the user's to set, `datasets.Image()` fails.
    pillows = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else None
    return min((limit for limit in (max_pixels, pillows) if limit is not None), default=None)


def _factory(data: bytes, most: int | None) -> _Factory:
    """Return the reader that opens these bytes, once it is known that this takes neither long nor much memory."""
    if not data:
        raise PictureError(Reason.EMPTY, "no bytes")
    factory = next((factory for factory, accept in _plugins() if _accepts(accept, data[:16])), None)
    if factory is None:
        raise PictureError(Reason.NOT_AN_IMAGE, f"starts with {data[:16]!r}")
    check_structure(data, most)
    return factory


def _accepts(accept: Callable[[bytes], object], start: bytes) -> bool:
    answer = accept(start)
    # A string says that this Pillow was built without the format's library.
    return bool(answer) and not isinstance(answer, str)


def _refusal(error: Exception) -> PictureError:
    if isinstance(error, PictureError):
        return error
    if isinstance(error, MemoryError):
        return PictureError(Reason.TOO_MUCH_MEMORY, "more than there is")
    if isinstance(error, Image.DecompressionBombError):
        return PictureError(Reason.TOO_MANY_PIXELS, str(error))
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return PictureError(Reason.TRUNCATED if cut else Reason.UNDECODABLE, f"{type(error).__name__}: {error}")
