"""Maps from the features of an image to those of the moved image, fitted in closed form by ridge regression.

As in the paper, a map moves the sites of the features as g moves the image's pixels, and then filters them,

    φ(g x) ≈ M_g φ(x)          M_g z = F ∗ (g z) + b          F: D filters m×m×D, zeros outside of the map

    min over F, b:  Σ_x Σ_p ‖φ(g x)_p − (M_g φ(x))_p‖² + λ s ‖F‖²          s: mean variance of a patch's entries × sites

which is one linear system for all D filters. Features without positions (N, D) are a map of one site, and M is dense;
the elements and channels of a group CNN's maps (N, h, w, |G|, K) are D = |G| K channels.

Source: Lenc & Vedaldi, "Understanding image representations by measuring their equivariance and equivalence",
CVPR 2015, arXiv 1411.5908.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require, require_at_least
from jaxinterp.data.batches import padded_batches
from jaxinterp.nn.losses import softmax_cross_entropy
from jaxinterp.nn.patches import patches
from jaxinterp.symmetry.groups import Group, transform


class EquivariantMap(NamedTuple):
    """M z = filters ∗ (g z) + bias.

    Attributes:
        filters: (m, m, D, D), in the order row, column, input, output; `filters[..., i]` is the row of channel i.
        bias: (D,).
        group: the group.
        g: which element moves the sites.
    """

    filters: Float[Array, "m m d d"]
    bias: Float[Array, " d"]
    group: Group
    g: int


def grid_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return h, w and D of activations; one site where there are no positions."""
    return (shape[1], shape[2], math.prod(shape[3:])) if len(shape) > 2 else (1, 1, shape[1])


def as_sites(z: Float[Array, "n ..."]) -> Float[Array, "n h w d"]:
    """Reshape activations to (N, h, w, D), in float32 or wider."""
    return z.reshape(len(z), *grid_shape(z.shape)).astype(jnp.promote_types(jnp.float32, z.dtype))


def move_sites(group: Group, g: int, z: Float[Array, "n ..."]) -> Float[Array, "n h w d"]:
    """Move the sites of activations (N, h, w, D); without positions they stay."""
    return transform(group, g, as_sites(z)) if z.ndim > 2 else as_sites(z)


