"""Decoding: the nearest word; early exit runs what it says and answers as the whole network does."""

from functools import partial

import jax
import jax.numpy as jnp
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
from jaxinterp.coded.network import CodedResNeXt, Stage, coded_cifar10

CODE = load_code("cifar10-5-of-10")
WORDS = Code(("1100", "0110", "0011", "1001"))
NET = CodedResNeXt(
    stages=(Stage(1, 8, 2, 2), Stage(1, 12, 2, 4, 2, WORDS), Stage(1, 12, 2, 4, 1, WORDS)), classes=4, mean=(0.5,)
)
X = np.asarray(jax.random.uniform(jax.random.key(0), (16, 8, 8, 1)))


@pytest.fixture(scope="module")
def variables():
    shapes, rng = jax.eval_shape(NET.init, jax.random.key(1), X), np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    return {**values, "batch_stats": jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), values["batch_stats"])}


@pytest.mark.parametrize("name", ["cifar10-5-of-10", "cifar10-3-of-10", "cifar100-4-of-20", "imagenet-16-of-32"])
def test_perfect_energies_decode_to_their_class(name):
    code = load_code(name)
    decoded = decode(7 * jnp.asarray(code.table, jnp.float32), code)
    assert (np.asarray(decoded.classes) == np.arange(code.classes)).all()
    overlap = code.weight - code.distance / 2
    np.testing.assert_allclose(decoded.margins.min(), 1 - overlap / code.weight, rtol=1e-5)


def test_the_decoder_answers_with_the_nearest_word():
    energies = np.random.default_rng(0).random((200, 10)) ** 3
    shares = CODE.weight * energies / energies.sum(1, keepdims=True)
    distances = np.linalg.norm(shares[:, None] - CODE.table[None], axis=2)
    assert (np.asarray(decode(jnp.asarray(energies, jnp.float32), CODE).classes) == distances.argmin(1)).all()


def test_early_exit_is_the_whole_network_cut_short(variables):
    seen = decode_blocks(NET, variables, X, batch=5)
    logits, energies = jax.jit(partial(NET.apply, energies=True))(variables, jnp.asarray(X))
    assert (seen.classes[-1] == np.asarray(logits).argmax(1)).all()
    assert (seen.classes[1] == np.asarray(decode(energies[1], WORDS).classes)).all()
    middle = [float(np.quantile(margins, 0.57)) for margins in seen.margins]
    for thresholds in (middle, [np.inf, np.inf], [np.inf, middle[1]]):
        stops, classes = exit_blocks(seen, np.array(thresholds))
        ran, where = EarlyExit(NET, variables, thresholds)(X)
        assert (where == stops).all()
        assert (ran == classes).all()
    assert len(set(exit_blocks(seen, np.array(middle))[0])) == 3


def test_later_blocks_do_not_run_for_images_that_left(variables, monkeypatch):
    """Programs are traced for the images that remain, and for no block behind the last exit."""
    traced, apply = [], CodedResNeXt.apply

    def watched(self, variables, x, **given):
        traced.append((len(x), given["first"], given["last"]))
        return apply(self, variables, x, **given)

    margins = np.sort(decode_blocks(NET, variables, X).margins[0])
    monkeypatch.setattr(CodedResNeXt, "apply", watched)
    net = NET.clone(mean=(0.5,), drop=0.1)  # unequal to NET, so that nothing is compiled yet
    EarlyExit(net, variables, [0.0, np.inf])(X)
    assert traced == [(16, 0, 2)]
    EarlyExit(net, variables, [float(margins[5]), np.inf])(X)  # 11 leave, 5 go on
    assert traced == [(16, 0, 2), (8, 2, None)]


def test_thresholds_spend_the_points_that_are_allowed():
    rng = np.random.default_rng(1)
    labels = rng.integers(10, size=400)
    margins = rng.random((3, 400))
    classes = np.stack([np.where(rng.random(400) < margins[0] ** 0.1, labels, 99) for _ in range(3)] + [labels])
    held = BlockPredictions(classes, margins)
    spent = []
    for points in (0.0, 0.01, 0.1):
        stops, exits = exit_blocks(held, choose_thresholds(held, labels, points))
        assert (exits == labels).mean() >= 1 - points
        spent.append(compute_share(coded_cifar10(), stops, (32, 32, 3)))
    assert spent[0] >= spent[1] > spent[2]
    tied = BlockPredictions(np.array([[0, 1], [0, 0]]), np.ones((1, 2)))
    assert choose_thresholds(tied, np.zeros(2, int), 0.0)[0] == np.inf  # the two leave together or not at all
    assert choose_thresholds(BlockPredictions(np.stack([labels + 1, labels]), margins[:1]), labels, 0.0)[0] == np.inf


def test_compute_is_the_specs():
    """Multiply-adds to the end of blocks 4 to 9 of the CIFAR-10 network, spec section 5."""
    spent = [compute_share(coded_cifar10(), np.array([stop]), (32, 32, 3)) for stop in range(7)]
    np.testing.assert_allclose(spent, [0.451, 0.544, 0.637, 0.814, 0.907, 0.9999, 1.0], atol=6e-4)
