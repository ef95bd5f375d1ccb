"""What of the responses to an orbit does not change when the image moves.

E[g] = ⟨g x, t⟩ of an image h x is that of x with its group axis permuted (`groups.permute`). Invariant are

    mean_g E        max_g E        moments (mean_g E^p)^(1/p)        the sorted orbit        and, where F = DFT_g E,
    |F_i|           bispectrum F_i F_j F̄_{i+j}, which determines E up to a permutation     cross-power F_{i,k} F̄_{i,l}

The last three are those of cyclic groups. All but cross-power treat every template apart, the bispectrum too: what it
leaves open is a permutation of each template's own; cross-power ties neighboring templates together.

Products are taken back to the scale of E (cube root of the bispectrum's size, square root of cross-power's), so every
invariant here is homogeneous of degree 1: I(s E) = s I(E) for s > 0, and by Euler's identity I(E) = Σ_g E[g] ∂I/∂E[g],
exactly. `linearized` is that sum with the derivatives held: the invariant as a linear map at its input.

Source: Anselmi et al., "Unsupervised learning of invariant representations", TCS 2016 (moments of orbits); Giannakis,
"Signal reconstruction from multiple correlations", JOSA A 1989 (bispectrum and its inversion); Kakarala, "The
bispectrum as a source of phase-sensitive invariants for Fourier descriptors", JMIV 2012.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

Responses = Float[Array, "n g k"]
"""E[g] of every template, (N, |G|, K)."""

FREQUENCIES = 6
"""Lowest frequencies of which `INVARIANTS` takes the bispectrum."""

CONSISTENT = 0.1
"""How far a matrix may be from the bispectrum of the signal found from it, as a share of its largest value.

