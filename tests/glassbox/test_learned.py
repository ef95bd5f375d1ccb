import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.app import overview, stages
from jaxinterp.app.registry import runs
from jaxinterp.errors import ConfigError
from jaxinterp.figures.html import render
from jaxinterp.glassbox.learned import LearnedFamily
from jaxinterp.recipe.overrides import override

FAMILY = LearnedFamily()
P4 = FAMILY.smoke(runs()["glassbox/digits-p4"].run).replace(
    data={"max_images": 160, "rotated": True}, model={"features": (4, 10), "sides": (3, 6)}
)
STACK = FAMILY.smoke(runs()["glassbox/mnist-stack"].run).replace(
    data={"image_size": 8, "max_images": 160}, model={"features": (4, 8), "sides": (3, 2)}, train={"epochs": 2}
)


def test_a_stack_keeps_its_patches_and_trains_what_follows(tmp_path):
    stages.train("glassbox/mnist-stack", STACK, tmp_path)
    trained = stages.trained(tmp_path)
    params = trained.variables["params"]
    for block in ("block_0", "block_1"):
        filters = np.asarray(params[block]["conv"]["filters"])
        flat = filters.reshape(-1, filters.shape[-1])
        np.testing.assert_allclose(flat.sum(0), 0, atol=1e-4)
        sizes = np.linalg.norm(flat, axis=0)
        np.testing.assert_allclose(sizes, 1 if block == "block_0" else sizes[0], rtol=1e-4)
    history = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]
    assert losses[-1] < losses[0]
    x = jnp.asarray(trained.test_data[0][:8])
    logits, turned = (trained.explainable.logits(y) for y in (x, jnp.rot90(x, axes=(1, 2))))
    np.testing.assert_allclose(turned, logits, atol=1e-4)
    metrics = FAMILY.measure(trained, lambda line: None)["metrics"]
    assert metrics["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 0 <= metrics["rotated_accuracy"] <= 1


def test_a_trained_network_is_evaluated_reported_and_shown_beside_others(tmp_path):
    stages.train("glassbox/digits-p4", P4, tmp_path)
    metrics = stages.evaluate(tmp_path, log=lambda line: None)["metrics"]
    assert metrics["completeness_residual"] < 1e-4
    assert "rotated_accuracy" not in metrics  # its test images are rotated already
    assert "glassbox/digits-p4" in stages.report(tmp_path).read_text()
    trained = stages.trained(tmp_path)
    images, labels = (part[:2] for part in trained.test_data)
    seen = overview.summarize(trained, images, labels, 0.5, "a line")
    row = seen.row
    assert seen.family == "learned network"
    assert row[:2] == ("glassbox/digits-p4", "50.00%")
    assert float(row[3]) < 1e-5
    assert row[2] == f"{4 * 9 + 4 + 4 + 4 * 4 * 36 * 10:,}"  # filters and a norm
    assert seen.png.startswith(b"\x89PNG")
    other = replace(seen, explorable=replace(seen.explorable, images=1 - images))
    page = overview.compose([seen, other, seen], folder=tmp_path.parent)
    assert page.sections[0].tables[0].texts == [list(row)] * 3
    assert page.sections[1].title.startswith("The same images by 2 networks")
    text = render(page)
    assert f'href="{seen.page}"' in text
    assert len(overview.explorer_page(seen).explorer) == 2


def test_the_published_baselines_differ_in_their_group_alone():
    p4, z2 = (runs()[f"glassbox/rotated-mnist-{name}"].run for name in ("p4", "z2"))
    sizes = []
    for run in (p4, z2):
        shapes = jax.eval_shape(FAMILY.build(run).init, jax.random.key(0), jnp.zeros((1, *run.data.image_shape)))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)  # as Cohen & Welling choose the widths


@pytest.mark.parametrize(
    ("assignment", "field"),
    [
        ("model.dropout=1", "dropout"),
        ("model.scale=0", "scale"),
        ("model.sides=3,3", "sides"),
        ("model.features=12,20,20,20,20,11", "features"),
        ("model.sides=0,3,3,3,3,4", "sides"),
        ("data.name=imagenet2012", "data.name"),
    ],
)
def test_networks_that_cannot_be_are_named_by_their_field(assignment, field):
    with pytest.raises(ConfigError, match=field):
        FAMILY.build(override(runs()["glassbox/rotated-mnist-p4"].run, [assignment]))
