import numpy as np
import pytest

from jaxinterp.figures import curves as plots
from jaxinterp.figures import maps as draw
from jaxinterp.figures.curves import method_style

rng = np.random.default_rng(0)


def pixels(figure):
    """The figure as it would be printed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def texts(axes):
    return [t.get_text() for t in axes.texts] + [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")]


def test_maps_are_matplotlibs_bwr_with_symmetric_limits():
    from matplotlib import colormaps

    maps = rng.normal(size=(3, 8, 8))
    found = draw.contribution_map(maps, percentile=100.0)
    limits = np.abs(maps).max((1, 2), keepdims=True)
    expected = colormaps["bwr"]((maps / limits + 1) / 2)[..., :3]
    np.testing.assert_allclose(found, expected, atol=1 / 127)
    np.testing.assert_allclose(draw.contribution_map(-maps, percentile=100.0), found[..., ::-1])


def test_limits_per_map_shared_and_given():
    maps = np.array([[[1.0, -1.0]], [[10.0, 0.0]]])
    np.testing.assert_allclose(draw.contribution_map(maps, percentile=100.0)[:, 0, 0], [[1, 0, 0]] * 2)
    shared = draw.contribution_map(maps, draw.shared_limit(maps, 100.0))
    np.testing.assert_allclose(shared[:, 0, 0], [[1, 0.9, 0.9], [1, 0, 0]])
    np.testing.assert_allclose(draw.contribution_map(maps, [2.0, 5.0])[:, 0, 0], [[1, 0.5, 0.5], [1, 0, 0]])
    # Percentiles clip the few largest values.
    spike = np.ones((1, 100, 100))
    spike[0, 0, 0] = 1000
    assert draw.shared_limit(spike) == pytest.approx(1)
    np.testing.assert_allclose(draw.contribution_map(spike, percentile=99.0)[0, 5, 5], [1, 0, 0])


def test_an_empty_map_is_white():
    np.testing.assert_array_equal(draw.contribution_map(np.zeros((2, 3, 4))), np.ones((2, 3, 4, 3)))
    assert draw.shared_limit(np.zeros(3)) == 1


def test_color_weights_show_the_color_that_aligns():
    """Weights parallel to an encoded image are drawn in its own colors, opaque where they speak for the class."""
    image = rng.uniform(0.05, 0.95, (8, 8, 3))
    weights = np.concatenate([image, 1 - image], -1)
    found = draw.color_weights(weights, np.ones((8, 8)), smooth=1, percentile=0.0)
    np.testing.assert_allclose(found, np.concatenate([image, np.ones((8, 8, 1))], -1), atol=1e-9)

    contributions = np.where(np.arange(8)[:, None] < 4, -1.0, 1.0) * np.ones((8, 8))
    halves = draw.color_weights(weights, contributions, smooth=1)
    assert (halves[:4, :, 3] == 0).all()
    assert (halves[4:, :, 3] > 0).all()
    # Negative weights look for nothing.
    np.testing.assert_allclose(draw.color_weights(-weights, np.ones((8, 8)))[..., :3], 0)


def test_color_weights_follow_the_steps_of_the_paper():
    weights, contributions = rng.normal(size=(12, 10, 6)), rng.normal(size=(12, 10))
    found = draw.color_weights(weights, contributions, smooth=3, percentile=90.0)
    opacity = np.zeros((12, 10))
    for y in range(12):
        for x in range(10):
            omega = np.maximum(weights[y, x] / np.abs(weights[y, x]).max(), 0)
            np.testing.assert_allclose(found[y, x, :3], omega[:3] / (omega[:3] + omega[3:] + 1e-12), atol=1e-9)
            for v in range(max(0, y - 1), min(12, y + 2)):
                for u in range(max(0, x - 1), min(10, x + 2)):
                    opacity[y, x] += (contributions[v, u] >= 0) * np.sqrt((weights[v, u] ** 2).sum()) / 9
    expected = np.clip(opacity / np.percentile(opacity, 90), 0, 1)
    np.testing.assert_allclose(found[..., 3], expected, atol=1e-9)


def test_gray_weights_run_from_dark_to_amber_and_batches_are_single_images():
    weights = rng.normal(size=(2, 3, 8, 8, 2))
    weights[0, 0, 0, :2] = [[0, 1], [1, 0]]
    contributions = rng.normal(size=(2, 3, 8, 8))
    found = draw.color_weights(weights, contributions)
    np.testing.assert_allclose(found[0, 0, 0, :2, :3], [draw.DARK, draw.BRIGHT], atol=1e-9)
    np.testing.assert_allclose(found[1, 2], draw.color_weights(weights[1, 2], contributions[1, 2]))
    with pytest.raises(ValueError, match="weights"):
        draw.color_weights(weights[0, 0, :, :, [0, 1, 1]].transpose(1, 2, 0), contributions[0, 0])
    with pytest.raises(ValueError, match="smooth"):
        draw.color_weights(weights, contributions, smooth=2)


@pytest.mark.parametrize("scale", ["row", "map", "all"])
def test_a_panel_shows_every_picture_and_title(scale):
    images, maps = rng.uniform(size=(2, 8, 8, 1)), rng.normal(size=(2, 3, 8, 8))
    titles = [["a", "b", "c"], ["d", "e", "f"]]
    figure = draw.panel(images, maps, titles, ["first", "second"], scale)
    *pictures, bar = figure.axes
    assert [axes.get_title() for axes in pictures] == ["first", "a", "b", "c", "second", "d", "e", "f"]
    assert "full color" in bar.get_xlabel()
    limits = {"row": np.percentile(np.abs(maps[1]), 99.99), "map": None, "all": draw.shared_limit(maps)}[scale]
    np.testing.assert_allclose(pictures[6].images[0].get_array(), draw.contribution_map(maps[1, 1], limits))
    assert np.ptp(pixels(figure)[..., :3]) == 255


def test_a_panel_takes_drawn_pictures_and_refuses_missing_titles():
    images, drawn = rng.uniform(size=(1, 8, 8, 3)), rng.uniform(size=(1, 2, 8, 8, 4))
    figure = draw.panel(images, drawn, [["a", "b"]])
    assert len(figure.axes) == 3
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), drawn[0, 1])
    with pytest.raises(ValueError, match="titles"):
        draw.panel(images, drawn, [["a"]])


def test_training_curves_show_what_the_records_hold():
    history = [{"epoch": e, "train_loss": 0.5**e, "train_accuracy": 0.9, "lr": 1.0} for e in range(1, 6)]
    history[-1] |= {"val_accuracy": 0.8}
    loss, accuracy = plots.training_curves(history).axes
    assert loss.get_yscale() == "log"
    assert [t.get_text() for t in accuracy.get_legend().get_texts()] == ["train", "validation"]
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[e, 0.5**e] for e in range(1, 6)])
    assert plots.training_curves(history[:1]).axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match="history"):
        plots.training_curves([{"epoch": 1}])


def test_figures_leave_no_state_behind():
    from matplotlib import pyplot

    plots.training_curves([{"epoch": 1, "loss": 1.0}])
    assert pyplot.get_fignums() == []


def test_styles_are_fixed_by_the_name():
    assert method_style("grad_cam")[0] == "Grad-CAM"
    assert method_style("occlusion_3") == method_style("occlusion_3")
    assert method_style("a_new_method")[0] == "A new method"


def test_contributions_of_channels_are_not_drawn_as_colors():
    with pytest.raises(ValueError, match=r"\Amaps: got 3 channels from -1"):
        draw.panel(np.zeros((1, 2, 2, 3)), np.full((1, 1, 2, 2, 3), -1.0), [["a"]])


def test_a_dollar_in_a_name_is_no_formula():
    names = ["$\\frac{x$.png", "br[red]ack_$"]
    figure = draw.panel(np.zeros((2, 4, 4, 1)), np.ones((2, 1, 4, 4)), [[name] for name in names], names)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes[:4]] == [name for name in names for _ in range(2)]
