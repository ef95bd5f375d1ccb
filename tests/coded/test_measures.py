"""All measures of one small network: values that follow from one another, and the files of the classifiers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.coded.codes import Code
from jaxinterp.coded.early_exit import decode_blocks
from jaxinterp.coded.measures import POINTS, measure_paths
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.data import Dataset

NET = CodedResNeXt(stages=(Stage(1, 8, 2, 2), Stage(1, 12, 2, 4, 2, Code(("1100", "0110", "0011")))), classes=3)


def test_results_follow_from_one_another(tmp_path):
    rng = np.random.default_rng(0)

    def dataset(count):
        images = rng.integers(256, size=(count, 8, 8, 1), dtype=np.uint8)
        return Dataset("noise", "train", images, np.arange(count, dtype=np.int32) % 3, ("a", "b", "c"))

    test = dataset(20)
    images = test.images.astype(np.float32) / 255
    variables = jax.jit(NET.init)(jax.random.key(0), jnp.asarray(images))
    lines: list[str] = []
    results = measure_paths(
        NET,
        variables,
        train=dataset(12),
        held=dataset(9),
        test_images=images,
        test_labels=test.labels,
        foreign=images[:5],
        folder=tmp_path,
        classifiers=2,
        batch=8,
        log=lines.append,
    )
    metrics = results["metrics"]
    assert metrics["classifier_difference"] < 1e-5
    assert sorted(path.name for path in (tmp_path / "classifiers").iterdir()) == ["0.npz", "1.npz"]
    accuracy = (decode_blocks(NET, variables, images).classes == test.labels).mean(1)
    assert results["decoding"] == {"2": pytest.approx(accuracy[0])}
    assert metrics["decoding_accuracy_block_2"] == results["decoding"]["2"]
    for kind, counts in (("active", 3), ("inactive", 3)):
        assert len(results["removed"][kind]) == counts
        assert results["removed"][kind]["0"] == pytest.approx(accuracy[-1])
    assert list(results["exits"]) == [str(points) for points in POINTS]
    assert metrics["early_exit_compute"] == results["exits"]["0.005"]["compute"]
    precisions = [record["precision"] for record in results["classifiers"]]
    assert metrics["classifier_precision"] == pytest.approx(np.mean(precisions))
    assert 0 <= metrics["classifier_foreign_precision"] <= 1
    assert metrics["parameters_kept"] < 1
    assert np.array(results["specificity"]["lost"]).shape == (3, 3)
    assert [line.split(" ")[0] for line in lines] == ["decoding:", "classifiers", "early", "most", "specificity:"]
    json.dumps(results)
