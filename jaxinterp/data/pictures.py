"""Pictures of any kind as arrays: the first one of a file, upright, opaque, of 8 bits, never squashed."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge
from jaxtyping import Shaped, UInt8

from jaxinterp.checks import Checked
from jaxinterp.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# An allow-list: of Pillow's other formats some run programs (EPS: gs), some have no signature (TGA).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_BYTES = 2**30  # of a file; Pillow itself refuses more than 179 million pixels
Fit = Literal["crop", "pad"]
Background = Literal["black", "gray", "white"]
Bits = Literal[0, 8, 10, 12, 14, 16]
_ASSUMED: tuple[Bits, ...] = (8, 12, 16)
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Conversion(Checked):
    """How pictures of any size and mode become arrays of one shape.

    Attributes:
        size: side of the square images in pixels.
        channels: 1 (gray) or 3 (RGB).
        fit: "crop" resizes (bicubic) until the shorter side fits and cuts out the center; "pad" resizes until the
            longer side fits and fills the rest with the background.
        background: color under transparent parts.
        bits: of gray values beyond 8 bits, 2^bits - 1 of which becomes white; 0 assumes the fewest of 8, 12 and 16 that
            hold the largest value.
    """

    size: Annotated[int, Ge(1)] = 64
    channels: Literal[1, 3] = 3
    fit: Fit = "crop"
    background: Background = "black"
    bits: Bits = 0


class Picture(NamedTuple):
    """A converted picture.

    Attributes:
        pixels: uint8 (H, W, C).
        original: size and mode before, such as "640x427 CMYK".
        notes: what was done to it, a few words each.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    original: str
    notes: tuple[str, ...]


def read_file(path: Path) -> bytes:
    """Read a file of at most 1 GiB; DataError says what was got and expected, without the path."""
    try:
        if not path.is_file():
            raise DataError(f"got {'something else' if path.exists() else 'no such file'}, expected a file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(f"got {size / 2**30:.1f} GiB, expected a file of at most 1 GiB")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"got {getattr(error, 'strerror', None) or error}, expected a file that can be read") from error


def convert(source: bytes | Shaped[np.ndarray, "..."], width: int, height: int, conversion: Conversion) -> Picture:
    """Convert a picture to `width` x `height` pixels.

    In this order: the first picture of an animation, turned as its EXIF orientation says; deep gray values scaled to 8
    bits; transparent parts laid over the background; gray or RGB; resized with its aspect ratio kept.

    Args:
        source: an encoded file of one of `FORMATS`; or pixels (H, W), (H, W, 1), (H, W, 3) or, the last one opacity,
            (H, W, 4), of uint8, uint16, bool or floats in [0, 1].
        width: of the result, in pixels.
        height: of the result, in pixels.
        conversion: the rest; its `size` is not used.

    Raises:
        DataError: not a picture, damaged, too large, or of values without a known scale; the message, what was got and
            expected, has no name.
    """
    from PIL import UnidentifiedImageError

    if isinstance(source, bytes) and not source:
        raise DataError("got an empty file, expected an image")
    try:
        return _converted(source, width, height, conversion)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"got another kind of file, expected an image of {', '.join(FORMATS)}") from None
    except Exception as error:  # of damaged files Pillow's decoders raise anything
        message = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"got {message}, expected an image that can be read") from error


