"""The coded runs: published networks by name, their loss, what is measured of them, and bad overrides in one line."""

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.coded import family as coded_resnext
from jaxinterp.coded.codes import Code, load_code
from jaxinterp.coded.export import export_network, load_network
from jaxinterp.coded.family import CIFAR10, CIFAR100, DIGITS, IMAGENET, RUNS, CodedLoss, SmoothedCrossEntropy
from jaxinterp.coded.network import CodedResNeXt, Stage, coded_cifar10, coded_cifar100, coded_imagenet, coding_loss
from jaxinterp.coded.paths import path_shares
from jaxinterp.coded.surgery import binary_classifier
from jaxinterp.data import Dataset
from jaxinterp.errors import CheckpointError, ConfigError, DataError
from jaxinterp.recipe.config import write_config
from jaxinterp.train import cosine_by_epoch


def test_the_published_networks_are_runs():
    for config, made in ((CIFAR10, coded_cifar10()), (CIFAR100, coded_cifar100()), (IMAGENET, coded_imagenet())):
        assert coded_resnext.build(config).stages == made.stages
        assert (config.classes, tuple(config.stem)) == (made.classes, made.stem)
    baseline = coded_resnext.build(RUNS["coded/cifar10-baseline"].config)
    assert baseline.stages == coded_cifar10(coded=False).stages
    assert not baseline.codes


