"""Bad input raises in one line that begins with the argument's name."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.coded.codes import Code, load_code
from jaxinterp.coded.early_exit import (
    BlockPredictions,
    EarlyExit,
    choose_thresholds,
    compute_share,
    decode,
    decode_blocks,
    exit_blocks,
)
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.coded.paths import accuracy_without, specificity
from jaxinterp.coded.surgery import binary_classifier, keep_only

CODE = load_code("cifar10-3-of-10")
NET = CodedResNeXt(stages=(Stage(1, 8, 2, 2), Stage(2, 12, 2, 4, 2, Code(("1100", "0110", "0011")))), classes=3)
PLAIN = CodedResNeXt(stages=NET.stages[:1])
X, LABELS, KEY = np.ones((6, 8, 8, 1), np.float32), np.array([0, 1, 2, 1, 1, 2]), jax.random.key(0)
HELD = BlockPredictions(np.ones((2, 3), int), np.ones((1, 3)))
OTHER = {"params": {f"block_{i}": {"expand_kernel": jnp.zeros((9, 2, 12))} for i in (1, 2, 3)}, "batch_stats": {}}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("blocks", partial(Stage, 0, 8, 2, 10)),
        ("code", partial(Stage, 1, 8, 2, 9, code=CODE)),
        ("code", partial(Stage, 1, 8, 2, 2, code="10")),
        ("kept", partial(Stage, 1, 8, 2, 10, kept=11)),
        ("stages", partial(CodedResNeXt, stages=())),
        ("code", partial(CodedResNeXt, stages=NET.stages, classes=11)),
        ("drop", partial(CodedResNeXt, stages=PLAIN.stages, drop=1.0)),
        ("keep", partial(NET.init, KEY, X, keep=[None])),
        ("keep", partial(NET.init, KEY, X, keep=[jnp.ones(3)] * 2)),
        ("x", partial(NET.init, KEY, X[:0])),
        ("x", partial(NET.init, KEY, X.astype(np.uint8))),
        ("first, last", partial(NET.init, KEY, X, last=4)),
        ("model", partial(binary_classifier, PLAIN, {}, 1)),
        ("class_index", partial(binary_classifier, NET, {}, 3)),
        ("class_index", partial(binary_classifier, NET, {}, 1.5)),
        ("class_index", partial(keep_only, NET, -1)),
        ("variables", partial(binary_classifier, NET, OTHER, 1)),
        ("energies", partial(decode, jnp.ones((2, 9)), CODE)),
        ("energies", partial(decode, jnp.zeros((2, 10)).at[0].set(1), CODE)),
        ("energies", partial(decode, jnp.ones((1, 10)).at[0, 1].set(-1), CODE)),
        ("energies", partial(choose_thresholds, HELD._replace(margins=HELD.margins * np.nan), np.ones(3, int), 0.0)),
        ("code", partial(decode, jnp.ones((1, 4)), Code(("1100",)))),
        ("points", partial(choose_thresholds, HELD, np.ones(3, int), 1.0)),
        ("labels", partial(choose_thresholds, HELD, np.ones(2, int), 0.0)),
        ("thresholds", partial(EarlyExit, NET, {}, [0.1, np.nan])),
        ("thresholds", partial(EarlyExit, NET, {}, [0.1])),
        ("thresholds", partial(exit_blocks, HELD, np.ones(9))),
        ("images", partial(EarlyExit(NET, {}, [np.inf, np.inf]), X * np.nan)),
        ("images", partial(decode_blocks, NET, {}, X[:0])),
        ("model", partial(decode_blocks, PLAIN, {}, X)),
        ("image_shape", partial(compute_share, NET, np.array([0]), (-8, 8, 3))),
        ("stops", partial(compute_share, NET, np.array([0, 3]), (8, 8, 3))),
        ("labels", partial(specificity, NET, {}, X, LABELS + 1)),
        ("images", partial(specificity, NET, {}, X * np.nan, LABELS)),
        ("model", partial(specificity, PLAIN, {}, X, LABELS)),
        ("block", partial(accuracy_without, NET, {}, X, LABELS, 2, [1], True, KEY)),
        ("counts", partial(accuracy_without, NET, {}, X, LABELS, 1, [1, 4], True, KEY)),
    ],
)
def test_bad_input_raises_in_one_line(name, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        call()
    assert "\n" not in str(error.value)
