"""Exported networks: sizes that a file claims are bounded by its arrays before a network is built."""

import json
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.coded.codes import Code
from jaxinterp.coded.export import export_network, load_network
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.coded.surgery import binary_classifier
from jaxinterp.errors import CheckpointError

WORDS = Code(("1100", "0110", "0011"))
MODEL = CodedResNeXt(stages=(Stage(1, 8, 2, 2), Stage(1, 12, 2, 4, 2, WORDS)), classes=3, mean=(0.5,), std=(0.5,))
IMAGES = jnp.ones((1, 8, 8, 1))


@pytest.fixture(scope="module")
def network():
    return binary_classifier(MODEL, jax.jit(MODEL.init)(jax.random.key(1), IMAGES), 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("export") / "one.npz"
    export_network(path, *network)
    return path


@pytest.fixture
def content(path):
    return dict(np.load(path))


def test_an_exported_network_comes_back_or_is_damaged(network, path, tmp_path):
    loaded, variables = load_network(path)
    assert loaded == network[0]
    jax.tree.map(np.testing.assert_array_equal, variables, network[1])
    whole, damaged, noticed = path.read_bytes(), tmp_path / "three.npz", 0
    for offset in range(100, len(whole), len(whole) // 12):  # some bits, such as dates, say nothing
        damaged.write_bytes(whole[:offset] + bytes([whole[offset] ^ 16]) + whole[offset + 1 :])
        try:
            same = load_network(damaged)[1]
        except CheckpointError as error:
            noticed += "\n" not in str(error)
        else:
            jax.tree.map(np.testing.assert_array_equal, same, variables)
    assert noticed > 4
    for part in (whole[:-30], b"", None):
        damaged.unlink() if part is None else damaged.write_bytes(part)
        with pytest.raises(CheckpointError, match=r"three\.npz: expected a coded network's file") as error:
            load_network(damaged)
        assert "\n" not in str(error.value)


def test_arrays_that_are_not_the_networks_are_named(network, content, tmp_path):
    content["params/block_2/expand_kernel"] = content["params/block_2/expand_kernel"][:1]
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(CheckpointError, match="params/block_2/expand_kernel is missing, foreign or of another shape"):
        load_network(tmp_path / "other.npz")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), network[1])
    lost = jax.tree.map(lambda leaf: leaf * jnp.nan, network[1])
    for foreign, says in ((half, "of bfloat16"), (lost, "holds NaN"), ({"params": {}}, "is missing")):
        with pytest.raises(ValueError, match=f"variables: .* {says}"):
            export_network(tmp_path / "none.npz", network[0], foreign)
    assert not (tmp_path / "none.npz").exists()


def rewrite(content, path, **changes):
    """Write the file with other fields in its description; "stages" are changes of the last stage."""
    fields = json.loads(str(content["description"]))
    fields["stages"][-1] |= changes.pop("stage", {})
    np.savez(path, **{**content, "description": np.array(json.dumps(fields | changes))})


def test_a_stem_without_pooling_stays_without_and_older_files_pool(network, content, tmp_path):
    strided, pooled = (network[0].clone(stem=(3, 2), pool=pool) for pool in (False, True))
    export_network(tmp_path / "strided.npz", strided, network[1])
    loaded, variables = load_network(tmp_path / "strided.npz")
    assert loaded == strided
    images = jax.random.uniform(jax.random.key(2), (2, 16, 16, 1))
    np.testing.assert_array_equal(loaded.apply(variables, images), strided.apply(network[1], images))
    assert not np.allclose(pooled.apply(network[1], images), strided.apply(network[1], images))
    before = json.loads(str(content["description"]))
    del before["pool"]
    np.savez(tmp_path / "old.npz", **{**content, "description": np.array(json.dumps(before))})
    assert load_network(tmp_path / "old.npz")[0].pool


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": {"blocks": 10**6}},
        {"stage": {"features": 10**12}},
        {"stage": {"paths": 10**12, "kept": 10**12, "code": None}},
        {"stage": {"blocks": 1.5}},
        {"classes": 10**12},
        {"stem": [10**12, 1]},
        {"stages": [asdict(Stage(10**7, 8, 2, 2))] * 3},
    ],
)
def test_sizes_are_bounded_by_the_arrays(content, tmp_path, changes):
    rewrite(content, tmp_path / "big.npz", **changes)
    with pytest.raises(CheckpointError, match=r"big\.npz") as error:
        load_network(tmp_path / "big.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"stem": [3, 10**9]}, {"stage": {"strides": 10**9}}, {"stage": {"paths": 10**12, "code": None}}]
)
def test_large_numbers_without_arrays_load_at_once(content, tmp_path, changes):
    rewrite(content, tmp_path / "far.npz", **changes)
    network, variables = load_network(tmp_path / "far.npz")
    assert jax.eval_shape(network.apply, variables, IMAGES).shape == (1, 1)
