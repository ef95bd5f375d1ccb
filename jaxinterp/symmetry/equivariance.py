"""Whether the features of a layer move with the image: maps between φ(x) and φ(g x) of any Flax model.

A layer φ is equivariant to a motion g of the image where one map serves all images. As in the paper, the map moves the
sites of the feature map as g moves the image's pixels, and then filters it,

    φ(g x) ≈ M_g φ(x)          M_g z = F ∗ (g z) + b          F: D filters m×m×D, zeros outside of the map

    min over F, b:  Σ_x Σ_p ‖φ(g x)_p − (M_g φ(x))_p‖² + λ s ‖F‖²          s: mean variance of a patch's entries × sites

which is one linear system for all D filters. The rest of the network judges it: with M fitted from φ(g x) to φ(x), the
images g x are classified as head(M φ(g x)). A layer without positions (N, D) is a map of one site, and M dense; the
elements and channels of a group CNN's maps (N, h, w, |G|, K) are D = |G| K channels.

Source: Lenc & Vedaldi, "Understanding image representations by measuring their equivariance and equivalence",
CVPR 2015, arXiv 1411.5908.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require_finite
from jaxinterp.data.batches import padded_batches
from jaxinterp.explain.tracing import activation_names, footprint, in_chunks, require_levels, unjitted
from jaxinterp.nn.losses import softmax_cross_entropy
from jaxinterp.nn.patches import patches
from jaxinterp.symmetry.groups import Group, transform

ABOVE_CHANCE = 0.1
"""Share of the way from chance to certainty below which no channel is called invariant: there is nothing to keep."""

KEPT = 0.95
"""Share of the compensated accuracy that must be left when rows of invariant channels are replaced."""


class EquivariantMap(NamedTuple):
    """M z = filters ∗ (g z) + bias, what `fit_map` returns.

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


class LayerEquivariance(NamedTuple):
    """What `layer_equivariance` returns for a layer; the numbers are of images that no map was fitted to.

    Attributes:
        at: path of the layer.
        uncompensated: ‖φ(g x) − φ(x)‖ / ‖φ(g x)‖, norms over all images.
        moved: ‖φ(g x) − g φ(x)‖ / ‖φ(g x)‖, the sites moved and the channels as they are, a group axis too.
        compensated: ‖φ(g x) − M φ(x)‖ / ‖φ(g x)‖.
        constant: ‖φ(g x) − mean φ(g x)‖ / ‖φ(g x)‖, the mean over sites and images: what a map that ignores x leaves.
        accuracy: of the network on x, in [0, 1]; the same for all layers.
        accuracy_moved: on g x; the same for all layers.
        accuracy_compensated: of head(M′ φ(g x)).
        invariant: share of channels whose rows of M′ can be the identity's, in [0, 1], see `layer_equivariance`; NaN
            where the compensated accuracy is hardly above chance, and there is none to keep.
        map: M, from φ(x) to φ(g x).
        back: M′, from φ(g x) to φ(x).
    """

    at: str
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


