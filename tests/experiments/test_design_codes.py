"""The search for codes reaches the distances of the literature, and the frozen tables are what it finds."""

import json

import jax
import pytest

from experiments import design_codes
from experiments.design_codes import TABLES, design
from jaxinterp.coded.codes import largest_distance, load_code

# Classes, length, weight: the distance to be reached (arXiv 2202.05343 and our own searches) with columns balanced.
QUICK = {
    **{(10, 10, 3): 4, (10, 10, 5): 4, (10, 5, 2): 2, (10, 8, 4): 4, (10, 16, 4): 6, (10, 16, 8): 8, (20, 10, 5): 4},
    **{(20, 16, 4): 6, (20, 16, 8): 8, (50, 16, 4): 4, (100, 16, 4): 4, (100, 20, 4): 4, (100, 20, 8): 8},
}
SLOW = {(100, 16, 8): 4, (200, 32, 8): 8, (1000, 32, 8): 6, (1000, 32, 16): 12, (1000, 32, 4): 4}


@pytest.mark.parametrize(
    ("row", "distance"), [*QUICK.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())]
)
def test_design_reaches_the_table(row, distance):
    code = design(*row, jax.random.key(1))
    classes, length, weight = row
    assert (code.classes, code.length, code.weight) == row
    assert distance <= code.distance <= largest_distance(*row)
    assert code.gap <= (classes * weight % length != 0)


def test_the_same_key_designs_the_same_code():
    assert design(20, 12, 5, jax.random.key(3)) == design(20, 12, 5, jax.random.key(3))


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_frozen_tables_are_what_the_search_finds(name):
    assert design(*TABLES[name], jax.random.key(0)).words == load_code(name).words


def test_the_script_writes_tables_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES, "tiny", (10, 8, 4))
    path = tmp_path / "codes.json"
    path.write_text('{"mine": {}}')
    design_codes.main(design_codes.Options(("tiny",), path))
    tables = json.loads(path.read_text())
    assert list(tables) == ["mine", "tiny"]
    assert tables["tiny"] == {
        "distance": 4,
        "gap": 0,
        "words": " ".join(design(10, 8, 4, jax.random.key(0)).words),
    }
    with pytest.raises(ValueError, match="names"):
        design_codes.main(design_codes.Options(("cifar",), path))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("num_classes", (1, 10, 5)),
        ("num_classes", (100, 8, 4)),
        ("length", (10, 70, 5)),
        ("weight", (10, 10, 10)),
    ],
)
def test_impossible_codes_are_not_searched_for(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        design(*arguments, jax.random.key(0))
