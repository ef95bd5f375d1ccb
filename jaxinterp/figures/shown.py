"""The figure that all drawings of the package are."""

import io
from typing import Any

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A matplotlib figure that a notebook shows as the last expression of a cell, with or without `%matplotlib`.

    A figure made without pyplot, so that no global state is left behind, prints only its size.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        how: dict[str, Any] = {"format": "png", "dpi": 100, "bbox_inches": "tight", "facecolor": "white"}
        self.savefig(buffer, **how)
        return buffer.getvalue()
