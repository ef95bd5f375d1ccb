"""A trained network as its neural path kernel sees it: the kernel, and value inputs and gates of images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxinterp.gated.architecture import BatchNorm, Flatten, iter_layers
from jaxinterp.gated.kernels.path import Norm, Normalize, PathKernel
from jaxinterp.gated.network import GatedNetwork, Gates, GatingNetwork, Network

EPSILON = 1e-5  # of `jaxinterp.nn.batchnorm.BatchNorm`


@dataclass(frozen=True, eq=False)
class Compiled:
    """A function of one batch that is compiled when it is first called; a pickle holds the function alone."""

    function: Callable[[Array], Any]

    @cached_property
    def _compiled(self) -> Callable[[Any], Any]:
        return jax.jit(self.function)

    def __call__(self, x: Any) -> Any:
        """Call the compiled function."""
        return self._compiled(x)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function,)


@dataclass(frozen=True, eq=False)
class PathNetwork:
    """A path kernel with the functions that give its arguments at images; it can be pickled if they can.

    Attributes:
        kernel: of the value network.
        inputs: images, (n, ...) ↦ value inputs, (n, ...).
        gates: images, (n, ...) ↦ one gate for each `Gate` of the kernel's architecture, (n, ...).
    """

    kernel: PathKernel
    inputs: Callable[[Array], Array]
    gates: Callable[[Array], Gates]

    def __deepcopy__(self, memo: dict[int, Any]) -> "PathNetwork":
        """Return the same object, which is immutable, so that `sklearn.base.clone` shares it."""
        return self

    @classmethod
    def of(
        cls,
        network: Network | GatedNetwork,
        variables: Any,
        encode: Callable[[Array], Array] | None = None,
        normalize: Normalize = "width",
    ) -> "PathNetwork":
        """Read kernel, inputs and gates off a ReLU or gated network.

        Args:
            network: the network; a ReLU network's gates are its own.
            variables: its Flax variables.
            encode: images ↦ what the network reads, such as standardized images; by default the images. No lambda
                can be pickled.
            normalize: of the kernel.
        """
        if isinstance(network, GatedNetwork):
            read: Any = partial(network.apply, variables, method="gates")
            hard, value_input = network.hard, network.value_input
            value = {kind: parts["value_network"] for kind, parts in variables.items() if "value_network" in parts}
        else:
            read = partial(GatingNetwork(network.layers, gating="relu").apply, variables)
            hard, value_input, value = True, "x", variables
        flat = isinstance(network.layers[0], Flatten)
        layers, norms = network.layers[1:] if flat else network.layers, []
        for i in range(sum(isinstance(layer, BatchNorm) for layer in iter_layers(layers))):
            params, statistics = value["params"][f"norm_{i}"], value["batch_stats"][f"norm_{i}"]
            scale = params["scale"] * jax.lax.rsqrt(statistics["var"] + EPSILON)
            norms.append(Norm(scale, params["bias"] - statistics["mean"] * scale))
        kernel = PathKernel(layers, normalize=normalize, value_input=value_input, norms=tuple(norms), exact=hard)
        return cls(kernel, Compiled(partial(_inputs, encode, flat)), Compiled(partial(_gates, encode, read, hard)))

    def read(
        self, images: Float[Array | np.ndarray, "n ..."], batch_size: int = 256
    ) -> tuple[Shaped[np.ndarray, "n ..."], tuple[Shaped[np.ndarray, "n ..."], ...]]:
        """Compute value inputs and gates of images on the host, in batches of one size, the last one filled up."""
        batches = []
        for start in range(0, len(images), batch_size):
            x = jnp.asarray(images[np.arange(start, start + batch_size) % len(images)])
            count = min(batch_size, len(images) - start)
            batches.append([np.asarray(part)[:count] for part in (self.inputs(x), *self.gates(x))])
        inputs, *gates = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return inputs, tuple(gates)


def _inputs(encode: Callable[[Array], Array] | None, flat: bool, x: Array) -> Array:
    """Return the value inputs of images."""
    encoded = x if encode is None else encode(x)
    return encoded.reshape(len(encoded), -1) if flat else encoded


def _gates(encode: Callable[[Array], Array] | None, read: Callable[[Array], Gates], hard: bool, x: Array) -> Gates:
    """Return the gates of images, open or closed where they are hard."""
    opened = read(x if encode is None else encode(x))
    return tuple(gate > 0 for gate in opened) if hard else opened
