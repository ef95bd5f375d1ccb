"""Search for codes: constant-weight words with balanced columns and the largest distance that is found.

    python experiments/design_codes.py                                      # re-create all tables of codes.json
    python experiments/design_codes.py --names cifar100-4-of-20 --path my_codes.json

`design` tries three constructions, from the upper bound downwards, and keeps the best: a greedy walk through all words
of weight a in increasing order (a lexicode; Alg. 1 of Avranas and Kountouris, arXiv 2202.05343), the words of weight a
in a linear code, both followed by the choice of a balanced subset, and annealing by 2×2 switches, which keep weights
and column sums.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, islice
from operator import xor
from pathlib import Path

import jax
import numpy as np
import tyro
from jaxtyping import Int, PRNGKeyArray
from numpy.random import Generator

from jaxinterp.checks import require, require_one_of
from jaxinterp.coded.codes import Code, largest_distance, require_integer
from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text

TABLES = {  # classes, length, weight of the tables that the paper did not print
    "cifar100-8-of-20": (100, 20, 8),
    "cifar100-4-of-20": (100, 20, 4),
    "imagenet-16-of-32": (1000, 32, 16),
    "imagenet-8-of-32": (1000, 32, 8),
}
MAX_WALK = 1 << 22  # words that the greedy walk visits
POOL_FACTOR = 4  # the walk ends with this many candidate words per class
MAX_FREE_BITS = 22  # a linear lexicode with more than 2^22 cosets is skipped
MAX_BASIS = 20  # basis vectors whose span is enumerated
TRANSLATES = 64  # random translates tried of a linear code
MAX_POOL = 10_000  # candidate words kept for the balanced-subset search (at least one per class)
SUBSETS = 100  # random subsets from which swaps start
ANNEALINGS = 3  # restarts of annealing
MOVES = 60_000  # moves of one annealing
MAX_FULL_ANNEALING = 200  # above this many classes one restart with a third of the moves


@dataclass(frozen=True)
class Options:
    """Options: the tables to search for, and the file to write."""

    names: tuple[str, ...] = tuple(TABLES)
    path: Path = Path("jaxinterp/coded/codes.json")  # its other tables are kept
    seed: int = 0


def design(num_classes: int, length: int, weight: int, key: PRNGKeyArray) -> Code:
    """Search for a constant-weight code with balanced columns and the largest distance; compare it with `code.bound`.

    Args:
        num_classes: words K ≥ 2, one for each class.
        length: bits N of a word, one for each path, ≤ 62.
        weight: ones a of every word, in [1, N − 1].
        key: a JAX key; the same key gives the same code.

    Example:
        >>> code = design(10, 10, 3, jax.random.key(0))
        >>> code.distance, code.bound, code.gap
        (4, 4, 0)

    Source: arXiv 2202.05343, Sec. 3.2.1 and Alg. 1; linear codes and annealing are ours.
    """
    require_integer("num_classes", num_classes, 2)
    require_integer("length", length, 2, 62)
    require_integer("weight", weight, 1, length - 1)
    words = math.comb(length, weight)
    require(words >= num_classes, "num_classes", num_classes, f"at most {words}, the words of this length and weight")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    for target in range(largest_distance(num_classes, length, weight), 0, -2):
        codes: list[Code] = []
        for search in (_search_linear, _search_lexicode, _anneal):
            code = search(num_classes, length, weight, target, rng)
            codes += [] if code is None else [code]
            if code is not None and code.gap <= (num_classes * weight % length != 0):  # no smaller one is possible
                break
        if codes:
            best = min(codes, key=lambda code: code.gap)
            return Code(best.words, target, best.gap)
    raise ConfigError(f"num_classes: got {num_classes}, expected fewer, of which the search finds a code")


def _search_linear(num_classes: int, length: int, weight: int, distance: int, rng: Generator) -> Code | None:
    """Choose among the words of weight a in the linear code, or translate of one, that has most of them."""
    pool = np.zeros(0, np.int64)
    for span in (_span(_linear_lexicode(length, distance)), _trace_code(length, distance)):
        for shift in (0, *rng.integers(1 << length, size=TRANSLATES)):
            words = (span ^ shift)[np.bitwise_count(span ^ shift) == weight]
            pool = words if len(words) > len(pool) else pool
    return _balanced_subset(pool, num_classes, length, rng)


def _search_lexicode(num_classes: int, length: int, weight: int, distance: int, rng: Generator) -> Code | None:
    """Choose among the words, in increasing order, that are far from all kept before them.

    Words increase as their zeros, written from the highest bit down, do in lexicographic order.
    """
    kept = np.zeros(0, np.int64)
    zeros = islice(combinations(range(length - 1, -1, -1), length - weight), MAX_WALK)
    while len(kept) < POOL_FACTOR * num_classes and (block := list(islice(zeros, 1 << 14))):
        words = (1 << length) - 1 - (1 << np.array(block, np.int64)).sum(1)
        near = np.zeros(len(words), bool)
        for chunk in np.array_split(kept, max(1, len(words) * len(kept) >> 22)):
            near |= (np.bitwise_count(words[:, None] ^ chunk) < distance).any(1)
        left = words[~near]
        while len(left):
            kept = np.append(kept, left[0])
            left = left[np.bitwise_count(left ^ left[0]) >= distance]
    return _balanced_subset(kept, num_classes, length, rng)


def _linear_lexicode(length: int, distance: int) -> list[int]:
    """Return a basis of the lexicode of all words, which is linear; empty where it has too many cosets to enumerate.

    Bit by bit: where a coset's lightest word weighs D − 1 or more, that word and the new bit make a basis vector, and
    else the new bit is free. Cosets are numbered by their smallest words, which lie on the free bits, so that the first
    such coset gives the smallest vector.
    """
    basis, free, lightest = list[int](), list[int](), np.zeros(1, np.uint8)
    for bit in range(length):
        far = np.flatnonzero(lightest >= distance - 1)
        if len(far):
            coset = int(far[0])
            basis.append(1 << bit | sum(1 << free[i] for i in range(len(free)) if coset >> i & 1))
            lightest = np.minimum(lightest, 1 + lightest[np.arange(len(lightest)) ^ coset])
        elif len(free) == MAX_FREE_BITS:
            return []
        else:
            free.append(bit)
            lightest = np.concatenate([lightest, 1 + lightest])
    return basis


def _span(basis: Sequence[int]) -> Int[np.ndarray, " words"]:
    """Return all sums of the first `MAX_BASIS` basis vectors."""
    span = np.zeros(1, np.int64)
    for vector in basis[:MAX_BASIS]:
        span = np.concatenate([span, span ^ vector])
    return span


def _trace_code(length: int, distance: int) -> Int[np.ndarray, " words"]:
    """Return the words c + Tr(a_1 x + a_3 x³ + a_5 x⁵ + ...) over x in GF(N), with as many terms as keep distance D.

    N = 32: 64 words of distance 16, 2,048 of distance 12, 65,536 of distance 8; the complement of a word is another.
    Only for N = 8, 16, 32; else the zero word.

    Source: MacWilliams and Sloane, "The Theory of Error-Correcting Codes", 1977, Ch. 9 (duals of extended BCH codes).
    """
    reducing = {8: 0b1011, 16: 0b10011, 32: 0b100101}.get(length)  # primitive polynomials
    code = np.zeros(1, np.int64)
    if reducing is None:
        return code
    degree, powers = length.bit_length() - 1, [1]
    while len(powers) < length - 1:
        powers.append(min(2 * powers[-1], 2 * powers[-1] ^ reducing))

    def trace(exponent: int) -> int:
        """Return Tr(α^i) = Σ_j α^(i 2^j), 0 or 1."""
        return reduce(xor, (powers[exponent * 2**j % (length - 1)] for j in range(degree)))

    basis = [(1 << length) - 1]
    for e in range(1, length - 1, 2):
        for shift in range(degree):
            word = sum(trace(shift + e * i) << x for i, x in enumerate(powers))
            for vector in basis:  # reduced, so that only independent words are taken
                word = min(word, word ^ vector)
            if word:
                top = word.bit_length() - 1
                basis = [min(vector, vector ^ word) if vector >> top & 1 else vector for vector in basis]
                basis.append(word)
        span = _span(basis)
        if len(basis) > MAX_BASIS or np.bitwise_count(span)[span != 0].min() < distance:
            return code
        code = span
    return code


def _balanced_subset(pool: Int[np.ndarray, " words"], num_classes: int, length: int, rng: Generator) -> Code | None:
    """Choose one word of a pool per class, with balanced columns: swap the best pair until no swap helps.

    Swapping g_out for g_in changes the squared deviations of the column sums, |s|², by 2 <s, g_in − g_out> +
    |g_in − g_out|².
    """
    if len(pool) < num_classes:
        return None
    if len(pool) > (limit := max(MAX_POOL, num_classes)):
        pool = rng.choice(pool, limit, replace=False)
    bits = (pool[:, None] >> np.arange(length)[::-1] & 1).astype(np.int64)
    weight = int(bits[0].sum())
    subsets: list[tuple[int, np.ndarray]] = []
    for _ in range(SUBSETS):
        order = rng.permutation(len(pool))
        inside, outside = bits[order[:num_classes]], bits[order[num_classes:]]
        while len(outside):
            deviation = length * inside.sum(0) - num_classes * weight  # times N, which keeps it an integer
            distances = 2 * (weight - inside @ outside.T)
            change = 2 * ((outside @ deviation)[None] - (inside @ deviation)[:, None]) + length * distances
            i, j = np.unravel_index(int(change.argmin()), change.shape)
            if change[i, j] >= 0:
                break
            inside[i], outside[j] = outside[j].copy(), inside[i].copy()
        subsets.append((int(np.ptp(inside.sum(0))), inside))
        if subsets[-1][0] <= (num_classes * weight % length != 0) or not len(outside):
            break
    return Code.of(min(subsets, key=lambda subset: subset[0])[1])


def _anneal(num_classes: int, length: int, weight: int, distance: int, rng: Generator) -> Code | None:
    """Switch (1, 0), (0, 1) of two rows and two columns, by Metropolis, until no pair of rows is too near.

    energy = Σ_{i<j} max(0, D − d_ij)²        temperature 1 → 0.05
    """
    restarts, moves = (ANNEALINGS, MOVES) if num_classes <= MAX_FULL_ANNEALING else (1, MOVES // 3)
    for _ in range(restarts):
        table = np.zeros((num_classes, length), np.int8)
        for row in table:
            row[np.argsort(table.sum(0) + rng.random(length))[:weight]] = 1
        rng.shuffle(table)
        distances = 2 * (weight - table.astype(np.int64) @ table.T)
        penalty = np.maximum(0, distance - distances) ** 2
        np.fill_diagonal(penalty, 0)
        energy = int(penalty.sum()) // 2
        for move in range(moves):
            if energy == 0:
                return Code.of(table)
            i = int(rng.choice(np.flatnonzero(penalty.any(1))) if move % 2 else rng.integers(num_classes))
            j = int(rng.integers(num_classes))
            p, q = np.flatnonzero(table[i] > table[j]), np.flatnonzero(table[i] < table[j])
            if not len(p):
                continue
            rows = table[[i, j]].copy()
            rows[:, [rng.choice(p), rng.choice(q)]] ^= 1
            changed = np.stack([(table != row).sum(1) for row in rows])
            changed[0, j] = changed[1, i] = (rows[0] != rows[1]).sum()
            worse = np.maximum(0, distance - changed) ** 2
            worse[0, i] = worse[1, j] = 0
            delta = int(worse.sum() - penalty[i].sum() - penalty[j].sum() - worse[0, j] + penalty[i, j])
            if delta <= 0 or rng.random() < math.exp(-delta / 0.05 ** (move / moves)):
                table[[i, j]] = rows
                penalty[[i, j]], penalty[:, i], penalty[:, j] = worse, worse[0], worse[1]
                energy += delta
    return None


def main(options: Options) -> None:
    """Search for the tables, print what was found, and write them beside the file's other tables."""
    for name in options.names:
        require_one_of("names", name, TABLES)
    tables = json.loads(options.path.read_text(encoding="utf-8")) if options.path.exists() else {}
    for name in options.names:
        code = design(*TABLES[name], jax.random.key(options.seed))
        print(f"{name}: distance {code.distance} (bound {code.bound}), column sums differ by {code.gap}")
        tables[name] = {"distance": code.distance, "gap": code.gap, "words": " ".join(code.words)}
        write_text(options.path, json.dumps(tables, indent=0) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
