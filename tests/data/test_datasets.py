"""The embedded digits, the stratified hold-out, checks of a data set, and the answers to wrong names."""

import base64
import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image
from sklearn.datasets import load_digits

from jaxinterp.data import NAMES, Dataset, Stream, draw_batch, hold_out, identity, load, to_device
from jaxinterp.data.class_names import CLASSES
from jaxinterp.data.image_set import ImageSet
from jaxinterp.errors import ConfigError


def test_digits_are_scikit_learns_split_without_overlap():
    def rows(images, labels):
        return [image.astype(np.uint8).tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)]

    train, test, original = load("digits", "train"), load("digits", "test"), load_digits()
    assert (len(train), len(test), train.images.dtype) == (1437, 360, np.uint8)
    assert train.images.max() == train.maximum == 16
    both = rows(train.images, train.labels) + rows(test.images, test.labels)
    assert sorted(both) == sorted(rows(original.images, original.target))
    shares = np.bincount(test.labels) / np.bincount(original.target)
    assert np.abs(shares - 360 / 1797).max() < 1 / 174
    np.testing.assert_array_equal(load("digits", "test").images, test.images)


def toy(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset("toy", "train", images, labels, tuple("abcdef"[: len(sizes)]))


def test_hold_out_is_exact_stratified_and_deterministic():
    whole = toy([50, 30, 17, 3])
    rest, held = hold_out(whole, 0.2)
    assert np.bincount(held.labels).tolist() == [10, 6, 3, 1]  # 10, 6, 3.4 and 0.6 by largest remainders
    assert sorted(np.concatenate([rest.images, held.images]).ravel()) == list(range(100))
    assert (np.diff(held.images.ravel().astype(int)) > 0).all()
    np.testing.assert_array_equal(held.labels, whole.labels[held.images.ravel()])
    np.testing.assert_array_equal(hold_out(whole, 0.2)[1].images, held.images)
    assert hold_out(whole, 0.2, seed=1)[1].images.tolist() != held.images.tolist()
    assert (rest.split, held.split, rest.name) == ("train[rest]", "train[held out]", "toy")
    for fraction in (0.0, 1.0, -0.1, 0.001, 0.999):
        with pytest.raises(ConfigError, match="fraction"):
            hold_out(whole, fraction)


def test_the_split_of_a_seed_stays_the_same():
    assert hold_out(toy([6, 4]), 0.3)[1].images.ravel().tolist() == [0, 2, 3]


def test_hold_out_draws_uniformly_within_a_class():
    one = replace(toy([40]), classes=("a",))
    times = np.zeros(40)
    for seed in range(400):
        times[hold_out(one, 0.25, seed)[1].images.ravel()] += 1
    assert times.sum() == 4000
    assert times.min() > 60
    assert times.max() < 140


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("svhn", "train", "name: got svhn, expected one of digits, mnist"),
        ("mnist", "validation", "split"),
        ("imagenet2012", "train", r"use jaxinterp\.data\.stream"),
    ],
)
def test_wrong_names_are_answered_with_the_right_ones(name, split, message):
    with pytest.raises(ConfigError, match=message):
        load(name, split)


@pytest.mark.parametrize(
    ("dtype", "maximum"),
    [(np.uint8, 255), (np.uint16, 65535), (np.float16, 1), (np.float32, 1), (np.float64, 1), (bool, 1)],
)
def test_the_type_of_the_images_decides_their_maximum(dtype, maximum):
    images = (np.arange(16).reshape(4, 2, 2, 1) % 2).astype(dtype) * np.dtype(dtype).type(maximum)
    dataset = Dataset("dots", "train", images, np.arange(4), tuple("abcd"))
    assert (dataset.maximum, dataset.labels.dtype) == (maximum, np.int32)
    assert dataset.images is images
    batch = draw_batch(to_device(dataset), jnp.arange(4)[None], 0, jax.random.key(0), 0, identity, dataset.maximum)
    assert batch["image"].dtype == jnp.float32
    np.testing.assert_array_equal(batch["image"].ravel(), np.arange(16) % 2)
    if images.dtype.kind == "f":
        assert replace(dataset, maximum=70000).maximum == 70000


