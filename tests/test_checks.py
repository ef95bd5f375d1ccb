import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.checks import require_finite
from jaxinterp.errors import ConfigError


def test_non_finite_values_raise_and_known_ones_do_under_a_trace_too():
    def traced(known):
        @jax.jit
        def function(x):
            require_finite("x", x)
            require_finite("known", known)
            return x

        return function(jnp.ones(2))

    traced(jnp.ones(3))
    for wrong in (jnp.array([1.0, jnp.nan]), np.array([np.inf, 1.0, np.nan])):
        with pytest.raises(ConfigError, match=r"known: got .* of . values NaN or infinite"):
            traced(wrong)
