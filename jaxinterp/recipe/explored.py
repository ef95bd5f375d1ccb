"""What can be explored of a network on some images: exact maps at its layers, post-hoc methods, and its own reading."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.checks import require
from jaxinterp.data.batches import padded_batches
from jaxinterp.explain.audit import reason
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.methods import OURS, catalogue
from jaxinterp.figures.explorer import Explorable, Maps, Panel

METHODS = ("input_x_gradient", "integrated_gradients", "occlusion", "lrp_epsilon_plus", "grad_cam")
"""Post-hoc methods beside the exact maps, of those that fit the network."""
CLASSES = 12
"""Outputs up to which all have an exact map; of more, the likeliest."""
LIKELIEST = 4
"""Classes that have a map by the other methods."""
BATCH = 15
"""Images of a pass."""


def chosen_images(
    labels: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n classes"], count: int = Explorable.MAX_IMAGES
) -> Int[np.ndarray, " m"]:
    """Return indices: half of them misread where there are as many, the others the first of each class in turn.

    Example:
        >>> chosen_images(np.array([0, 0, 1, 1]), np.eye(2)[[0, 0, 1, 0]], 2).tolist()
        [3, 0]
    """
    wrong = np.flatnonzero(logits.argmax(1) != labels)[: count // 2]
    right = np.setdiff1d(np.arange(len(labels)), wrong)
    turn = np.zeros(len(right), int)
    for k in np.unique(labels):
        own = labels[right] == k
        turn[own] = np.arange(own.sum())
    order = right[np.lexsort((labels[right], turn))]
    return np.concatenate([wrong, order[: count - len(wrong)]])


def explored(
    net: Explainable,
    images: Float[np.ndarray, "n h w c"],
    classes: Sequence[str],
    labels: Int[np.ndarray, " n"] | None = None,
    names: Sequence[str] = (),
    methods: Sequence[str] = METHODS,
    panels: Sequence[Panel] = (),
    levels: bool = True,
) -> Explorable:
    """Explain images by a network, exactly at each of its layers of maps and by other methods.

    Args:
        net: the network.
        images: in [0, 1].
        classes: names of the outputs.
        labels: of the images, if they are known.
        names: of the images, such as file names.
        methods: names of `methods.catalogue`; those that do not fit the network are left out, and this is said.
        panels: the family's own readings.
        levels: whether the network is explained at all of its layers of maps, or at its own alone.
    """
    batches = padded_batches(BATCH, images)
    logits = np.concatenate([np.asarray(net.logits(x))[:real] for _, real, (x,) in batches])
    top = np.argsort(-logits, axis=1, kind="stable")
    shapes = net.layers(images[:1])
    wanted = (net.layer, *net.levels) if levels else (net.layer,)
    layers = [name for name in dict.fromkeys(wanted) if len(shapes[name]) == 4]
    found, notes = list[Maps](), list[str]()
    if layers:
        wide = np.sort(top[:, :CLASSES], axis=1)
        exact = partial(decompose, layer=layers) if layers != [net.layer] else decompose
        for layer, parts in zip(layers, _run(exact, net, images, wide), strict=True):
            found.append(Maps(OURS, layer, wide, parts[0], parts[1]))
    known = catalogue(net)
    for name in methods:
        if name not in known:
            continue
        few = np.sort(top[:, :LIKELIEST], axis=1)
        try:
            values, biases = _run(known[name], net, images, few)[0]
            finite = np.isfinite(values).all() and (biases is None or np.isfinite(biases).all())
            require(finite, "maps", "NaN or infinity", "finite contributions")
        except Exception as error:  # a method that fails is a line of the page, not its end
            notes.append(f"Not computed: {name.replace('_', ' ')} ({reason(error)}).")
            continue
        found.append(Maps(name, "input", few, values, biases))
    return Explorable(
        classes,
        logits,
        found,
        net.probabilities(logits),
        images,
        labels,
        names,
        panels,
        "a constant" if isinstance(net.bias, float) else net.constant,
        notes,
    )


def _run(method: Any, net: Explainable, images: np.ndarray, targets: np.ndarray) -> list[tuple[np.ndarray, Any]]:
    """Return maps and biases of every layer, computed batch by batch."""
    results = list[list[tuple[np.ndarray, Any]]]()
    for _, real, (x, k) in padded_batches(BATCH, images, targets):
        parts = method(net, x, k)
        parts = parts if isinstance(parts, list) else [parts]
        results.append(
            [
                (np.asarray(part.maps())[:real], None if part.bias is None else np.asarray(part.bias)[:real])
                for part in parts
            ]
        )
    joined = list[tuple[np.ndarray, Any]]()
    for level in zip(*results, strict=True):
        biases = None if level[0][1] is None else np.concatenate([bias for _, bias in level])
        joined.append((np.concatenate([maps for maps, _ in level]), biases))
    return joined
