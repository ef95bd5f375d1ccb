"""Arrays inside a web page: quantized without losing their sums, compressed, and decoded by the page on demand."""

import base64
import gzip
import io
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Num, UInt8

Bits = Literal[8, 16]
SMALL = 64
"""Side in pixels up to which images are kept without loss."""


@dataclass(frozen=True)
class Chunks:
    """The arrays of one page, each a chunk of text that the page decodes when it is first needed.

    Attributes:
        texts: base64 of the gzipped bytes of each array.
    """

    texts: list[str] = field(default_factory=list)

    def put(self, array: Num[np.ndarray | Array, "..."]) -> dict[str, Any]:
        """Add an array; return the JSON value by which the page finds it: chunk, type and shape.

        Example:
            >>> Chunks().put(np.zeros((2, 3), np.int16))
            {'chunk': 0, 'type': 'Int16Array', 'shape': [2, 3]}
        """
        values = np.asarray(array)
        narrow = {"b": "u1", "i": f"i{min(values.itemsize, 4)}", "u": f"u{min(values.itemsize, 4)}"}
        values = values.astype(np.dtype(narrow.get(values.dtype.kind, values.dtype)).newbyteorder("<"), copy=False)
        kind = {"i": "Int", "u": "Uint", "f": "Float"}[values.dtype.kind]
        self.texts.append(compressed(values.tobytes()))
        return {
            "chunk": len(self.texts) - 1,
            "type": f"{kind}{8 * values.dtype.itemsize}Array",
            "shape": list(values.shape),
        }


def compressed(content: bytes) -> str:
    """Return the base64 of gzipped bytes, the same for the same bytes."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def script_json(value: Any) -> str:
    r"""Return JSON that can stand in a script element: nothing in it ends the element or begins a comment.

    Example:
        >>> script_json("</script><!--")
        '"\\u003c/script\\u003e\\u003c!--"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # file names that are not UTF-8


def packed(maps: Float[np.ndarray, "*batch height width"], bits: Bits = 8) -> dict[str, np.ndarray]:
    """Return many maps as the arrays that the page unpacks: `values`, `scale` and `total`, see `quantize`."""
    return dict(zip(("values", "scale", "total"), quantize(maps, bits), strict=True))


def quantize(
    maps: Float[np.ndarray, "*batch height width"], bits: Bits = 16
) -> tuple[Num[np.ndarray, "*batch height width"], Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Round maps to integers q and a scale s each so that s Σ q is Σ maps, to s / 2.

    Every entry is rounded up or down, so that it is off by at most s = max |map| / (2^(bits − 1) − 3), and by 1e-9 s
    that count as none; up are those with the largest remainders, as many as the sum needs.

    Returns:
        q, int8 or int16; s, float64; and the sums of the maps, float64, to which the page adds what is left.

    Example:
        >>> q, scale, total = quantize(np.array([[[1.0, 0.4, 0.4]]]), 8)
        >>> q.tolist(), bool(abs(scale * q.sum() - total) <= scale / 2)
        ([[[125, 50, 50]]], True)
    """
    values = np.asarray(maps, np.float64)
    flat = values.reshape(*values.shape[:-2], -1)
    total, most = flat.sum(-1), np.abs(flat).max(-1)
    scale = np.where(most > 0, most, 1) / (2 ** (bits - 1) - 3)
    steps = flat / scale[..., None]
    low = np.floor(steps + 1e-9)
    missing = np.rint(total / scale - low.sum(-1)).astype(int)[..., None]
    rank = np.argsort(np.argsort(low - steps, axis=-1, kind="stable"), axis=-1)
    rounded = low + (rank < missing)
    return rounded.reshape(values.shape).astype(f"int{bits}"), scale, total


def picture_uri(image: Float[np.ndarray, "h w c"], lossless: bool | None = None) -> str:
    """Return an image in [0, 1] as a data URI: a PNG up to `SMALL` pixels by default, a JPEG above."""
    from PIL import Image

    pixels = _bytes(image)
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer, lossless = io.BytesIO(), max(pixels.shape[:2]) <= SMALL if lossless is None else lossless
    if lossless:
        drawn.save(buffer, "PNG", optimize=True)
    else:
        drawn.save(buffer, "JPEG", quality=82)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _bytes(image: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    return np.rint(255 * np.clip(np.asarray(image, np.float64), 0, 1)).astype(np.uint8)
