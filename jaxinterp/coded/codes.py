"""Constant-weight binary codes with balanced columns: which paths of a network serve which class.

A code gives every class k a word w_k ∈ {0, 1}^N with exactly a ones: the paths (subNNs) that are active for it. For
networks (Avranas and Kountouris, arXiv 2202.05343, Sec. 3.2.1) a good code has

    weight     Σ_n w_kn = a for every class                                              (rule A)
    distance   D = min_{i≠j} |w_i − w_j|, as large as possible; even, as all weights are equal   (rule B)
    balance    column sums Σ_k w_kn as equal as possible: every path serves equally many classes (rule C)

`design` searches by three constructions, from the upper bound downwards, and takes the best: a greedy walk through all
words of weight a in increasing order (a lexicode; the paper's Alg. 1), the words of weight a in a linear lexicode, both
followed by the choice of a balanced subset, and annealing by 2×2 switches, which keep weights and column sums.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Integer, PRNGKeyArray, UInt8

SEEDED = {  # tables that were designed here: classes, length, weight; codes.json holds what `design` found with key 0
    "cifar100-8-of-20": (100, 20, 8),
    "cifar100-4-of-20": (100, 20, 4),
    "imagenet-16-of-32": (1000, 32, 16),
    "imagenet-8-of-32": (1000, 32, 8),
}
PUBLISHED = {  # classes in the order of CIFAR-10; arXiv 2202.05343, Table 3
    "cifar10-5-of-10": "1010100011 0101010101 1101100010 0011001101 1010010101 "
    "1001001110 1011101000 0100011110 0110111000 0100110011",
    "cifar10-3-of-10": "1001001000 0110001000 1010000001 0000001110 0001010100 "
    "0010100100 0000110010 0100010001 0001100001 1100000010",
}
WALKED = 1 << 22  # words that the greedy walk looks at, at most
POOL = 4  # times as many words as classes end the walk
COSETS = 22  # bits: linear lexicodes with more than 2^22 cosets are not made
TRANSLATES = 64  # of a linear lexicode that are looked at
MOST_POOL = 10_000  # words among which a balanced subset is looked for, or as many as there are classes
SUBSETS = 100  # random subsets from which swaps start
STARTS = 3  # of annealing
MOVES = 60_000  # of one annealing


@dataclass(frozen=True)
class Code:
    """A constant-weight code, checked by brute force when it is made.

    Attributes:
        words: one string of 0 and 1 for each class, all of one length and one weight.
        least_distance: Hamming distance that every two words are known to keep; more than claimed is no error.
        most_gap: largest difference of two column sums that is known; None for whatever it is.

    Raises:
        ValueError: no words, a word that is not made of 0 and 1, of another length or weight than the first, or equal
            to another or nearer than `least_distance`, or columns less balanced than `most_gap`; the rows at fault are
            named, counted from 0.

    Example:
        >>> code = Code(("1100", "0011", "1010", "0101"))
        >>> code.weight, code.distance, code.gap, code.ratio
        (2, 2, 0, 0.5)
    """

    words: tuple[str, ...]
    least_distance: int = 2
    most_gap: int | None = None

    def __post_init__(self) -> None:
        if not self.words or not self.words[0]:
            raise ValueError("words: got none, expected one word of 0 and 1 for each class")
        first = self.words[0]
        for row, word in enumerate(self.words):
            if set(word) - {"0", "1"}:
                raise ValueError(f"words: row {row} is {word!r}, expected only 0 and 1")
            if len(word) != len(first):
                raise ValueError(f"words: row {row} has length {len(word)}, expected that of row 0, {len(first)}")
            if word.count("1") != first.count("1"):
                raise ValueError(
                    f"words: row {row} has weight {word.count('1')}, expected that of row 0, {first.count('1')}"
                )
        if len(self.words) > 1 and self.distance < max(2, self.least_distance):
            i, j = (int(index) for index in np.argwhere(self.distances == self.distance)[0])
            wrong = "are equal" if self.distance == 0 else f"have distance {self.distance}"
            raise ValueError(f"words: rows {i} and {j} {wrong}, expected at least {max(2, self.least_distance)}")
        if self.most_gap is not None and self.gap > self.most_gap:
            sums = self.table.sum(0)
            raise ValueError(
                f"words: column {int(sums.argmax())} is used {sums.max()} times and column {int(sums.argmin())} "
                f"{sums.min()} times, expected a difference of at most {self.most_gap}"
            )

    @classmethod
    def of(
        cls, table: Integer[np.ndarray, "classes length"] | Sequence[Sequence[int | float]], **claims: int
    ) -> "Code":
        """The code of a table of 0 and 1, one row for each class.

        Raises:
            ValueError: an entry that is neither, or what no code has.
        """
        wrong = next((bit for row in table for bit in row if bit not in (0, 1)), None)
        if wrong is not None:
            raise ValueError(f"table: got {wrong}, expected 0 and 1")
        return cls(tuple("".join(str(int(bit)) for bit in row) for row in table), **claims)

    @cached_property
    def table(self) -> UInt8[np.ndarray, "classes length"]:
        """w_kn as 0 and 1, (classes, length)."""
        return np.array([[int(bit) for bit in word] for word in self.words], np.uint8)

    @property
    def classes(self) -> int:
        """Number of words K."""
        return len(self.words)

    @property
    def length(self) -> int:
        """Bits of a word N, one for each path."""
        return len(self.words[0])

    @property
    def weight(self) -> int:
        """Ones of every word a."""
        return self.words[0].count("1")

    @property
    def ratio(self) -> float:
        """The share of paths that is active for a class, r = a / N."""
        return self.weight / self.length

    @cached_property
    def distances(self) -> Int[np.ndarray, "classes classes"]:
        """Hamming distances |w_i − w_j| = 2 (a − <w_i, w_j>); on the diagonal 2N, so that minima pass over it."""
        table = self.table.astype(np.int64)
        distances = 2 * (self.weight - table @ table.T)
        np.fill_diagonal(distances, 2 * self.length)
        return distances

    @property
    def distance(self) -> int:
        """The smallest distance of two words D; 2N for a single word."""
        return int(self.distances.min())

    @cached_property
    def bound(self) -> int:
        """What no code of as many words, this length and weight can exceed in distance; see `largest_distance`."""
        return largest_distance(self.classes, self.length, self.weight)

    @cached_property
    def gap(self) -> int:
        """Largest column sum less the smallest."""
        sums = self.table.sum(0, dtype=np.int64)
        return int(sums.max() - sums.min())


@cache
def load_code(name: str) -> Code:
    """A frozen table: the paper's for CIFAR-10, and those of our runs for CIFAR-100 and ImageNet.

    Args:
        name: a key of `PUBLISHED` or `SEEDED`.

    Returns:
        The code, its distance and balance checked.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> code = load_code("cifar10-3-of-10")
        >>> code.classes, code.length, code.weight, code.distance, code.gap
        (10, 10, 3, 4, 0)

    Source: arXiv 2202.05343, Table 3 (CIFAR-10); the others are ours, as the paper's were not printed.
    """
    if name in PUBLISHED:
        return Code(tuple(PUBLISHED[name].split()), 4, 0)
    if name not in SEEDED:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join((*PUBLISHED, *SEEDED))}")
    table = json.loads(resources.files("jaxinterp.coded").joinpath("codes.json").read_text(encoding="utf-8"))[name]
    return Code(tuple(table["words"].split()), table["distance"], table["gap"])


def _require_integers(*checks: tuple[str, Any, int | float, int | float]) -> None:
    """Refuse values that are no integers from the least to the most."""
    for name, value, least, most in checks:
        if not isinstance(value, int | np.integer) or not least <= value <= most:
            upto = "on" if most == math.inf else f"to {most}"
            raise ValueError(f"{name}: got {value!r}, expected an integer from {least} {upto}")


def largest_code(length: int, distance: int, weight: int) -> int:
    """An upper bound on how many words a constant-weight code can have.

        A(N, D, a) ≤ ⌊N/a · A(N−1, D, a−1)⌋,   ≤ ⌊N/(N−a) · A(N−1, D, a)⌋,   A = 1 where D > 2a

    Args:
        length: N ≥ 1.
        distance: even D ≥ 2.
        weight: a in [0, N].

    Returns:
        The bound, ≥ 1.

    Example:
        >>> largest_code(8, 4, 4), largest_code(10, 4, 3)
        (14, 13)

    Raises:
        ValueError: a number out of range.

    Source: Johnson, "A new upper bound for error-correcting codes", 1962, Eq. 3 and 4.
    """
    _require_integers(("length", length, 1, math.inf), ("distance", distance, 1, math.inf))
    _require_integers(("weight", weight, 0, length))

    @cache
    def bound(n: int, a: int) -> int:
        a = min(a, n - a)
        if distance > 2 * a:
            return 1
        if distance <= 2:
            return math.comb(n, a)
        return min(n * bound(n - 1, a - 1) // a, n * bound(n - 1, a) // (n - a))

    return bound(length, weight)


def largest_distance(classes: int, length: int, weight: int) -> int:
    """An upper bound on the distance of a code: Johnson's, and that the smallest distance is at most the mean.

        D ≤ Σ_n c_n (K − c_n) / (K (K−1) / 2)        c_n: column sums; the right side is largest where they are balanced

    Args:
        classes: K ≥ 2.
        length: N.
        weight: a in [0, N].

    Returns:
        The largest even D that neither bound excludes; 0 where there are fewer than K words at all.

    Example:
        >>> [largest_distance(*row) for row in ((10, 10, 3), (10, 10, 5), (100, 20, 8), (1000, 32, 16))]
        [4, 4, 8, 16]

    Raises:
        ValueError: a number out of range.
    """
    _require_integers(("classes", classes, 2, math.inf), ("length", length, 1, math.inf), ("weight", weight, 0, length))
    if math.comb(length, weight) < classes:
        return 0
    low, more = divmod(classes * weight, length)
    separated = (length - more) * low * (classes - low) + more * (low + 1) * (classes - low - 1)
    mean = separated // (classes * (classes - 1) // 2)
    return max(d for d in range(2, max(2, mean) + 1, 2) if d == 2 or largest_code(length, d, weight) >= classes)


def design(num_classes: int, length: int, weight: int, key: PRNGKeyArray, distance: int | None = None) -> Code:
    """A constant-weight code with balanced columns and the largest distance that was found.

    Args:
        num_classes: words K ≥ 2, one for each class.
        length: bits N of a word, one for each path, ≤ 62.
        weight: ones a of every word, in [1, N − 1].
        key: a JAX key; the same key gives the same code.
        distance: even distance to reach; None for the largest that is found, from `largest_distance` downwards.

    Returns:
        The code; `code.bound` stands beside `code.distance`.

    Raises:
        ValueError: arguments out of range, fewer words than classes, or a distance above the bound, before any search;
            or, after it, no code with the distance asked for was found.

    Example:
        >>> code = design(10, 10, 3, jax.random.key(0))
        >>> code.distance, code.bound, code.gap
        (4, 4, 0)

    Source: arXiv 2202.05343, Sec. 3.2.1 and Alg. 1; linear lexicodes and annealing are ours.
    """
    _require_integers(("num_classes", num_classes, 2, math.inf), ("length", length, 2, 62))
    _require_integers(("weight", weight, 1, length - 1))
    words = math.comb(length, weight)
    if words < num_classes:
        raise ValueError(
            f"num_classes: got {num_classes}, but there are only {words} words of length {length} and weight {weight}"
        )
    bound = largest_distance(num_classes, length, weight)
    if distance is not None and distance not in range(2, bound + 1, 2):
        raise ValueError(f"distance: got {distance!r}, expected an even number from 2 to the upper bound {bound}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    for tried in range(bound, 0, -2) if distance is None else (distance,):
        best: Code | None = None
        for search in (
            lambda: _balanced(_linear_slice(length, tried, weight, rng), num_classes, length, rng),  # noqa: B023
            lambda: _balanced(_lexicode(length, tried, weight, POOL * num_classes), num_classes, length, rng),  # noqa: B023
            lambda: _anneal(num_classes, length, weight, tried, rng),  # noqa: B023
        ):
            code = search()
            if code is not None and (best is None or code.gap < best.gap):
                best = code
            if best is not None and best.gap <= (num_classes * weight % length != 0):
                break
        if best is not None:
            return Code(best.words, tried, best.gap)
    raise ValueError(f"distance: no code of {num_classes} words with distance {distance} was found (bound {bound})")


def _words_in_order(length: int, weight: int, most: int) -> Iterator[Int[np.ndarray, " block"]]:
    """Integers of `length` bits with `weight` ones, in increasing order, in blocks; at most `most` of them.

    With the k-th lowest one at position p_k, a word is number Σ_k C(p_k, k) in this order (the combinatorial number
    system), so that a whole block is found at once, from its numbers.
    """
    binomials = np.array([[math.comb(p, k) for p in range(length + 1)] for k in range(weight + 1)], np.int64)
    block = 1 << 14
    for start in range(0, min(most, math.comb(length, weight)), block):
        number = np.arange(start, min(start + block, most, math.comb(length, weight)), dtype=np.int64)
        words = np.zeros_like(number)
        for k in range(weight, 0, -1):
            position = np.searchsorted(binomials[k], number, side="right") - 1
            number = number - binomials[k][position]
            words |= np.int64(1) << position
        yield words


def _near(words: Int[np.ndarray, " m"], kept: Int[np.ndarray, " n"], distance: int) -> np.ndarray:
    """Whether each word is nearer than `distance` to one that is kept."""
    near = np.zeros(len(words), bool)
    for some in np.array_split(kept, max(1, len(words) * len(kept) >> 22)):
        near |= (np.bitwise_count(words[:, None] ^ some) < distance).any(1)
    return near


def _lexicode(length: int, distance: int, weight: int, enough: int) -> Int[np.ndarray, " words"]:
    """The words, in increasing order, that are far from all kept before them; the walk ends where there are enough."""
    kept = np.zeros(0, np.int64)
    for words in _words_in_order(length, weight, WALKED):
        left = words[~_near(words, kept, distance)] if len(kept) else words
        while len(left):
            kept = np.append(kept, left[0])
            left = left[np.bitwise_count(left ^ left[0]) >= distance]
        if len(kept) >= enough:
            break
    return kept


def _linear_lexicode(length: int, distance: int) -> list[int]:
    """Basis of the lexicode of all words, which is linear; empty where its cosets are too many to be looked at.

    Bit by bit: where a coset's lightest word weighs D − 1 or more, that word and the new bit make a basis vector, and
    else the new bit is free. Cosets are numbered by their smallest words, which lie on the free bits, so that the first
    such coset gives the smallest vector.
    """
    basis: list[int] = []
    free: list[int] = []
    lightest = np.zeros(1, np.uint8)
    for bit in range(length):
        far = np.flatnonzero(lightest >= distance - 1)
        if len(far):
            coset = int(far[0])
            basis.append(1 << bit | sum(1 << free[i] for i in range(len(free)) if coset >> i & 1))
            lightest = np.minimum(lightest, 1 + lightest[np.arange(len(lightest)) ^ coset])
        elif len(free) == COSETS:
            return []
        else:
            free.append(bit)
            lightest = np.concatenate([lightest, 1 + lightest])
    return basis


def _span(basis: Sequence[int]) -> Int[np.ndarray, " words"]:
    """All sums of at most 20 basis vectors."""
    span = np.zeros(1, np.int64)
    for vector in basis[:20]:
        span = np.concatenate([span, span ^ vector])
    return span


def _trace_code(length: int, distance: int) -> Int[np.ndarray, " words"]:
    """The words c + Tr(a_1 x + a_3 x³ + a_5 x⁵ + ...) over the elements x of GF(N), with as many terms as keep D.

    N = 32: 64 words of distance 16, 2,048 of distance 12, 65,536 of distance 8; the complement of a word is another.
    Only for N = 8, 16, 32; else the zero word.

    Source: MacWilliams and Sloane, "The Theory of Error-Correcting Codes", 1977, Ch. 9 (duals of extended BCH codes).
    """
    reducing = {8: 0b1011, 16: 0b10011, 32: 0b100101}.get(length)  # primitive polynomials
    found = np.zeros(1, np.int64)
    if reducing is None:
        return found
    powers = [1]
    while len(powers) < length - 1:
        doubled = powers[-1] << 1
        powers.append(doubled ^ reducing if doubled >= length else doubled)
    log = {element: i for i, element in enumerate(powers)}

    def trace(exponent: int) -> int:
        """Tr(α^i) = Σ_j α^(i 2^j), 0 or 1."""
        total = 0
        for j in range(length.bit_length() - 1):
            total ^= powers[exponent * 2**j % (length - 1)]
        return total

    basis = [(1 << length) - 1]
    for e in range(1, length - 1, 2):
        for shift in range(length.bit_length() - 1):
            word = sum(trace(shift + e * log[x]) << x for x in range(1, length))
            for vector in basis:  # reduced, so that only independent words are taken
                word = min(word, word ^ vector)
            if word:
                basis = [
                    min(vector, vector ^ word) if vector >> (word.bit_length() - 1) & 1 else vector for vector in basis
                ]
                basis.append(word)
        span = _span(basis)
        if len(basis) > 20 or np.bitwise_count(span)[span != 0].min() < distance:
            return found
        found = span
    return found


def _linear_slice(length: int, distance: int, weight: int, rng: np.random.Generator) -> Int[np.ndarray, " words"]:
    """The words of weight a in the linear code or translate of it that has most of them."""
    found = np.zeros(0, np.int64)
    for span in (_span(_linear_lexicode(length, distance)), _trace_code(length, distance)):
        for shift in (0, *rng.integers(1 << length, size=TRANSLATES)):
            words = (span ^ shift)[np.bitwise_count(span ^ shift) == weight]
            found = words if len(words) > len(found) else found
    return found


def _balanced(pool: Int[np.ndarray, " words"], num_classes: int, length: int, rng: np.random.Generator) -> Code | None:
    """As many words of a pool as there are classes, with balanced columns: the best swap, until none is better.

    Swapping g_out for g_in changes the squared deviations of the column sums, |s|², by 2 <s, g_in − g_out> +
    |g_in − g_out|².
    """
    if len(pool) < num_classes:
        return None
    most = max(MOST_POOL, num_classes)
    pool = pool if len(pool) <= most else rng.choice(pool, most, replace=False)
    bits = (pool[:, None] >> np.arange(length)[::-1] & 1).astype(np.int64)
    ideal = int(num_classes * bits[0].sum() % length != 0)
    best: tuple[int, np.ndarray] | None = None
    for _ in range(SUBSETS):
        order = rng.permutation(len(pool))
        inside, outside = bits[order[:num_classes]], bits[order[num_classes:]]
        while len(outside):
            deviation = length * inside.sum(0) - num_classes * bits[0].sum()  # times N, to be whole
            distances = 2 * (bits[0].sum() - inside @ outside.T)
            change = 2 * ((outside @ deviation)[None] - (inside @ deviation)[:, None]) + length * distances
            out, into = np.unravel_index(int(change.argmin()), change.shape)
            if change[out, into] >= 0:
                break
            inside[out], outside[into] = outside[into].copy(), inside[out].copy()
        gap = int(np.ptp(inside.sum(0)))
        if best is None or gap < best[0]:
            best = gap, inside
        if gap <= ideal or not len(outside):
            break
    assert best is not None
    return Code.of(best[1])


def _anneal(num_classes: int, length: int, weight: int, distance: int, rng: np.random.Generator) -> Code | None:
    """Switch (1, 0), (0, 1) of two rows and two columns, by Metropolis, until no pair of rows is too near.

    energy = Σ_{i<j} max(0, D − d_ij)²        temperature 1 → 0.05
    """
    for _ in range(STARTS if num_classes <= 200 else 1):
        table = np.zeros((num_classes, length), np.int8)
        for row in table:
            loads = table.sum(0) + rng.random(length)
            row[np.argsort(loads)[:weight]] = 1
        rng.shuffle(table)
        d = (
            (table[:, None] != table[None]).sum(2)
            if num_classes <= 200
            else 2 * (weight - table.astype(np.int64) @ table.T)
        )
        penalty = np.maximum(0, distance - d) ** 2
        np.fill_diagonal(penalty, 0)
        energy = int(penalty.sum()) // 2
        moves = MOVES if num_classes <= 200 else MOVES // 3
        for move in range(moves):
            if energy == 0:
                return Code.of(table)
            bad = np.flatnonzero(penalty.any(1)) if move % 2 else None
            i = int(rng.choice(bad)) if bad is not None else int(rng.integers(num_classes))
            j = int(rng.integers(num_classes))
            p, q = np.flatnonzero(table[i] > table[j]), np.flatnonzero(table[i] < table[j])
            if not len(p):
                continue
            columns = [rng.choice(p), rng.choice(q)]
            new = table[[i, j]].copy()
            new[:, columns] ^= 1
            changed = np.stack([(table != row).sum(1) for row in new])
            changed[0, j] = changed[1, i] = (new[0] != new[1]).sum()
            worse = np.maximum(0, distance - changed) ** 2
            worse[0, i] = worse[1, j] = 0
            delta = int(worse.sum() - penalty[i].sum() - penalty[j].sum() - worse[0, j] + penalty[i, j])
            temperature = 0.05 ** (move / moves)
            if delta <= 0 or rng.random() < math.exp(-delta / temperature):
                table[[i, j]] = new
                penalty[[i, j]], penalty[:, i], penalty[:, j] = worse, worse[0], worse[1]
                energy += delta
    return None
