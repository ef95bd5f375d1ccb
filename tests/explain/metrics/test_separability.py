import numpy as np
import pytest

from jaxinterp.explain.metrics.separability import separability


def test_separability_by_hand():
    spread = separability(np.array([[0.0, 0.0], [0.0, 2.0], [6.0, 1.0], [6.0, 1.0]]), np.array([3, 3, 8, 8]))
    np.testing.assert_allclose(spread, (6.0, 0.5, 12.0))
    with pytest.raises(ValueError, match=r"^features: "):
        separability(np.full((4, 2), np.nan, np.float32), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"^labels: "):
        separability(np.zeros((2, 1)), np.array([1, 1]))
