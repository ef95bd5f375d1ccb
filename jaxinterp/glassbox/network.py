"""The glass-box CNN: three analytic layers.

    E(x)[g, k] = ⟨x, g⁻¹ t_k⟩ = ⟨g x, t_k⟩        representation: templates t_k × a group, one matrix product
    Φ(x) = (I(E), E)                              invariant features (`symmetry.invariants`), and equivariant ones
    logits = V (P D (Φ − m)) + c                  standardize, reduce the dimension (PCA), classify

The unfolded convolution layer of the paper's abstract: a convolution answers an image by the inner products of shifted
templates with it, and shifts are one group of many. E is equivariant, E(h x)[g] = E(x)[g h], by a permutation that is
known and need not be fitted. Nothing is trained by descent: templates are training images, all other layers are closed
form (`jaxinterp.glassbox.classifier`); but all of it is a Flax module, which can be trained too.

Freezing. Invariants here are homogeneous of degree 1, so with their derivatives held they are linear in E with the same
value (Euler), and the logits are affine in the image: contributions of pixels, and of every (template, group element)
at `layer="representation/orbit"`, sum to the logit.

After "Analytical interpretation of the glass-box CNN" (arXiv 2101.10443), of which the abstracts could be read and the
text could not: the design is ours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.nn.layers import Layer
from jaxinterp.symmetry.groups import Group, is_exact, orbit
from jaxinterp.symmetry.invariants import CYCLIC, INVARIANTS, Name, linearized


def orbit_kernel(group: Group, templates: Float[Array, "k h w c"]) -> Float[Array, "d g k"]:
    """Return the matrix of the templates g⁻¹ t_k, each with mean 0 and norm 1, that images are multiplied by.

    Where the group leaves the grid they are cut to the disc that rotations leave inside of the image. From templates
    (K, H, W, C) to (H W C, |G|, K); a flat template is 0.
    """
    k, height, width, channels = templates.shape
    window = jnp.asarray(_window(group, height, width), templates.dtype)[None, None, :, :, None]
    moved = orbit(group.inverses, templates)
    mean = (moved * window).sum((2, 3, 4), keepdims=True) / (window.sum() * channels)
    centered = (moved - mean) * window
    square = (centered**2).sum((2, 3, 4), keepdims=True)
    unit = centered / jnp.sqrt(jnp.where(square > 0, square, 1))
    return unit.reshape(k, len(group), -1).transpose(2, 1, 0)


def _window(group: Group, height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Return 1 for the pixels of templates that are used: all, or those of the disc."""
    if is_exact(group, height, width):
        return np.ones((height, width))
    y, x = (axis - (side - 1) / 2 for axis, side in zip(np.mgrid[:height, :width], (height, width), strict=True))
    return (y**2 + x**2 <= (min(height, width) / 2) ** 2).astype(float)


KERNEL = "orbit", "kernel"  # collection and name of a matrix that is kept


class Orbit(Layer):
    """E(x)[g, k] = ⟨x, g⁻¹ t_k⟩, the responses of an image to the orbits of templates.

    Attributes:
        group: the group.
        templates: number of templates K.
    """

    group: Group
    templates: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n g k"]:
        """Return the responses, (N, |G|, K), of images (N, H, W, C): one matrix product."""
        shape = (self.templates, *x.shape[1:])
        templates = self.param("templates", nn.initializers.uniform(1.0), shape, self.param_dtype)
        kept: Array | None = self.get_variable(*KERNEL)  # see `with_orbit`
        x = self.widen(x)
        return respond((orbit_kernel(self.group, templates) if kept is None else kept).astype(x.dtype), x)


def respond(kernel: Float[Array, "d g k"], x: Float[Array, "n h w c"]) -> Float[Array, "n g k"]:
    """Return ⟨x, g⁻¹ t_k⟩ of images with the templates of `orbit_kernel`."""
    return (x.reshape(len(x), -1) @ kernel.reshape(len(kernel), -1)).reshape(len(x), *kernel.shape[1:])


class OrbitRepresentation(Layer):
    """Φ(x) = (I(E), E): features that are invariant to the group, then the equivariant ones.

    Attributes:
        group: the group.
        templates: number of templates.
        invariants: names in `jaxinterp.symmetry.invariants.INVARIANTS`, one block each; spectra are of cyclic groups.
        equivariant: whether E itself is the last block.
    """

    group: Group
    templates: int = 128
    invariants: tuple[Name, ...] = ("sorted",)
    equivariant: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require_at_least("templates", self.templates, 1)
        require(not isinstance(self.invariants, str), "invariants", repr(self.invariants), "a tuple of names")
        require(self.invariants or self.equivariant, "invariants", "none", "some, or the equivariant block")
        for name in self.invariants:
            require_one_of("invariants", name, INVARIANTS)
            if name in CYCLIC:
                self.group.require_cyclic(f"invariants: {name}")
        if self.invariants:
            self.group.require_closed()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], frozen: bool = False) -> Float[Array, "n f"]:
        """Return the features, (N, F), of images; `frozen` holds the invariants' derivatives: linear in `x`."""
        return self.features(Orbit(self.group, self.templates, name="orbit", **self.shared)(x), frozen)

    def features(self, e: Float[Array, "n g k"], frozen: bool = False) -> Float[Array, "n f"]:
        """Return the features, block after block, of responses E, (N, |G|, K)."""
        blocks = [linearized(INVARIANTS[n], e) if frozen else INVARIANTS[n](e) for n in self.invariants]
        return jnp.concatenate([*blocks, e.reshape(len(e), -1)] if self.equivariant else blocks, axis=1)

    def blocks(self) -> dict[str, slice]:
        """Return where the invariant and the equivariant features lie."""
        e = jnp.zeros((1, len(self.group), self.templates))
        invariant = sum(INVARIANTS[name](e).shape[1] for name in self.invariants)
        blocks = {"invariant": slice(0, invariant)} if invariant else {}
        return blocks | ({"equivariant": slice(invariant, invariant + e.size)} if self.equivariant else {})