@partial(jax.jit, static_argnums=(0, 1))
def filter_sites(
    group: Group, g: int, filters: Float[Array, "m m d d"], bias: Float[Array, " d"], z: Float[Array, "n ..."]
) -> Float[Array, "n ..."]:
    """Return M z in the shape and type of z; see `apply_map`."""
    moved = move_sites(group, g, z).astype(filters.dtype)
    out = lax.conv_general_dilated(moved, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (out + bias.reshape(1, 1, 1, -1)).astype(z.dtype).reshape(z.shape)


def apply_map(map: EquivariantMap, z: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Return M z = F ∗ (g z) + b, with zeros outside of the map.

    Args:
        map: the map.
        z: activations, (N, h, w, D), (N, h, w, |G|, K) with D = |G| K, or (N, D), D as of the map.

    Returns:
        As `z`.
    """
    require_activations("z", z.shape)
    channels = grid_shape(z.shape)[2]
    require(channels == len(map.bias), "z", f"{channels} channels", f"{len(map.bias)} as of the map")
    with jax.default_matmul_precision("highest"):
        return filter_sites(map.group, map.g, map.filters, map.bias, z)


def require_activations(name: str, shape: tuple[int, ...]) -> None:
    """Raise unless a shape is (N, h, w, D), (N, h, w, |G|, K) or (N, D)."""
    require(len(shape) in (2, 4, 5), name, f"activations {shape}", "(N, h, w, D), (N, h, w, |G|, K) or (N, D)")


def require_regression(support: int, ridge: int | float) -> None:
    """Raise unless the support is odd and the ridge a positive finite number."""
    require(support >= 1 and support % 2, "support", support, "an odd number of sites, at least 1")
    require(0 < ridge < math.inf, "ridge", ridge, "a positive finite number")


def usable_support(name: str, images: int, shape: tuple[int, ...], support: int) -> int:
    """Cut the support to what maps of a shape can use; raise where there are more unknowns than sites."""
    height, width, channels = grid_shape(shape)
    support = min(support, 2 * max(height, width) - 1)  # taps beyond the opposite border see nothing but zeros
    needed = math.ceil((support**2 * channels + 1) / (height * width))
    filters = f"filters of {support}x{support}x{channels} and a bias on {height * width} sites each"
    require(images >= needed, name, f"{images} images", f"at least {needed} for {filters}")
    return support


def regression_bytes(shape: tuple[int, ...], support: int) -> int:
    """Estimate the bytes of one image in the regression: its patches, twice, and its activations."""
    return 4 * math.prod(shape[1:]) * (2 * support**2 + 4)


class MapRegression:
    """Normal equations of one map, summed in float64 over parts of the images, and their solution."""

    def __init__(self, group: Group, g: int, support: int) -> None:
        self.group, self.g, self.support = group, g, support
        self.sums: list[Any] = [0.0, 0.0]

    def add(self, source: Array, target: Array, real: int) -> None:
        """Add the first `real` images of a batch."""
        products = _products(self.group, self.g, self.support, source, target, jnp.arange(len(source)) < real)
        self.sums = [total + np.asarray(part, np.float64) for total, part in zip(self.sums, products, strict=True)]

    def solve(self, ridge: float) -> EquivariantMap:
        """Return the map; the means decide the bias, which bears no penalty."""
        import scipy.linalg

        squares, products = self.sums
        finite = np.isfinite(squares).all() and np.isfinite(products).all()
        require(finite, "phi_x, phi_gx", "activations NaN or infinite", "finite values")
        count, mean, target = squares[-1, -1], squares[-1, :-1] / squares[-1, -1], products[-1] / squares[-1, -1]
        scatter = squares[:-1, :-1] - count * np.outer(mean, mean)
        size = max(float(np.trace(scatter)) / len(scatter), float(np.finfo(np.float32).tiny))
        try:
            factor = scipy.linalg.cho_factor(scatter + ridge * size * np.eye(len(scatter)), lower=True)
        except np.linalg.LinAlgError:
            require(False, "ridge", f"{ridge:g}", "more: rounding outweighs it")
        solution = scipy.linalg.cho_solve(factor, products[:-1] - count * np.outer(mean, target))
        filters = solution.reshape(self.support, self.support, -1, len(target))
        bias = target - mean @ solution
        return EquivariantMap(jnp.asarray(filters, jnp.float32), jnp.asarray(bias, jnp.float32), self.group, self.g)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _products(
    group: Group, g: int, support: int, source: Array, target: Array, counts: Array
) -> tuple[Float[Array, "p p"], Float[Array, "p d"]]:
    """Return PᵀP and PᵀY of the patches P of the moved source, a one at their end, and the targets Y, sites in rows."""
    moved = move_sites(group, g, source)
    n, height, width, channels = moved.shape
    edge = support // 2
    taps = patches(moved, (support, support), padding=((edge, edge), (edge, edge)))
    rows = jnp.concatenate([taps, jnp.ones((n, height, width, 1), moved.dtype)], -1)
    rows = jnp.where(counts[:, None, None, None], rows, 0).reshape(n * height * width, -1)
    return rows.T @ rows, rows.T @ as_sites(target).reshape(-1, channels)


def fit_map(
    phi_x: Float[Array, "n ..."],
    phi_gx: Float[Array, "..."],
    group: Group,
    g: int,
    support: int = 3,
    ridge: int | float = 1e-3,
    *,
    max_bytes: int = 1 << 29,
) -> EquivariantMap:
    """Fit M with φ(g x) ≈ M φ(x) by ridge regression on all sites of all images, in closed form.

    The products of each part of the images are in the type of the activations, summed and solved in float64. A support
    wider than the map can use is cut to it.

    Args:
        phi_x: activations φ(x), (N, h, w, D), (N, h, w, |G|, K) with D = |G| K, or (N, D); more sites, N h w, than a
            filter has entries, m² D.
        phi_gx: activations φ(g x), of the same shape.
        group: the group.
        g: which element, in [0, |G|).
        support: side m of the filters in sites, odd.
        ridge: λ > 0, as a share of the mean diagonal of the patches' scatter matrix.
        max_bytes: bytes that a part's patches may take by estimate.

    Returns:
        The map, float32.

    Example:
        >>> from jaxinterp.symmetry.groups import flips
        >>> z = jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
        >>> swapped = fit_map(z, transform(flips(), 1, z)[..., ::-1], flips(), 1, support=1, ridge=1e-6)
        >>> (swapped.filters[0, 0].round(3) + 0.0).tolist()
        [[0.0, 1.0], [1.0, 0.0]]

    Source: Lenc & Vedaldi 2015, regression with the support restricted to m×m neighbors.
    """
    require_regression(support, ridge)
    require_activations("phi_x", phi_x.shape)
    require(phi_x.shape == phi_gx.shape, "phi_gx", str(phi_gx.shape), f"{phi_x.shape} as of phi_x")
    support = usable_support("phi_x", len(phi_x), phi_x.shape, support)
    regression = MapRegression(group, g, support)
    size = max(1, max_bytes // regression_bytes(phi_x.shape, support))
    with jax.default_matmul_precision("highest"):
        for _, real, (source, target) in padded_batches(size, phi_x, phi_gx):
            regression.add(source, target, real)
    return regression.solve(ridge)


def refine_map(
    map: EquivariantMap,
    head: Callable[..., Float[Array, "n classes"]],
    z: Float[Array, "n ..."],
    labels: Int[Array, "..."],
    steps: int,
    rate: int | float,
    key: PRNGKeyArray,
    *,
    given: Sequence[Array] = (),
    batch: int = 128,
) -> EquivariantMap:
    """Train a map on the network's own loss; the network stays as it is.

        min over F, b:  mean cross-entropy(head(M z), labels)          by Adam, on batches drawn with replacement

    Args:
        map: where to start, such as the regression's.
        head: z ↦ logits, the network after the layer, such as `split_network(net, layer)[1]` with `given=(x,)`;
            compiled once for as long as it is the same function or an equal pytree.
        z: activations before the map, as of `apply_map`.
        labels: (N,), in [0, classes).
        steps: of the optimizer, ≥ 1.
        rate: learning rate, > 0.
        key: of the batches.
        given: arrays that belong to the examples, (N, ...) each; `head` gets them after z.
        batch: examples of a step, ≥ 1.

    Returns:
        The map after the last step.

    Source: Lenc & Vedaldi 2015, the transformation layer and its task-oriented loss, which AlexNet needs from Conv3 on.
    """
    require_at_least("steps", steps, 1)
    require_at_least("batch", batch, 1)
    require(0 < rate < math.inf, "rate", rate, "a positive finite number")
    require_activations("z", z.shape)
    for name, array in (("labels", labels), *((f"given[{i}]", array) for i, array in enumerate(given))):
        require(array.shape[:1] == z.shape[:1], name, f"shape {array.shape}", f"{len(z)} along the first axis as of z")
    head = jax.tree_util.Partial(head) if jax.tree_util.all_leaves([head]) else head
    weights, fixed = (map.filters, map.bias), ((z, labels, *given), jnp.float32(rate), key)
    state = optax.adam(rate).init(weights)
    with jax.default_matmul_precision("highest"):
        for i in range(steps):
            weights, state = _refined(map.group, map.g, batch, head, weights, state, *fixed, np.int32(i))
    return map._replace(filters=weights[0], bias=weights[1])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _refined(
    group: Group,
    g: int,
    batch: int,
    head: Callable[..., Array],
    weights: tuple[Array, Array],
    state: Any,
    arrays: tuple[Array, ...],
    rate: Float[Array, ""],
    key: PRNGKeyArray,
    step: Int[Array, ""],
) -> tuple[tuple[Array, Array], Any]:
    """Take one step of Adam on one drawn batch."""
    drawn = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, len(arrays[0]))
    z, labels, *given = (array[drawn] for array in arrays)

    def loss(weights: tuple[Array, Array]) -> Array:
        return softmax_cross_entropy(head(filter_sites(group, g, *weights, z), *given), labels)

    gradient = jax.grad(loss)(weights)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer counts
        updates, state = optax.adam(rate).update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state


def row_ratios(map: EquivariantMap) -> Float[np.ndarray, " d"]:
    """Return how far every channel's row is from a multiple of the identity's: ‖row without its diagonal‖ / ‖row‖.

    The diagonal entry of channel i is the one that takes channel i at the same site. The ratios, (D,), are in [0, 1]; 0
    for a row of zeros, a constant channel's.

    Source: Lenc & Vedaldi 2015, on invariant channels.
    """
    filters = np.asarray(map.filters, np.float64)
    others, center, channels = filters.copy(), filters.shape[0] // 2, np.arange(filters.shape[-1])
    others[center, center, channels, channels] = 0
    rest, norm = (np.sqrt((rows**2).sum((0, 1, 2))) for rows in (others, filters))
    return rest / np.maximum(norm, np.finfo(np.float64).tiny)


def with_identity_rows(map: EquivariantMap, count: int) -> EquivariantMap:
    """Replace the `count` rows nearest to the identity's, by `row_ratios`, by it: channels taken as invariant."""
    require(0 <= count <= len(map.bias), "count", count, f"0 to {len(map.bias)} rows")
    rows = np.argsort(row_ratios(map), kind="stable")[:count]
    filters, bias, center = np.array(map.filters), np.array(map.bias), map.filters.shape[0] // 2
    filters[:, :, :, rows], bias[rows] = 0, 0
    filters[center, center, rows, rows] = 1
    return map._replace(filters=jnp.asarray(filters), bias=jnp.asarray(bias))
