"""The coded runs: published networks by name, their loss, what is measured of them, and bad fields by name."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.app.registry import family_of, runs
from jaxinterp.coded import family as coded_family
from jaxinterp.coded.codes import Code, load_code
from jaxinterp.coded.export import load_network
from jaxinterp.coded.family import CodedFamily, foreign_images
from jaxinterp.coded.network import coded_cifar10, coding_loss
from jaxinterp.coded.paths import by_block, path_shares
from jaxinterp.coded.surgery import keep_only
from jaxinterp.errors import CheckpointError, ConfigError
from jaxinterp.recipe.family import TrainedRun
from jaxinterp.train.optimizer import make_schedule

FAMILY = CodedFamily()
DIGITS = runs()["coded/digits"].run
SHORT = FAMILY.smoke(DIGITS).replace(  # two blocks, and the least of what every family's runs are measured for
    data={"max_images": 48},
    model={"depths": (1, 1), "features": (8, 16), "widths": (2, 2), "codes": ("", "cifar10-3-of-10")},
    evaluate={"grid_sizes": (), "removal_images": 1, "occlusion": ()},
)


def test_the_published_networks_are_runs() -> None:
    for suffix, coded in (("", True), ("-baseline", False)):
        built, want = FAMILY.build(runs()[f"coded/cifar10{suffix}"].run), coded_cifar10(coded)
        assert (built.stages, built.classes, built.stem) == (want.stages, want.classes, want.stem)
    stages = FAMILY.build(runs()["coded/imagenet"].run).stages
    rows = [(s.blocks, s.features, s.width, s.paths, s.strides, s.code and s.code.weight) for s in stages]
    assert rows[:2] == [(3, 256, 4, 32, 1, None), (4, 512, 8, 32, 2, None)]
    assert rows[2:] == [(6, 1024, 16, 32, 2, 16), (3, 2048, 32, 32, 2, 8)]


def test_the_published_recipe_steps_as_the_authors_code_does() -> None:
    run = runs()["coded/imagenet"].run
    fields = {name: getattr(run.optim, name) for name in ("learning_rate", "end_lr", "warmup_epochs")}
    schedule = make_schedule(run.optim.schedule, epochs=run.train.epochs, steps_per_epoch=10, **fields)
    want = [1e-4, 1e-4 + 0.3999 / 5, 1e-5 + (0.4 - 1e-5) * (1 + np.cos(np.pi * 75 / 150)) / 2]
    np.testing.assert_allclose([schedule(step) for step in (9, 10, 755)], want, rtol=1e-3)


def test_the_loss_is_cross_entropy_and_the_coding_losses() -> None:
    run = SHORT.replace(model={"drop": 0.0, "mu": 3.0, "smoothing": 0.1})
    network = FAMILY.build(run)
    images, labels = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1)), jnp.arange(8, dtype=jnp.int32)
    variables = jax.jit(network.init)(jax.random.key(1), images)
    batch = {"image": images, "label": labels}
    loss = jax.jit(FAMILY.loss(run, network))
    total, (_, metrics) = loss(variables["params"], variables["batch_stats"], batch, jax.random.key(2))
    apply = jax.jit(partial(network.apply, train=True, energies=True, mutable="batch_stats"))
    (logits, energies), _ = apply(variables, images)
    target = 0.9 * np.eye(10)[np.arange(8)] + 0.01
    cross = -(target * np.asarray(jax.nn.log_softmax(logits))).sum(1).mean()
    words = [jnp.asarray(code.table, jnp.float32)[labels] for code in network.codes]
    coding = sum(float(coding_loss(e, w)) for e, w in zip(energies, words, strict=True))
    assert float(total) == pytest.approx(cross + 3 * coding, rel=1e-5)
    assert float(metrics["coding"]) == pytest.approx(coding, rel=1e-5)


def test_foreign_images_have_the_runs_size_or_are_left_out(tmp_path: Path) -> None:
    lines: list[str] = []
    experiment = runs()["coded/mnist"]
    for name in ("digits", "fashion_mnist"):
        own = {
            "name": "folder:photos",
            "image_size": 28,
            "classes": ("cat", "dog"),
            "bits": 12,
        }
        run = experiment.run.replace(model={"foreign": name}, data=own)
        trained = TrainedRun(tmp_path, "coded/mnist", experiment, run, family_of(run), None, None, tmp_path)
        images = foreign_images(trained, lines.append)
        if name == "digits":
            assert images is not None
            assert (images.shape, images.min(), images.max()) == ((360, 28, 28, 1), 0, 1)
    assert images is None
    assert len(lines) == 1
    assert lines[0].startswith("foreign images: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("coded")
    stages.train("coded/digits", SHORT, run_dir)
    return run_dir


def test_a_network_trained_with_other_words_is_not_examined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_family, "load_code", lambda name: Code(load_code(name).words[::-1]))
    with pytest.raises(CheckpointError, match=r"another configuration: words was .* now it is"):
        stages.trained(folder)


@pytest.mark.slow
def test_everything_is_measured_and_reported(folder: Path) -> None:
    lines: list[str] = []
    results = stages.evaluate(folder, log=lines.append)
    assert any(line.startswith("specificity") for line in lines)
    metrics = results["metrics"]
    assert metrics["classifier_difference"] < 1e-4
    assert {"decoding_accuracy_block_2", "early_exit_compute", "parameters_kept", "specificity_own"} <= set(metrics)
    removed = results["removed"]
    assert removed["active"]["0"] == removed["inactive"]["0"] == metrics["accuracy_none_removed"]
    for kind in ("active", "inactive"):  # all of them
        assert list(removed[kind].values())[-1] == metrics[f"accuracy_{kind}_removed"]
    assert len(results["classifiers"]) == 2
    network, variables = load_network(folder / "classifiers" / "1.npz")
    trained = stages.trained(folder)
    images = jnp.asarray(trained.test_data[0][:8])
    whole = trained.network.apply(trained.variables, images, keep=keep_only(trained.network, 1))
    alone = network.apply(variables, images)
    np.testing.assert_allclose(alone[:, 0], whole[:, 1], rtol=1e-4, atol=1e-4)
    page = stages.report(folder).read_text(encoding="utf-8")
    for title in ("The paths of every class", "Decisions before the end", "One class cut out", "lost without a path"):
        assert title in page


def test_an_explained_image_has_its_paths_beside_their_code(folder: Path, tmp_path: Path) -> None:
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
    files = [tmp_path / "ramp-paths.png", tmp_path / "ramp.png"]
    for file in files:
        Image.fromarray(ramp).save(file)
    list(stages.explain(folder, files, tmp_path / "out"))
    names = {"ramp-2-paths", "ramp-2", "ramp-paths-paths", "ramp-paths"}  # ramp-paths is taken by the first image
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == names
    content = json.loads((tmp_path / "out" / "ramp-2.json").read_text())
    trained = stages.trained(folder)
    image = jnp.asarray(ramp, jnp.float32).reshape(1, 8, 8, 1) / 255
    parts = by_block(trained.network, path_shares(trained.explainable, image))
    logits = [row["logit"] for row in content["classes"]]
    assert [int(row["class"]) for row in content["paths"]] == np.argsort(logits)[::-1][:3].tolist()
    for row in content["paths"]:
        k, total = int(row["class"]), row["stem"] + row["shift"]
        for (stage, _), shares, block in zip(trained.network.blocks, parts.paths, row["blocks"], strict=True):
            assert block["word"] == (None if stage.code is None else stage.code.table[k].tolist())
            np.testing.assert_allclose(block["contributions"], shares[0, k], atol=1e-5)
            total += sum(block["contributions"])
        assert row["logit"] == pytest.approx(total, abs=1e-4) == logits[k]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("features", {"depths": (1, 1)}),
        ("codes: got cifar", {"codes": ("", "", "cifar")}),
        ("codes: got 1-of-9", {"codes": ("", "", "1-of-99999:9")}),
        ("paths", {"paths": 12}),
        ("classifiers", {"classifiers": 11}),
        ("code", {"classes": 11}),
        ("model.ghost", {"ghost": 7}),
        ("model.foreign", {"foreign": "digits"}),
        ("mu, drop", {"codes": ("", "", "")}),
        ("power", {"power": 0.5}),
        ("foreign", {"foreign": "imagenet2012"}),
    ],
)
def test_fields_that_do_not_fit_are_named(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"^{field}") as error:
        FAMILY.build(DIGITS.replace(model=changes))
    assert "\n" not in str(error.value)
