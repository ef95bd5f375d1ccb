"""Runs on one's own images: what is filled in, recorded and refused, and one trained to the end."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.app.registry import experiment_of, family_of
from jaxinterp.data import Dataset, Stream
from jaxinterp.errors import ConfigError, DataError
from jaxinterp.files import unsealed
from jaxinterp.nn.losses import ClassificationLoss, sigmoid_bce
from jaxinterp.nn.targets import TargetLoss
from jaxinterp.recipe.config import Data, Model, Run
from jaxinterp.recipe.data import resolved, split, targeted, training_data
from jaxinterp.recipe.overrides import override
from jaxinterp.train.config import describe

LEVELS = {"cat": 40, "dog": 120, "fox": 220}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes, one of them rare, of many sizes and modes."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    for name, level in LEVELS.items():
        (folder / name).mkdir(parents=True)
        for i in range(30 if name != "fox" else 15):
            mode, end = (("RGB", "jpg"), ("L", "png"), ("CMYK", "jpg"), ("LA", "png"), ("P", "gif"))[i % 5]
            Image.new("L", (20 + i, 30), level).convert(mode).save(folder / name / f"{i}.{end}")
    return folder


def own_run(photos: Path, **data: object) -> Run[Model]:
    fields = {"name": f"folder:{photos}", "image_size": 8, "channels": 1, **data}
    return Run(Model()).replace(data=fields, train={"batch_size": 8, "val_fraction": 0.25})


def test_a_run_holds_what_its_data_say(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    run = own_run(photos, name="folder:photos", normalize=True, balanced=True, bits=0)
    data = resolved(run, None).data
    assert (data.name, data.classes, data.bits) == (f"folder:{photos}", ("cat", "dog", "fox"), 0)
    assert (data.normalize, data.balanced) == (False, False)
    train = split(run, "train", None)
    np.testing.assert_allclose(data.mean, [(train.images / 255).mean()], atol=1e-4)
    np.testing.assert_allclose(data.std, [(train.images / 255).std()], atol=1e-4)
    counts = np.bincount(train.labels)
    np.testing.assert_allclose(data.class_weights, len(train) / (3 * counts), atol=1e-6)
    assert resolved(resolved(run, None), None) == resolved(run, None)
    assert resolved(Run(Model()), None) == Run(Model())


def test_training_images_are_held_or_streamed(photos: Path) -> None:
    held = own_run(photos)
    data, validation = training_data(held, None)
    assert isinstance(data, Dataset)
    assert (len(data), len(validation), data.images.shape[1:]) == (45, 15, (8, 8, 1))
    streamed, validation = training_data(own_run(photos, memory=1e-9), None)
    assert isinstance(streamed, Stream)
    assert (streamed.steps, validation.split, len(validation)) == (45 // 8, "val", 15)
    batch = next(streamed.batches(0))
    levels = np.array(list(LEVELS.values()))
    np.testing.assert_allclose(batch["image"].mean((1, 2, 3)), levels[batch["label"]], atol=4)
    some = own_run(photos, class_subset=(2, 0), max_images=12)
    test = split(some, "test", None)
    assert (test.classes, set(test.labels.tolist())) == (("fox", "cat"), {0, 1})
    with pytest.raises(ConfigError, match=r"^data\.rotated:"):
        training_data(own_run(photos, memory=1e-9, rotated=True), None)


def test_fields_that_do_not_fit_are_refused() -> None:
    for fields, name in [
        ({"name": "cifar11"}, "name"),
        ({"name": "zip:photos"}, "name"),
        ({"name": "folder:caf\udce9"}, "name"),
        ({"name": "mnist", "classes": ("a", "b")}, "classes"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean, std"),
        ({"channels": 1, "std": (0.5,)}, "mean, std"),
        ({"normalize": True, "channels": 1, "mean": (0.5,), "std": (0.5,)}, "normalize"),
        ({"balanced": True, "class_weights": (1.0, 2.0)}, "balanced"),
        ({"test_fraction": 1.0}, "test_fraction"),
    ]:
        with pytest.raises(ConfigError, match=f"^{name}:"):
            Data(**fields)
    assert Data(name="csv:a,b.csv").image_shape == (64, 64, 3)
    changed = override(Run(Model()), ["data.name=folder:a/b,c", "augment.color_jitter=0.1,0.2,0", "data.fit=pad"])
    assert (changed.data.name, changed.augment.color_jitter) == ("folder:a/b,c", (0.1, 0.2, 0.0))


def test_a_loss_is_wrapped_only_where_a_run_asks_for_it() -> None:
    loss, run = ClassificationLoss(nn.Dense(10), sigmoid_bce), experiment_of("coda/mnist").run
    assert targeted(loss, run) is loss
    wrapped = targeted(loss, run.replace(augment={"label_smoothing": 0.1, "mixup": 0.2}))
    assert wrapped == TargetLoss(loss, 10, (), 0.1, 0.2, 0.0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("coda/mnist", {"data": {"mean": (0.5,), "std": (0.5,)}}, r"^data\.mean, data\.std:"),
        (  # before any image is read
            "coda/mnist",
            {"data": {"name": "npz:nothing", "normalize": True}},
            r"^data\.normalize: got True, expected False: a CoDA Net takes",
        ),
        ("coda/mnist", {"data": {"class_weights": (1.0, 2.0)}}, r"^data\.class_weights:"),
        ("coda/mnist", {"data": {"name": "npz:nothing"}}, "nothing: got no such file"),
        ("glassbox/mnist-3-8", {"augment": {"label_smoothing": 0.1}}, r"^augment\.label_smoothing:"),
    ],
)
def test_runs_that_cannot_be_are_one_line(name: str, fields: dict, message: str, tmp_path: Path) -> None:
    run = experiment_of(name).run
    run = family_of(run).smoke(run).replace(**fields)
    with pytest.raises((ConfigError, DataError), match=message):
        stages.train(name, run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_family_that_needs_its_images_in_memory_says_so(photos: Path, tmp_path: Path) -> None:
    run = experiment_of("taylor/mnist").run
    run = family_of(run).smoke(run).replace(data={"name": f"folder:{photos}", "memory": 1e-9})
    with pytest.raises(ConfigError, match=r"^data\.memory: .* a TaylorNet needs its training images in memory"):
        stages.train("taylor/mnist", run, tmp_path / "run")


def test_a_run_on_a_folder_is_trained_evaluated_and_explained(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = experiment_of("coda/mnist").run
    run = (
        family_of(run)
        .smoke(run)
        .replace(
            data={"name": f"folder:{photos}", "image_size": 28, "max_images": None, "balanced": True},
            augment={
                "rotation": 5.0,
                "color_jitter": (0.1, 0.1, 0.0),
                "mixup": 0.2,
                "cutmix": 1.0,
                "label_smoothing": 0.1,
            },
        )
    )
    result = stages.train("coda/mnist", run, tmp_path / "run")
    said = capsys.readouterr().out
    assert "split made: 20% of each class to test, seed 0 (60 and 15 images)" in said
    assert "cut to its center: " in said
    assert "CMYK as L: " in said
    assert set(result.history[-1]) >= {"train_loss", "val_loss", "val_accuracy"}
    recorded = unsealed(json.loads((tmp_path / "run" / "data.json").read_text()))
    assert set(recorded) == {"train[rest]", "test"}
    trained = stages.trained(tmp_path / "run")
    assert trained.classes[:4] == ("cat", "dog", "fox", "3")
    assert len(trained.test_data[0]) == 15
    image = next((photos / "cat").glob("*.gif"))
    (line,) = stages.explain(tmp_path / "run", [image], tmp_path / "out")
    assert "cut to its center" in line
    stages.train("coda/mnist", run, tmp_path / "run")  # the same command goes on
    assert "already finished" in capsys.readouterr().out
    extra = Image.new("L", (30, 30), 40)
    extra.save(photos / "cat" / "added.png")
    moved = stages.trained(tmp_path / "run")
    try:
        for number in range(40):
            extra.save(photos / "cat" / f"added{number}.png")
        with pytest.raises(DataError, match=r"\(test\): got images that changed since training, .*split\.csv lists"):
            _ = moved.test_data
    finally:
        for added in (photos / "cat").glob("added*"):
            added.unlink()


def test_a_streamed_run_trains_in_the_same_way(photos: Path, tmp_path: Path) -> None:
    run = experiment_of("coda/mnist").run
    data = {"name": f"folder:{photos}", "image_size": 28, "max_images": None, "memory": 1e-9}
    run = family_of(run).smoke(run).replace(data=data)
    result = stages.train("coda/mnist", run, tmp_path / "run")
    assert "val_accuracy" in result.history[-1]
    assert set(unsealed(json.loads((tmp_path / "run" / "data.json").read_text()))) == {"train", "test"}
    written = [(tmp_path / "run" / name).read_bytes() for name in ("data.json", "split.csv")]
    with (tmp_path / "run" / "split.csv").open(encoding="utf-8", newline="") as file:
        *_, place = (row["path"] for row in csv.DictReader(file) if row["split"] == "train")  # the first are held out
    network = family_of(run).network(run)
    was = describe(training_data(run, None)[0], network, run.train)["data"]
    before = Path(place).read_bytes()
    Path(place).write_bytes(before + b"\0")
    try:
        with pytest.raises(DataError, match=r"\(train\): got images that changed since training, .*split\.csv lists"):
            stages.train("coda/mnist", run, tmp_path / "run")
        now = describe(training_data(run, None)[0], network, run.train)["data"]  # what training compares by itself
        assert now["listing"] != was["listing"]
    finally:
        Path(place).write_bytes(before)
    assert [(tmp_path / "run" / name).read_bytes() for name in ("data.json", "split.csv")] == written
