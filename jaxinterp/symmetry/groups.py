"""Finite groups and their actions on images, on feature maps and on responses to orbits of templates.

An element g moves pixels, p ↦ g p, about the center of the image, and an image with them,

    (g x)(p) = x(g⁻¹ p)          (gh) x = g (h x)

so a group is a left action. Rotations by quarter turns, mirrors and cyclic shifts permute the pixels and are exact;
other rotations and scales interpolate (bilinear, black outside), and the group law holds to the
`jaxinterp.symmetry.equivariance.interpolation_error` of the images.

The response of an image to the orbit of a template, E[g] = ⟨g x, t⟩, is equivariant: E(h x)[g] = E(x)[g h], a known
permutation of the axis of g. Functions that this permutation does not change are in `jaxinterp.symmetry.invariants`.

Source: Cohen & Welling, "Group Equivariant Convolutional Networks", ICML 2016 (actions, regular representation).
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_one_of

GRID_TOLERANCE = 1e-6
"""Pixels by which a position may miss the grid and still be on it."""


class Element(NamedTuple):
    """p ↦ [[a, b], [c, d]] p + (u, v), for p = (row, column) in pixels from the image's center."""

    a: float
    b: float
    c: float
    d: float
    u: float = 0.0
    v: float = 0.0

    def after(self, other: "Element") -> "Element":
        """Return the element that moves by `other`, then by this one."""
        a, b, c, d, u, v = self
        e, f, g, h, s, t = other
        return Element(a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h, a * s + b * t + u, c * s + d * t + v)

    def inverse(self) -> "Element":
        """Return the element that moves back."""
        a, b, c, d, u, v = self
        area = a * d - b * c
        a, b, c, d = d / area, -b / area, -c / area, a / area
        return Element(a, b, c, d, -(a * u + b * v), -(c * u + d * v))