Noise of 1e-4 adds up to a few hundredths over 32 phases; what is no bispectrum is off by its own size.
"""

MOST_LAYERS = 64
"""Elements of a group up to which its responses are sorted by transpositions; their number grows as its square."""


def mean(e: Responses) -> Float[Array, "n k"]:
    """mean_g E[g].

    Example:
        >>> mean(jnp.array([[[1.0], [3.0]]])).tolist()
        [[2.0]]
    """
    return e.mean(1)


def maximum(e: Responses) -> Float[Array, "n k"]:
    """max_g E[g].

    Example:
        >>> maximum(jnp.array([[[1.0], [3.0]]])).tolist()
        [[3.0]]
    """
    return e.max(1)


def moments(e: Responses, orders: Sequence[int] = (1, 2, 3)) -> Float[Array, "n pk"]:
    """(mean_g E[g]^p)^(1/p) of every order p, with the mean's sign.

    Args:
        e: responses, (N, |G|, K).
        orders: the p, each ≥ 1.

    Returns:
        (N, P K), order by order.

    Raises:
        ValueError: an order below 1.

    Example:
        >>> moments(jnp.array([[[3.0], [-3.0]]])).tolist()
        [[0.0, 3.0, 0.0]]
    """
    if any(p < 1 for p in orders):
        raise ValueError(f"orders: got {tuple(orders)}, expected numbers of at least 1")
    unit, scale = _unit(e)
    return jnp.concatenate([scale[:, 0] * _root((unit**p).mean(1), p) for p in orders], axis=1)


def sorted_orbit(e: Responses) -> Float[Array, "n gk"]:
    """The responses of every template in ascending order, (N, |G| K): invariant under any permutation.

    Example:
        >>> sorted_orbit(jnp.array([[[3.0], [1.0], [2.0]]])).tolist()
        [[1.0, 2.0, 3.0]]
    """
    return _ascending(e).reshape(len(e), -1)


def _ascending(e: Responses) -> Responses:
    """The group axis in ascending order, by transposition of neighbors: |G| layers of minima and maxima.

    XLA's sort takes 5 times as long on a CPU at |G| = 24. Elements in even and in odd places are kept apart, so that
    a layer compares whole arrays: first 0 with 1, 2 with 3, …, then 1 with 2, 3 with 4, ….
    """
    count = e.shape[1]
    if count > MOST_LAYERS:
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
    """|F_i| / √|G| for the frequencies i = 0, …, ⌊|G|/2⌋ along a cyclic group, (N, (⌊|G|/2⌋ + 1) K).

    Example:
        >>> spectrum(jnp.array([[[1.0], [1.0], [1.0], [1.0]]])).tolist()
        [[2.0, 0.0, 0.0]]
    """
    unit, scale = _unit(e)
    return (scale * _size(_fourier(unit))).reshape(len(e), -1)


def bispectrum(e: Responses, frequencies: int | None = None) -> Float[Array, "n bk"]:
    """B_ij = F_i F_j F̄_{i+j} for 0 ≤ i ≤ j < `frequencies`, real and imaginary, its size taken to the power 1/3.

    F is the DFT divided by √|G|. `from_bispectrum` takes B itself, all of it, of the DFT as it is.
    Complete: where no F_i is 0, all of B determines the E of each template up to a cyclic permutation
    (`from_bispectrum`); the first frequencies only, as in `INVARIANTS`, determine those.

    Args:
        e: responses along a cyclic group, (N, |G|, K).
        frequencies: number of frequencies, in [1, |G|]; all |G| where None.

    Returns:
        (N, f (f + 1) K) for f frequencies.

    Raises:
        ValueError: `frequencies` out of range.
    """
    order = e.shape[1]
    f = order if frequencies is None else frequencies
    if not 1 <= f <= order:
        raise ValueError(f"frequencies: got {f}, expected a number in [1, {order}]")
    unit, scale = _unit(e)
    spectra = jnp.fft.fft(unit, axis=1, norm="ortho")
    i, j = np.triu_indices(f)
    whole = spectra[:, i] * spectra[:, j] * jnp.conj(spectra[:, (i + j) % order])
    return _parts(whole, 2 / 3, scale)


def cross_power(e: Responses) -> Float[Array, "n fp"]:
    """F_{i,k} F̄_{i,l} of neighboring templates l = k + 1 (cyclically), real and imaginary, its size's square root.

    Two templates' phases at one frequency turn together, so their difference stays.

    Args:
        e: responses along a cyclic group, (N, |G|, K), K ≥ 2.

    Returns:
        (N, 2 (⌊|G|/2⌋ + 1) K).

    Raises:
        ValueError: fewer than 2 templates.
    """
    if e.shape[2] < 2:
        raise ValueError(f"e: got {e.shape[2]} template, expected at least 2 for cross-power")
    unit, scale = _unit(e)
    spectra = _fourier(unit)
    whole = spectra * jnp.conj(jnp.roll(spectra, -1, axis=2))
    return _parts(whole, 1 / 2, jnp.sqrt(scale) * jnp.sqrt(jnp.roll(scale, -1, axis=2)))


Name = Literal["mean", "max", "moments", "sorted", "spectrum", "bispectrum", "cross_power"]
INVARIANTS: Mapping[Name, Callable[[Responses], Array]] = {
    "mean": mean,
    "max": maximum,
    "moments": moments,
    "sorted": sorted_orbit,
    "spectrum": spectrum,
    "bispectrum": lambda e: bispectrum(e, min(FREQUENCIES, e.shape[1])),
    "cross_power": cross_power,
}
"""Every invariant by name, responses ↦ features (N, F)."""
CYCLIC: frozenset[Name] = frozenset({"spectrum", "bispectrum", "cross_power"})
"""Those that only cyclic groups have."""


def linearized(invariant: Callable[[Array], Array], e: Responses) -> Array:
    """The invariant's value as a linear map of `e`, its derivatives held: Σ_g E[g] ∂I/∂E[g] (Euler).

    Args:
        invariant: homogeneous of degree 1, as all of this file.
        e: responses, (N, |G|, K).

    Returns:
        What the invariant returns, affine (indeed linear) in the `e` that flows through.

    Example:
        >>> e = jnp.array([[[3.0], [1.0]]])
        >>> linearized(maximum, e).tolist(), jax.grad(lambda e: held(maximum, e).sum())(e).ravel().tolist()
        ([[3.0]], [1.0, 0.0])
    """
    return jax.jvp(invariant, (lax.stop_gradient(e),), (e,))[1]


def from_bispectrum(b: Complex[np.ndarray, "g g"]) -> Float[np.ndarray, " g"]:
    """A real signal on a cyclic group with this bispectrum: the original, up to a cyclic shift.

    With F_0 from B_00 = F_0³ and sizes from B_i0 = |F_i|² F_0, phases follow one another, F_{i+1} ∝ F_1 F_i B̄_{1i};
    that of F_1 is free up to a shift, and is chosen so that F_n is F_0 again.

    Args:
        b: F_i F_j F̄_{i+j} for all i and j, of the unnormalized DFT; no F_i may be 0.

    Returns:
        (|G|,) float64.

    Raises:
        ValueError: a frequency is missing, or `b` is further than `CONSISTENT` from the bispectrum of the signal found.

    Example:
        >>> signal = np.array([1.0, 2.0, 0.5, 4.0, 1.5])
        >>> f = np.fft.fft(signal)
        >>> steps = np.arange(5)
        >>> b = f[:, None] * f * f[(steps[:, None] + steps) % 5].conj()
        >>> found = from_bispectrum(b)
        >>> [k for k in range(5) if np.allclose(np.roll(found, k), signal)] != []
        True
    """
    n = len(b)
    if b.shape != (n, n) or not n:
        raise ValueError(f"b: got shape {b.shape}, expected (|G|, |G|)")
    if not np.isfinite(b).all():
        raise ValueError("b: got values NaN or infinite, expected finite ones")
    zero = np.cbrt(b[0, 0].real)
    sizes = np.sqrt(np.abs(b[:, 0].real / zero)) if zero else np.zeros(n)
    if not (sizes > 1e-9 * sizes.max(initial=0.0)).all():
        raise ValueError("b: a frequency of the signal is 0, expected one that has them all")
    steps = np.ones(n + 1, np.complex128)  # e^{i phase} for a first frequency of phase 0
    for i in range(1, n):
        ratio = np.conj(b[1, i]) * steps[1] * steps[i]
        steps[i + 1] = ratio / max(np.abs(ratio), np.finfo(np.float64).tiny)
    turn = (np.angle(np.sign(zero)) - np.angle(steps[n])) / n
    f = sizes * np.exp(1j * (np.angle(steps[:n]) + turn * np.arange(n)))
    f[0] = zero
    signal = np.fft.ifft(f).real
    own, places = np.fft.fft(signal), np.arange(n)
    missed = np.abs(own[:, None] * own * own[(places[:, None] + places) % n].conj() - b).max() / np.abs(b).max()
    if missed > CONSISTENT:
        raise ValueError(f"b: got values {missed:.1g} of the largest from the found signal's, expected a bispectrum")
    return signal


def _unit(e: Responses) -> tuple[Responses, Float[Array, "n 1 k"]]:
    """Responses of at most 1, and what those of each template were divided by: products neither overflow nor vanish.

    The divisor is held: I(E) = s I(E / s) for every s, so neither value nor derivative depend on it.
    """
    size = lax.stop_gradient(jnp.abs(e).max(1, keepdims=True))
    scale = jnp.where(size > 0, size, 1)
    return e / scale, scale


def _fourier(e: Responses) -> Complex[Array, "n f k"]:
    return jnp.fft.rfft(e, axis=1, norm="ortho")


def _size(f: Complex[Array, "..."]) -> Float[Array, "..."]:
    """|F| with derivative 0 where F is 0."""
    square = f.real**2 + f.imag**2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _parts(products: Complex[Array, "n f k"], exponent: float, scale: Float[Array, "n 1 k"]) -> Float[Array, "n f2k"]:
    """Real and imaginary parts of p / |p|^exponent times the scale, 0 where p is 0."""
    size = _size(products)
    factor = scale * jnp.where(size > 0, size, 1) ** -exponent
    return jnp.concatenate([products.real * factor, products.imag * factor], axis=1).reshape(len(products), -1)


def _root(x: Array, p: int) -> Array:
    """The p-th root of |x| with the sign of x, derivative 0 where x is 0."""
    return jnp.sign(x) * jnp.where(x != 0, jnp.abs(jnp.where(x != 0, x, 1)) ** (1 / p), 0)
