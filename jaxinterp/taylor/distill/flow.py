"""Multi-level distillation of a data set: one learned map merges b images of a class into one, level by level.

After the abstract of Yang, Xie & Yang (2023, see `taylor.network`): a data set is abstracted level by level, and the
resulting images are references for classification. Map, loss and numbers are ours.

    D_{k+1,c} = { G(x_1, …, x_b) : groups of D_{k,c} },      G(x_1, …, x_b) = clip(m + T(s − x0), 0, 1)

with m the mean of the group, s its pixel values sorted along the group (so that their order does not matter), T two
levels of Taylor units, the last of which starts at zero: G starts as the mean. The same G serves every level. With the
embedding e(x) = h(x) / |h(x)|, h the last level of a TaylorNet, the score of a class at level k is

    s_c(q) = log mean_{r ∈ D_{k,c}} exp(τ e(q)·e(r))

and the loss is the mean cross-entropy over the levels of a batch that is merged on the way: b² images of a class, then
b, then one.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require, require_at_least, require_labels
from jaxinterp.data.batches import padded_batches
from jaxinterp.data.image_set import ImageSet, require_unit_range
from jaxinterp.explain.explainable import Explainable
from jaxinterp.nn.layers import Layer
from jaxinterp.taylor.distill.references import random_references
from jaxinterp.taylor.network import TaylorNet, explained_from, path_affine
from jaxinterp.taylor.units import Level, TaylorLevel


class Merge(Layer):
    """G: merge groups of images into one each by two levels of Taylor units, `width` channels between them."""

    width: int = 16

    @nn.compact
    def __call__(self, groups: Float[Array, "n b h w c"], x0: Float[Array, "h w c"]) -> Float[Array, "n h w c"]:
        """Map (N, b, H, W, C) in [0, 1] to (N, H, W, C) in [0, 1]."""
        n, _, height, width, channels = groups.shape
        centered = jnp.sort(groups, axis=1) - x0.astype(groups.dtype)[None, None]
        z = jnp.moveaxis(centered, 1, -2).reshape(n, height, width, -1)
        z = z if self.dtype is None else z.astype(self.dtype)
        first, last = Level(self.width, side=3, stride=1), Level(channels, self.width, side=3, stride=1)
        z = TaylorLevel(level=first, **self.shared, name="level_0")(z)
        z = TaylorLevel(level=last, gain=0.0, **self.shared, name="level_1")(z)
        return jnp.clip(groups.mean(1) + z.astype(groups.dtype), 0, 1)


class Distiller(Layer, kw_only=True):
    """An embedding, the merging map, and one reference image per class: logits are τ times cosines.

    Attributes:
        embedding: network whose last level is compared; its head is not used.
        classes: number of classes.
        group: b ≥ 2, images that are merged into one.
        width: of `Merge`.
    """

    embedding: TaylorNet
    classes: int = 10
    group: int = 4
    width: int = 16

    def setup(self) -> None:
        """Create the merging map and log τ."""
        require_at_least("group", self.group, 2)
        self.merge = Merge(self.width, **self.shared)
        self.log_tau = self.param("log_tau", nn.initializers.constant(np.log(10.0)), (), self.param_dtype)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False, frozen: bool = False
    ) -> Float[Array, "n classes"]:
        """Compute logits τ e(x)·e(r_c), r_c the stored references, as `TaylorNet` does; `frozen` freezes |h(x)| too."""
        stored = self.variable("batch_stats", "references", jnp.zeros, (self.classes, *x.shape[1:]), x.dtype)
        references, tau = self.embed(stored.value), jnp.exp(self.log_tau)
        if self.is_initializing():
            self.merge_groups(jnp.zeros((1, self.group, *x.shape[1:]), x.dtype))
        if not frozen:
            return tau * (self.embed(x) @ references.T)
        norm = lax.stop_gradient(_norm(self.embedding(x, features=True)))
        h: Any = partial(self.embedding.clone(parent=None).apply, self.embedding.variables, features=True)
        return tau * path_affine(lambda y: h(y) @ references.T, x, self.center, self.embedding.degree) / norm

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained: in x − x0, once path and norm are held."""
        return explained_from(self, variables, ("batch_stats", "embedding", "expansion_point"))

    @property
    def center(self) -> Float[Array, "h w c"]:
        """Expansion point x0 of the embedding."""
        return self.embedding.variables["batch_stats"]["expansion_point"]

    def embed(self, x: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Compute e(x), of norm 1."""
        h = self.embedding(x, features=True)
        return h / _norm(h)

    def merge_groups(self, groups: Float[Array, "n b h w c"]) -> Float[Array, "n h w c"]:
        """Merge each group of images into one, see `Merge`."""
        return self.merge(groups, self.center)


def _norm(h: Float[Array, "n d"]) -> Float[Array, "n 1"]:
    """Compute |h|, bounded away from zero."""
    return jnp.sqrt((h**2).sum(-1, keepdims=True) + jnp.asarray(1e-12, h.dtype))


def scores(
    queries: Float[Array, "n d"], references: Float[Array, "classes r d"], tau: Float[Array, ""]
) -> Float[Array, "n classes"]:
    """Compute s_c(q) = log mean_r exp(τ e(q)·e(r)) of embedded queries and references, as many for every class."""
    similarity = jnp.einsum("nd,crd->ncr", queries, references)
    return jax.nn.logsumexp(tau * similarity, axis=-1) - jnp.log(jnp.asarray(references.shape[1], queries.dtype))


def reference_indices(labels: Int[Array, " n"], classes: int, count: int) -> Int[Array, "classes count"]:
    """Find the first `count` examples of every class in a batch, cycling if there are fewer."""
    members = labels[None] == jnp.arange(classes, dtype=labels.dtype)[:, None]
    order = jnp.argsort(~members, axis=1, stable=True)
    position = jnp.arange(count)[None] % jnp.maximum(members.sum(1), 1)[:, None]
    return jnp.take_along_axis(order, position, axis=1)


@dataclass(frozen=True)
class SimilarityLoss:
    """Mean cross-entropy of `scores` over the levels of a batch, plus a penalty on G's deviation from the mean.

    The first b^levels examples of every class are references, the others queries; absent classes are ignored.

    Attributes:
        model: the network.
        levels: how often the references of a batch are merged.
        fidelity: weight of ⟨(G − m)²⟩, which keeps the references readable.
    """

    model: Distiller
    levels: int = 2
    fidelity: float = 0.0

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, Any], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """Compute the loss of a batch, and store the references of its last level."""
        model, images, labels = self.model, batch["image"], batch["label"]
        variables = {"params": params, "batch_stats": batch_stats}
        shape, group = images.shape[1:], model.group
        indices = reference_indices(labels, model.classes, group**self.levels)
        weight = jnp.ones(len(labels), images.dtype).at[indices.ravel()].set(0)
        absent = ~(labels[:, None] == jnp.arange(model.classes, dtype=labels.dtype)[None]).any(0)[None]
        queries: Any = model.apply(variables, images, method="embed")
        tau, level = jnp.exp(params["log_tau"]), images[indices]
        losses, deviation = [], jnp.zeros((), images.dtype)
        logits = jnp.zeros((len(labels), model.classes), images.dtype)
        for k in range(self.levels + 1):
            if k:
                groups = level.reshape(-1, group, *shape)
                merged: Any = model.apply(variables, groups, method="merge_groups")
                deviation = deviation + ((merged - groups.mean(1)) ** 2).mean() / self.levels
                level = merged.reshape(model.classes, -1, *shape)
            embedded: Any = model.apply(variables, level.reshape(-1, *shape), method="embed")
            logits = scores(queries, embedded.reshape(model.classes, -1, embedded.shape[-1]), tau)
            logits = jnp.where(absent, jnp.asarray(-1e9, logits.dtype), logits)
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            losses.append((weight * cross_entropy).sum() / jnp.maximum(weight.sum(), 1))
        loss = jnp.stack(losses).mean() + self.fidelity * deviation
        correct = weight * (logits.argmax(-1) == labels).astype(weight.dtype)
        stats = {**batch_stats, "references": lax.stop_gradient(level[:, 0])}
        accuracy = correct.sum() / jnp.maximum(weight.sum(), 1)
        return loss, (stats, {"loss": loss, "accuracy": accuracy, "deviation": deviation})


def best_levels(labels: Int[np.ndarray, " n"], classes: int, group: int) -> int:
    """Return how often the rarest class can be merged: the largest L such that it has group^L images.

    Example:
        >>> best_levels(np.repeat(np.arange(3), 20), 3, 4)
        2
    """
    require_at_least("group", group, 2)
    rarest = int(np.bincount(np.asarray(labels), minlength=classes).min())
    return next(levels for levels in itertools.count() if group ** (levels + 1) > rarest)


def distill(
    model: Distiller,
    variables: Any,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    levels: int,
    *,
    seed: int = 0,
    batch: int = 256,
    provenance: Mapping[str, str] | None = None,
) -> list[ImageSet]:
    """Distill a data set to D_0, …, D_L: group^L images of every class, merged in groups until one is left.

    Args:
        model: the network.
        variables: its variables.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), in [0, classes), at least group^L of each class.
        levels: L ≥ 1.
        seed: of the random choice and grouping of images.
        batch: groups in one pass.
        provenance: origin of the images, kept with every set.

    Returns:
        L + 1 sets, with group^(L − k) images of every class at level k.
    """
    require_at_least("levels", levels, 1)
    require_labels("labels", labels, len(images), model.classes)
    require_unit_range(images)
    most = best_levels(labels, model.classes, model.group)
    require(levels <= most, "levels", levels, f"at most {most}: level 0 has {model.group}^levels images of every class")
    merge = jax.jit(partial(model.apply, method="merge_groups"))
    origin = {**(provenance or {}), "method": "real images, chosen at random", "seed": str(seed)}
    sets = [replace(random_references(images, labels, model.classes, model.group**levels, seed), provenance=origin)]
    for level in range(1, levels + 1):
        groups = sets[-1].images.reshape(-1, model.group, *images.shape[1:])
        parts = [np.asarray(merge(variables, x))[:real] for _, real, (x,) in padded_batches(batch, groups)]
        origin = {**origin, "method": f"merged {level} times in groups of {model.group}"}
        sets.append(ImageSet(np.concatenate(parts), sets[-1].labels[:: model.group], level, origin))
    return sets


def fixed_point_error(model: Distiller, variables: Any, references: Float[np.ndarray, "n h w c"]) -> float:
    """Measure the root mean square of G(r, …, r) − r: zero if merging copies of a reference does not change it."""
    groups = jnp.repeat(jnp.asarray(references)[:, None], model.group, axis=1)
    merged = jax.jit(partial(model.apply, method="merge_groups"))(variables, groups)
    return float(jnp.sqrt(((merged - references) ** 2).mean()))


def accuracies(
    embedded: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    references: Float[np.ndarray, "classes r d"],
    *,
    draws: int = 10,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Measure the accuracy of classification by embedded references, in three ways.

    Returns:
        The accuracy by one random reference per class (mean of `draws`), by the nearest of all references, and by the
        mean embedding of every class.
    """

    def accuracy(similarity: Float[np.ndarray, "n classes"]) -> float:
        return float((similarity.argmax(1) == labels).mean())

    rng, (classes, count) = np.random.default_rng(seed), references.shape[:2]
    draws = draws if count > 1 else 1
    picks = (references[np.arange(classes), rng.integers(0, count, classes)] for _ in range(draws))
    single = float(np.mean([accuracy(embedded @ pick.T) for pick in picks]))
    nearest = accuracy(np.stack([(embedded @ of_class.T).max(1) for of_class in references], 1))
    return single, nearest, accuracy(embedded @ references.mean(1).T)