IDENTITY = Element(1.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Group:
    """A finite set of motions with the identity first; a group where every product is in it again.

    Attributes:
        name: such as C4.
        elements: the motions, all different.
        period: height and width in pixels of the torus on which shifts wrap around; None where there is an edge.
    """

    name: str
    elements: tuple[Element, ...]
    period: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check that the identity comes first, and no element twice."""
        first = self.elements[:1]
        require(first and self.index(IDENTITY) == 0, "elements", first, f"the identity as the first of {self.name}")
        for i, element in enumerate(self.elements):
            place = self.index(element)
            require(place == i, "elements", f"number {place} of {self.name} again as number {i}", "different ones")

    def __len__(self) -> int:
        """Return the number of elements."""
        return len(self.elements)

    def _key(self, element: Element) -> tuple[int, ...]:
        """Round the element to a lattice of millionths, its shift wrapped."""
        u, v = ((s + p / 2) % p - p / 2 if p else s for s, p in zip(element[4:], self.period or (0, 0), strict=True))
        return tuple(round(x / GRID_TOLERANCE) for x in (*element[:4], u, v))

    @cached_property
    def _places(self) -> dict[tuple[int, ...], int]:
        return {self._key(element): i for i, element in reversed(list(enumerate(self.elements)))}

    def index(self, element: Element) -> int:
        """Return the place of an element in the group, −1 where it is not in it."""
        return self._places.get(self._key(element), -1)

    @cached_property
    def table(self) -> Int[np.ndarray, "g g"]:
        """Cayley table: the place of g h at [g, h], −1 where the product leaves the set (scales)."""
        return np.array([[self.index(g.after(h)) for h in self.elements] for g in self.elements], np.int32)

    @cached_property
    def inverse(self) -> Int[np.ndarray, " g"]:
        """The place of every element's inverse, −1 where it is not in the set."""
        return np.array([self.index(g.inverse()) for g in self.elements], np.int32)

    @property
    def inverses(self) -> "Group":
        """The inverse of every element, in their order."""
        return Group(f"inverses of {self.name}", tuple(e.inverse() for e in self.elements), self.period)

    @property
    def closed(self) -> bool:
        """Whether this is a group: no product leaves the set."""
        return bool((self.table >= 0).all())

    @property
    def cyclic(self) -> bool:
        """Whether the elements are 1, g, g², …, as spectra need them."""
        powers = np.arange(len(self))
        return bool((self.table == (powers[:, None] + powers) % len(self)).all())

    def require_closed(self) -> None:
        """Raise ConfigError where a product is not in the set."""
        require(self.closed, "group", f"{self.name}, which has products outside of itself", "a group such as C8 or D4")

    def require_cyclic(self, name: str) -> None:
        """Raise ConfigError, for the argument of this name, where the elements are not the powers of one in order."""
        require(self.cyclic, name, f"the group {self.name}", "a cyclic one such as C8")


def _turn(angle: float) -> Element:
    """Return the rotation by `angle` radians, counter-clockwise as images are shown (rows go down)."""
    sine, cosine = (round(f(angle), 15) + 0.0 for f in (math.sin, math.cos))
    return Element(cosine, -sine, sine, cosine)


def _require_count(name: str, value: int) -> None:
    require(isinstance(value, int | np.integer) and value >= 1, name, repr(value), "an integer of at least 1")


def rotations(n: int) -> Group:
    """Return the cyclic group C_n of rotations by multiples of 2π/n, counter-clockwise; exact for n = 1, 2, 4.

    Args:
        n: number of rotations, ≥ 1.

    Example:
        >>> group = rotations(4)
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> transform(group, 1, x)[0, :, :, 0].tolist() == jnp.rot90(x[0, :, :, 0]).tolist()
        True
        >>> group.name, group.cyclic, group.table[1, 3].item()
        ('C4', True, 0)
    """
    _require_count("n", n)
    return Group(f"C{n}", tuple(_turn(2 * math.pi * i / n) for i in range(n)))


def dihedral(n: int) -> Group:
    """Return the group D_n of n ≥ 1 rotations, then the mirror (left to right) before each; exact for n = 1, 2, 4.

    Example:
        >>> len(dihedral(4)), dihedral(4).closed, dihedral(4).cyclic
        (8, True, False)
    """
    _require_count("n", n)
    turns, mirror = rotations(n).elements, Element(1.0, 0.0, 0.0, -1.0)
    return Group(f"D{n}", (*turns, *(turn.after(mirror) for turn in turns)))


def flips(axis: Literal["horizontal", "vertical"] = "horizontal") -> Group:
    """Return the identity and one mirror: left to right, or top to bottom.

    Example:
        >>> transform(flips("vertical"), 1, jnp.arange(2.0).reshape(1, 2, 1, 1)).ravel().tolist()
        [1.0, 0.0]
    """
    require_one_of("axis", axis, ("horizontal", "vertical"))
    sign = 1.0 if axis == "horizontal" else -1.0
    return Group(f"{axis} flip", (IDENTITY, Element(sign, 0.0, 0.0, -sign)))


def shifts(height: int, width: int, step: int = 1) -> Group:
    """Return the cyclic shifts of images of one size by multiples of `step` pixels, which divides height and width.

    Example:
        >>> transform(shifts(1, 3), 1, jnp.arange(3.0).reshape(1, 1, 3, 1)).ravel().tolist()
        [2.0, 0.0, 1.0]
    """
    for name, value in (("step", step), ("height", height), ("width", width)):
        _require_count(name, value)
        require(value % step == 0, name, value, f"a multiple of step={step}")
    moves = itertools.product(range(0, height, step), range(0, width, step))
    elements = tuple(Element(1.0, 0.0, 0.0, 1.0, float(u), float(v)) for u, v in moves)
    return Group(f"shifts by {step} of {height}x{width}", elements, (height, width))


def scales(ratio: int | float, n: int) -> Group:
    """Return enlargements by ratio⁰, ratio⁻¹, ratio¹, …, ratio⁻ⁿ, ratioⁿ about the center: not closed, interpolated.

    Args:
        ratio: of one scale to the next, > 1.
        n: steps down and up, ≥ 1.

    Example:
        >>> [round(element.a, 3) for element in scales(2**0.5, 1).elements]
        [1.0, 0.707, 1.414]
    """
    _require_count("n", n)
    require(1 < ratio < math.inf, "ratio", ratio, "a number above 1")
    powers = (0, *(sign * i for i in range(1, n + 1) for sign in (-1, 1)))
    return Group(f"scales {ratio:g}^-{n}..{n}", tuple(Element(ratio**i, 0.0, 0.0, ratio**i) for i in powers))


@lru_cache(maxsize=64)
def _sampling(group: Group, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where every pixel of every moved image comes from, (|G|, HW, taps), and the weights, 0 outside."""
    turned = any(abs(e.b) > GRID_TOLERANCE or abs(e.c) > GRID_TOLERANCE for e in group.elements)
    images = f"{height}x{width} images"
    require(not turned or height == width, "x", images, f"square ones for {group.name}, (N, H, W, ...)")
    require(group.period in (None, (height, width)), "x", images, f"{group.period} for {group.name}")
    center = (np.array([height, width]) - 1) / 2
    rows, columns = (axis.ravel() for axis in np.mgrid[:height, :width])
    moved = np.stack([rows, columns], -1) - center
    back = np.array([e.inverse() for e in group.elements])
    source = np.einsum("gij,pj->gpi", back[:, :4].reshape(-1, 2, 2), moved) + back[:, None, 4:] + center
    if group.period is not None:
        source = np.mod(source + GRID_TOLERANCE, (height, width)) - GRID_TOLERANCE
    nearest = np.round(source)
    if np.abs(source - nearest).max() <= GRID_TOLERANCE:
        corners, weights = nearest[:, :, None], np.ones((*source.shape[:2], 1))
    else:
        low = np.floor(source)
        part = source - low
        steps = np.array(list(itertools.product((0, 1), (0, 1))))
        corners = low[:, :, None] + steps
        weights = np.where(steps == 1, part[:, :, None], 1 - part[:, :, None]).prod(-1)
    y, x = (corners[..., i].astype(np.int64) for i in (0, 1))
    if group.period is not None:
        y, x = y % height, x % width
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return np.where(inside, y * width + x, 0).astype(np.int32), np.where(inside, weights, 0.0)


def is_exact(group: Group, height: int, width: int) -> bool:
    """Return whether every element permutes the pixels of images of a size: no interpolation, nothing off the grid.

    Example:
        >>> is_exact(rotations(4), 28, 28), is_exact(rotations(8), 28, 28)
        (True, False)
    """
    places, weights = _sampling(group, height, width)
    return places.shape[-1] == 1 and bool((weights == 1).all())


def transform(group: Group, g: int | Int[Array, ""], x: Float[Array, "n h w *c"]) -> Float[Array, "n h w *c"]:
    """Return the images g x: (g x)(p) = x(g⁻¹ p), bilinear where g⁻¹ p is off the grid, 0 outside.

    Args:
        group: the group.
        g: which element, in [0, |G|); may be traced.
        x: images or feature maps, (N, H, W, ...); square for rotations, of the group's `period` for shifts.

    Returns:
        (N, H, W, ...).
    """
    _require_element("g", group, g)
    require(x.ndim >= 3 and 0 not in x.shape, "x", f"shape {x.shape}", "images (N, H, W, ...), at least one")
    fits = jnp.issubdtype(x.dtype, jnp.inexact) or is_exact(group, *x.shape[1:3])
    require(fits, "x", x.dtype, f"floating images for {group.name}, which interpolates")
    return _transform(group, jnp.asarray(g, jnp.int32), x)


def _require_element(name: str, group: Group, g: Any) -> None:
    """Raise unless g is the place of an element; a traced one is not known, and passes."""
    inside = isinstance(g, jax.core.Tracer) or (0 <= g < len(group) and g == int(g))
    require(inside, name, g, f"an element of {group.name} in [0, {len(group)})")


@partial(jax.jit, static_argnums=0)
def _transform(group: Group, g: Int[Array, ""], x: Float[Array, "n h w *c"]) -> Float[Array, "n h w *c"]:
    places, weights = _sampling(group, *x.shape[1:3])
    weight = jnp.asarray(weights, x.dtype)[g]
    flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)
    taken = jnp.take(flat, jnp.asarray(places)[g], axis=1)
    return (taken * weight[None, :, :, None]).sum(2).reshape(x.shape)


def orbit(group: Group, x: Float[Array, "n h w *c"]) -> Float[Array, "n g h w *c"]:
    """Return all images g x of x, as of `transform`."""
    return jax.vmap(lambda g: transform(group, g, x), out_axes=1)(jnp.arange(len(group)))


def transform_regular(group: Group, g: int | Int[Array, ""], z: Float[Array, "n h w g c"]) -> Float[Array, "n h w g c"]:
    """Return g z for feature maps with a group axis, as of G-CNNs: (g z)[p, h] = z[g⁻¹ p, g⁻¹ h]; see `transform`."""
    group.require_closed()
    fits = z.ndim >= 4 and z.shape[3] == len(group)
    require(fits, "z", f"shape {z.shape}", f"(N, H, W, {len(group)}, C) for {group.name}")
    return jnp.take(transform(group, g, z), jnp.asarray(group.table[group.inverse])[jnp.asarray(g)], axis=3)


def permute(group: Group, h: int | Int[Array, ""], e: Float[Array, "n g *k"]) -> Float[Array, "n g *k"]:
    """Return the responses (N, |G|, ...) of h x to an orbit from those of x, E(h x)[g] = E(x)[g h]; see `transform`."""
    group.require_closed()
    _require_element("h", group, h)
    fits = e.ndim >= 2 and e.shape[1] == len(group)
    require(fits, "e", f"shape {e.shape}", f"(N, {len(group)}, ...) for {group.name}")
    return jnp.take(e, jnp.asarray(group.table)[:, jnp.asarray(h)], axis=1)
