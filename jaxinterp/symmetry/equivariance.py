"""Equivariance of functions of images, and of the layers of any network.

A function is equivariant to a motion g where g moves its output by a known law, f(g x) = g f(x): `equivariance_error`
measures how far it is from that, `invariance_error` how far from f(g x) = f(x).

A layer φ of a trained network may follow a law that is not known, φ(g x) = M_g φ(x) with one map M_g for all images:
`layer_equivariance` fits it (`jaxinterp.symmetry.maps`) and measures what it leaves. The rest of the network judges it:
with M fitted from φ(g x) to φ(x), the images g x are classified as head(M φ(g x)).

Source: Lenc & Vedaldi, "Understanding image representations by measuring their equivariance and equivalence",
CVPR 2015, arXiv 1411.5908.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require, require_at_least, require_finite, require_labels, require_one_of, warn
from jaxinterp.data.batches import padded_batches
from jaxinterp.explain.batches import in_batches, padded
from jaxinterp.explain.explainable import Explainable, explainable, require_layers, with_batch
from jaxinterp.explain.program import Model
from jaxinterp.symmetry import maps
from jaxinterp.symmetry.groups import Group, is_exact, permute, transform, transform_regular
from jaxinterp.symmetry.maps import EquivariantMap

MIN_ABOVE_CHANCE = 0.1
"""Share of the way from chance to certainty below which no channel is called invariant: there is nothing to keep."""

MIN_ACCURACY_KEPT = 0.95
"""Share of the compensated accuracy that must be left when rows of invariant channels are replaced."""

Law = Literal["spatial", "regular", "orbit"] | Callable[[int, Array], Array]
"""The law by which an output moves: pixels alone, pixels and group axis, group axis alone, or a function."""


def equivariance_error(
    f: Callable[[Array], Array], group: Group, x: Float[Array, "n h w c"], law: Law = "spatial"
) -> Float[np.ndarray, " g"]:
    """Compute ‖f(g x) − g f(x)‖ / ‖f(g x)‖ of every element, the norms over all images.

    Args:
        f: images ↦ output, (N, ...), such as `net.logits`.
        group: the group.
        x: images, (N, H, W, C).
        law: how f's output moves: "spatial" as an image (N, h, w, ...), "regular" as `transform_regular`
            (N, h, w, |G|, C), "orbit" as `permute` (N, |G|, ...), or a function (g, f(x)) ↦ g f(x).

    Returns:
        (|G|,), 0 where f is equivariant.

    Example:
        >>> from jaxinterp.symmetry.groups import rotations
        >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
        >>> float(equivariance_error(jax.nn.relu, rotations(4), x).max())
        0.0
    """
    out = f(x)
    if isinstance(law, str):
        laws = {"spatial": transform, "regular": transform_regular, "orbit": permute}
        require_one_of("law", law, laws)
        require(law != "spatial" or out.ndim >= 3, "f", f"an output {out.shape}", "maps (N, h, w, ...), or another law")
        axis = {"regular": 3, "orbit": 1}.get(law)
        fits = axis is None or out.shape[axis : axis + 1] == (len(group),)
        require(fits, "f", f"an output {out.shape}", f"{len(group)} of {group.name} on axis {axis}")
        law = partial(laws[law], group)
    moved = (f(transform(group, g, x)) for g in range(len(group)))
    return np.array([_relative(y - law(g, out), y) for g, y in enumerate(moved)])


def invariance_error(f: Callable[[Array], Array], group: Group, x: Float[Array, "n h w c"]) -> Float[np.ndarray, " g"]:
    """Compute ‖f(g x) − f(x)‖ / ‖f(g x)‖ of every element, (|G|,); arguments as of `equivariance_error`.

    Example:
        >>> from jaxinterp.symmetry.groups import rotations
        >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
        >>> float(invariance_error(lambda x: x.max((1, 2)), rotations(4), x).max())
        0.0
    """
    return equivariance_error(f, group, x, lambda g, out: out)


def _relative(difference: Array, reference: Array) -> float:
    """Return ‖difference‖ / ‖reference‖, in float64, so that no square is lost."""
    part, size = (float(np.linalg.norm(np.abs(np.asarray(y)).astype(np.float64))) for y in (difference, reference))
    return part / max(size, float(np.finfo(np.float32).tiny))


def interpolation_error(group: Group, x: Float[Array, "n h w c"]) -> float:
    """Compute the largest ‖g⁻¹ (g x) − x‖ / ‖x‖ of a group's elements, 0 where the group is exact on these images.

    Example:
        >>> from jaxinterp.symmetry.groups import rotations
        >>> interpolation_error(rotations(4), jnp.ones((1, 3, 3, 1)))
        0.0
    """
    returned = (transform(group.inverses, g, transform(group, g, x)) for g in range(len(group)))
    return max(_relative(image - x, x) for image in returned)


def warn_inexact(group: Group, x: Float[Array, "n h w c"]) -> None:
    """Warn, with the interpolation error on these images, of a group whose action leaves the pixel grid."""
    if not is_exact(group, *x.shape[1:3]):
        warn(
            f"group: {group.name} leaves the grid of {x.shape[1]}x{x.shape[2]} images; moved and moved back they "
            f"differ by {interpolation_error(group, x):.1%}, and its laws hold to about as much"
        )


class LayerEquivariance(NamedTuple):
    """Equivariance of one layer; the numbers are of images that no map was fitted to.

    Attributes:
        layer: path of the layer.
        uncompensated: ‖φ(g x) − φ(x)‖ / ‖φ(g x)‖, norms over all images.
        moved: ‖φ(g x) − g φ(x)‖ / ‖φ(g x)‖, the sites moved and the channels as they are, a group axis too.
        compensated: ‖φ(g x) − M φ(x)‖ / ‖φ(g x)‖.
        constant: ‖φ(g x) − mean φ(g x)‖ / ‖φ(g x)‖, the mean over sites and images: the residual of a map that
            ignores x.
        accuracy: of the network on x, in [0, 1]; the same for all layers.
        accuracy_moved: on g x; the same for all layers.
        accuracy_compensated: of head(M′ φ(g x)).
        invariant: share of channels whose rows of M′ can be the identity's, in [0, 1], see `layer_equivariance`; NaN
            where the compensated accuracy is hardly above chance, and there is none to keep.
        map: M, from φ(x) to φ(g x).
        back: M′, from φ(g x) to φ(x).
    """

    layer: str
    uncompensated: float
    moved: float
    compensated: float
    constant: float
    accuracy: float
    accuracy_moved: float
    accuracy_compensated: float
    invariant: float
    map: EquivariantMap
    back: EquivariantMap


@partial(jax.tree_util.register_dataclass, data_fields=("net",), meta_fields=("layer",))
@dataclass(frozen=True)
class Below:
    """A network up to a layer: x ↦ φ(x), the layer's output. A pytree, to be called in a program or outside."""

    net: Explainable
    layer: str

    def __call__(self, x: Float[Array, "n h w c"]) -> Array:
        """Return φ(x)."""
        return self.net.activation(x, self.layer)


