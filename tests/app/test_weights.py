"""Networks as files: every family there and back, cards, images of any kind, what is damaged; those in the package."""

import json
import re
import shutil
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxinterp
from jaxinterp.app import weights
from jaxinterp.app.registry import family_of, runs
from jaxinterp.errors import CheckpointError, ConfigError, DataError
from jaxinterp.nn.weights import checksum, read_weights, write_weights
from jaxinterp.recipe.family import TrainedRun

NAMES = ("coda/digits", "gated/digits-dlgn", "coded/digits", "taylor/digits", "glassbox/digits")


@cache
def trained(name):
    """A smoke run with the weights of its start."""
    experiment = runs()[name]
    family = family_of(experiment.run)
    run = family.smoke(experiment.run)
    network = family.network(run)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *run.data.image_shape)))
    return TrainedRun(Path("none"), name, experiment, run, family, network, variables)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "coda.safetensors"
    weights.write_network(trained("coda/digits"), path, test_accuracy=0.5)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_family_comes_back(name, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "accuracy", lambda *args: 0.25)
    found, x = trained(name), np.random.default_rng(0).random((2, *trained(name).run.data.image_shape), np.float32)
    for file in ("net.npz", "net.safetensors"):
        card = weights.write_network(found, tmp_path / file)
        net = jaxinterp.load(tmp_path / file)
        jax.tree.map(np.testing.assert_array_equal, net.variables["params"], found.variables["params"])
        assert (net.run, net.classes, net.image_shape) == (found.run, found.classes, found.run.data.image_shape)
        assert (net.card, card.packaged_accuracy, net.layer) == (card, 0.25, found.explainable.layer)
    np.testing.assert_allclose(net.logits(x), found.explainable.logits(x), atol=1e-6)
    half = weights.write_network(found, tmp_path / "half.safetensors", dtype="bfloat16")
    assert half.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(jaxinterp.load(tmp_path / "half.safetensors").variables)} == {
        jnp.float32.dtype
    }


def test_a_loaded_network_is_explained_and_reads_any_image(path, tmp_path):
    net = jaxinterp.load(str(path))
    assert isinstance(net, jaxinterp.Explainable)
    assert re.search(r"licence: CC BY 4.0.*\n.*8×8 pixels, 1 channel.*\n.*50.00%", path.with_suffix(".md").read_text())
    digit = (np.arange(64, dtype=np.uint8) * 3).reshape(8, 8)
    Image.fromarray(digit).save(tmp_path / "digit.png")
    same = (
        tmp_path / "digit.png",
        Image.fromarray(digit),
        digit,
        digit[..., None] / np.float32(255),
        str(tmp_path / "digit.png"),
    )
    x = net.read(*same)
    assert (x.shape, x.dtype) == ((5, 8, 8, 1), np.float32)
    np.testing.assert_allclose(x, np.broadcast_to(x[:1], x.shape))
    assert net.read(np.zeros((3, 20, 20, 3), np.uint8)).shape == (3, 8, 8, 1)
    for mode in ("RGBA", "CMYK", "F", "P", "LAB"):
        assert (
            net.read(Image.new("RGB", (9, 8)).convert(mode) if mode != "LAB" else Image.new("LAB", (9, 8))).shape
            == x[:1].shape
        )
    parts = jaxinterp.decompose(net.at("layer_0"), x[:1])
    assert parts.relative_residual.max() < 1e-5
    for wrong in (
        np.full((8, 8), 2.0),
        np.zeros((8, 8, 2)),
        np.zeros(3),
        np.full((8, 8), np.nan),
        np.zeros((8, 8), int),
    ):
        with pytest.raises(ConfigError, match=r"^images:"):
            net.read(wrong)
    with pytest.raises(ConfigError, match=r"^images:"):
        net.read()
    with pytest.raises(DataError, match="no such file"):
        net.read(tmp_path / "none.png")


def rewritten(path, to, arrays=None, **texts):
    """Write a file again, with other arrays under a checksum that fits, and other texts."""
    held = read_weights(path)
    arrays = held.arrays if arrays is None else arrays(dict(held.arrays))
    card = json.dumps(json.loads(held.texts["card"]) | {"checksum": checksum(arrays)})
    write_weights(
        to, arrays, {name: text for name, text in (held.texts | {"card": card} | texts).items() if text is not None}
    )
    return to


def config(**changes):
    run = json.loads(json.dumps(weights.dataclasses.asdict(trained("coda/digits").run)))
    for key, value in changes.items():
        part, field = key.split("__")
        run[part][field] = value
    return json.dumps(run)


