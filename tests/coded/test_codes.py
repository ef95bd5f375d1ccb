"""Codes: checked by brute force, bounded, and frozen as published."""

import itertools

import numpy as np
import pytest

from jaxinterp.coded.codes import Code, largest_code, largest_distance, load_code
from jaxinterp.errors import ConfigError

FROZEN = {
    "cifar10-5-of-10": (10, 10, 5, 4, 0),
    "cifar10-3-of-10": (10, 10, 3, 4, 0),
    "cifar100-8-of-20": (100, 20, 8, 8, 0),
    "cifar100-4-of-20": (100, 20, 4, 4, 0),
    "imagenet-16-of-32": (1000, 32, 16, 12, 0),
    "imagenet-8-of-32": (1000, 32, 8, 6, 0),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_tables(name):
    code = load_code(name)
    assert (code.classes, code.length, code.weight, code.distance, code.gap) == FROZEN[name]
    # The same, counted bit by bit.
    classes, length, weight, distance, gap = FROZEN[name]
    assert {len(word) for word in code.words} == {length}
    assert {word.count("1") for word in code.words} == {weight}
    assert len(set(code.words)) == classes
    numbers = [int(word, 2) for word in code.words]
    assert min((a ^ b).bit_count() for a, b in itertools.combinations(numbers, 2)) == distance
    sums = [column.count("1") for column in zip(*code.words, strict=True)]
    assert max(sums) - min(sums) == gap


def test_distances_of_the_published_tables():
    """Histograms of the spec: 5/10 has 44.4, 33.3, 22.2 % at 4, 6, 8; 3/10 has 66.7, 33.3 % at 4, 6."""
    for name, want in (("cifar10-5-of-10", {4: 20, 6: 15, 8: 10}), ("cifar10-3-of-10", {4: 30, 6: 15})):
        values, counts = np.unique(load_code(name).distances[np.triu_indices(10, 1)], return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == want


def test_the_first_published_table_is_printed_as_here():
    assert load_code("cifar10-3-of-10").words == (
        *("1001001000", "0110001000", "1010000001", "0000001110", "0001010100"),
        *("0010100100", "0000110010", "0100010001", "0001100001", "1100000010"),
    )


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
        ((), {}, "none"),
        (("110", "101", "111"), {}, "row 2 of weight 3"),
        (("110", "1010"), {}, "row 1 of length 4"),
        (("110", "1a0"), {}, "row 1 1a0"),
        (("110", "101", "110"), {}, "rows 0 and 2 at distance 0"),
        (("1100", "0110", "0011"), {"least_distance": 4}, "rows 0 and 1 at distance 2"),
        (("1100", "1010", "1001"), {"most_gap": 1}, "column 0 used 3 times and column 1 1 times"),
    ],
)
def test_a_bad_table_raises_with_its_rows(words, claims, says):
    with pytest.raises(ValueError, match=f"^words: got {says}"):
        Code(words, **claims)


@pytest.mark.parametrize(
    "name", ["9-of-65:4", "3-of-64:4097", "1-of-200000:9", f"{10**8}-of-{10**9 - 1}:9", f"{'9' * 5000}-of-9:9"]
)
def test_codes_of_sizes_that_would_take_all_memory_are_refused(name):
    with pytest.raises(ConfigError, match=r"^codes:"):
        load_code(name)


def test_words_are_chosen_as_far_apart_as_possible_and_then_where_ones_are_few():
    """The choice, word by word, by brute force."""
    for name in ("2-of-5:7", "3-of-7:12"):
        code = load_code(name)
        every = [np.array(word) for word in itertools.product((1, 0), repeat=code.length) if sum(word) == code.weight]
        chosen = [every[0]]
        while len(chosen) < code.classes:
            chosen.append(min(every, key=lambda one: (max(one @ w for w in chosen), sum(one @ w for w in chosen))))
        assert code.words == Code.of(np.array(chosen)).words


def test_codes_of_tables():
    assert Code.of(np.array([[1, 0], [0, 1]])).words == ("10", "01")
    code = load_code("cifar10-3-of-10")
    assert Code.of(code.table).words == code.words
    with pytest.raises(ValueError, match=r"^words: got row 0 12"):
        Code.of(np.array([[1, 2], [0, 1]]))
    with pytest.raises(ValueError, match=r"^name: got"):
        load_code("cifar")


def test_a_table_is_read_from_a_copy_of_the_authors_file(tmp_path):
    file = tmp_path / "subNNs_codes.py"
    words = "['1100', '0110', '0011', '1001']"
    file.write_text(f"SUBNNS_CODING_CIFAR100 = {{'4/4': ['1' * 4 for c in range(9)],\n  '2/4': {words}}}\n")
    assert load_code("authors-cifar100-2-of-4", file).words == ("1100", "0110", "0011", "1001")
    for name, path, field in (
        ("authors-cifar100-4-of-4", file, "name"),
        ("authors-cifar100-2-of-4", None, "file"),
        ("authors-cifar100-2-of-4", tmp_path / "none.py", "file"),
        ("cifar10-3-of-10", file, "file"),
    ):
        with pytest.raises(ValueError, match=rf"\A{field}: got"):
            load_code(name, path)
