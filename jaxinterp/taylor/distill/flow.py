"""Multi-level abstraction of a data set: one learned map merges b images of a class into one, level by level.

After the abstract of Yang, Xie & Yang (Chin. Phys. Lett. 40, 020501, 2023, arXiv 2211.01779): an input data set is
abstracted level by level, and the images that come out are references for classification. The paper's text could not be
had: map, loss and numbers are ours.

    D_{k+1,c} = { G(x_1, …, x_b) : groups of D_{k,c} },      G(x_1, …, x_b) = clip(m + T(s − x0), 0, 1)

with m the mean of the group, s its pixel values sorted along the group (so that their order does not matter), T two
levels of Taylor units, the last of which starts at zero: G starts as the mean. The same G serves every level. With the
embedding e(x) = h(x) / |h(x)|, h the last level of a TaylorNet, a class' score at level k is

    s_c(q) = log mean_{r ∈ D_{k,c}} exp(τ e(q)·e(r))

and the loss is the mean cross-entropy over the levels of a batch that is abstracted on the way: b² images of a class,
then b, then one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.data.batches import padded_batches
from jaxinterp.nn.layers import Layer
from jaxinterp.taylor.distill.references import ImageSet, require_classes
from jaxinterp.taylor.network import Level, TaylorLevel, TaylorNet, path_affine


class Merge(Layer):
    """G: groups of images ↦ one image each, whatever the order within a group.

    Attributes:
        width: channels between the two levels of Taylor units.
    """

    width: int = 16

    @nn.compact
    def __call__(self, groups: Float[Array, "n b h w c"], x0: Float[Array, "h w c"]) -> Float[Array, "n h w c"]:
        """(N, b, H, W, C) in [0, 1] ↦ (N, H, W, C) in [0, 1]."""
        count, _, *image = groups.shape
        spread = jnp.sort(groups, axis=1) - x0.astype(groups.dtype)[None, None]
        z = jnp.moveaxis(spread, 1, -2).reshape(count, *image[:2], -1)
        z = z if self.dtype is None else z.astype(self.dtype)
        first, last = Level(self.width, side=3, stride=1), Level(image[2], self.width, side=3, stride=1)
        z = TaylorLevel(level=first, **self.shared, name="level_0")(z)
        z = TaylorLevel(level=last, gain=0.0, **self.shared, name="level_1")(z)
        return jnp.clip(groups.mean(1) + z.astype(groups.dtype), 0, 1)


class Distiller(Layer, kw_only=True):
    """An embedding, the merging map, and one reference image per class: logits are τ times cosines.

    Attributes:
        embedding: the network whose last level is compared; its last unit is not used.
        classes: of the data.
        group: b, images that are merged into one.
        width: of `Merge`.
    """

    embedding: TaylorNet
    classes: int = 10
    group: int = 4
    width: int = 16

    def setup(self) -> None:
        """The merging map and log τ.

        Raises:
            ValueError: groups of fewer than two.
        """
        if self.group < 2:
            raise ValueError(f"group: got {self.group}, expected at least 2")
        self.merge = Merge(self.width, **self.shared)
        self.log_tau = self.param("log_tau", nn.initializers.constant(np.log(10.0)), (), self.param_dtype)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False, frozen: bool = False
    ) -> Float[Array, "n classes"]:
        """Logits τ e(x)·e(r_c), r_c the stored references.

        Args:
            x: images, (N, H, W, C) in [0, 1].
            train: changes nothing; training steps say it.
            frozen: with |h(x)| held and h as an affine function of x, see `path_affine`.
        """
        stored = self.variable("batch_stats", "references", jnp.zeros, (self.classes, *x.shape[1:]), x.dtype)
        known, tau = self.embed(stored.value), jnp.exp(self.log_tau)
        if self.is_initializing():
            self.merged(jnp.zeros((1, self.group, *x.shape[1:]), x.dtype))
        if not frozen:
            return tau * (self.embed(x) @ known.T)
        norm = lax.stop_gradient(_norm(self.embedding(x, features=True)))
        free, variables = self.embedding.clone(parent=None), self.embedding.variables

        def similar(y: Array) -> Array:
            h: Any = free.apply(variables, y, features=True)
            return h @ known.T

        return tau * path_affine(similar, x, self.center, self.embedding.degree) / norm

    @property
    def center(self) -> Float[Array, "h w c"]:
        """x0 of the embedding."""
        point: Array = self.embedding.variables["batch_stats"]["expansion_point"]
        return point

    def embed(self, x: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """e(x), of norm 1."""
        h = self.embedding(x, features=True)
        return h / _norm(h)

    def merged(self, groups: Float[Array, "n b h w c"]) -> Float[Array, "n h w c"]:
        """G of groups of images."""
        return self.merge(groups, self.center)


def _norm(h: Float[Array, "n d"]) -> Float[Array, "n 1"]:
    """|h|, never zero."""
    return jnp.sqrt((h**2).sum(-1, keepdims=True) + jnp.asarray(1e-12, h.dtype))


def scores(
    queries: Float[Array, "n d"], references: Float[Array, "classes r d"], tau: Float[Array, ""]
) -> Float[Array, "n classes"]:
    """s_c(q) = log mean_r exp(τ e(q)·e(r)), of embedded queries and of as many references for every class."""
    similar = jnp.einsum("nd,crd->ncr", queries, references)
    return jax.nn.logsumexp(tau * similar, axis=-1) - jnp.log(jnp.asarray(references.shape[1], queries.dtype))


def chosen(labels: Int[Array, " n"], classes: int, count: int) -> Int[Array, "classes count"]:
    """Places of the first `count` examples of every class in a batch, from the start again where there are fewer."""
    own = labels[None] == jnp.arange(classes, dtype=labels.dtype)[:, None]
    order = jnp.argsort(~own, axis=1, stable=True)
    place = jnp.arange(count)[None] % jnp.maximum(own.sum(1), 1)[:, None]
    return jnp.take_along_axis(order, place, axis=1)


@dataclass(frozen=True)
class SimilarityLoss:
    """Mean cross-entropy of `scores` over the levels of a batch, and how far G may stray from the mean.

    Of every class b^levels examples are references; the others are the queries. A class that is not in the batch is
    left out of it.

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
        """The loss of a batch; the references of its last level are stored."""
        model, images, labels = self.model, batch["image"], batch["label"]
        variables = {"params": params, "batch_stats": batch_stats}
        shape, group = images.shape[1:], model.group
        places = chosen(labels, model.classes, group**self.levels)
        weight = jnp.ones(len(labels), images.dtype).at[places.ravel()].set(0)
        absent = ~(labels[:, None] == jnp.arange(model.classes, dtype=labels.dtype)[None]).any(0)[None]
        queries: Any = model.apply(variables, images, method="embed")
        tau, level = jnp.exp(params["log_tau"]), images[places]
        losses, strayed = [], jnp.zeros((), images.dtype)
        logits = jnp.zeros((len(labels), model.classes), images.dtype)
        for k in range(self.levels + 1):
            if k:
                groups = level.reshape(-1, group, *shape)
                merged: Any = model.apply(variables, groups, method="merged")
                strayed = strayed + ((merged - groups.mean(1)) ** 2).mean() / self.levels
                level = merged.reshape(model.classes, -1, *shape)
            embedded: Any = model.apply(variables, level.reshape(-1, *shape), method="embed")
            logits = scores(queries, embedded.reshape(model.classes, -1, embedded.shape[-1]), tau)
            logits = jnp.where(absent, jnp.asarray(-1e9, logits.dtype), logits)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            losses.append((weight * each).sum() / jnp.maximum(weight.sum(), 1))
        loss = jnp.stack(losses).mean() + self.fidelity * strayed
        right = weight * (logits.argmax(-1) == labels).astype(weight.dtype)
        stats = {**batch_stats, "references": lax.stop_gradient(level[:, 0])}
        metrics = {"loss": loss, "accuracy": right.sum() / jnp.maximum(weight.sum(), 1), "strayed": strayed}
        return loss, (stats, metrics)