FIRST = "params/layer_0/A"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": None}, "format"),
        ({"format": "other/2"}, "format"),
        ({"model": "Path"}, "model"),
        ({"model": None}, "model"),
        ({"card": "{}"}, "a value"),
        ({"card": "[" * 100_000}, "not a network"),
        ({"config": config(model__features=[10**12, 4, 4, 10])}, "10+"),
        ({"config": config(model__features=[50_000, 4, 4, 10])}, "not the network's"),
        ({"config": config(model__trunk_depth=60_002, model__trunk_blocks=30_000)}, "not the network's"),
        ({"config": config(model__kernel_sizes="abc")}, "kernel_sizes"),
        ({"config": config(data__image_size=10**9)}, "10+"),
        ({"config": config(model__temperature=float("nan"))}, "temperature|number"),
        ({"config": "{}"}, "not a network"),
        ({"classes": '["a"]'}, "classes"),
        ({"classes": json.dumps([1] * 10)}, "classes"),
        ({"arrays": lambda a: a | {FIRST: a[FIRST] * np.nan}}, "NaN"),
        ({"arrays": lambda a: a | {FIRST: a[FIRST][:1]}}, "layer_0"),
        ({"arrays": lambda a: a | {FIRST: a[FIRST].astype(int)}}, "int64"),
        ({"arrays": lambda a: a | {"params/other": a[FIRST]}}, "params/other"),
        ({"arrays": lambda a: {FIRST: a[FIRST]}}, "not the network's"),
        ({"arrays": lambda a: {"x": np.zeros(1)}}, "not the network's"),
    ],
)
def test_foreign_files_are_one_line_at_once(path, tmp_path, change, says):
    start = time.perf_counter()
    file = rewritten(path, tmp_path / "other.safetensors", **change)
    with pytest.raises(CheckpointError, match=f"other.safetensors: .*({says})") as error:
        jaxinterp.load(file)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - start < 20  # a busy machine


def test_damaged_files_are_one_line(path, tmp_path):
    whole, file = path.read_bytes(), tmp_path / "damaged.safetensors"
    changed = whole[:-9] + bytes([whole[-9] ^ 16]) + whole[-8:]
    huge = (2**40).to_bytes(8, "little") + whole[8:]
    for content in (whole[:-30], whole[:100], b"", b"\x80\x04pickle", huge, changed):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged\.safetensors: ") as error:
            jaxinterp.load(file)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"none\.npz"):
        jaxinterp.load(tmp_path / "none.npz")


def test_an_npz_that_unpacks_to_more_is_left_alone(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(20 << 20, np.float32))
    np.savez(tmp_path / "objects.npz", a=np.array([{}]))
    for file, says in (("bomb.npz", "when unpacked"), ("objects.npz", "ValueError")):
        with pytest.raises(CheckpointError, match=says):
            jaxinterp.load(tmp_path / file)


def test_a_folder_with_an_index_takes_networks_by_name(path, tmp_path, monkeypatch):
    (tmp_path / weights.INDEX).write_text("{}")
    weights.write_network(trained("coda/digits"), tmp_path / "coda-small.safetensors")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    assert list(jaxinterp.pretrained()) == ["coda-small"]
    net = jaxinterp.load("coda-small")
    assert (net.name, net.card.run) == ("coda-small", "coda/digits")
    assert 'jaxinterp.load("coda-small")' in (tmp_path / "coda-small.md").read_text()
    with pytest.raises(ConfigError, match=r"^NAME: got coda-smal, expected coda-small"):
        jaxinterp.load("coda-smal")
    shutil.copy(path, tmp_path / "coda-small.safetensors")
    with pytest.raises(CheckpointError, match="altered"):
        jaxinterp.load("coda-small")


def test_a_name_of_the_package_is_no_folder_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coda-mnist").mkdir()  # as training makes it
    assert jaxinterp.load("coda-mnist").card.run == "coda/mnist"


def test_what_is_exported_can_be_loaded_and_says_no_place(tmp_path):
    found = trained("coda/digits")
    data = {
        "name": f"folder:{tmp_path}/photos",
        "split_seed": 20240131,
        "max_images": 10**6,
        "classes": tuple("0123456789"),
    }
    run = found.run.replace(data=data)
    card = weights.write_network(replace(found, run=run), tmp_path / "net.npz")
    assert card.data == "folder:photos"
    assert str(tmp_path) not in (tmp_path / "net.md").read_text()
    assert jaxinterp.load(tmp_path / "net.npz").run.data.split_seed == 20240131


def test_networks_in_the_package_are_those_of_the_index_and_small():
    index = json.loads((weights.FOLDER / weights.INDEX).read_text())
    files = {path.name for path in weights.FOLDER.iterdir()} - {weights.INDEX, "__pycache__"}
    assert files == {name for entry in index.values() for name in (entry["file"], entry["card"])}
    assert sum(path.stat().st_size for path in weights.FOLDER.iterdir() if path.is_file()) <= 4 << 20


@pytest.mark.parametrize("name", jaxinterp.pretrained())
def test_a_network_of_the_package_is_what_its_card_says(name):
    net = jaxinterp.load(name)
    found = weights.accuracy(net.run, family_of(net.run).build(net.run), net.variables)
    assert found == pytest.approx(net.card.packaged_accuracy, abs=0.002)
