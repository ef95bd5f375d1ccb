import pytest

from jaxinterp.coda.family import CoDAModel
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.config import Augment, Optim, Run
from jaxinterp.recipe.overrides import override
from jaxinterp.train import TrainConfig

S = Run(CoDAModel(), optim=Optim(learning_rate=2.5e-4), train=TrainConfig(epochs=200, batch_size=16, val_fraction=0.02))


def test_override_is_typed_and_leaves_the_run_alone() -> None:
    assignments = ["model.ranks=4,4,8", "model.temperature=500", "data.image_size=16", "train.dtype=bfloat16"]
    run = override(S, [*assignments, "augment.flip=False", "evaluate.grid_sizes="])
    assert (run.model.ranks, run.model.temperature) == ((4, 4, 8), 500.0)
    assert (run.data.image_size, run.train.dtype, run.augment.flip) == (16, "bfloat16", False)
    assert run.evaluate.grid_sizes == ()
    assert (S.model.temperature, S.augment) == (1000.0, Augment())
    for order in (["train.epochs=3", "optim.warmup_epochs=2"], ["optim.warmup_epochs=2", "train.epochs=3"]):
        assert override(S, order).optim.warmup_epochs == 2


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^train\.epochs: got 2, then 3, expected one value$"):
        override(S, ["train.epochs=2", "train.seed=1", "train.epochs=3"])


@pytest.mark.parametrize(
    ("assignment", "field"),
    [
        ("model.temperature=", "model.temperature"),
        ("model.temperature=warm", "model.temperature"),
        ("model.ranks=4,x", "model.ranks"),
        ("model.ranks=0,4", "ranks"),
        ("augment.flip=maybe", r"^augment\.flip: got maybe, expected True or False$"),
        ("augment.rand_augment=2", "rand_augment"),
        ("train.epochs=1.5", r"^train\.epochs: got 1\.5, expected an integer$"),
        ("train.epochs=0", "epochs"),
        ("train.val_fraction=1.0", "val_fraction"),
        ("train.seed=4294967296", "seed"),
        ("optim.learning_rate=nan", "learning_rate"),
        ("optim.epsilon=inf", "epsilon"),
        ("optim.end_lr=1", "end_lr"),
        ("optim.warmup_epochs=200", "warmup_epochs"),
        ("data.channels=2", "channels"),
        ("evaluate.grid_sizes=3,0", "grid_sizes"),
        ("epochs=3", r"train\.epochs"),
        ("train.epoch=3", r"train\.epochs"),
        ("model.temprature=3", r"model\.temperature"),
        ("model.CLASSES=x", r"model\.CLASSES"),
        ("train.epochs", "KEY=VALUE"),
    ],
)
def test_wrong_overrides_name_the_field(assignment: str, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as error:
        override(S, [assignment])
    assert "\n" not in str(error.value)
