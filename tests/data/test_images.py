"""Images of a data set: classes selected, and rotated."""

from dataclasses import replace

import numpy as np
import pytest

from jaxinterp.app.registry import runs
from jaxinterp.data import load
from jaxinterp.data.images import rotate_dataset, rotate_randomly, select_classes
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.data import split


def test_classes_are_selected_in_the_order_given():
    data = load("digits", "test")
    pair = select_classes(data, (8, 3))
    assert pair.classes == (data.classes[8], data.classes[3])
    places = np.flatnonzero(np.isin(data.labels, (3, 8)))
    np.testing.assert_array_equal(pair.labels, np.where(data.labels[places] == 8, 0, 1))
    with pytest.raises(ConfigError, match=r"got 3,3, expected different classes in \[0, 10\) of digits"):
        select_classes(data, (3, 3))


def test_a_rotated_data_set_is_the_same_every_time_and_another_for_every_split():
    data = load("digits", "test")
    once, again = rotate_dataset(data), rotate_dataset(data)
    np.testing.assert_array_equal(once.images, again.images)
    assert once.images.dtype == data.images.dtype
    assert np.abs(once.images.astype(float) - data.images).mean() > 1
    other = rotate_dataset(replace(data, split="train"))
    assert (other.images != once.images).any()
    np.testing.assert_allclose(rotate_randomly(np.full((2, 9, 9, 1), 3.0, np.float32), 0)[:, 4, 4], 3.0, rtol=1e-6)


def test_a_run_may_rotate_the_images_that_it_keeps():
    run = runs()["glassbox/digits-p4"].run.replace(data={"max_images": 20})
    rotated, upright = (split(run.replace(data={"rotated": rotated}), "test", None) for rotated in (True, False))
    assert len(upright) == 20
    np.testing.assert_array_equal(rotated.images, rotate_dataset(upright).images)
    with pytest.raises(ConfigError, match=r"data\.rotated: got True"):
        split(run.replace(data={"name": "imagenet2012", "rotated": True}), "test", None)
