"""Invariants: functions of the responses to an orbit that do not change when the image moves.

The responses E[g] = ⟨g x, t⟩ of an image h x are those of x with the group axis permuted (`groups.permute`).
Invariant are

    mean_g E        max_g E        moments (mean_g E^p)^(1/p)        the sorted orbit        and, where F = DFT_g E,
    |F_i|           bispectrum F_i F_j F̄_{i+j}, which determines E up to a permutation     cross-power F_{i,k} F̄_{i,l}

The last three exist for cyclic groups only. All but cross-power treat every template apart: even the bispectrum does
not tell whether one template's responses were permuted alone; cross-power ties neighboring templates together.

Products are taken back to the scale of E (cube root of the bispectrum's size, square root of cross-power's), so every
invariant here is homogeneous of degree 1: I(s E) = s I(E) for s > 0, and by Euler's identity I(E) = Σ_g E[g] ∂I/∂E[g],
exactly. `linearized` is that sum with the derivatives held: the invariant as a linear map at its input.

Source: Anselmi et al., "Unsupervised learning of invariant representations", TCS 2016 (moments of orbits); Giannakis,
"Signal reconstruction from multiple correlations", JOSA A 1989 (bispectrum); Kakarala, "The
bispectrum as a source of phase-sensitive invariants for Fourier descriptors", JMIV 2012.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxinterp.checks import require, require_at_least

Responses = Float[Array, "n g k"]
"""E[g] of every template, (N, |G|, K)."""

BISPECTRUM_FREQUENCIES = 6
"""How many of the lowest frequencies the bispectrum of `INVARIANTS` has."""

MAX_NETWORK_SIZE = 64
"""Group order up to which responses are sorted by a network of transpositions, whose size grows as its square."""


def moments(e: Responses, orders: Sequence[int] = (1, 2, 3)) -> Float[Array, "n pk"]:
    """Return (mean_g E[g]^p)^(1/p) of every order p ≥ 1, with the mean's sign: (N, P K), order by order.

    Example:
        >>> moments(jnp.array([[[3.0], [-3.0]]])).tolist()
        [[0.0, 3.0, 0.0]]
    """
    require_at_least("orders", orders, 1)
    unit, scale = _unit(e)
    return jnp.concatenate([scale[:, 0] * _root((unit**p).mean(1), p) for p in orders], axis=1)


def sorted_orbit(e: Responses) -> Float[Array, "n gk"]:
    """Sort the responses of every template, (N, |G| K): invariant under any permutation.

    Example:
        >>> sorted_orbit(jnp.array([[[3.0], [1.0], [2.0]]])).tolist()
        [[1.0, 2.0, 3.0]]
    """
    return _ascending(e).reshape(len(e), -1)


def _ascending(e: Responses) -> Responses:
    """Sort the group axis by transposition of neighbors: |G| layers of minima and maxima.

    XLA's sort takes 5 times as long on a CPU at |G| = 24. Elements in even and in odd places are kept apart, so that
    a layer compares arrays: first 0 with 1, 2 with 3, …, then 1 with 2, 3 with 4, ….
    """
    count = e.shape[1]
    if count > MAX_NETWORK_SIZE:
        return jnp.sort(e, axis=1)
    even, odd = e[:, 0::2], e[:, 1::2]
    pairs, inner = odd.shape[1], even.shape[1] - 1
    for layer in range(count):
        if layer % 2 == 0:
            left, right = even[:, :pairs], odd
            even = jnp.concatenate([jnp.minimum(left, right), even[:, pairs:]], axis=1)
            odd = jnp.maximum(left, right)
        else:
            left, right = odd[:, :inner], even[:, 1:]
            odd = jnp.concatenate([jnp.minimum(left, right), odd[:, inner:]], axis=1)
            even = jnp.concatenate([even[:, :1], jnp.maximum(left, right)], axis=1)
    woven = jnp.stack([even[:, :pairs], odd], axis=2).reshape(len(e), 2 * pairs, e.shape[2])
    return jnp.concatenate([woven, even[:, pairs:]], axis=1)


def spectrum(e: Responses) -> Float[Array, "n fk"]:
    """Return |F_i| / √|G| for the frequencies i = 0, …, ⌊|G|/2⌋ along a cyclic group, (N, (⌊|G|/2⌋ + 1) K).

    Example:
        >>> spectrum(jnp.array([[[1.0], [1.0], [1.0], [1.0]]])).tolist()
        [[2.0, 0.0, 0.0]]
    """
    unit, scale = _unit(e)
    return (scale * _size(jnp.fft.rfft(unit, axis=1, norm="ortho"))).reshape(len(e), -1)


def bispectrum(e: Responses, frequencies: int | None = None) -> Float[Array, "n bk"]:
    """Return B_ij = F_i F_j F̄_{i+j} for 0 ≤ i ≤ j < `frequencies`, real and imaginary, its size to the power 1/3.

    F is the DFT divided by √|G|. Complete: where no F_i is 0, all of B determines the E of each template up to a cyclic
    permutation; the first frequencies only, as in `INVARIANTS`, determine those.

    Args:
        e: responses along a cyclic group, (N, |G|, K).
        frequencies: number of frequencies, in [1, |G|]; all |G| where None.

    Returns:
        (N, f (f + 1) K) for f frequencies.
    """
    order = e.shape[1]
    f = order if frequencies is None else frequencies
    require(1 <= f <= order, "frequencies", f, f"a number in [1, {order}]")
    unit, scale = _unit(e)
    spectra = jnp.fft.fft(unit, axis=1, norm="ortho")
    i, j = np.triu_indices(f)
    return _parts(spectra[:, i] * spectra[:, j] * jnp.conj(spectra[:, (i + j) % order]), 2 / 3, scale)


def cross_power(e: Responses) -> Float[Array, "n fp"]:
    """Return F_{i,k} F̄_{i,l} of neighboring templates l = k + 1 (cyclically), real and imaginary.

    Its size is taken to the power 1/2. Two templates' phases at one frequency turn together, so their difference stays:
    from responses (N, |G|, K) along a cyclic group, K ≥ 2, to (N, 2 (⌊|G|/2⌋ + 1) K).
    """
    require(e.shape[2] >= 2, "e", f"{e.shape[2]} template", "at least 2 for cross-power")
    unit, scale = _unit(e)
    spectra = jnp.fft.rfft(unit, axis=1, norm="ortho")
    products = spectra * jnp.conj(jnp.roll(spectra, -1, axis=2))
    return _parts(products, 1 / 2, jnp.sqrt(scale) * jnp.sqrt(jnp.roll(scale, -1, axis=2)))


Name = Literal["mean", "max", "moments", "sorted", "spectrum", "bispectrum", "cross_power"]
INVARIANTS: Mapping[Name, Callable[[Responses], Array]] = {
    "mean": lambda e: e.mean(1),
    "max": lambda e: e.max(1),
    "moments": moments,
    "sorted": sorted_orbit,
    "spectrum": spectrum,
    "bispectrum": lambda e: bispectrum(e, min(BISPECTRUM_FREQUENCIES, e.shape[1])),
    "cross_power": cross_power,
}
"""Every invariant by name, responses ↦ features (N, F)."""
CYCLIC: frozenset[Name] = frozenset({"spectrum", "bispectrum", "cross_power"})
"""Those that only cyclic groups have."""


def linearized(invariant: Callable[[Array], Array], e: Responses) -> Array:
    """Return the invariant's value as a linear map of `e`, its derivatives held: Σ_g E[g] ∂I/∂E[g] (Euler).

    Args:
        invariant: homogeneous of degree 1, as all of this file.
        e: responses, (N, |G|, K).

    Example:
        >>> e, largest = jnp.array([[[3.0], [1.0]]]), INVARIANTS["max"]
        >>> linearized(largest, e).tolist(), jax.grad(lambda e: linearized(largest, e).sum())(e).ravel().tolist()
        ([[3.0]], [1.0, 0.0])
    """
    return jax.jvp(invariant, (lax.stop_gradient(e),), (e,))[1]


def _unit(e: Responses) -> tuple[Responses, Float[Array, "n 1 k"]]:
    """Divide the responses of each template by the largest, so that products neither overflow nor vanish.

    The divisor is held: I(E) = s I(E / s) for every s, so neither value nor derivative depend on it.
    """
    size = lax.stop_gradient(jnp.abs(e).max(1, keepdims=True))
    scale = jnp.where(size > 0, size, 1)
    return e / scale, scale


def _size(f: Complex[Array, "..."]) -> Float[Array, "..."]:
    """Return |F|, with derivative 0 where F is 0."""
    square = f.real**2 + f.imag**2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _parts(products: Complex[Array, "n f k"], exponent: float, scale: Float[Array, "n 1 k"]) -> Float[Array, "n f2k"]:
    """Return real and imaginary parts of p / |p|^exponent times the scale, 0 where p is 0."""
    size = _size(products)
    factor = scale * jnp.where(size > 0, size, 1) ** -exponent
    return jnp.concatenate([products.real * factor, products.imag * factor], axis=1).reshape(len(products), -1)


def _root(x: Array, p: int) -> Array:
    """Return the p-th root of |x| with the sign of x, derivative 0 where x is 0."""
    return jnp.sign(x) * jnp.where(x != 0, jnp.abs(jnp.where(x != 0, x, 1)) ** (1 / p), 0)
