"""Finite groups that act on images, and how far a function of images is from equivariant or invariant.

An element g moves pixels, p ↦ g p, about the center of the image, and an image with them,

    (g x)(p) = x(g⁻¹ p)          (gh) x = g (h x)

so a group is a left action. Rotations by quarter turns, mirrors and cyclic shifts permute the pixels and are exact;
other rotations and scales interpolate (bilinear, black outside), and the group law holds to `interpolation_error`.

The response of an image to the orbit of a template, E[g] = ⟨g x, t⟩, is equivariant: E(h x)[g] = E(x)[g h], a known
permutation of the axis of g. What that permutation leaves alone is in `jaxinterp.symmetry.invariants`.

Source: Cohen & Welling, "Group Equivariant Convolutional Networks", ICML 2016 (actions, regular representation).
"""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NEAR = 1e-6
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
        """The element that moves by `other`, then by this one."""
        a, b, c, d, u, v = self
        first, second = (
            (a * other.a + b * other.c, a * other.b + b * other.d),
            (
                c * other.a + d * other.c,
                c * other.b + d * other.d,
            ),
        )
        return Element(*first, *second, a * other.u + b * other.v + u, c * other.u + d * other.v + v)

    def inverse(self) -> "Element":
        """The element that moves back."""
        a, b, c, d, u, v = self
        area = a * d - b * c
        a, b, c, d = d / area, -b / area, -c / area, a / area
        return Element(a, b, c, d, -(a * u + b * v), -(c * u + d * v))


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
        """Refuse a list without the identity at its head, or with an element twice.

        Raises:
            ValueError: which element.
        """
        places = [self.index(element) for element in self.elements]
        if places[:1] != [0] or self._key(self.elements[0]) != self._key(Element(1.0, 0.0, 0.0, 1.0)):
            raise ValueError(f"elements: the first of {self.name} is not the identity")
        for i, place in enumerate(places):
            if place != i:
                raise ValueError(f"elements: number {i} of {self.name} is number {place} again")

    def __len__(self) -> int:
        """Number of elements."""
        return len(self.elements)

    def _key(self, element: Element) -> tuple[int, ...]:
        """The element on a lattice of millionths, its shift wrapped."""
        u, v = ((s + p / 2) % p - p / 2 if p else s for s, p in zip(element[4:], self.period or (0, 0), strict=True))
        return tuple(round(x / NEAR) for x in (*element[:4], u, v))

    @cached_property
    def _places(self) -> dict[tuple[int, ...], int]:
        places: dict[tuple[int, ...], int] = {}
        for i, element in enumerate(self.elements):
            places.setdefault(self._key(element), i)
        return places

    def index(self, element: Element) -> int:
        """The place of an element in the group, −1 where it is not in it."""
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
        name = f"inverses of {self.name}"
        return Group(name, tuple(e.inverse() for e in self.elements), self.period)

    @property
    def closed(self) -> bool:
        """Whether this is a group: no product leaves the set."""
        return bool((self.table >= 0).all())

    @property
    def cyclic(self) -> bool:
        """Whether the elements are 1, g, g², …, as spectra need them."""
        steps = np.arange(len(self))
        return bool((self.table == (steps[:, None] + steps) % len(self)).all())

    def require_closed(self) -> None:
        """Refuse a set that is no group.

        Raises:
            ValueError: a product is not in it.
        """
        if not self.closed:
            raise ValueError(f"group: {self.name} has products outside of itself, expected a group such as C8 or D4")

    def require_cyclic(self, what: str) -> None:
        """Refuse a group that has no spectrum along its elements.

        Raises:
            ValueError: it is not cyclic, in the order of powers of one element.
        """
        if not self.cyclic:
            raise ValueError(f"{what}: got the group {self.name}, expected a cyclic one such as C8")


def _turn(angle: float) -> Element:
    """Rotation by `angle` radians, counter-clockwise as images are shown (rows go down)."""
    sine, cosine = (round(f(angle), 15) + 0.0 for f in (math.sin, math.cos))
    return Element(cosine, -sine, sine, cosine)