def _converted(source: bytes | Shaped[np.ndarray, "..."], width: int, height: int, conversion: Conversion) -> Picture:
    from PIL import Image, ImageOps

    notes, image = list[str](), Image.new("L", (1, 1))
    if isinstance(source, bytes):
        with Image.open(io.BytesIO(source), formats=FORMATS) as file:
            original, mode = f"{file.width}x{file.height} {file.mode}", file.mode
            if getattr(file, "is_animated", False):
                notes.append("first of several pictures")
            if any(";16" in str(tile[3]) for tile in getattr(file, "tile", ())) and not _deep(mode):
                notes.append("16-bit colors by their upper 8 bits")
            file.draft(file.mode, (2 * width, 2 * height))  # a large JPEG is decoded at half, a quarter, an eighth
            if file.getexif().get(_ORIENTATION, 1) in range(2, 9):
                notes.append("turned by its EXIF orientation")
            image = ImageOps.exif_transpose(file)
    else:
        levels, told = _levels(
            source[..., 0] if source.ndim == 3 and source.shape[-1] == 1 else source, conversion.bits
        )
        notes += told
        image = Image.fromarray(levels)
        original, mode = f"{image.width}x{image.height} {image.mode}", image.mode
    if _deep(mode):
        pixels, bits = _eight_bits(image, conversion.bits)
        image = Image.fromarray(pixels)
        notes.append(f"values 0 to {2**bits - 1} of {bits} bits" if bits else "values 0 to 1")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            notes.append(f"transparent parts over {conversion.background}")
        image = Image.alpha_composite(Image.new("RGBA", image.size, conversion.background), image)
    wanted = "L" if conversion.channels == 1 else "RGB"
    if mode != wanted:
        notes.append(f"{mode} as {wanted}")
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # from where Pillow knows the way to gray
    if image.mode != wanted:  # `convert` would copy it
        image = image.convert(wanted)
    if image.width * height != image.height * width:
        notes.append("cut to its center" if conversion.fit == "crop" else f"padded with {conversion.background}")
    method, size = Image.Resampling.BICUBIC, (width, height)
    if conversion.fit == "crop":
        image = ImageOps.fit(image, size, method)
    else:
        image = ImageOps.pad(image, size, method, _level(conversion.background, wanted))
    return Picture(np.array(image).reshape(height, width, conversion.channels), original, tuple(notes))


def _level(background: Background, mode: str) -> int | tuple[int, ...]:
    from PIL import ImageColor

    return ImageColor.getcolor(background, mode)


def _deep(mode: str) -> bool:
    """Tell whether a mode of Pillow has gray values of more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _eight_bits(image: "Image", bits: int) -> tuple[UInt8[np.ndarray, "h w"], int]:
    """Scale deep gray values to 0..255, which Pillow's own conversion would clip; return the bits assumed too."""
    mode, values = image.mode, np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    bits = 0 if mode == "F" else bits or assumed_bits(high)
    full = 2**bits - 1 if bits else 1
    if not 0 <= low <= high <= full:  # false for NaN too
        raise DataError(f"got {mode} values from {low:g} to {high:g}, expected 0 to {full}")
    return np.rint(values * (255 / full)).astype(np.uint8), bits


def _levels(pixels: Shaped[np.ndarray, "..."], bits: int) -> tuple[UInt8[np.ndarray, "..."], list[str]]:
    """Return pixels as 8 bits, and how they were scaled."""
    if pixels.dtype == np.uint8:
        return pixels, []
    bits = bits or assumed_bits(float(pixels.max()))
    full, note = 1, "floats rounded to 8 bits" if pixels.dtype.kind == "f" else "bool as 0 and 255"
    if pixels.dtype == np.uint16:
        full, note = 2**bits - 1, f"values 0 to {2**bits - 1} of {bits} bits"
    if pixels.max() > full:
        raise DataError(f"got values up to {pixels.max()}, expected 0 to {full}")
    return np.rint(pixels.astype(np.float64) * (255 / full)).astype(np.uint8), [note]


def assumed_bits(largest: float) -> Bits:
    """Return the fewest of 8, 12 and 16 bits that hold a value; 16 if none does.

    >>> [assumed_bits(value) for value in (255.0, 256.0, 4095.0, 4096.0)]
    [8, 12, 12, 16]
    """
    return next((bits for bits in _ASSUMED if largest < 2**bits), _ASSUMED[-1])


def largest_deep_value(content: bytes) -> float:
    """Return the largest value of a gray integer image of more than 8 bits, -1 for others and what is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            deep = _deep(file.mode) and file.mode != "F"
            return float(np.asarray(file, np.float64).max()) if deep else -1.0
    except Exception:  # found again, and named, when the image is read
        return -1.0


def size_of(source: bytes | Shaped[np.ndarray, "..."]) -> tuple[int, int, Literal[1, 3]] | None:
    """Return a picture's height and width in pixels and its channels, by the head of its file; None of what is none.

    >>> size_of(np.zeros((48, 64, 4), np.uint8))
    (48, 64, 3)
    """
    from PIL import Image

    if not isinstance(source, bytes):
        return source.shape[0], source.shape[1], 1 if source.ndim == 2 or source.shape[2] == 1 else 3
    try:
        with Image.open(io.BytesIO(source), formats=FORMATS) as file:
            return file.height, file.width, 1 if file.mode in ("1", "L", "LA") or _deep(file.mode) else 3
    except Exception:  # named when the image is read
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings of odd metadata and large images off; not for several threads at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        warnings.filterwarnings("ignore", message=".*could be decompression bomb", category=Warning)
        yield