def best_levels(labels: Int[np.ndarray, " n"], classes: int, group: int) -> int:
    """How often the rarest class can be merged: the largest L with group^L of its images.

    Raises:
        ValueError: a group of fewer than two.

    Example:
        >>> best_levels(np.repeat(np.arange(3), 20), 3, 4)
        2
    """
    if group < 2:
        raise ValueError(f"group: got {group}, expected at least 2")
    rarest = int(np.bincount(np.asarray(labels), minlength=classes).min())
    levels = 0
    while group ** (levels + 1) <= rarest:
        levels += 1
    return levels


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
    """D_0, …, D_L: group^L images of every class, merged in groups at every level until one is left.

    Args:
        model: the network.
        variables: its variables.
        images: float32 in [0, 1].
        labels: their classes.
        levels: L ≥ 1.
        seed: of the choice and the grouping of images.
        batch: groups of one pass.
        provenance: where the images came from, kept with every set.

    Returns:
        L + 1 sets, with group^(L − k) images of every class at level k.

    Raises:
        ValueError: fewer levels than one, a class with fewer than group^L images, labels that are no classes, or
            images out of range.
    """
    if levels < 1:
        raise ValueError(f"levels: got {levels}, expected at least 1")
    require_classes(labels, model.classes)
    if len(labels) != len(images):
        raise ValueError(f"labels: got {len(labels)}, expected {len(images)}, one for each image")
    if not 0 <= images.min() <= images.max() <= 1:
        raise ValueError(f"images: got values in {images.min():g}..{images.max():g}, expected [0, 1]")
    need, counts = model.group**levels, np.bincount(np.asarray(labels), minlength=model.classes)
    if counts.min() < need:
        raise ValueError(
            f"levels: got {levels} levels of {model.group}, which need {need} images of every class; class "
            f"{int(counts.argmin())} has {counts.min()}, enough for {best_levels(labels, model.classes, model.group)}"
        )
    drawn = np.random.default_rng(seed)
    places = np.stack([drawn.permutation(np.flatnonzero(labels == c))[:need] for c in range(model.classes)])
    current = images[places]
    classes = np.arange(model.classes, dtype=np.int32)
    merged = jax.jit(lambda variables, groups: model.apply(variables, groups, method="merged"))
    found = list[ImageSet]()
    for k in range(levels + 1):
        if k:
            groups = current.reshape(-1, model.group, *images.shape[1:])
            parts = [np.asarray(merged(variables, x))[:real] for _, real, (x,) in padded_batches(batch, groups)]
            current = np.concatenate(parts).reshape(model.classes, -1, *images.shape[1:])
        how = f"merged {k} times in groups of {model.group}" if k else "real images, chosen at random"
        told = {**(provenance or {}), "method": how, "seed": str(seed)}
        flat = current.reshape(-1, *images.shape[1:])
        found.append(ImageSet(flat, np.repeat(classes, current.shape[1]), k, told))
    return found


def fixed_point_error(model: Distiller, variables: Any, references: Float[np.ndarray, "n h w c"]) -> float:
    """Root mean square of G(r, …, r) − r: zero where merging leaves a reference as it is."""
    groups = jnp.repeat(jnp.asarray(references)[:, None], model.group, axis=1)
    out: Any = model.apply(variables, groups, method="merged")
    return float(jnp.sqrt(((out - references) ** 2).mean()))


def accuracies(
    embedded: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    references: Float[np.ndarray, "classes r d"],
    *,
    draws: int = 10,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Accuracy by one random reference per class (mean of draws), by the nearest of all, and by mean embeddings."""
    drawn, count = np.random.default_rng(seed), references.shape[1]
    classes = np.arange(len(references))
    one = [
        float(((embedded @ references[classes, drawn.integers(0, count, len(classes))].T).argmax(1) == labels).mean())
        for _ in range(draws if count > 1 else 1)
    ]
    nearest = np.stack([(embedded @ of_class.T).max(1) for of_class in references], 1).argmax(1)
    means: Sequence[Any] = references.mean(1)
    return (
        float(np.mean(one)),
        float((nearest == labels).mean()),
        float(((embedded @ np.asarray(means).T).argmax(1) == labels).mean()),
    )