def _count(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")


def rotations(n: int) -> Group:
    """The cyclic group C_n of rotations by multiples of 2π/n, counter-clockwise; exact for n = 1, 2, 4.

    Args:
        n: number of rotations, ≥ 1.

    Raises:
        ValueError: `n` is no integer of at least 1.

    Example:
        >>> group = rotations(4)
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> transform(group, 1, x)[0, :, :, 0].tolist() == jnp.rot90(x[0, :, :, 0]).tolist()
        True
        >>> group.name, group.cyclic, group.table[1, 3].item()
        ('C4', True, 0)
    """
    _count("n", n)
    return Group(f"C{n}", tuple(_turn(2 * math.pi * i / n) for i in range(n)))


def dihedral(n: int) -> Group:
    """The group D_n of n rotations, then the mirror (left to right) followed by each of them; exact for n = 1, 2, 4.

    Args:
        n: number of rotations, ≥ 1.

    Raises:
        ValueError: `n` is no integer of at least 1.

    Example:
        >>> len(dihedral(4)), dihedral(4).closed, dihedral(4).cyclic
        (8, True, False)
    """
    _count("n", n)
    turns, mirror = rotations(n).elements, Element(1.0, 0.0, 0.0, -1.0)
    return Group(f"D{n}", (*turns, *(turn.after(mirror) for turn in turns)))


def flips(axis: Literal["horizontal", "vertical"] = "horizontal") -> Group:
    """The identity and one mirror: left to right, or top to bottom.

    Example:
        >>> transform(flips("vertical"), 1, jnp.arange(2.0).reshape(1, 2, 1, 1)).ravel().tolist()
        [1.0, 0.0]
    """
    if axis not in ("horizontal", "vertical"):
        raise ValueError(f"axis: got {axis!r}, expected horizontal or vertical")
    sign = 1.0 if axis == "horizontal" else -1.0
    return Group(f"{axis} flip", (Element(1.0, 0.0, 0.0, 1.0), Element(sign, 0.0, 0.0, -sign)))


def shifts(height: int, width: int, step: int = 1) -> Group:
    """Cyclic shifts of images of one size, by multiples of `step` pixels downwards and to the right.

    Args:
        height: of the images in pixels, a multiple of `step`.
        width: of the images in pixels, a multiple of `step`.
        step: in pixels, ≥ 1.

    Raises:
        ValueError: a number is no integer of at least 1, or a size no multiple of `step`.

    Example:
        >>> transform(shifts(1, 3), 1, jnp.arange(3.0).reshape(1, 1, 3, 1)).ravel().tolist()
        [2.0, 0.0, 1.0]
    """
    for name, value in (("step", step), ("height", height), ("width", width)):
        _count(name, value)
        if value % step:
            raise ValueError(f"{name}: got {value}, expected a multiple of step={step}")
    moves = itertools.product(range(0, height, step), range(0, width, step))
    elements = tuple(Element(1.0, 0.0, 0.0, 1.0, float(u), float(v)) for u, v in moves)
    return Group(f"shifts by {step} of {height}x{width}", elements, (height, width))


def scales(ratio: int | float, n: int) -> Group:
    """Enlargements by ratio⁰, ratio⁻¹, ratio¹, …, ratio⁻ⁿ, ratioⁿ about the center: not closed, and interpolated.

    Args:
        ratio: of one scale to the next, > 1.
        n: steps down and up, ≥ 1.

    Raises:
        ValueError: `ratio` ≤ 1, or `n` is no integer of at least 1.

    Example:
        >>> [round(element.a, 3) for element in scales(2**0.5, 1).elements]
        [1.0, 0.707, 1.414]
    """
    _count("n", n)
    if not 1 < ratio < math.inf:
        raise ValueError(f"ratio: got {ratio}, expected a number above 1")
    powers = (0, *(sign * i for i in range(1, n + 1) for sign in (-1, 1)))
    elements = tuple(Element(ratio**i, 0.0, 0.0, ratio**i) for i in powers)
    return Group(f"scales {ratio:g}^-{n}..{n}", elements)


def product(first: Group, second: Group) -> Group:
    """All motions by an element of `second`, then by one of `first`; the group index runs over `second` fastest.

    Raises:
        ValueError: two tori of different sizes, or a product that comes twice.

    Example:
        >>> group = product(rotations(2), flips())
        >>> len(group), group.closed
        (4, True)
    """
    if None not in (first.period, second.period) and first.period != second.period:
        raise ValueError(f"second: got a torus of {second.period}, expected {first.period} as of {first.name}")
    elements = tuple(g.after(h) for g in first.elements for h in second.elements)
    return Group(f"{first.name} x {second.name}", elements, first.period or second.period)


@lru_cache(maxsize=64)
def _sampling(group: Group, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where every pixel of every moved image comes from: (|G|, HW, taps) places, −1 outside, and their weights."""
    turned = any(abs(e.b) > NEAR or abs(e.c) > NEAR for e in group.elements)
    if turned and height != width:
        raise ValueError(f"x: got {height}x{width} images, expected square ones for {group.name}, (N, H, W, ...)")
    if group.period not in (None, (height, width)):
        raise ValueError(f"x: got {height}x{width} images, expected {group.period} for {group.name}")
    center = (np.array([height, width]) - 1) / 2
    rows, columns = (axis.ravel() for axis in np.mgrid[:height, :width])
    moved = np.stack([rows, columns], -1) - center
    back = np.array([e.inverse() for e in group.elements])
    source = np.einsum("gij,pj->gpi", back[:, :4].reshape(-1, 2, 2), moved) + back[:, None, 4:] + center
    if group.period is not None:
        source = np.mod(source + NEAR, (height, width)) - NEAR
    nearest = np.round(source)
    if np.abs(source - nearest).max() <= NEAR:
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
    """Whether every element permutes the pixels of images of a size: nothing is interpolated, nothing leaves the grid.

    Raises:
        ValueError: images that the group cannot move, such as non-square ones for rotations.

    Example:
        >>> is_exact(rotations(4), 28, 28), is_exact(rotations(8), 28, 28)
        (True, False)
    """
    places, weights = _sampling(group, height, width)
    return places.shape[-1] == 1 and bool((weights == 1).all())


def transform(group: Group, g: int | Int[Array, ""], x: Float[Array, "n h w *c"]) -> Float[Array, "n h w *c"]:
    """The images g x: (g x)(p) = x(g⁻¹ p), interpolated bilinearly where g⁻¹ p is off the grid, 0 outside.

    Args:
        group: the group.
        g: which element, in [0, |G|); may be traced.
        x: images or feature maps, (N, H, W, ...).

    Returns:
        (N, H, W, ...).

    Raises:
        ValueError: images that the group cannot move, such as non-square ones for rotations, or `g` out of range.
    """
    _require_element("g", group, g)
    if x.ndim < 3 or 0 in x.shape:
        raise ValueError(f"x: got shape {x.shape}, expected images (N, H, W, ...), at least one")
    if not jnp.issubdtype(x.dtype, jnp.inexact) and not is_exact(group, *x.shape[1:3]):
        raise ValueError(f"x: got {x.dtype}, expected floating images for {group.name}, which interpolates")
    return _act(group, jnp.asarray(g, jnp.int32), x)


def _require_element(name: str, group: Group, g: Any) -> None:
    """Refuse what is no element of a group; a traced one is not known, and passes."""
    if not isinstance(g, jax.core.Tracer) and (g != int(g) or not 0 <= g < len(group)):
        raise ValueError(f"{name}: got {g}, expected an element of {group.name} in [0, {len(group)})")


@partial(jax.jit, static_argnums=0)
def _act(group: Group, g: Int[Array, ""], x: Float[Array, "n h w *c"]) -> Float[Array, "n h w *c"]:
    places, weights = _sampling(group, *x.shape[1:3])
    flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)
    weight = jnp.asarray(weights, x.dtype)[g]
    taken = jnp.take(flat, jnp.asarray(places)[g], axis=1)
    return (taken * weight[None, :, :, None]).sum(2).reshape(x.shape)


def orbit(group: Group, x: Float[Array, "n h w *c"]) -> Float[Array, "n g h w *c"]:
    """All images g x.

    Args:
        group: the group.
        x: images, (N, H, W, ...).

    Returns:
        (N, |G|, H, W, ...).

    Raises:
        ValueError: see `transform`.
    """
    return jax.vmap(lambda g: transform(group, g, x), out_axes=1)(jnp.arange(len(group)))


def act_regular(group: Group, g: int | Int[Array, ""], z: Float[Array, "n h w g c"]) -> Float[Array, "n h w g c"]:
    """The action on feature maps with a group axis, (g z)[p, h] = z[g⁻¹ p, g⁻¹ h]: that of G-CNNs.

    Args:
        group: a group.
        g: which element, in [0, |G|); may be traced.
        z: (N, H, W, |G|, C).

    Returns:
        (N, H, W, |G|, C).

    Raises:
        ValueError: see `transform`; a set that is no group, or another group axis.
    """
    group.require_closed()
    if z.ndim < 4 or z.shape[3] != len(group):
        raise ValueError(f"z: got shape {z.shape}, expected (N, H, W, {len(group)}, C) for {group.name}")
    return jnp.take(transform(group, g, z), jnp.asarray(group.table[group.inverse])[jnp.asarray(g)], axis=3)


def permute(group: Group, h: int | Int[Array, ""], e: Float[Array, "n g *k"]) -> Float[Array, "n g *k"]:
    """The action on responses to an orbit, E(h x)[g] = E(x)[g h].

    Args:
        group: a group.
        h: which element, in [0, |G|); may be traced.
        e: (N, |G|, ...).

    Returns:
        (N, |G|, ...).

    Raises:
        ValueError: a set that is no group, another group axis, or `h` out of range.
    """
    group.require_closed()
    _require_element("h", group, h)
    if e.ndim < 2 or e.shape[1] != len(group):
        raise ValueError(f"e: got shape {e.shape}, expected (N, {len(group)}, ...) for {group.name}")
    return jnp.take(e, jnp.asarray(group.table)[:, jnp.asarray(h)], axis=1)


@jax.jit
def rotated(x: Float[Array, "n h w c"], angles: Float[Array, " n"]) -> Float[Array, "n h w c"]:
    """Every image turned by an angle of its own, counter-clockwise, bilinear, black outside.

    Args:
        x: square images, (N, H, W, C).
        angles: in radians, (N,).

    Returns:
        (N, H, W, C).

    Raises:
        ValueError: images that are not square.

    Example:
        >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> bool(jnp.allclose(rotated(x, jnp.array([jnp.pi / 2])), jnp.rot90(x, axes=(1, 2)), atol=1e-5))
        True
    """
    height, width = x.shape[1:3]
    if height != width:
        raise ValueError(f"x: got {height}x{width} images, expected square ones for rotations")
    center = jnp.asarray((height - 1) / 2, x.dtype)
    rows, columns = jnp.meshgrid(*[jnp.arange(side, dtype=x.dtype) - center for side in (height, width)], indexing="ij")

    def one(image: Array, angle: Array) -> Array:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        back = [cosine * rows + sine * columns + center, cosine * columns - sine * rows + center]
        return jax.vmap(lambda plane: jax.scipy.ndimage.map_coordinates(plane, back, 1), in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(x, angles.astype(x.dtype))


Law = Literal["spatial", "regular", "orbit"] | Callable[[int, Array], Array]
"""How an output moves with the image: its pixels alone, its pixels and group axis, its group axis, or a function."""


def equivariance_error(
    f: Callable[[Array], Array], group: Group, x: Float[Array, "n h w c"], law: Law = "spatial"
) -> Float[np.ndarray, " g"]:
    """‖f(g x) − g f(x)‖ / ‖f(g x)‖ of every element, the norms over all images.

    Args:
        f: images ↦ output, (N, ...), such as an applied Flax model.
        group: the group.
        x: images, (N, H, W, C).
        law: how f's output moves: "spatial" as an image (N, h, w, ...), "regular" as `act_regular` (N, h, w, |G|, C),
            "orbit" as `permute` (N, |G|, ...), or a function (g, f(x)) ↦ g f(x).

    Returns:
        (|G|,), 0 where f is equivariant.

    Raises:
        ValueError: see `transform`; an output that the law cannot move.

    Example:
        >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
        >>> float(equivariance_error(jax.nn.relu, rotations(4), x).max())
        0.0
    """
    laws = {"spatial": transform, "regular": act_regular, "orbit": permute}
    if isinstance(law, str) and law not in laws:
        raise ValueError(f"law: got {law!r}, expected one of {', '.join(laws)}, or a function")
    axis = {"regular": 3, "orbit": 1}.get(law, 0) if isinstance(law, str) else 0
    out = f(x)
    if axis and out.shape[axis : axis + 1] != (len(group),):
        raise ValueError(f"f: got an output {out.shape}, expected {len(group)} of {group.name} on axis {axis}")
    if law == "spatial" and out.ndim < 3:
        raise ValueError(
            f"f: got an output {out.shape}, expected maps (N, h, w, ...); see `invariance_error` for others"
        )
    move = (lambda g, y: laws[law](group, g, y)) if isinstance(law, str) else law
    return _errors(f, group, x, lambda g: move(g, out))


def invariance_error(f: Callable[[Array], Array], group: Group, x: Float[Array, "n h w c"]) -> Float[np.ndarray, " g"]:
    """‖f(g x) − f(x)‖ / ‖f(g x)‖ of every element, the norms over all images.

    Args:
        f: images ↦ output, (N, ...), such as an applied Flax model.
        group: the group.
        x: images, (N, H, W, C).

    Returns:
        (|G|,), 0 where f is invariant.

    Raises:
        ValueError: see `transform`.

    Example:
        >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
        >>> float(invariance_error(lambda x: x.max((1, 2)), rotations(4), x).max())
        0.0
    """
    out = f(x)
    return _errors(f, group, x, lambda g: out)


def _errors(
    f: Callable[[Array], Array], group: Group, x: Array, expected: Callable[[int], Array]
) -> Float[np.ndarray, " g"]:
    found = []
    for g in range(len(group)):
        moved = f(transform(group, g, x))
        found.append(_relative(moved - expected(g), moved))
    return np.array(found)


def _relative(missed: Array, whole: Array) -> float:
    """‖missed‖ / ‖whole‖, in float64, so that no square is lost."""
    part, size = (float(np.linalg.norm(np.abs(np.asarray(y)).astype(np.float64))) for y in (missed, whole))
    return part / max(size, float(np.finfo(np.float32).tiny))


def interpolation_error(group: Group, x: Float[Array, "n h w c"]) -> float:
    """Largest ‖g⁻¹ (g x) − x‖ / ‖x‖ of a group's elements: how far its action on these images is from one.

    Args:
        group: the group.
        x: images, (N, H, W, C), at least one of them not black.

    Returns:
        0 for exact groups.

    Raises:
        ValueError: see `transform`.

    Example:
        >>> interpolation_error(rotations(4), jnp.ones((1, 3, 3, 1)))
        0.0
    """
    back = (transform(group.inverses, g, transform(group, g, x)) - x for g in range(len(group)))
    return max(_relative(missed, x) for missed in back)


def warn_inexact(group: Group, x: Float[Array, "n h w c"]) -> None:
    """Warn, with the interpolation error on these images, of a group whose action leaves the pixel grid."""
    if not is_exact(group, *x.shape[1:3]):
        error = interpolation_error(group, x)
        warnings.warn(
            f"group: {group.name} leaves the grid of {x.shape[1]}x{x.shape[2]} images; moved and moved back they "
            f"differ by {error:.1%}, and its laws hold to about as much",
            stacklevel=3,
        )
