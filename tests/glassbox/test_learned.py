import json
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import equivariance
from jaxinterp.app import overview, stages
from jaxinterp.app.results import read_results
from jaxinterp.data import load
from jaxinterp.data.images import rotate_dataset, rotate_randomly
from jaxinterp.errors import ConfigError
from jaxinterp.glassbox import family as glassbox
from jaxinterp.glassbox import learned as learned_groups
from jaxinterp.glassbox.gcnn import GroupCNN
from jaxinterp.recipe.config import override

P4 = replace(
    learned_groups.smoke(learned_groups.RUNS["glassbox/digits-p4"].config),
    images=160,
    features=(4, 4, 10),
    rotated=True,
)
ALEX = replace(learned_groups.smoke(learned_groups.RUNS["glassbox/digits-alexnet"].config), images=160)
ALEX_LAYERS = tuple(f"conv_{i}" for i in range(5))
STACK = replace(
    learned_groups.smoke(learned_groups.STACK), image_size=8, images=160, features=(4, 8), sides=(3, 2), epochs=2
)


RUNS = {"digits-p4": P4, "digits-alexnet": ALEX, "mnist-stack": STACK}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins")

    @cache
    def folder(name):
        stages.train(f"glassbox/{name}", RUNS[name], root / name)
        return root / name

    return folder


def test_a_turned_data_set_is_the_same_every_time_and_another_for_every_split():
    data = load("digits", "test")
    once, again = rotate_dataset(data), rotate_dataset(data)
    np.testing.assert_array_equal(once.images, again.images)
    assert once.images.dtype == data.images.dtype
    assert np.abs(once.images.astype(float) - data.images).mean() > 1
    other = rotate_dataset(replace(data, split="train"))
    assert (other.images != once.images).any()
    np.testing.assert_allclose(rotate_randomly(np.full((2, 9, 9, 1), 3.0, np.float32), 0)[:, 4, 4], 3.0, rtol=1e-6)
    both = [stages.split(replace(P4, rotated=rotated), "test", None).images for rotated in (True, False)]
    np.testing.assert_array_equal(
        both[0], rotate_dataset(replace(data, images=both[1], labels=data.labels[: len(both[1])])).images
    )


def test_a_stack_keeps_its_patches_and_trains_what_follows(trained):
    _, _, subject = stages.trained(trained("mnist-stack"))
    params = subject.variables["params"]
    for block in ("block_0", "block_1"):
        filters = np.asarray(params[block]["conv"]["filters"])
        flat = filters.reshape(-1, filters.shape[-1])
        np.testing.assert_allclose(flat.sum(0), 0, atol=1e-4)
        sizes = np.linalg.norm(flat, axis=0)
        np.testing.assert_allclose(sizes, 1 if block == "block_0" else sizes[0], rtol=1e-4)
    found = stages.evaluate(trained("mnist-stack"), log=lambda line: None)["metrics"]
    history = [json.loads(line) for line in (trained("mnist-stack") / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]
    assert losses[-1] < losses[0]
    assert found["completeness_residual"] < 1e-4
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    x = jnp.asarray(stages.test_images(STACK, None)[0][:8])
    model = learned_groups.build(STACK)
    assert isinstance(model, GroupCNN)
    moved = jnp.rot90(x, axes=(1, 2))
    logits = subject.apply(subject.variables, x)
    np.testing.assert_allclose(subject.apply(subject.variables, moved), logits, atol=1e-4)


def measured(folders, results):
    console = Console(record=True, width=200)
    equivariance.Program(tuple(folders), results=results, images=160, support=1)(console)
    names = [f"equivariance_{stages.trained(folder)[0].replace('/', '_')}.json" for folder in folders]
    found = [{name: m.mean for name, m in read_results(results / name).metrics.items()} for name in names]
    return console.export_text(), found


def test_what_is_built_in_holds(trained, tmp_path):
    glass = tmp_path / "glass"
    tiny = replace(
        glassbox.smoke(glassbox.DIGITS), group="d4", invariants=("sorted",), images=160, per_class=8, templates=20
    )
    stages.train("glassbox/digits", tiny, glass)
    said, (p4, box) = measured([trained("digits-p4"), glass], tmp_path / "results")
    header, *rows = [line for line in said.splitlines() if line.strip()][2:]
    assert header.split() == ["network", "layer", "upright", "h-flip", "v-flip", "turn", "scale"]
    (block,) = (row for row in rows if row.split()[0] == "`block_0`")
    start = header.index("turn")
    law = block[start:].split(" / ")
    assert float(law[0]) == pytest.approx(p4["block_0 turn residual"], rel=0.5)
    assert float(law[2].split()[0]) == pytest.approx(p4["block_0 turn uncompensated"], abs=0.006)
    assert p4["turn accuracy"] == p4["accuracy"]
    assert all(p4[f"block_{i} turn residual"] < 1e-5 < 0.05 < p4[f"block_{i} turn uncompensated"] for i in range(2))
    assert 0.01 < p4["block_0 h-flip residual"] < p4["block_0 h-flip constant"]  # p4 has no mirrors: the map is fitted
    for motion in ("h-flip", "v-flip", "turn"):
        assert box[f"representation/orbit {motion} residual"] < 1e-5
        assert box[f"{motion} accuracy"] == box["accuracy"]


@pytest.mark.slow
def test_every_layer_of_an_ordinary_network_is_measured(trained, tmp_path):
    said, (alex,) = measured([trained("digits-alexnet")], tmp_path / "results")
    assert "conv_4" in said
    for layer in ALEX_LAYERS:
        assert 0 < alex[f"{layer} v-flip residual"] < 2 * alex[f"{layer} v-flip constant"]
        assert 0 < alex[f"{layer} v-flip constant"] <= 1


def test_networks_are_shown_side_by_side(trained):
    run_dir = trained("digits-p4")
    stages.evaluate(run_dir, log=lambda line: None)
    one = overview.member(run_dir)
    images, labels = stages.test_images(P4, None)
    _, _, subject = stages.trained(run_dir)
    right = np.asarray(subject.apply(subject.variables, jnp.asarray(images))).argmax(1) == labels
    assert (one.family, one.accuracy) == ("glass box", pytest.approx(right.mean()))
    assert one.parameters == 4 * 9 + 4 + 4 + 4 * 9 * 4 * 4 + 4 + 4 + 16 * 4 * 4 * 10  # filters and norms
    assert 0 < one.milliseconds < 1e4
    page = overview.compose([one, one])
    assert page.sections[-1].tables[0].rows == [one.row, one.row]
    assert page.sections[0].pictures[0].png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("dropout=1", "dropout: got 1.0, expected a rate"),
        ("scale=0", "scale: got 0.0, expected a positive number"),
        ("sides=3,3", "sides: got 2 entries, expected 6"),
        ("features=12,20,20,20,20,11", "features: got 11 at the end, expected 10"),
        ("sides=0,3,3,3,3,4", "sides: got 0,3,3,3,3,4, expected at least 1"),
    ],
)
def test_twins_that_cannot_be(assignment, says):
    with pytest.raises(ConfigError, match=says):
        learned_groups.build(override(learned_groups.P4, [assignment]))


def test_no_folder_and_streamed_images_are_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="RUN_DIR: got none"):
        equivariance.Program(())(Console())
    assert equivariance.main([str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="rotated: got True with imagenet2012"):
        stages.split(replace(P4, dataset="imagenet2012"), "test", None)
