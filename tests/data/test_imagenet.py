"""The first classes of ImageNet, from a stand-in of the stream."""

from itertools import islice

import numpy as np
import pytest

from jaxinterp.data import imagenet


@pytest.fixture
def asked(monkeypatch):
    """Replace the stream by 12 batches whose labels count from the epoch on, modulo 4; list (seed, epoch)."""
    calls = []

    def one_pass(name, split, *, batch_size, epoch, seed, image_size, shorter_side, **options):
        assert (name, image_size, shorter_side) == ("imagenet2012", 240, 256)
        calls.append((seed, epoch))
        labels = np.arange(epoch, epoch + 12 * batch_size, dtype=np.int32) % 4
        for part in labels.reshape(12, batch_size):
            yield {"label": part, "index": part, "image": np.zeros((batch_size, 1, 1, 3), np.uint8)}

    monkeypatch.setattr(imagenet, "stream", one_pass)
    return calls


RUN = {"image_size": 240, "batch_size": 8, "seed": 5}


def test_an_epoch_keeps_the_first_classes_and_takes_several_passes(asked):
    stream = imagenet.training_stream(2, **RUN)
    assert (stream.steps, stream.image_shape) == (2 * 1280 // 8, (240, 240, 3))
    asked.clear()
    batches = list(islice(stream.batches(3), 10))
    assert asked == [(5, 3000), (5, 3001)]
    assert all(batch["label"].shape == (8,) and batch["label"].max() < 2 for batch in batches)


def test_images_in_memory_are_those_of_the_first_classes(asked):
    assert imagenet.validation_images(3, image_size=240).labels.tolist() == [0, 1, 2] * 256 * 3
    some = imagenet.training_images(2, 20, **RUN)
    assert (some.split, some.images.shape, some.labels.tolist()) == ("train", (20, 1, 1, 3), [0, 1] * 10)
    assert len(imagenet.training_images(2, 10_000, **RUN)) == 2 * 1280  # an epoch, not the same ones again
