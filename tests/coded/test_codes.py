"""Codes: checked by brute force, bounded before they are searched, as good as the literature's tables."""

import itertools
import re

import jax
import jaxtyping
import numpy as np
import pytest

from jaxinterp.coded.codes import PUBLISHED, SEEDED, Code, design, largest_code, largest_distance, load_code

# Classes, length, weight: the distance to be reached (arXiv 2202.05343 and our own searches) with columns balanced.
QUICK = {
    (10, 10, 3): 4,
    (10, 10, 5): 4,
    (10, 5, 2): 2,
    (10, 8, 4): 4,
    (10, 16, 4): 6,
    (10, 16, 8): 8,
    (20, 10, 5): 4,
    (20, 16, 4): 6,
    (20, 16, 8): 8,
    (50, 16, 4): 4,
    (100, 16, 4): 4,
    (100, 20, 4): 4,
    (100, 20, 8): 8,
}
SLOW = {(100, 16, 8): 4, (200, 32, 8): 8, (1000, 32, 8): 6, (1000, 32, 16): 12, (1000, 32, 4): 4}


def brute(words):
    """Smallest distance and difference of column sums, word by word."""
    distance = min(sum(a != b for a, b in zip(*pair, strict=True)) for pair in itertools.combinations(words, 2))
    sums = [sum(bit == "1" for bit in column) for column in zip(*words, strict=True)]
    return distance, max(sums) - min(sums)


@pytest.mark.parametrize(
    ("row", "distance"), [*QUICK.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())]
)
def test_design_reaches_the_table(row, distance):
    code = design(*row, jax.random.key(1))
    classes, length, weight = row
    assert (code.classes, code.length, code.weight) == row
    assert code.distance >= distance
    assert code.gap <= (classes * weight % length != 0)
    assert code.distance <= largest_distance(*row)
    assert all(word.count("1") == weight for word in code.words)
    if classes <= 100:
        assert brute(code.words) == (code.distance, code.gap)


def test_the_same_key_designs_the_same_code():
    one, two = (design(20, 12, 5, jax.random.key(3)) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("name", [*PUBLISHED, *SEEDED])
def test_frozen_tables(name):
    code = load_code(name)
    known = {
        "cifar10-5-of-10": (10, 10, 5, 4, 0),
        "cifar10-3-of-10": (10, 10, 3, 4, 0),
        "cifar100-8-of-20": (100, 20, 8, 8, 0),
        "cifar100-4-of-20": (100, 20, 4, 4, 0),
        "imagenet-16-of-32": (1000, 32, 16, 12, 0),
        "imagenet-8-of-32": (1000, 32, 8, 6, 0),
    }[name]
    assert (code.classes, code.length, code.weight, code.distance, code.gap) == known


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDED)
def test_frozen_tables_are_what_the_search_finds(name):
    assert design(*SEEDED[name], jax.random.key(0)).words == load_code(name).words


def test_distances_of_the_published_tables():
    """Histograms of the spec: 5/10 has 44.4, 33.3, 22.2 % at 4, 6, 8; 3/10 has 66.7, 33.3 % at 4, 6."""
    for name, want in (("cifar10-5-of-10", {4: 20, 6: 15, 8: 10}), ("cifar10-3-of-10", {4: 30, 6: 15})):
        values, counts = np.unique(load_code(name).distances[np.triu_indices(10, 1)], return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == want


def test_bounds_are_those_of_small_codes_known_by_heart():
    assert largest_code(8, 4, 4) == 14  # the Steiner system S(3, 4, 8)
    assert largest_code(24, 8, 8) == 759  # the octads of the Golay code
    assert largest_code(6, 2, 3) == 20
    assert largest_code(6, 8, 3) == 1
    assert largest_distance(21, 6, 3) == 0
    assert [largest_distance(k, 16, 8) for k in (16, 60, 61)] == [8, 8, 6]


@pytest.mark.parametrize(
    ("words", "claims", "says"),
    [
        ((), {}, "words: got none"),
        (("110", "101", "111"), {}, "row 2 has weight 3, expected that of row 0, 2"),
        (("110", "1010"), {}, "row 1 has length 4, expected that of row 0, 3"),
        (("110", "1a0"), {}, "row 1 is '1a0', expected only 0 and 1"),
        (("110", "101", "110"), {}, "rows 0 and 2 are equal"),
        (("1100", "0110", "0011"), {"least_distance": 4}, "rows 0 and 1 have distance 2, expected at least 4"),
        (("1100", "1010", "1001"), {"most_gap": 1}, "column 0 is used 3 times and column 1 1 times"),
    ],
)
def test_a_bad_table_is_refused_with_its_row(words, claims, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        Code(words, **claims)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((1, 10, 5), "num_classes: got 1, expected an integer from 2 on"),
        ((10, 70, 5), "length: got 70, expected an integer from 2 to 62"),
        ((10, 10, 10), "weight: got 10, expected an integer from 1 to 9"),
        ((100, 8, 4), "num_classes: got 100, but there are only 70 words"),
        ((10, 10, 5, 6), "distance: got 6, expected an even number from 2 to the upper bound 4"),
        ((10, 10, 5, 3), "distance: got 3, expected an even number"),
        ((10, 10.5, 5), "length: got 10.5, expected an integer"),
        ((10, 10, 5, "4"), "distance: got '4', expected an even number"),
        ((14, 8, 4, 4), None),
    ],
)
def test_what_cannot_be_is_said_before_any_search(arguments, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    classes, length, weight, *distance = arguments
    if says is None:
        assert design(classes, length, weight, jax.random.key(0), *distance).distance == 4
        return
    with pytest.raises(ValueError, match=re.escape(says)):
        design(classes, length, weight, jax.random.key(0), *distance)


def test_a_table_of_other_than_bits_is_refused():
    assert Code.of(np.array([[1, 0], [0, 1]])).words == ("10", "01")
    with pytest.raises(ValueError, match=r"table: got 0\.5, expected 0 and 1"):
        Code.of([[1.0, 0.5], [0.0, 1.0]])


def test_names():
    with pytest.raises(ValueError, match="name: got 'cifar', expected one of cifar10-5-of-10"):
        load_code("cifar")
    table = load_code("cifar10-3-of-10").table
    assert Code.of(table, least_distance=4, most_gap=0) == load_code("cifar10-3-of-10")