@pytest.mark.slow
def test_the_loss_is_cross_entropy_and_the_coding_losses():
    config = replace(coded_resnext.smoke(DIGITS), drop=0.0, mu=3.0)
    model = coded_resnext.build(config)
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    labels = jnp.arange(8, dtype=jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    batch = {"image": images, "label": labels}
    loss = CodedLoss(model, SmoothedCrossEntropy(0.1), 3.0, 4.0)
    total, (_, metrics) = jax.jit(loss)(variables["params"], variables["batch_stats"], batch, jax.random.key(2))
    apply = jax.jit(partial(model.apply, train=True, energies=True, mutable="batch_stats"))
    (logits, energies), _ = apply(variables, images)
    target = 0.9 * np.eye(10)[np.arange(8)] + 0.01
    cross = -(target * np.asarray(jax.nn.log_softmax(logits))).sum(1).mean()
    coding = sum(
        float(coding_loss(e, jnp.asarray(c.table, jnp.float32)[labels]))
        for e, c in zip(energies, model.codes, strict=True)
    )
    assert float(total) == pytest.approx(cross + 3 * coding, rel=1e-5)
    assert float(metrics["coding"]) == pytest.approx(coding, rel=1e-5)


def test_the_schedule_warms_up_and_ends_at_its_floor():
    schedule = cosine_by_epoch(0.4, 150, 10, 1e-5, 5, 1e-4)
    want = [1e-4, 1e-4 + 0.3999 / 5, 1e-5 + (0.4 - 1e-5) * (1 + np.cos(np.pi * 75 / 150)) / 2]
    np.testing.assert_allclose([schedule(step) for step in (9, 10, 755)], want, rtol=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("coded")
    stages.train("coded/digits", coded_resnext.smoke(DIGITS), run_dir)
    return run_dir


def test_foreign_images_have_the_runs_size_or_are_left_out():
    config, asked, said = RUNS["coded/mnist"].config, [], []

    def split(other, which):
        asked.append((other.dataset, which, other.image_size))
        return Dataset("fashion_mnist", "test", np.full((2, 28, 28, 1), 51, np.uint8), np.zeros(2, np.int32), ("a",))

    def missing(other, which):
        raise DataError("fashion_mnist is not there")

    np.testing.assert_allclose(coded_resnext.foreign_images(config, split, said.append), np.full((2, 28, 28, 1), 0.2))
    assert asked == [("fashion_mnist", "test", 28)]
    assert coded_resnext.foreign_images(config, missing, said.append) is None
    assert said == ["foreign images: fashion_mnist is not there; left out"]
    with pytest.raises(ConfigError, match="foreign: got imagenet2012, expected a small data set"):
        replace(config, foreign="imagenet2012")


@pytest.mark.slow
def test_a_network_trained_with_other_words_is_not_examined(folder, monkeypatch):
    monkeypatch.setattr(coded_resnext, "load_code", lambda name: Code(load_code(name).words[::-1]))
    with pytest.raises(CheckpointError, match=r"another configuration: words was .* now it is"):
        stages.trained(folder)


@pytest.mark.slow
def test_everything_is_measured_and_reported(folder):
    said: list[str] = []
    found = stages.evaluate(folder, log=said.append)
    assert any(line.startswith("specificity") for line in said)
    metrics = found["metrics"]
    assert metrics["classifier_difference"] < 1e-4
    assert {"decoding_accuracy_block_2", "early_exit_compute", "parameters_kept", "specificity_own"} <= set(metrics)
    assert found["removed"]["active"]["0"] == found["removed"]["inactive"]["0"]
    assert len(found["classifiers"]) == 2
    network, variables = load_network(folder / "classifiers" / "1.npz")
    images, _ = stages.test_images(coded_resnext.smoke(DIGITS), None)
    _, config, subject = stages.trained(folder)
    model = coded_resnext.build(config)
    words = [code.table[1].astype(np.float32) for code in model.codes]
    whole = model.apply(subject.variables, jnp.asarray(images), keep=words)
    alone = network.apply(variables, jnp.asarray(images))
    np.testing.assert_allclose(alone[:, 0], whole[:, 1], rtol=1e-4, atol=1e-4)
    page = stages.report(folder).read_text(encoding="utf-8")
    for title in ("The paths of every class", "Decisions before the end", "One class cut out", "lost without a path"):
        assert title in page


def test_an_exported_network_comes_back_or_is_refused(tmp_path):
    code = Code(("1100", "0110", "0011"))
    model = CodedResNeXt(stages=(Stage(1, 8, 2, 2), Stage(1, 12, 2, 4, 2, code)), classes=3, mean=(0.5,), std=(0.5,))
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    small, sliced = binary_classifier(model, jax.jit(model.init)(jax.random.key(1), images), 2)
    path = tmp_path / "three.npz"
    export_network(path, small, sliced)
    network, variables = load_network(path)
    assert network == small
    one, two = jax.jit(network.apply)(variables, images), jax.jit(small.apply)(sliced, images)
    np.testing.assert_array_equal(one, two)
    whole = path.read_bytes()
    for damaged in (whole[:-30], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"three.npz: expected a coded network's file") as error:
            load_network(path)
        assert "\n" not in str(error.value)
    noticed = 0
    for offset in range(100, len(whole), len(whole) // 12):  # some bits, such as dates, say nothing
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 16]) + whole[offset + 1 :])
        try:
            same = load_network(path)[1]
        except CheckpointError as error:
            noticed += "\n" not in str(error)
        else:
            jax.tree.map(np.testing.assert_array_equal, same, variables)
    assert noticed > 4
    content = dict(np.load(io.BytesIO(whole)))
    content["params/block_2/expand_kernel"] = content["params/block_2/expand_kernel"][:1]
    np.savez(path, **content)
    with pytest.raises(CheckpointError, match="params/block_2/expand_kernel is missing, foreign or of another shape"):
        load_network(path)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), sliced)
    lost = jax.tree.map(lambda leaf: leaf * jnp.nan, sliced)
    for foreign, says in ((half, "is bfloat16, expected float16"), (lost, "holds NaN"), ({"params": {}}, "is missing")):
        with pytest.raises(ValueError, match=f"variables: .* {says}"):
            export_network(str(tmp_path / "none.npz"), small, foreign)
    assert not (tmp_path / "none.npz").exists()
    with pytest.raises(CheckpointError, match=r"nowhere\.npz"):
        load_network(tmp_path / "nowhere.npz")


