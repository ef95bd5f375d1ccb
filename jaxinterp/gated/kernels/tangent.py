"""The empirical neural tangent kernel of a network, without forming its Jacobians.

    K(x, x')_{cc'} = <∂f_c(x)/∂θ, ∂f_c'(x')/∂θ>

For every (x', c') one vector-Jacobian product gives the direction θ̇ = ∂f_c'(x')/∂θ, and one Jacobian-vector product
f's change along it at all x (Jacot, Gabriel, Hongler, NeurIPS 2018; Novak, Sohl-Dickstein, Schoenholz, ICML 2022,
"NTK-vector products").
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_one_of
from jaxinterp.explain.meshes import on_automatic_axes

Function = Callable[[Any, Any], Float[Array, "n classes"]]


@on_automatic_axes
def tangent_kernel(
    function: Function, params: Any, x: Any, x2: Any = None, *, classes: Literal["mean", "all"] = "mean"
) -> Float[Array, "n m ..."]:
    """Compute the tangent kernel of every pair of examples.

    Args:
        function: (params, examples) ↦ (N, classes), each output a function of its own example.
        params: the parameters to differentiate, a pytree of floating arrays.
        x: examples, an array or a pytree of arrays with a common first axis (inputs and their gates, say), (N, ...).
        x2: other examples, (M, ...); `x` if None.
        classes: "mean", the mean over classes of K_cc; "all", every pair of classes.

    Returns:
        (N, M), or (N, M, classes, classes).

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> tangent_kernel(lambda w, x: x @ w, jnp.ones((2, 1)), x).tolist()
        [[5.0, 11.0], [11.0, 25.0]]
    """
    require_one_of("classes", classes, ("mean", "all"))
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        require(jnp.issubdtype(dtype, jnp.floating), f"params{jax.tree_util.keystr(path)}", dtype, "floating values")

    def column(other: Any) -> Float[Array, "classes n classes"]:
        """Compute K(x, other) for every class of `other`, then of x."""
        out, pullback = jax.vjp(lambda params: function(params, jax.tree.map(lambda a: a[None], other))[0], params)

        def along(cotangent: Array) -> Array:
            return jax.jvp(lambda params: function(params, x), (params,), (pullback(cotangent)[0],))[1]

        return jax.vmap(along)(jnp.eye(len(out), dtype=out.dtype))

    kernel = jnp.moveaxis(lax.map(column, x if x2 is None else x2), (0, 1, 2, 3), (1, 3, 0, 2))
    return jnp.einsum("nmcc->nm", kernel) / kernel.shape[-1] if classes == "mean" else kernel
