"""The result of everything that explains logits: contributions, and how far to believe them."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_channels_last
from jaxinterp.files import write_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxinterp.figures.explorer import Explorable

SHOWN = 16, 10  # images and targets that a notebook shows
PAIRS = "pairs", "integrated_hessians"
"""Methods whose contributions are of pairs of positions, (batch, T, P, *positions), without channels."""
Optional = Any  # an array of the shape that the docstring gives, or None of methods that have none


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("contributions", "logits", "targets", "bias", "residual", "weights", "curvature", "discrepancy"),
    meta_fields=("method", "layer", "held"),
)
@dataclass(frozen=True, repr=False)
class Attribution:
    """Contributions to logits; T is the number of targets, `...` the shape of one input or activation.

    Attributes:
        contributions: signed, (batch, T, ...); (batch, T, H, W, 1) of methods that score pixels. The sum over the last
            axis is the map of figures and metrics; of `pairs`, (batch, T, P, *positions), over the third.
        logits: f_k(x), (batch, T).
        targets: the classes k, (batch, T).
        bias: b_k, the part that no entry explains: in closed form where the network's is known, else f − W x; the
            output at the baseline of methods that have one, (batch, T); None of methods that do not claim completeness.
        residual: f_k − Σ contributions_k − b_k, signed, (batch, T); None of methods that do not claim completeness.
        weights: W(x)ᵀe_k of a decomposition, (batch, T, ...).
        curvature: relative second derivative of the frozen network at each example, (batch,): 0 where it is affine.
        discrepancy: largest |frozen − free| logit over the largest |free|, (batch,): 0 where the frozen network is the
            network.
        method: name of what computed it.
        layer: name of the layer whose entries contribute; "input" also of the examples before an encoding.
        held: what was held constant so that the network is affine, in words: "12 gelu, 12 softmax, 25 norm"; empty
            where nothing was, or the network is frozen in its own way. `net.held_operations(x)` lists the modules.
    """

    contributions: Float[Array, "batch t *shape"]
    logits: Float[Array, "batch t"]
    targets: Int[Array, "batch t"]
    bias: Optional = None
    residual: Optional = None
    weights: Optional = None
    curvature: Optional = None
    discrepancy: Optional = None
    method: str = field(default="", metadata={"static": True})
    layer: str = field(default="input", metadata={"static": True})
    held: str = field(default="", metadata={"static": True})

    @property
    def relative_residual(self) -> Float[Array, "batch t"] | None:
        """|residual| over the example's largest |logit| or |bias|; None without a residual."""
        if self.residual is None or self.bias is None:
            return None
        return _relative(self.residual, self.logits, self.bias)

    def maps(self, size: Sequence[int] | None = None) -> Float[Array, "batch t height width"]:
        """Return contributions summed over channels, enlarged to `size` (nearest pixel) where one is given.

        Of pairs of pixels, the sum over the P chosen ones: what each pixel contributes together with these.

        Raises:
            ConfigError: the contributions are not those of (height, width, channels). Channels first can be told from
                the shape only where there are 1 or 3 of them: sum the contributions of other such layers by hand.
        """
        shape = self.contributions.shape
        require(len(shape) == 5, "contributions", f"shape {shape}", "(batch, targets, height, width, channels)")
        paired = self.method.split(" ")[-1] in PAIRS  # also "smoothgrad of pairs"
        if not paired:
            require_channels_last("contributions", shape[1:])
        return _summed(self.contributions, 2 if paired else -1, None if size is None else tuple(size))

    def plot(
        self,
        images: Float[Array | np.ndarray, "batch h w c"] | None = None,
        classes: Sequence[str] = (),
    ) -> "Figure":
        """Draw the maps, beside the images where they are given, with names of the classes where there are some."""
        from jaxinterp.figures.maps import panel

        maps, targets = np.asarray(self.maps()), np.asarray(self.targets)
        logits = np.asarray(self.logits)
        most = int(targets.max()) + 1
        named = not isinstance(classes, str) and (len(classes) >= most or not len(classes))
        require(named, "classes", f"{len(classes)} names", f"a list of at least {most}, or none")
        if images is not None:
            shape = np.shape(images)
            fits = len(shape) == 4 and shape[0] == len(maps) and shape[3] in (1, 3)
            require(fits, "images", f"shape {shape}", f"({len(maps)}, height, width, 1 or 3)")
        names = [[classes[k] if len(classes) else f"class {k}" for k in row] for row in targets]
        titles = [
            [f"{name}: {logit:.3g}" for name, logit in zip(*pair, strict=True)]
            for pair in zip(names, logits, strict=True)
        ]
        size = maps.shape[2:] if images is None else images.shape[1:3]
        shown = np.asarray(jax.image.resize(maps, (*maps.shape[:2], *size), "nearest"))
        blank = np.ones((len(maps), *size, 3)) if images is None else np.asarray(images)
        return panel(blank, shown, titles)

    def explore(
        self,
        images: Float[Array | np.ndarray, "batch h w c"] | None = None,
        classes: Sequence[str] = (),
        labels: Int[Array | np.ndarray, " batch"] | None = None,
        names: Sequence[str] = (),
    ) -> "Explorable":
        """Return the maps to be explored: shown by a notebook, and written as a page by its `write`.

        Args:
            images: in [0, 1], gray or RGB, beside the maps.
            classes: names of all outputs. Without them it is not known whether the targets are all outputs, and the
                page does not say what the network reads.
            labels: of the images, −1 where unknown.
            names: of the images, such as file names.

        Raises:
            ConfigError: the contributions are no maps or not finite, or what is given does not fit them.
        """
        from jaxinterp.figures.explorer import Explorable, Maps

        targets, logits = np.asarray(self.targets), np.asarray(self.logits)
        most = int(targets.max(initial=0)) + 1
        named = not isinstance(classes, str) and (len(classes) >= most or not len(classes))
        require(named, "classes", f"{len(classes)} names", f"a list of at least {most}, or none")
        if images is not None:
            shape = np.shape(images)
            fits = len(shape) == 4 and shape[0] == len(targets) and shape[3] in (1, 3)
            require(fits, "images", f"shape {shape}", f"({len(targets)}, height, width, 1 or 3)")
        own = Maps(
            self.method or "contributions",
            self.layer,
            targets,
            np.asarray(self.maps(), np.float32),
            None if self.bias is None else np.asarray(self.bias),
        )
        exact = self.method == "decompose"
        count = most if labels is None else max(most, 1 + int(np.max(labels, initial=-1)))
        every = list(classes) or [f"class {k}" for k in range(count)]
        wide = np.full((len(logits), len(every)), np.nan)
        np.put_along_axis(wide, targets, logits.astype(float), 1)
        return Explorable(
            every,
            wide,
            [own],
            images=None if images is None else np.asarray(images, np.float32),
            labels=None if labels is None else np.asarray(labels),
            names=names,
            title="Exact contributions" if exact else f"Contributions by {self.method.replace('_', ' ') or 'hand'}",
            every=len(classes) > 0,
        )

    def save(
        self,
        path: str | Path,
        images: Float[Array | np.ndarray, "batch h w c"] | None = None,
        classes: Sequence[str] = (),
        labels: Int[Array | np.ndarray, " batch"] | None = None,
    ) -> None:
        """Write an .npz file, which `jaxinterp view` opens: arrays by their names, and what is given beside them."""
        parts = {name: getattr(self, name) for name in ("contributions", "logits", "targets", "bias", "residual")}
        parts |= {"images": images, "labels": labels, "classes": np.array(classes, str) if len(classes) else None}
        arrays = {name: np.asarray(part) for name, part in parts.items() if part is not None}
        write_arrays(Path(path), {**arrays, "method": np.array(self.method), "layer": np.array(self.layer)})

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.logits)

    def __repr__(self) -> str:
        """Summarize in a few lines."""
        if not isinstance(self.logits, jax.Array) or not isinstance(self.contributions, jax.Array):
            return f"Attribution({self.contributions!r}, {self.logits!r})"  # mapped over, such as to shapes
        shape, logits = self.contributions.shape, self.logits
        what = f"Attribution by {self.method or 'hand'} of {logits.shape[0]} examples, {logits.shape[1]} targets"
        lines = [what, f"  contributions {shape} of {self.layer!r}, {self.contributions.dtype}"]
        if self.held:
            lines.append(f"  held: {self.held}")
        if isinstance(logits, jax.core.Tracer):
            return "\n".join(lines)
        lines.append(f"  logits {float(logits.min()):.4g} to {float(logits.max()):.4g}")
        if self.relative_residual is not None:
            lines.append(f"  largest relative residual {float(self.relative_residual.max()):.1e}")
        if self.curvature is not None:
            lines.append(f"  largest curvature {float(self.curvature.max()):.1e}")
        if self.discrepancy is not None:
            lines.append(f"  largest discrepancy of frozen and free logits {float(self.discrepancy.max()):.1e}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show the summary, and the first maps to be explored."""
        text = f"<pre>{html.escape(repr(self))}</pre>"
        if self.contributions.ndim != 5 or isinstance(self.logits, jax.core.Tracer):
            return text
        rows, columns = SHOWN
        order = np.argsort(-np.asarray(self.logits[:rows]), axis=1)[:, :columns]
        places = np.arange(len(order))[:, None], order
        bias = None if self.bias is None else self.bias[places]
        few = Attribution(
            self.contributions[places],
            self.logits[places],
            self.targets[places],
            bias,
            method=self.method,
            layer=self.layer,
        )
        finite = all(part is None or bool(jnp.isfinite(part).all()) for part in (few.contributions, bias))
        return text + few.explore()._repr_html_() if finite else text  # NaN cannot be added up


@jax.jit
def _relative(residual: Array, logits: Array, bias: Array) -> Array:
    size = jnp.maximum(jnp.abs(logits), jnp.abs(bias)).max(1, keepdims=True)
    return jnp.abs(residual) / jnp.where(size > 0, size, 1)


@partial(jax.jit, static_argnums=(1, 2))
def _summed(contributions: Array, axis: int, size: tuple[int, int] | None) -> Array:
    sums = contributions.sum(axis)
    return sums if size is None else jax.image.resize(sums, (*sums.shape[:2], *size), "nearest")
