"""The embedded digits, the stratified hold-out, and the answers to wrong names."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxinterp.data import NAMES, Dataset, hold_out, load
from jaxinterp.data.class_names import CLASSES


def _rows(dataset):
    return [image.tobytes() + bytes([label]) for image, label in zip(dataset.images, dataset.labels, strict=True)]


def test_digits_are_scikit_learns_split_without_overlap():
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.dtype == np.uint8
    assert train.images.max() == train.maximum == 16
    original = load_digits()
    expected = [
        image.astype(np.uint8).tobytes() + bytes([label])
        for image, label in zip(original.images, original.target, strict=True)
    ]
    assert sorted(_rows(train) + _rows(test)) == sorted(expected)
    shares = np.bincount(test.labels) / np.bincount(original.target)
    assert np.abs(shares - 360 / 1797).max() < 1 / 174
    np.testing.assert_array_equal(load("digits", "test").images, test.images)


def _toy(sizes, seed=0):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset("toy", "train", images, labels, tuple("abcdef"[: len(sizes)]))


def test_hold_out_is_exact_stratified_and_deterministic():
    whole = _toy([50, 30, 17, 3])
    rest, held = hold_out(whole, 0.2)
    assert (len(rest), len(held)) == (80, 20)
    assert np.bincount(held.labels).tolist() == [10, 6, 3, 1]  # 10, 6, 3.4 and 0.6 by largest remainders
    both = np.concatenate([rest.images, held.images]).ravel()
    assert sorted(both) == list(range(100))
    assert (np.diff(held.images.ravel().astype(int)) > 0).all()
    np.testing.assert_array_equal(held.labels, whole.labels[held.images.ravel()])
    np.testing.assert_array_equal(hold_out(whole, 0.2)[1].images, held.images)
    assert hold_out(whole, 0.2, seed=1)[1].images.tolist() != held.images.tolist()
    assert (rest.split, held.split, rest.name) == ("train[rest]", "train[held out]", "toy")


def test_hold_out_draws_uniformly_within_a_class():
    whole = replace(_toy([40]), classes=("a",))
    times = np.zeros(40)
    for seed in range(400):
        times[hold_out(whole, 0.25, seed)[1].images.ravel()] += 1
    assert times.sum() == 4000
    assert times.min() > 60
    assert times.max() < 140


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.001, 0.999])
def test_hold_out_refuses_empty_parts(fraction):
    with pytest.raises(ValueError, match="fraction must leave both parts of the 10 examples non-empty, got"):
        hold_out(_toy([10]), fraction)


def test_wrong_names_are_answered_with_the_right_ones():
    with pytest.raises(ValueError, match="unknown data set 'svhn', expected one of digits, mnist"):
        load("svhn", "train")
    with pytest.raises(ValueError, match="unknown split 'validation', expected 'train' or 'test'"):
        load("mnist", "validation")
    with pytest.raises(ValueError, match=r"use jaxinterp\.data\.stream"):
        load("imagenet2012", "train")


def test_class_names_are_complete_and_different():
    counts = {name: len(set(classes)) for name, classes in CLASSES.items()}
    assert counts == {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
    assert set(CLASSES) == set(NAMES) - {"imagenet2012"}
    assert list(CLASSES["cifar100"]) == sorted(CLASSES["cifar100"])
