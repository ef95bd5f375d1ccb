"""What the result of training says of itself."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxinterp.train import FitResult
from jaxinterp.train.step import TrainState

PARAMS = {f"layer_{i}": {"kernel": jnp.zeros((30, 40)), "bias": jnp.zeros(40)} for i in range(20)}
STATE = TrainState(jnp.int32(48), PARAMS, {}, (PARAMS, PARAMS), {}, jnp.int32(-1))
LAST = {"epoch": 6, "step": 48, "val_accuracy": 0.75, "val_loss": 0.5, "test_accuracy": 0.7, "test_loss": 0.6}
SUMMARY = {"last": LAST, "best": LAST | {"epoch": 4, "step": 32, "val_accuracy": 0.875}}
HISTORY = [{"epoch": e, "train_loss": 1 / e, "val_accuracy": e / 8} for e in range(1, 7)]
RESULT = FitResult(STATE, STATE.variables, HISTORY, SUMMARY, None, Path("runs/some"))


def test_it_prints_in_three_lines():
    assert repr(RESULT).splitlines() == [
        "FitResult: 24,800 parameters, 6 epochs, 48 steps, runs/some",
        "  last epoch (6): val_accuracy 0.7500  test_accuracy 0.7000",
        "  best epoch (4): val_accuracy 0.8750  test_accuracy 0.7000",
    ]
    assert repr(STATE) == "TrainState(step 48, 24,800 parameters in 40 arrays)"
    stopped = FitResult(STATE, None, HISTORY, {}, "SIGTERM")
    assert repr(stopped) == "FitResult: 24,800 parameters, 6 epochs, 48 steps, stopped by SIGTERM"


def test_it_is_a_small_table_in_a_notebook():
    html = RESULT._repr_html_()
    assert len(html) < 600
    assert "<tr><td>best</td><td>epoch 4</td><td>val_accuracy 0.8750</td><td>test_accuracy 0.7000</td></tr>" in html
    assert "<td>runs/some</td>" in html


def test_it_draws_its_curves():
    figure = RESULT.plot()
    loss, accuracy = figure.axes
    assert loss.lines[0].get_ydata().tolist() == [1 / e for e in range(1, 7)]
    assert accuracy.lines[0].get_ydata().tolist() == [e / 8 for e in range(1, 7)]
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="history"):
        FitResult(STATE, None, [], {}, "SIGTERM").plot()