@cache
def split_network(apply: Callable[..., Array], at: str) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """A network in two, before and after the output of a submodule; both are compiled once.

    Args:
        apply: (variables, x) ↦ logits, calling a Flax model.
        at: path of the submodule, such as "trunk/conv_2".

    Returns:
        φ: (variables, x) ↦ the submodule's output, and head: (variables, z, x) ↦ logits with z in its place. Of x,
        the head uses the shape, and what goes around the submodule where the network has a way around it.

    Raises:
        ValueError: when called, if there is no such submodule, or if `z` is not of its output's shape and type.

    Example:
        >>> phi, head = split_network(nn.Sequential([nn.Dense(3), nn.Dense(2)]).apply, "layers_0")
    """
    apply = unjitted(apply)

    def run(variables: Any, x: Array, change: Callable[[Array], Array]) -> tuple[Array, Array]:
        seen: list[Array] = []

        def swap(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out = call(*args, **kwargs)
            if context.method_name != "__call__" or "/".join(context.module.path) != at:
                return out
            seen.append(out)
            return change(out)

        with nn.intercept_methods(swap):
            logits = apply(variables, x)
        if not seen:
            raise ValueError(f"layer: got {at!r}, expected a Flax submodule that is called, and not traced before")
        return logits, seen[0]

    def phi(variables: Any, x: Array) -> Array:
        return run(variables, x, lambda out: out)[1]

    def head(variables: Any, z: Array, x: Array) -> Array:
        def replaced(out: Array) -> Array:
            if (z.shape, z.dtype) != (out.shape, out.dtype):
                raise ValueError(f"z: got {z.dtype}{z.shape}, expected {out.dtype}{out.shape} as at {at!r}")
            return z

        return run(variables, x, replaced)[0]

    return jax.jit(phi), jax.jit(head)


def _grid(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """h, w and D of activations; one site where there are no positions."""
    return (shape[1], shape[2], math.prod(shape[3:])) if len(shape) > 2 else (1, 1, shape[1])


def _sites(z: Array) -> Array:
    """(N, h, w, D), in float32 or wider."""
    return z.reshape(len(z), *_grid(z.shape)).astype(jnp.promote_types(jnp.float32, z.dtype))


def _move(group: Group, g: int, z: Array) -> Array:
    """The map with its sites moved; without positions, as it is."""
    return transform(group, g, _sites(z)) if z.ndim > 2 else _sites(z)


def _transform(group: Group, g: int, filters: Array, bias: Array, z: Array) -> Array:
    """M z, in the type of z."""
    moved = _move(group, g, z).astype(filters.dtype)
    out = lax.conv_general_dilated(moved, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (out + bias.reshape(1, 1, 1, -1)).astype(z.dtype).reshape(z.shape)


_transform_compiled = partial(jax.jit, static_argnums=(0, 1))(_transform)


def apply_map(map: EquivariantMap, z: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """M z = F ∗ (g z) + b, zeros outside of the map.

    Args:
        map: the map.
        z: activations, (N, h, w, D), (N, h, w, |G|, K) with D = |G| K, or (N, D), D as of the map.

    Returns:
        As `z`.

    Raises:
        ValueError: another D, or maps that the group cannot move, such as non-square ones for rotations.
    """
    _require_activations("z", z.shape)
    channels = _grid(z.shape)[2]
    if channels != len(map.bias):
        raise ValueError(f"z: got {channels} channels, expected {len(map.bias)} as of the map")
    with jax.default_matmul_precision("highest"):
        return _transform_compiled(map.group, map.g, map.filters, map.bias, z)


def _require_activations(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 4, 5):
        raise ValueError(f"{name}: got activations {shape}, expected (N, h, w, D), (N, h, w, |G|, K) or (N, D)")


def _require_settings(support: int, ridge: int | float) -> None:
    if support < 1 or support % 2 == 0:
        raise ValueError(f"support: got {support}, expected an odd number of sites, at least 1")
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge: got {ridge}, expected a positive finite number")


def _require_images(name: str, images: int, shape: tuple[int, ...], support: int) -> int:
    """The support that a map of this shape can use; ValueError where there are more unknowns than sites."""
    height, width, channels = _grid(shape)
    support = min(support, 2 * max(height, width) - 1)  # taps beyond the opposite border see nothing but zeros
    needed = math.ceil((support**2 * channels + 1) / (height * width))
    if images < needed:
        raise ValueError(
            f"{name}: got {images} images, expected at least {needed} for filters of {support}x{support}x{channels} "
            f"and a bias on {height * width} sites each"
        )
    return support


def _bytes(shape: tuple[int, ...], support: int) -> int:
    """Estimate of the bytes of one image in the regression: its patches, twice, and its activations."""
    return 4 * math.prod(shape[1:]) * (2 * support**2 + 4)


class _Regression:
    """The sums of the normal equations of one map, gathered part by part, and their solution."""

    def __init__(self, group: Group, g: int, support: int) -> None:
        self.group, self.g, self.support = group, g, support
        self.sums: list[Any] = [0.0, 0.0]

    def add(self, source: Array, target: Array, real: int) -> None:
        """More images; those from `real` on do not count."""
        products = _products(self.group, self.g, self.support, source, target, jnp.arange(len(source)) < real)
        self.sums = [total + np.asarray(part, np.float64) for total, part in zip(self.sums, products, strict=True)]

    def solve(self, ridge: float) -> EquivariantMap:
        """The map; the bias is what the means leave, and costs nothing."""
        import scipy.linalg

        squares, products = self.sums
        if not (np.isfinite(squares).all() and np.isfinite(products).all()):
            raise ValueError("phi_x, phi_gx: got activations NaN or infinite, expected finite values")
        count, mean, target = squares[-1, -1], squares[-1, :-1] / squares[-1, -1], products[-1] / squares[-1, -1]
        scatter = squares[:-1, :-1] - count * np.outer(mean, mean)
        size = max(float(np.trace(scatter)) / len(scatter), float(np.finfo(np.float32).tiny))
        try:
            factor = scipy.linalg.cho_factor(scatter + ridge * size * np.eye(len(scatter)), lower=True)
        except np.linalg.LinAlgError as error:
            raise ValueError(f"ridge: got {ridge:g}, expected more: rounding outweighs it") from error
        solution = scipy.linalg.cho_solve(factor, products[:-1] - count * np.outer(mean, target))
        filters = solution.reshape(self.support, self.support, -1, len(target))
        bias = target - mean @ solution
        return EquivariantMap(jnp.asarray(filters, jnp.float32), jnp.asarray(bias, jnp.float32), self.group, self.g)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _products(
    group: Group, g: int, support: int, source: Array, target: Array, counts: Array
) -> tuple[Float[Array, "p p"], Float[Array, "p d"]]:
    """PᵀP and PᵀY of the patches P of the moved source, a one at their end, and the targets Y, sites in rows."""
    moved = _move(group, g, source)
    n, height, width, channels = moved.shape
    edge = support // 2
    taps = patches(moved, (support, support), padding=((edge, edge), (edge, edge)))
    rows = jnp.concatenate([taps, jnp.ones((n, height, width, 1), moved.dtype)], -1)
    rows = jnp.where(counts[:, None, None, None], rows, 0).reshape(n * height * width, -1)
    return rows.T @ rows, rows.T @ _sites(target).reshape(-1, channels)


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
    """The map M with φ(g x) ≈ M φ(x) by ridge regression on all sites of all images, in closed form.

    The normal equations are summed over parts of the images in float64, each part's products in the type of the
    activations; solved in float64; the bias bears no penalty. A support wider than the map can use is cut to it.

    Args:
        phi_x: activations φ(x), (N, h, w, D), (N, h, w, |G|, K) with D = |G| K, or (N, D).
        phi_gx: activations φ(g x), of the same shape.
        group: the group.
        g: which element, in [0, |G|).
        support: side m of the filters in sites, odd.
        ridge: λ > 0, as a share of the mean diagonal of the patches' scatter matrix.
        max_bytes: bytes that a part's patches may take by estimate.

    Returns:
        The map, float32.

    Raises:
        ValueError: an even `support` or one < 1, `ridge` ≤ 0, shapes that differ, values that are not finite, fewer
            sites than a filter has entries, maps that the group cannot move.

    Example:
        >>> from jaxinterp.symmetry.groups import flips
        >>> z = jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
        >>> swapped = fit_map(z, transform(flips(), 1, z)[..., ::-1], flips(), 1, support=1, ridge=1e-6)
        >>> (swapped.filters[0, 0].round(3) + 0.0).tolist()
        [[0.0, 1.0], [1.0, 0.0]]

    Source: Lenc & Vedaldi 2015, regression with the support restricted to m×m neighbors.
    """
    _require_settings(support, ridge)
    _require_activations("phi_x", phi_x.shape)
    if phi_x.shape != phi_gx.shape:
        raise ValueError(f"phi_gx: got {phi_gx.shape}, expected {phi_x.shape} as of phi_x")
    support = _require_images("phi_x", len(phi_x), phi_x.shape, support)
    regression = _Regression(group, g, support)
    size = max(1, max_bytes // _bytes(phi_x.shape, support))
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
    """The map after some steps on the network's own loss, from the given one; only the map changes.

        min over F, b:  mean cross-entropy(head(M z), labels)          by Adam, on batches drawn with replacement

    Args:
        map: where to start, such as the regression's.
        head: z ↦ logits, the network after the layer, such as `Partial(cut(apply, at)[1], variables)` with
            `jax.tree_util.Partial` and `given=(x,)`; compiled once for as long as it is the same function.
        z: activations before the map, (N, h, w, D), (N, h, w, |G|, K) or (N, D).
        labels: (N,), in [0, classes).
        steps: of the optimizer, ≥ 1.
        rate: learning rate, > 0.
        key: of the batches.
        given: arrays that belong to the examples, (N, ...) each; `head` gets them after z.
        batch: examples of a step, ≥ 1.

    Returns:
        The map after the last step.

    Raises:
        ValueError: a number out of range, or arrays of different lengths.

    Source: Lenc & Vedaldi 2015, the transformation layer and its task-oriented loss, which AlexNet needs from Conv3 on.
    """
    _require_steps(steps, 1, rate)
    if batch < 1:
        raise ValueError(f"batch: got {batch}, expected at least 1")
    _require_activations("z", z.shape)
    for name, array in (("labels", labels), *((f"given: array {i}", array) for i, array in enumerate(given))):
        if array.shape[:1] != z.shape[:1]:
            raise ValueError(f"{name}: got shape {array.shape}, expected {len(z)} along the first axis as of z")
    head = head if isinstance(head, jax.tree_util.Partial) else jax.tree_util.Partial(head)
    weights = (map.filters, map.bias)
    state = optax.adam(rate).init(weights)
    arrays, pace = (z, labels, *given), jnp.float32(rate)
    with jax.default_matmul_precision("highest"):
        for i in range(steps):
            weights, state = _refined(map.group, map.g, batch, head, weights, state, arrays, pace, key, np.int32(i))
    return map._replace(filters=weights[0], bias=weights[1])


def _require_steps(steps: int, least: int, rate: int | float) -> None:
    if steps < least:
        raise ValueError(f"steps: got {steps}, expected at least {least}")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate: got {rate}, expected a positive finite number")


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
    """One step of Adam on one drawn batch."""
    drawn = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, len(arrays[0]))
    z, labels, *given = (array[drawn] for array in arrays)

    def loss(weights: tuple[Array, Array]) -> Array:
        return softmax_cross_entropy(head(_transform(group, g, weights[0], weights[1], z), *given), labels)

    gradient = jax.grad(loss)(weights)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer counts
        updates, state = optax.adam(rate).update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state


def row_ratios(map: EquivariantMap) -> Float[np.ndarray, " d"]:
    """How far every channel's row is from a multiple of the identity's: ‖row without its diagonal entry‖ / ‖row‖.

    The diagonal entry of channel i is the one that takes channel i at the same site.

    Args:
        map: the map.

    Returns:
        (D,), in [0, 1]; 0 for a row of zeros, a constant channel's.

    Source: Lenc & Vedaldi 2015, on invariant channels.
    """
    filters = np.asarray(map.filters, np.float64)
    others, center, channels = filters.copy(), filters.shape[0] // 2, np.arange(filters.shape[-1])
    others[center, center, channels, channels] = 0
    rest, whole = (np.sqrt((rows**2).sum((0, 1, 2))) for rows in (others, filters))
    return rest / np.maximum(whole, np.finfo(np.float64).tiny)


def with_identity_rows(map: EquivariantMap, count: int) -> EquivariantMap:
    """The map with the rows nearest to the identity's, by `row_ratios`, replaced by it: channels taken as invariant.

    Args:
        map: the map.
        count: how many rows, in [0, D].

    Returns:
        The map; its sites are moved as before.

    Raises:
        ValueError: `count` out of range.
    """
    if not 0 <= count <= len(map.bias):
        raise ValueError(f"count: got {count}, expected 0 to {len(map.bias)} rows")
    rows = np.argsort(row_ratios(map), kind="stable")[:count]
    filters, bias, center = np.array(map.filters), np.array(map.bias), map.filters.shape[0] // 2
    filters[:, :, :, rows], bias[rows] = 0, 0
    filters[center, center, rows, rows] = 1
    return map._replace(filters=jnp.asarray(filters), bias=jnp.asarray(bias))


def layer_equivariance(
    apply: Callable[..., Float[Array, "n classes"]],
    variables: Any,
    images: Float[Array, "n h w c"],
    labels: Int[Array, "..."],
    at: Sequence[str],
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
    """How far every layer is from equivariant to g, and how well a map of its features undoes g for the classifier.

    Two maps are fitted to the first images: M from φ(x) to φ(g x), and M′ back, whose sites move by g⁻¹. The other
    images give the numbers. A channel is invariant if its row of M′ can be the identity's: rows are replaced in the
    order of `row_ratios`, as many as leave 95 % of the compensated accuracy; how many is found by bisection, which
    takes the accuracy to fall with every row (where it does not, one more row would still cost too much).

    Args:
        apply: (variables, x) ↦ logits (N, classes), calling a Flax model in evaluation mode, the same function object
            from call to call.
        variables: the model's variables.
        images: x, (N, H, W, C).
        labels: (N,), in [0, classes).
        at: paths of submodules with outputs (N, h, w, D), (N, h, w, |G|, K) or (N, D); where the network has a way
            around one, such as a shortcut, what goes there is not compensated.
        group: the group.
        g: which element, in [0, |G|).
        train: how many of the images, from the first on, the maps are fitted to; in [1, N).
        support: side of the filters in sites, odd.
        ridge: as in `fit_map`.
        steps: of `refine_map` for M′, on the images of the fit; 0 leaves it as fitted. If there are any, the layer's
            activations of these images are all kept in memory.
        rate: learning rate of these steps.
        key: of these steps; default `jax.random.key(0)`.
        max_bytes: bytes that one pass may take by estimate.

    Returns:
        A `LayerEquivariance` for each of `at`.

    Raises:
        ValueError: unknown, repeated or no `at`, outputs of another shape, too few images, labels that do not fit,
            a number out of range, images or maps that the group cannot move, values that are not finite.

    Source: Lenc & Vedaldi 2015; the residuals as numbers are ours.
    """
    if isinstance(at, str):
        raise ValueError(f"layer: got {at!r}, expected a list of paths")
    _require_settings(support, ridge)
    _require_steps(steps, 0, rate)
    if not 1 <= train < len(images):
        raise ValueError(f"train: got {train} of {len(images)} images, expected at least 1, and fewer than there are")
    apply = unjitted(apply)
    bound = partial(apply, variables)
    found = jax.eval_shape(bound, images)
    if found.ndim != 2 or len(found) != len(images):
        raise ValueError(f"apply: got output {found.shape}, expected ({len(images)}, classes)")
    require_levels(bound, images[:1], at)
    if labels.shape != (len(images),):
        raise ValueError(f"labels: got shape {labels.shape}, expected ({len(images)},)")
    if not 0 <= int(labels.min()) <= int(labels.max()) < found.shape[1]:
        raise ValueError(f"labels: got {labels.min()}..{labels.max()}, expected classes in [0, {found.shape[1]})")
    require_finite("images", images)
    transform(group, g, images[:1])  # refuses an element or images before anything is computed
    shapes = {level: shape for level, shape in activation_names(bound, images[:1]).items() if level in at}
    supports = {}
    for level in at:
        _require_activations(f"layer: {level!r}", shapes[level])
        supports[level] = _require_images(f"train: at {level!r}", train, shapes[level], support)

    back = Group(f"{group.name} inverted", tuple(element.inverse() for element in group.elements), group.period)
    key = jax.random.key(0) if key is None else key
    forward = footprint(bound, images[:1]).bytes_each(0)
    held = (images[train:], labels[train:])
    with jax.default_matmul_precision("highest"):
        right = partial(_right, apply, group, variables)
        accuracy, moved = (_share(in_chunks(partial(right, np.int32(e)), held, forward, max_bytes)) for e in (0, g))
        results = []
        for i, level in enumerate(at):
            layer = _Layer(apply, level, group, back, g)
            each = 2 * forward + _bytes(shapes[level], supports[level])
            forth, undo = (_Regression(motions, g, supports[level]) for motions in (group, back))
            for _, real, (x,) in padded_batches(max(1, max_bytes // each), images[:train]):
                z, z_moved = _activations(layer, variables, x)
                forth.add(z, z_moved, real)
                undo.add(z_moved, z, real)
            there, here = forth.solve(ridge), undo.solve(ridge)
            if steps:
                moved_train = in_chunks(lambda x: transform(group, g, x), (images[:train],), forward, max_bytes)
                phi, head = split_network(apply, level)
                z_moved = in_chunks(partial(phi, variables), (moved_train,), forward, max_bytes)
                own = jax.tree_util.Partial(head, variables)
                here = refine_map(
                    here, own, z_moved, labels[:train], steps, rate, jax.random.fold_in(key, i), given=(moved_train,)
                )

            def compensated(map: EquivariantMap, layer: _Layer = layer, each: int = each) -> float:
                judge = partial(_right_compensated, layer, variables, map.filters, map.bias)
                return _share(in_chunks(judge, held, each, max_bytes))

            missed = partial(_missed, layer, variables, there.filters, there.bias)
            squares = np.asarray(in_chunks(missed, held[:1], each, max_bytes), np.float64).sum(0)
            size = max(squares[3], np.finfo(np.float32).tiny)
            residuals = np.sqrt(squares[:3] / size)
            sums = np.asarray(
                in_chunks(partial(_channel_sums, layer, variables), held[:1], each, max_bytes), np.float64
            )
            height, width, _ = _grid(shapes[level])
            sites = len(held[0]) * height * width
            constant = max(0.0, 1 - float((sums.sum(0) ** 2).sum()) / sites / size) ** 0.5
            reached, low, high = compensated(here), 0, len(here.bias) + 1
            chance = 1 / found.shape[1]
            while high - low > 1 and reached > chance + ABOVE_CHANCE * (1 - chance):
                middle = (low + high) // 2
                enough = compensated(with_identity_rows(here, middle)) >= KEPT * reached
                low, high = (middle, high) if enough else (low, middle)
            results.append(
                LayerEquivariance(
                    at=level,
                    uncompensated=float(residuals[0]),
                    moved=float(residuals[1]),
                    compensated=float(residuals[2]),
                    constant=constant,
                    accuracy=accuracy,
                    accuracy_moved=moved,
                    accuracy_compensated=reached,
                    invariant=low / len(here.bias) if high - low == 1 else math.nan,
                    map=there,
                    back=here,
                )
            )
    return results


def _share(right: Array) -> float:
    """Mean of zeros and ones, in float64."""
    return float(np.asarray(right, np.float64).mean())


class _Layer(NamedTuple):
    """What the programs of a layer are compiled for: `back` moves by the inverses of `group`."""

    apply: Callable[..., Array]
    at: str
    group: Group
    back: Group
    g: int


@partial(jax.jit, static_argnums=0)
def _activations(layer: _Layer, variables: Any, x: Array) -> tuple[Array, Array]:
    """φ(x) and φ(g x)."""
    phi, _ = split_network(layer.apply, layer.at)
    return phi(variables, x), phi(variables, transform(layer.group, layer.g, x))


@partial(jax.jit, static_argnums=0)
def _missed(layer: _Layer, variables: Any, filters: Array, bias: Array, x: Array) -> Float[Array, "n 4"]:
    """Squares of φ(g x) less φ(x), less g φ(x), less M φ(x), and of φ(g x) itself."""
    z, target = _activations(layer, variables, x)
    sites, wanted = _sites(z), _sites(target)
    mapped = _sites(_transform(layer.group, layer.g, filters, bias, z))
    missed = [wanted - sites, wanted - _move(layer.group, layer.g, z), wanted - mapped, wanted]
    return jnp.stack([jnp.square(part).sum((1, 2, 3)) for part in missed], -1)


@partial(jax.jit, static_argnums=0)
def _channel_sums(layer: _Layer, variables: Any, x: Array) -> Float[Array, "n d"]:
    """Σ over sites of φ(g x)."""
    return _sites(split_network(layer.apply, layer.at)[0](variables, transform(layer.group, layer.g, x))).sum((1, 2))


@partial(jax.jit, static_argnums=(0, 1))
def _right(
    apply: Callable[..., Array], group: Group, variables: Any, g: Int[Array, ""], x: Array, labels: Array
) -> Float[Array, " n"]:
    """Whether g x is classified right."""
    return (apply(variables, transform(group, g, x)).argmax(-1) == labels).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _right_compensated(
    layer: _Layer, variables: Any, filters: Array, bias: Array, x: Array, labels: Array
) -> Float[Array, " n"]:
    """Whether g x is classified right when the layer's output is mapped back."""
    phi, head = split_network(layer.apply, layer.at)
    moved = transform(layer.group, layer.g, x)
    z = _transform(layer.back, layer.g, filters, bias, phi(variables, moved))
    return (head(variables, z, moved).argmax(-1) == labels).astype(jnp.float32)
