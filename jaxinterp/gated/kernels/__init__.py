"""Kernels of given gates, and regression with them.

Gates, read off a network or your own; the kernel of the open paths; regression with it; the training images that
decided; and the contributions of the value network with the same gates.

Example:
    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from jaxinterp import decompose, explainable
    >>> from jaxinterp.gated import GatedNetwork, Network, fc
    >>> from jaxinterp.gated.kernels import PathKernel, kernel_ridge, one_hot
    >>> layers, x = fc(16, 3, classes=2), jax.random.normal(jax.random.key(0), (40, 5))
    >>> dlgn = GatedNetwork(layers, gating="linear", hard=True)
    >>> gates = dlgn.apply(dlgn.init(jax.random.key(1), x), x, method="gates")
    >>> [gate.shape for gate in gates]
    [(40, 16), (40, 16), (40, 16)]
    >>> k = np.asarray(PathKernel(layers, normalize="width")(x, gates))
    >>> solved = kernel_ridge(k[:30, :30], one_hot(np.asarray(x[:30, 0] > 0, int), 2))
    >>> shares = solved.shares(k[30:, :30])
    >>> bool(np.allclose(shares.sum(1) + solved.offset, solved.predict(k[30:, :30])))
    True
    >>> value = Network(layers)
    >>> variables = value.init(jax.random.key(2), x)
    >>> net = explainable(lambda v, x, *g: value.apply(v, x, g), variables)
    >>> parts = decompose(net, x, given=gates)
    >>> bool(jnp.allclose(parts.contributions.sum(-1) + parts.bias, parts.logits, atol=1e-5))
    True
"""

from jaxinterp.gated.kernels.path import Norm, PathKernel
from jaxinterp.gated.kernels.regression import Nystrom, Ridge, conjugate_gradients, kernel_ridge, nystrom, one_hot
from jaxinterp.gated.kernels.tangent import tangent_kernel
from jaxinterp.gated.kernels.tiles import Tiles
from jaxinterp.lazy import public

__all__ = [
    "Norm",
    "Nystrom",
    "PathKernel",
    "Ridge",
    "Tiles",
    "conjugate_gradients",
    "kernel_ridge",
    "nystrom",
    "one_hot",
    "tangent_kernel",
]

__dir__ = public(__all__)
