"""Constant-weight binary codes with balanced columns: which paths of a network serve which class.

A code gives every class k a word w_k ∈ {0, 1}^N with exactly a ones: the paths (subNNs) that are active for it. For
networks (Avranas and Kountouris, arXiv 2202.05343, Sec. 3.2.1) a good code has

    weight     Σ_n w_kn = a for every class                                              (rule A)
    distance   D = min_{i≠j} |w_i − w_j|, as large as possible; even, as all weights are equal   (rule B)
    balance    column sums Σ_k w_kn as equal as possible: every path serves equally many classes (rule C)

`codes.json` holds the frozen tables that `load_code` reads; `experiments/design_codes.py` searched for ours.
"""

import ast
import itertools
import json
import math
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer, UInt8

from jaxinterp.checks import require, require_one_of
from jaxinterp.errors import ConfigError


@dataclass(frozen=True)
class Code:
    """A constant-weight code, checked by brute force at construction.

    Attributes:
        words: one string of 0 and 1 for each class, all of one length and one weight.
        least_distance: Hamming distance that every two words keep at least.
        most_gap: largest allowed difference of two column sums; None for any.

    Raises:
        ConfigError: not such a code; the message names the rows at fault, counted from 0.

    Example:
        >>> code = Code(("1100", "0011", "1010", "0101"))
        >>> code.weight, code.distance, code.gap
        (2, 2, 0)
    """

    words: tuple[str, ...]
    least_distance: int = 2
    most_gap: int | None = None

    def __post_init__(self) -> None:
        require(self.words and self.words[0], "words", "none", "one word of 0 and 1 for each class")
        for row, word in enumerate(self.words):
            require(not set(word) - {"0", "1"}, "words", f"row {row} {word}", "only 0 and 1")
            require(len(word) == self.length, "words", f"row {row} of length {len(word)}", f"{self.length} as row 0")
            ones = word.count("1")
            require(ones == self.weight, "words", f"row {row} of weight {ones}", f"{self.weight} as row 0")
        i, j = divmod(int(self.distances.argmin()), self.classes)
        least = max(2, self.least_distance)
        far = self.classes == 1 or self.distance >= least
        require(far, "words", f"rows {i} and {j} at distance {self.distance}", f"at least {least}")
        sums = self.table.sum(0)
        uses = f"column {sums.argmax()} used {sums.max()} times and column {sums.argmin()} {sums.min()} times"
        balanced = self.most_gap is None or self.gap <= self.most_gap
        require(balanced, "words", uses, f"a difference of at most {self.most_gap}")

    @classmethod
    def of(cls, table: Integer[np.ndarray, "classes length"]) -> "Code":
        """Make a code from a table of 0 and 1, one row for each class.

        Example:
            >>> Code.of(np.array([[1, 0, 1], [0, 1, 1]])).words
            ('101', '011')
        """
        return cls(tuple("".join(map(str, row)) for row in table.tolist()))

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

    @cached_property
    def distances(self) -> Int[np.ndarray, "classes classes"]:
        """Hamming distances |w_i − w_j| = 2 (a − <w_i, w_j>); 2N on the diagonal, which no minimum then picks."""
        distances = 2 * (self.weight - self.table.astype(np.int64) @ self.table.T)
        np.fill_diagonal(distances, 2 * self.length)
        return distances

    @property
    def distance(self) -> int:
        """The smallest distance of two words D; 2N for a single word."""
        return int(self.distances.min())

    @property
    def bound(self) -> int:
        """Upper bound on the minimum distance of as many words of this length and weight; see `largest_distance`."""
        return largest_distance(self.classes, self.length, self.weight)

    @property
    def gap(self) -> int:
        """Largest column sum less the smallest."""
        return int(np.ptp(self.table.sum(0, dtype=np.int64)))


@cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(resources.files("jaxinterp.coded").joinpath("codes.json").read_text("utf-8"))
    return tables


def code_names() -> tuple[str, ...]:
    """Return the names of the frozen tables."""
    return tuple(_tables())


def load_code(name: str, file: Path | str | None = None) -> Code:
    """Load a frozen table: the paper's for CIFAR-10, those of our runs, or the authors' from a copy of their file.

    Args:
        name: "cifar10-5-of-10" or "cifar10-3-of-10" (the paper's), "cifar100-8-of-20", "cifar100-4-of-20",
            "imagenet-16-of-32" or "imagenet-8-of-32"; or "authors-" before such a name, with `file`; or a name of
            `code_for`, for any number of classes.
        file: `subNNs_codes.py` of github.com/avranasa/Coded-ResNeXt, which came without a license and is not
            contained here; it is read, never run.

    Example:
        >>> code = load_code("cifar10-3-of-10")
        >>> code.classes, code.length, code.weight, code.distance, code.gap
        (10, 10, 3, 4, 0)

    Source: arXiv 2202.05343, Table 3 (CIFAR-10). The others are ours: the authors' are not printed.
    """
    if ":" in name:
        return _code_of_size(name)
    if name.startswith(AUTHORS):
        return _authors_code(name.removeprefix(AUTHORS), file)
    require(file is None, "file", file, f"none with {name!r}, which is contained here")
    require_one_of("name", name, code_names())
    table = _tables()[name]
    return Code(tuple(table["words"].split()), table["distance"], table["gap"])


AUTHORS = "authors-"
MOST_WORDS = 200_000  # among which a code is chosen
MOST_PATHS, MOST_CLASSES = 64, 4096  # of a code that is chosen: its name may come from a file that anyone made


