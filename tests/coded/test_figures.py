import numpy as np

from jaxinterp.coded import figures as coded_plots

NAMES = ["cat", "dog", "fox"]


def lines(axes):
    """Label ↦ (x, y) of every line with a label."""
    drawn = (line for line in axes.get_lines() if not line.get_label().startswith("_"))
    return {line.get_label(): np.asarray(line.get_data()) for line in drawn}


def test_paths_stand_beside_their_code_on_one_scale_around_zero():
    table = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    shares = np.where(table, 2.0, -0.5)
    left, right, _ = coded_plots.paths_beside_code(shares, table, NAMES).axes
    np.testing.assert_array_equal(left.images[0].get_array(), table)
    np.testing.assert_array_equal(right.images[0].get_array(), shares)
    assert right.images[0].get_clim() == (-2.0, 2.0)
    assert [label.get_text() for label in left.get_yticklabels()] == NAMES
    assert [label.get_text() for label in right.get_xticklabels()] == ["1", "2", "3", "4"]
    many = coded_plots.paths_beside_code(np.ones((30, 4)), np.ones((30, 4), int), ["x"] * 30)
    assert not len(many.axes[0].get_yticks())


def test_decoding_is_drawn_by_block_beside_the_paper_and_the_whole():
    (axes,) = coded_plots.decoding_curve({"4": 0.7, "5": 0.8, "6": 0.9}, 0.95, {"5": 0.6, "6": 0.7}, 0.1).axes
    drawn = lines(axes)
    np.testing.assert_array_equal(drawn["decoded from energies"], [[0, 1, 2], [0.7, 0.8, 0.9]])
    np.testing.assert_array_equal(drawn["the paper's"], [[1, 2], [0.6, 0.7]])
    assert set(drawn["logits of the whole network"][1]) == {0.95}
    assert set(drawn["chance"][1]) == {0.1}


def test_exits_are_points_of_accuracy_over_compute():
    found = {"0.0": {"accuracy": 0.9, "compute": 0.8}, "0.0025": {"accuracy": 0.9, "compute": 0.79}}
    found["0.005"] = {"accuracy": 0.89, "compute": 0.5}
    (axes,) = coded_plots.exit_curve(found, 0.91).axes
    drawn = lines(axes)
    np.testing.assert_array_equal(drawn["early exit"], [[0.8, 0.79, 0.5], [0.9, 0.9, 0.89]])
    np.testing.assert_array_equal(drawn["whole network"], [[1], [0.91]])
    assert [text.get_text() for text in axes.texts] == ["0.5", "0.25"]  # the first would lie on the second


def test_removals_are_two_lines():
    found = {"active": {"0": 0.9, "1": 0.5}, "inactive": {"0": 0.9, "1": 0.9, "2": 0.88}}
    drawn = lines(coded_plots.removal_lines(found).axes[0])
    np.testing.assert_array_equal(drawn["active paths"], [[0, 1], [0.9, 0.5]])
    np.testing.assert_array_equal(drawn["inactive paths"], [[0, 1, 2], [0.9, 0.9, 0.88]])


def test_specificity_is_a_matrix_and_a_scatter_with_a_class_of_no_images():
    lost = np.array([[0.5, 0.1, np.nan], [0.0, 0.6, np.nan], [0.2, -0.1, np.nan]])
    overlap = np.array([[4, 2, 1], [2, 4, 0], [1, 0, 4]])
    left, right, _ = coded_plots.specificity_matrix(lost, overlap, NAMES).axes
    np.testing.assert_array_equal(np.ma.filled(left.images[0].get_array(), np.nan), lost)
    assert left.images[0].get_clim() == (-0.6, 0.6)
    drawn = lines(right)
    np.testing.assert_array_equal(drawn["the class itself"][0], [4, 4, 4])
    np.testing.assert_array_equal(drawn["another class"][1], lost[~np.eye(3, dtype=bool)])