class Standardize(Layer):
    """(Φ − m) d, feature by feature."""

    @nn.compact
    def __call__(self, x: Float[Array, "n f"]) -> Float[Array, "n f"]:
        """Return the standardized features, (N, F)."""
        mean = self.param("mean", nn.initializers.zeros, x.shape[1:], self.param_dtype)
        scale = self.param("scale", nn.initializers.ones, x.shape[1:], self.param_dtype)
        return (x - mean[None]) * scale[None]


class GlassBox(Layer):
    """Representation, standardization, dimension reduction and a linear classifier, as one network.

    Attributes:
        group, templates, invariants, equivariant: see `OrbitRepresentation`.
        components: features that the reduction keeps.
        classes: outputs.
    """

    group: Group
    templates: int = 128
    invariants: tuple[Name, ...] = ("sorted",)
    equivariant: bool = False
    components: int = 100
    classes: int = 10

    @property
    def representation(self) -> OrbitRepresentation:
        """Return the first of the three layers."""
        return OrbitRepresentation(
            self.group, self.templates, self.invariants, self.equivariant, name="representation", **self.shared
        )

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False, frozen: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits of images in [0, 1].

        Args:
            x: images, (N, H, W, C).
            train: as of all networks; changes nothing.
            frozen: hold the derivatives of the invariants, which makes the logits affine in `x`.
        """
        features = Standardize(name="standardize", **self.shared)(self.representation(x, frozen))
        reduced = nn.Dense(self.components, param_dtype=self.param_dtype, name="reduction")(features)
        return nn.Dense(self.classes, param_dtype=self.param_dtype, name="classifier")(reduced)

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained: from the image, or from every (template, group element)."""
        fields: Any = {"bias": black_logits, "constant": "a constant of the class"}
        return explainable(self, variables, keywords={}, levels=("representation/orbit",), **fields)


def with_orbit(network: GlassBox, variables: Any) -> dict[str, Any]:
    """Return a network's variables with the matrix of its templates' orbits, which is then not made in every call.

    Nothing flows back from it to the templates: it is for a network that is not trained any more.
    """
    templates = variables["params"]["representation"]["orbit"]["templates"]
    kernel = jax.jit(orbit_kernel, static_argnums=0)(network.group, templates)
    collection, name = KERNEL
    return {**variables, collection: {"representation": {"orbit": {name: kernel}}}}


def black_logits(variables: Any) -> Float[Array, " classes"]:
    """Return what all logits have in common with those of a black image, whose features are 0: V P D (−m) + c."""
    parts = variables["params"]
    features = -parts["standardize"]["mean"] * parts["standardize"]["scale"]
    reduced = features @ parts["reduction"]["kernel"] + parts["reduction"]["bias"]
    return reduced @ parts["classifier"]["kernel"] + parts["classifier"]["bias"]  # type: ignore[no-any-return]


def choose_templates(
    images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], count: int, seed: int = 0
) -> Float[np.ndarray, "k h w c"]:
    """Draw templates among training images, equally many of each class.

    Args:
        images: (N, H, W, C).
        labels: (N,), each at least ⌈count / classes⌉ times.
        count: number of templates, the first classes one more where they do not divide it.
        seed: of the draw.

    Returns:
        (count, H, W, C), the classes taking turns.

    Example:
        >>> images = np.arange(4.0).reshape(4, 1, 1, 1)
        >>> sorted(choose_templates(images, np.array([0, 0, 1, 1]), 4).ravel().tolist())
        [0.0, 1.0, 2.0, 3.0]
    """
    rng, (classes, counts) = np.random.default_rng(seed), np.unique(labels, return_counts=True)
    share = -(-count // len(classes))
    smallest = f"{counts.min()} of class {classes[counts.argmin()]}"
    require(counts.min() >= share, "images", smallest, f"at least {share} of each for {count} templates")
    drawn = np.stack([rng.choice(np.flatnonzero(labels == c), share, replace=False) for c in classes], axis=1)
    return images[drawn.ravel()[:count]]
