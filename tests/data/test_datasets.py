"""The embedded digits, the stratified hold-out, checks of a data set, and the answers to wrong names."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from sklearn.datasets import load_digits

from jaxinterp.data import NAMES, Dataset, draw_batch, hold_out, identity, load, to_device
from jaxinterp.data.class_names import CLASSES
from jaxinterp.errors import ConfigError


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
    with pytest.raises(ValueError, match="fraction"):
        hold_out(_toy([10]), fraction)


def test_wrong_names_are_answered_with_the_right_ones():
    with pytest.raises(ConfigError, match="name: got svhn, expected one of digits, mnist"):
        load("svhn", "train")
    with pytest.raises(ConfigError, match="split"):
        load("mnist", "validation")
    with pytest.raises(ConfigError, match=r"use jaxinterp\.data\.stream"):
        load("imagenet2012", "train")


@pytest.mark.parametrize(
    ("dtype", "maximum"),
    [(np.uint8, 255), (np.uint16, 65535), (np.float16, 1), (np.float32, 1), (np.float64, 1), (bool, 1)],
)
def test_the_type_of_the_images_decides_their_maximum(dtype, maximum):
    images = (np.arange(16).reshape(4, 2, 2, 1) % 2).astype(dtype) * np.dtype(dtype).type(maximum)
    dataset = Dataset("dots", "train", images, np.arange(4), tuple("abcd"))
    assert dataset.maximum == maximum
    assert dataset.images is images
    assert dataset.labels.dtype == np.int32
    batch = draw_batch(to_device(dataset), jnp.arange(4)[None], 0, jax.random.key(0), 0, identity, dataset.maximum)
    assert batch["image"].dtype == jnp.float32
    np.testing.assert_array_equal(batch["image"].ravel(), np.arange(16) % 2)
    assert Dataset("dots", "train", images, np.arange(4), tuple("abcd"), 70000).maximum == 70000


@pytest.mark.parametrize("labels", [[0, -1], [1, 2], [0.0, 1.0], ["a", "b"], np.eye(2, dtype=int), [0], [0, 1, 1]])
def test_labels_are_one_class_for_each_image(labels):
    with pytest.raises((ConfigError, TypeCheckError), match="labels"):
        Dataset("dots", "train", np.zeros((2, 4, 4, 1), np.uint8), np.asarray(labels), ("a", "b"))


@pytest.mark.parametrize("levels", [(-0.1, 1.0), (0.0, 255.0), (0.0, np.nan), (0.0, np.inf)])
def test_float_images_end_at_the_maximum(levels):
    images = np.array(levels, np.float32).reshape(2, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"^images: got .+, expected values in \[0, 1\]$"):
        Dataset("dots", "train", images, np.arange(2), ("a", "b"))


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 1), np.int64)])
def test_images_of_another_shape_or_type_are_named(images):
    with pytest.raises((ConfigError, TypeCheckError), match="images"):
        Dataset("dots", "train", images, np.arange(2), ("a", "b"))


def test_a_dataset_prints_as_one_line():
    assert repr(_toy([2, 1])) == "Dataset(toy, train: 3 images uint8 1x1x1, 2 classes, maximum 255)"


def test_class_names_are_complete_and_different():
    counts = {name: len(set(classes)) for name, classes in CLASSES.items()}
    assert counts == {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
    assert set(CLASSES) == set(NAMES) - {"imagenet2012"}
    assert list(CLASSES["cifar100"]) == sorted(CLASSES["cifar100"])