@partial(jax.tree_util.register_dataclass, data_fields=("net",), meta_fields=("layer",))
@dataclass(frozen=True)
class Above:
    """A network from a layer on: (z, x) ↦ logits with z in place of φ(x). A pytree, as `Below`.

    Of x, the shape is used, and what goes around the layer where the network has a way around it.
    """

    net: Explainable
    layer: str

    def __call__(self, z: Array, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Return the logits."""
        model = self.net.program("logits", x)
        require_layers(model, [self.layer])
        wanted = model.program.values[self.layer]
        fits = (z.shape, z.dtype) == (wanted.shape, wanted.dtype)
        require(fits, "z", f"{z.dtype}{z.shape}", f"{wanted.dtype}{wanted.shape} as at {self.layer!r}")
        return _above(self.layer, model, z, x)


@partial(jax.jit, static_argnums=0)
def _above(layer: str, model: Model, z: Array, x: Array) -> Array:
    return model(x, taps={layer: lambda value: z})  # type: ignore[no-any-return]


def split_network(net: Any, layer: str) -> tuple[Below, Above]:
    """Split a network in two, before and after the output of a layer.

    Args:
        net: a network, see `explainable`.
        layer: name of the layer, such as "trunk/conv_2".

    Example:
        >>> net = explainable({"features": lambda x: 2 * x, "head": lambda z: z.sum((1, 2))})
        >>> phi, head = split_network(net, "features")
        >>> x = jnp.ones((1, 1, 1, 2))
        >>> phi(x).ravel().tolist()
        [2.0, 2.0]
    """
    net = explainable(net)
    return Below(net, layer), Above(net, layer)


def layer_equivariance(
    net: Any,
    images: Float[Array, "n h w c"],
    labels: Int[Array, "..."],
    layers: Sequence[str],
    group: Group,
    g: int,
    *,
    train: int,
    support: int = 3,
    ridge: int | float = 1e-3,
    steps: int = 0,
    rate: int | float = 1e-3,
    key: PRNGKeyArray | None = None,
    max_bytes: int = 1 << 29,
) -> list[LayerEquivariance]:
    """Measure how far layers are from equivariant to g, and how well maps of their features undo g for the classifier.

    Two maps are fitted to the first images: M from φ(x) to φ(g x), and M′ back, whose sites move by g⁻¹. The other
    images give the numbers. A channel is invariant if its row of M′ can be the identity's: rows are replaced in the
    order of `row_ratios`, as many as leave 95 % of the compensated accuracy; how many is found by bisection, which
    takes the accuracy to fall with every row (where it does not, one more row would still cost too much).

    Args:
        net: a network, see `explainable`.
        images: x, (N, H, W, C).
        labels: (N,), in [0, classes).
        layers: names of layers with outputs (N, h, w, D), (N, h, w, |G|, K) or (N, D); where the network has a
            way around one, such as a shortcut, what goes there is not compensated.
        group: the group.
        g: which element, in [0, |G|).
        train: how many of the images, from the first on, the maps are fitted to; in [1, N).
        support: side of the filters in sites, odd.
        ridge: as in `fit_map`.
        steps: of `refine_map` for M′, on the images of the fit, whose activations are all kept in memory; 0 for none.
        rate: learning rate of these steps.
        key: of these steps; default `jax.random.key(0)`.
        max_bytes: bytes that one pass may take by estimate.

    Returns:
        A `LayerEquivariance` for each of `layers`.

    Raises:
        ConfigError: too few training images for the unknowns of a map, or activations that are not finite.

    Source: Lenc & Vedaldi 2015; the residuals as numbers are ours.
    """
    require(not isinstance(layers, str), "layers", repr(layers), "a list of paths")
    maps.require_regression(support, ridge)
    require_at_least("steps", steps, 0)
    require(0 < rate < math.inf, "rate", rate, "a positive finite number")
    require(1 <= train < len(images), "train", f"{train} of {len(images)} images", "at least 1, and not all of them")
    net, images = with_batch(net, images)
    model = net.program("logits", images[:1])
    require_layers(model, layers)
    classes = model.program.output.shape[1]
    require_labels("labels", labels, len(images), classes)
    require_finite("images", images)
    transform(group, g, images[:1])  # checks g and the images before anything is computed
    shapes, supports = model.program.layers, {}
    for layer in layers:
        maps.require_activations(f"layers: {layer!r}", shapes[layer])
        supports[layer] = maps.usable_support(f"train: at {layer!r}", train, shapes[layer], support)

    key = jax.random.key(0) if key is None else key
    forward = model.program.memory[0]
    test, chance = (images[train:], jnp.asarray(labels[train:])), 1 / classes
    results = []
    with jax.default_matmul_precision("highest"):
        correct = partial(_correct, group, net)
        accuracy, moved = (_mean(_in_batches(partial(correct, np.int32(e)), test, forward, max_bytes)) for e in (0, g))
        for i, layer in enumerate(layers):
            place = _Place(layer, group, g)
            each = 2 * forward + maps.regression_bytes(shapes[layer], supports[layer])
            forth, undo = (maps.MapRegression(motions, g, supports[layer]) for motions in (group, group.inverses))
            for _, real, (x,) in padded_batches(max(1, max_bytes // each), images[:train]):
                z, z_moved = _activations(place, net, x)
                forth.add(z, z_moved, real)
                undo.add(z_moved, z, real)
            there, here = forth.solve(ridge), undo.solve(ridge)
            if steps:
                phi, head = split_network(net, layer)
                moved_train = _in_batches(partial(transform, group, g), (images[:train],), forward, max_bytes)
                z_moved, drawn = _in_batches(phi, (moved_train,), forward, max_bytes), jax.random.fold_in(key, i)
                here = maps.refine_map(here, head, z_moved, labels[:train], steps, rate, drawn, given=(moved_train,))

            def compensated(map: EquivariantMap, place: _Place = place, each: int = each) -> float:
                judge = partial(_correct_compensated, place, net, map.filters, map.bias)
                return _mean(_in_batches(judge, test, each, max_bytes))

            measure = partial(_squares_and_sums, place, net, there.filters, there.bias)
            parts = _in_batches(measure, test[:1], each, max_bytes)
            squares, sums = (np.asarray(part, np.float64).sum(0) for part in parts)
            size = max(squares[3], np.finfo(np.float32).tiny)
            uncompensated, sites_moved, missed = np.sqrt(squares[:3] / size).tolist()
            height, width, _ = maps.grid_shape(shapes[layer])
            explained = float((sums**2).sum()) / (len(test[0]) * height * width) / size
            reached, low, high = compensated(here), 0, len(here.bias) + 1
            while high - low > 1 and reached > chance + MIN_ABOVE_CHANCE * (1 - chance):
                middle = (low + high) // 2
                enough = compensated(maps.with_identity_rows(here, middle)) >= MIN_ACCURACY_KEPT * reached
                low, high = (middle, high) if enough else (low, middle)
            results.append(
                LayerEquivariance(
                    layer=layer,
                    uncompensated=uncompensated,
                    moved=sites_moved,
                    compensated=missed,
                    constant=max(0.0, 1 - explained) ** 0.5,
                    accuracy=accuracy,
                    accuracy_moved=moved,
                    accuracy_compensated=reached,
                    invariant=low / len(here.bias) if high - low == 1 else math.nan,
                    map=there,
                    back=here,
                )
            )
    return results


def _mean(correct: Array) -> float:
    """Return the mean of zeros and ones, in float64."""
    return float(np.asarray(correct, np.float64).mean())


def _in_batches(function: Callable[..., Any], arrays: Sequence[Array], bytes_each: int, max_bytes: int) -> Any:
    """Apply a function to parts of the examples within the budget."""
    whole = [padded(array) for array in arrays]
    return in_batches(function, whole, len(arrays[0]), bytes_each * len(whole[0]), max_bytes)


class _Place(NamedTuple):
    """Static arguments of the functions of a layer."""

    layer: str
    group: Group
    g: int


@partial(jax.jit, static_argnums=0)
def _activations(place: _Place, net: Explainable, x: Array) -> tuple[Array, Array]:
    """Return φ(x) and φ(g x)."""
    model = net.program("logits", x)
    return model.value(place.layer, x), model.value(place.layer, transform(place.group, place.g, x))


@partial(jax.jit, static_argnums=0)
def _squares_and_sums(
    place: _Place, net: Explainable, filters: Array, bias: Array, x: Array
) -> tuple[Float[Array, "n 4"], Float[Array, "n d"]]:
    """Return squares of φ(g x) less φ(x), less g φ(x), less M φ(x), and of φ(g x) itself; and its sums over sites."""
    z, target = _activations(place, net, x)
    sites, wanted = maps.as_sites(z), maps.as_sites(target)
    mapped = maps.as_sites(maps.filter_sites(place.group, place.g, filters, bias, z))
    missed = [wanted - sites, wanted - maps.move_sites(place.group, place.g, z), wanted - mapped, wanted]
    return jnp.stack([jnp.square(part).sum((1, 2, 3)) for part in missed], -1), wanted.sum((1, 2))


@partial(jax.jit, static_argnums=0)
def _correct(group: Group, net: Explainable, g: Int[Array, ""], x: Array, labels: Array) -> Float[Array, " n"]:
    """Return 1 where g x is classified correctly."""
    return (net.program("logits", x)(transform(group, g, x)).argmax(-1) == labels).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _correct_compensated(
    place: _Place, net: Explainable, filters: Array, bias: Array, x: Array, labels: Array
) -> Float[Array, " n"]:
    """Return 1 where g x is classified correctly when the layer's output is mapped back."""
    model, moved = net.program("logits", x), transform(place.group, place.g, x)
    z = maps.filter_sites(place.group.inverses, place.g, filters, bias, model.value(place.layer, moved))
    return (model(moved, taps={place.layer: lambda value: z}).argmax(-1) == labels).astype(jnp.float32)