BYTES, FLOATS = np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 1, 1, 1), np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "name"),
    [
        *((BYTES, labels, "labels") for labels in ([0, -1], [1, 2], [0.0, 1.0], ["a", "b"], np.eye(2, dtype=int))),
        *((BYTES, labels, "labels") for labels in ([0], [0, 1, 1])),
        *((FLOATS + np.float32(value), [0, 1], "images") for value in (-0.1, 255.0, np.nan, np.inf)),
        (BYTES[..., 0], [0, 1], "images"),
        (BYTES.astype(np.int64), [0, 1], "images"),
    ],
)
def test_images_and_labels_that_are_none_are_named(images, labels, name):
    with pytest.raises((ConfigError, TypeCheckError), match=name):
        Dataset("dots", "train", images, np.asarray(labels), ("a", "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maximum": np.nan}, "maximum: got nan, expected from 0 on, at most 255, as uint8 holds"),
        ({"maximum": np.inf}, "maximum: got inf, "),
        ({"maximum": np.inf, "images": FLOATS}, "maximum: got inf, expected from 0 on, a finite number"),
        ({"maximum": 300}, "maximum: got 300, expected from 0 on, at most 255"),
        ({"maximum": -1}, "maximum: got -1, "),
        ({"maximum": "255"}, "maximum: got 255, "),
        ({"images": [[[[0]]], [[[0]]]]}, "images: got a list, expected a NumPy array, uint8"),
        ({"images": BYTES[:0], "labels": np.zeros(0, int)}, "images: got none, expected at least one"),
        ({"classes": "ab"}, "classes: got ab, expected the classes' names, a tuple of texts"),
        ({"classes": 2}, "classes: got 2, expected the classes' names"),
        ({"classes": (0, 1)}, "classes: got 0,1, expected the classes' names"),
        ({"classes": ()}, "classes: got , expected the classes' names"),
        ({"classes": ("a", "a")}, "classes: got a more than once, expected different names"),
    ],
)
def test_a_field_that_does_not_fit_is_one_line(change, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types refuse some of them too
    with pytest.raises(ConfigError) as error:
        Dataset(
            **{"name": "x", "split": "train", "images": BYTES, "labels": np.arange(2), "classes": ("a", "b")} | change
        )
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_class_names_may_come_as_a_list_or_an_array(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for names in (["a", "b"], np.array(["a", "b"])):
        assert Dataset("x", "train", BYTES, np.arange(2), names).classes == ("a", "b")


def test_a_dataset_prints_as_one_line():
    assert repr(toy([2, 1])) == "Dataset(toy, train: 3 images uint8 1x1x1, 2 classes, maximum 255)"
    assert len(repr(load("digits", "train"))) < 100


def opened(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("L"))


def test_a_dataset_is_a_table_and_its_first_images_in_a_notebook():
    html = load("digits", "test")._repr_html_()
    text, picture = html.split("data:image/png;base64,")
    assert len(text) < 600
    assert "<th>digits, test</th>" in text
    assert "<td>360 of 8×8×1, uint8, maximum 16</td>" in text
    assert "<td>10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9</td>" in text
    pixels = opened(base64.b64decode(picture.split('"')[0]))
    assert pixels.shape[1] > 6 * pixels.shape[0]  # ten in a row
    assert (pixels < 50).any()
    many = Dataset("<x>", "train", np.zeros((2, 1, 1, 2)), np.array([0, 1]), tuple(map(str, range(1000))))._repr_html_()
    assert "&lt;x&gt;, train" in many
    assert "1000: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …" in many


def test_a_dataset_is_drawn_by_class():
    digits = load("digits", "train")
    (axes,) = digits.plot(classes=3, columns=4).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn.shape == (3 * 9, 4 * 9, 3)  # one white pixel between images
    for row in range(3):
        images = digits.images[digits.labels == row][:4, ..., 0] / 16
        for column, image in enumerate(images):
            place = drawn[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
            np.testing.assert_allclose(place, np.repeat(image[..., None], 3, -1), atol=1e-6)
    assert (drawn[8::9] == 1).all()
    (few,) = toy([2, 0, 1]).plot().axes
    assert [label.get_text() for label in few.get_yticklabels()] == ["a", "c"]
    assert (np.asarray(few.images[0].get_array())[2:, 2:] == 1).all()  # nothing beside the one image of c
    with pytest.raises(ConfigError, match="columns"):
        digits.plot(columns=0)


def test_figures_are_shown_by_notebooks_as_they_are():
    pixels = opened(load("digits", "test").plot()._repr_png_())
    assert pixels.min() < 50 < 200 < pixels.max()


def test_a_stream_prints_as_one_line_and_draws_its_first_batch():
    images = np.arange(2 * 12 * 4, dtype=np.uint8).reshape(2, 12, 2, 2, 1)
    batches = Stream("dots", 2, (2, 2, 1), lambda epoch: iter({"image": image} for image in images))
    assert repr(batches) == "Stream(dots: 2 steps per epoch, images 2x2x1, maximum 255)"
    assert "<tr><td>images</td><td>2×2×1</td></tr>" in batches._repr_html_()
    drawn = np.asarray(batches.plot(11).axes[0].images[0].get_array())
    assert drawn.shape == (2 * 3, 10 * 3, 3)
    np.testing.assert_allclose(drawn[3:5, :2, 0], images[0, 10, ..., 0] / 255, atol=1e-6)
    assert (drawn[3:, 3:] == 1).all()


def test_a_set_of_images_prints_as_one_line():
    made = ImageSet(np.zeros((3, 2, 2, 1), np.float32), np.array([0, 4, 4]), 2)
    assert repr(made) == "ImageSet(3 images 2x2x1 of 2 classes, level 2)"


def test_class_names_are_complete_and_different():
    counts = {name: len(set(classes)) for name, classes in CLASSES.items()}
    assert counts == {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
    assert set(CLASSES) == set(NAMES) - {"imagenet2012"}
    assert list(CLASSES["cifar100"]) == sorted(CLASSES["cifar100"])