def code_for(classes: int, weight: int, length: int) -> str:
    """Name a code for any number of classes: the paper's for 10, else "<weight>-of-<length>:<classes>".

    These words are chosen one after another: each as far as possible from those before, and of these the one whose
    ones stand where the fewest are.

    Example:
        >>> code_for(10, 3, 10), load_code(code_for(3, 3, 10)).words
        ('cifar10-3-of-10', ('1110000000', '0001110000', '0000001110'))
    """
    paper = f"cifar10-{weight}-of-{length}"
    return paper if classes == 10 and paper in code_names() else f"{weight}-of-{length}:{classes}"


@cache
def _code_of_size(name: str) -> Code:
    """Choose the words of a code that `code_for` names."""
    found = re.fullmatch(r"(\d{1,9})-of-(\d{1,9}):(\d{1,9})", name)
    require(found, "codes", name, "such a name as 3-of-10:4, weight, paths and classes")
    assert found is not None
    weight, length, classes = map(int, found.groups())
    small = length <= MOST_PATHS and classes <= MOST_CLASSES
    require(small, "codes", name, f"at most {MOST_PATHS} paths and {MOST_CLASSES} classes")
    words = math.comb(length, weight)
    fits = 0 < weight < length and 1 < classes <= words
    require(fits, "codes", name, "fewer ones than paths, and at least two classes and as many words")
    if words <= MOST_WORDS:
        places = np.array(list(itertools.combinations(range(length), weight)))
    else:
        keys = np.random.PCG64(0).random_raw(MOST_WORDS // 8 * length).reshape(-1, length)
        places = np.unique(np.sort(np.argsort(keys, axis=1)[:, :weight], axis=1), axis=0)
    table = np.zeros((len(places), length), np.int64)
    np.put_along_axis(table, places, 1, 1)
    columns, chosen = np.ascontiguousarray(table.T.astype(np.uint8)), [0]

    def common() -> Int[np.ndarray, " words"]:
        """Return how many ones every word has in common with the one chosen last."""
        return columns[table[chosen[-1]] > 0].sum(0, dtype=np.int64)

    shared = uses = common()  # with the nearest chosen word, and with all of them
    while len(chosen) < classes:
        chosen.append(int(np.argmin(shared * (length * classes) + uses)))
        ones = common()
        shared, uses = np.maximum(shared, ones), uses + ones
    return Code.of(table[chosen])


def _authors_code(name: str, file: Path | str | None) -> Code:
    """Read one table of the authors' file, a Python module of mappings "a/N" → words, as literals."""
    require(file is not None, "file", file, f"a copy of the authors' subNNs_codes.py with {AUTHORS + name!r}")
    try:
        module = ast.parse(Path(str(file)).read_text("utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"file: got {file}, expected the authors' subNNs_codes.py: {error}") from error
    known: dict[str, tuple[str, ...]] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict):
            data = node.targets[0].id.split("_")[-1].lower()
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.List):  # others are all ones, no codes
                    known[f"{data}-{str(key.value).replace('/', '-of-')}"] = tuple(ast.literal_eval(value))
    require_one_of("name", name, known)
    return Code(known[name])


def require_integer(name: str, value: Any, least: int, most: int | float = math.inf) -> None:
    """Raise ConfigError unless a value is an integer from `least` to `most`."""
    fits = isinstance(value, int | np.integer) and least <= value <= most
    require(fits, name, repr(value), f"an integer from {least} {'on' if most == math.inf else f'to {most}'}")


def largest_code(length: int, distance: int, weight: int) -> int:
    """Bound how many words a constant-weight code can have.

        A(N, D, a) ≤ ⌊N/a · A(N−1, D, a−1)⌋,   ≤ ⌊N/(N−a) · A(N−1, D, a)⌋,   A = 1 where D > 2a

    Args:
        length: N ≥ 1.
        distance: even D ≥ 2.
        weight: a in [0, N].

    Example:
        >>> largest_code(8, 4, 4), largest_code(10, 4, 3)
        (14, 13)

    Source: Johnson, "A new upper bound for error-correcting codes", 1962, Eq. 3 and 4.
    """
    require_integer("length", length, 1)
    require_integer("distance", distance, 1)
    require_integer("weight", weight, 0, length)

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
    """Bound the distance of a code: by Johnson, and because the smallest distance is at most the mean.

        D ≤ Σ_n c_n (K − c_n) / (K (K−1) / 2)        c_n: column sums; the right side is largest where they are balanced

    Args:
        classes: K ≥ 2.
        length: N ≥ 1.
        weight: a in [0, N].

    Returns:
        The largest even D that neither bound excludes; 0 where there are fewer than K words at all.

    Example:
        >>> [largest_distance(*row) for row in ((10, 10, 3), (10, 10, 5), (100, 20, 8), (1000, 32, 16))]
        [4, 4, 8, 16]
    """
    require_integer("classes", classes, 2)
    require_integer("length", length, 1)
    require_integer("weight", weight, 0, length)
    if math.comb(length, weight) < classes:
        return 0
    low, more = divmod(classes * weight, length)
    separated = (length - more) * low * (classes - low) + more * (low + 1) * (classes - low - 1)
    mean = separated // (classes * (classes - 1) // 2)
    return max(d for d in range(2, max(2, mean) + 1, 2) if d == 2 or largest_code(length, d, weight) >= classes)