def test_a_run_with_another_code_is_refused(tmp_path):
    write_config(tmp_path, "coded/digits", coded_resnext.smoke(DIGITS))
    other = replace(coded_resnext.smoke(DIGITS), codes=("", "cifar10-3-of-10", "cifar10-3-of-10"))
    with pytest.raises(ConfigError, match="holds the run with codes=,cifar10-5-of-10"):
        stages.train("coded/digits", other, tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"depths": (1, 1)}, "depths, features, widths, codes: got 2, 3, 3, 3 entries"),
        ({"codes": ("", "", "cifar")}, "codes: got cifar, expected one of"),
        ({"paths": 12}, "paths: got 12, expected 10 as in the code cifar10-5-of-10"),
        ({"classifiers": 11}, "classifiers: got 11, expected at most classes=10"),
        ({"classes": 11}, "code: got 10 words, expected one for each of 11 classes"),
        ({"ghost": 7}, "ghost: got 7, expected a divisor of 32"),
        ({"stem": (3,)}, "stem: got 3, expected a kernel side and a stride"),
        ({"codes": ("", "", "")}, "mu, drop: got 2.0, 0.1 without codes"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(ConfigError) as error:
        coded_resnext.build(replace(DIGITS, **changes))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mu": -1.0}, "mu: got -1.0, expected a finite number, at least 0"),
        ({"power": 0.5}, "power: got 0.5, expected a finite number, at least 1"),
        ({"std": (0.0,)}, "std: got 0.0, expected positive finite numbers"),
        ({"foreign": "digits"}, "foreign: got digits, expected a small data set"),
        ({"drop": 1.0}, "drop: got 1.0, expected a number in [0, 1)"),
        ({"warmup_epochs": 20}, "warmup_epochs: got 20, expected less than epochs=20"),
        ({"floor": 1.0}, "floor: got 1.0, expected at most learning_rate=0.05"),
    ],
)
def test_values_out_of_range_are_refused(changes, says):
    with pytest.raises(ConfigError) as error:
        replace(DIGITS, **changes)
    assert says in str(error.value)


def test_an_explained_image_has_its_paths_beside_their_code(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "ramp.png")
    list(stages.explain(folder, [tmp_path / "ramp.png"], tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "ramp.json").read_text())
    _, config, subject = stages.trained(folder)
    model, image = coded_resnext.build(config), np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1) / 255
    parts = path_shares(model, subject.variables, jnp.asarray(image))
    logits = [row["logit"] for row in found["classes"]]
    assert [int(row["class"]) for row in found["paths"]] == np.argsort(logits)[::-1][:3].tolist()
    for row in found["paths"]:
        k, total = int(row["class"]), row["stem"] + row["shift"]
        for (stage, _), shares, own in zip(model.blocks, parts.paths, row["blocks"], strict=True):
            assert own["word"] == (None if stage.code is None else stage.code.table[k].tolist())
            np.testing.assert_allclose(own["contributions"], shares[0, k], atol=1e-5)
            total += sum(own["contributions"])
        assert row["logit"] == pytest.approx(total, abs=1e-4) == logits[k]
    assert (tmp_path / "out" / "ramp-paths.png").exists()
    plain = replace(config, **coded_resnext.PLAIN)
    assert coded_resnext.reading(plain, subject, image[0], np.array([0]), ("0",)) is None


def test_pictures_of_readings_take_no_other_images_name(folder: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("ramp", "ramp-paths"):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / f"{name}.png")
    files = [tmp_path / "ramp-paths.png", tmp_path / "ramp.png"]
    list(stages.explain(folder, files, tmp_path / "out"))
    names = ["ramp-2-paths", "ramp-2", "ramp-paths-paths", "ramp-paths"]
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set(names)
    list(stages.explain(folder, files[::-1], tmp_path / "turned"))
    names = ["ramp", "ramp-paths", "ramp-paths-2", "ramp-paths-2-paths"]
    assert {path.stem for path in (tmp_path / "turned").glob("*.png")} == set(names)

    def failing(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(coded_resnext, "reading", failing)
    with pytest.raises(MemoryError):
        list(stages.explain(folder, files, tmp_path / "none"))
    assert not list((tmp_path / "none").glob("*"))
