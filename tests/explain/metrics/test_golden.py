"""Values of Quantus 0.6, made by `python -m benchmarks.agreement --golden`, on maps of a small CNN."""

from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.metrics import METRICS, ours
from benchmarks.networks import stored

GOLDEN = np.load(Path(__file__).parents[2] / "golden/attribution/references.npz")


def computed(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ours and theirs."""
    with jax.enable_x64(True):
        x = GOLDEN["metrics/x"].astype(float)
        found = ours(name, stored("cnn", GOLDEN), x, GOLDEN["metrics/maps"], GOLDEN["metrics/masks"])
    return found, GOLDEN[f"metrics/{name}"]


def test_all_stored_values_are_compared() -> None:
    inputs = {"metrics/x", "metrics/maps", "metrics/masks"}
    assert {f"metrics/{name}" for name in METRICS} == {k for k in GOLDEN.files if k.startswith("metrics/")} - inputs


@pytest.mark.parametrize("name", [name for name, same in METRICS.items() if not same.convention])
def test_values_of_quantus(name: str) -> None:
    found, theirs = computed(name)
    assert found.shape == theirs.shape
    assert np.abs(found - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_monotonicity_puts_pixels_back_where_quantus_replaces_its_baseline_by_itself() -> None:
    found, theirs = computed("monotonicity")
    assert theirs.all()
    assert not found.any()
