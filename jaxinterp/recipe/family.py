"""A paper's networks as the application sees them: how a run is built, fitted, explained, measured and reported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxinterp.checks import require
from jaxinterp.data import Dataset
from jaxinterp.data.class_names import CLASSES
from jaxinterp.data.stream import Stream
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.figures.explorer import Panel
from jaxinterp.figures.html import Section
from jaxinterp.nn.losses import ClassificationLoss, LossFn, softmax_cross_entropy
from jaxinterp.recipe.config import Experiment, Model, Run, small
from jaxinterp.recipe.data import augmentation, require_recorded, split, targeted
from jaxinterp.recipe.presets import Images, Scale
from jaxinterp.recipe.run_folder import naming, read_classes
from jaxinterp.train import FitResult, fit, load_variables
from jaxinterp.train.config import check_batches
from jaxinterp.train.optimizer import make_optimizer, make_schedule
from jaxinterp.train.result import Which

M = TypeVar("M", bound=Model)
Log = Callable[[str], None]


@dataclass(frozen=True)
class Job(Generic[M]):
    """Everything that fitting a run needs: its folder, configuration, network and images.

    Attributes:
        data: training images, in memory or streamed.
        validation: held-out training images; None if no epoch is chosen.
        init_from: variables → the variables that training starts from.
        fingerprint: JSON values that a continuation must share.
        allow_older: if the newest checkpoint is damaged, go on from the newest intact one.
    """

    run_dir: Path
    run: Run[M]
    network: nn.Module
    data: Dataset | Stream
    validation: Dataset | None
    test: Dataset
    init_from: Callable[[Any], Any]
    fingerprint: Mapping[str, Any]
    allow_older: bool = False


@dataclass(frozen=True)
class TrainedRun(Generic[M]):
    """A trained run with all that is known of it, each built once.

    Attributes:
        run_dir: the run's folder.
        name: the name of the experiment.
        experiment: the named run.
        run: its configuration, perhaps with overrides.
        network: in float32.
        variables: of the checkpoint that was read.
        names: of the first classes; as its folder has them if empty.
    """

    run_dir: Path
    name: str
    experiment: Experiment[M]
    run: Run[M]
    family: "Family[M]"
    network: Any = field(repr=False)
    variables: Any = field(repr=False)
    data_dir: Path | None = None
    names: tuple[str, ...] = ()

    @cached_property
    def explainable(self) -> Explainable:
        """The network seen from outside."""
        return self.family.explainable(self)

    @cached_property
    def train_data(self) -> Dataset:
        """Training images, the held-out ones included; of a streamed data set, a sample."""
        return require_recorded(self.run_dir, split(self.run, "train", self.data_dir))

    @cached_property
    def test_data(self) -> tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Test images, float32 in [0, 1], and their labels."""
        test = require_recorded(self.run_dir, split(self.run, "test", self.data_dir))
        return test.floats(), test.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for every output of the network: those of the data it was trained on, then numbers."""
        names = self.names or read_classes(self.run_dir)
        if not names:
            names = self.run.data.classes or CLASSES.get(self.run.data.name, ())
            names = tuple(names[k] for k in self.run.data.class_subset) or names
        return (*names[: self.run.model.classes], *map(str, range(len(names), self.run.model.classes)))

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))


@dataclass(frozen=True)
class Reading:
    """A family's own reading of one image, beside its contribution maps.

    The name, in a word, is the key of the numbers in the JSON file and the end of the figure's file name.
    """

    name: str
    numbers: Any
    figure: Figure


@dataclass(frozen=True)
class Report:
    """All that the page of a trained run is made of.

    Attributes:
        images: test images, (N, H, W, C) in [0, 1].
        labels: their classes, (N,).
        logits: of all of them, (N, classes).
        results: evaluation.json.
        first_maps: method → maps of the first grid.
        history: the records of metrics.jsonl.
        info: run.json.
        sources: data.json, where the data came from and which checksums were verified.
    """

    trained: TrainedRun[Any]
    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n classes"]
    results: Mapping[str, Any]
    first_maps: Mapping[str, Float[np.ndarray, "cells height width"]]
    history: Sequence[Mapping[str, Any]]
    info: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def run(self) -> Run[Any]:
        """The run's configuration."""
        return self.trained.run

    @property
    def explainable(self) -> Explainable:
        """The network seen from outside."""
        return self.trained.explainable

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""
        return self.trained.classes

    @property
    def paper(self) -> Mapping[str, float]:
        """The paper's numbers, if it reports this very configuration, seed aside."""
        experiment = self.trained.experiment
        return experiment.paper if experiment.run == self.run.with_seed(experiment.run.train.seed) else {}


def steps_per_epoch(run: Run[Any], data: Dataset | Stream) -> int:
    """Return the training steps of an epoch."""
    return data.steps if isinstance(data, Stream) else len(data) // run.train.batch_size


_FAMILIES = dict[type[Model], "Family[Any]"]()


def families() -> Mapping[type[Model], "Family[Any]"]:
    """Return every family that was defined so far, by the class of its runs' `model` part."""
    return _FAMILIES


class Family(Generic[M]):
    """The protocol that a paper fulfills. A subclass must define `Model` and `build`; everything else has a default.

    A subclass is known from its definition on: a run finds its family by the class of its `model` part. A family of
    one's own, as a tutorial: docs/own_family.md.

    Attributes:
        name: of the family in a run's file and folder; by default the class's name, without "Family".
        title: name of the family, for people; by default `name`.
        Model: the class of a run's `model` part, by which a run finds its family.
        normalizes: whether its networks take `data.mean` and `data.std`.
        streams: whether it trains on images that are streamed.
        scales: for which `preset` makes runs.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Model: ClassVar[type[Model]]
    normalizes: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    scales: ClassVar[tuple[Scale, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Make the family known."""
        own = vars(cls)
        if "Model" in own:
            cls.name = own.get("name", cls.__name__.removesuffix("Family").lower())
            cls.title = own.get("title", cls.name)
            _FAMILIES[cls.Model] = cls()

    def build(self, run: Run[M], dtype: Literal["float32", "bfloat16"] = "float32") -> nn.Module:
        """Return the network of a run, which takes images in [0, 1]; raise ConfigError for fields that do not fit.

        It is called as network(images, train=False), and returns logits (batch, classes).
        """
        raise NotImplementedError

    def smoke(self, run: Run[M]) -> Run[M]:
        """Shrink a run to seconds; by default see `recipe.config.small`."""
        return small(run)

    def preset(self, scale: Scale, images: Images) -> Run[M]:
        """Return the run of a scale, one of `scales`, whose sizes fit the images."""
        raise NotImplementedError

    def loss(self, run: Run[M], network: nn.Module) -> LossFn:
        """Return the loss that training minimizes; by default the softmax cross-entropy."""
        return ClassificationLoss(network, softmax_cross_entropy)

    def explainable(self, trained: TrainedRun[M]) -> Explainable:
        """Return a trained network seen from outside; by default as it is."""
        return explainable(trained.network, trained.variables)

    def network(self, run: Run[M], dtype: Literal["float32", "bfloat16"] = "float32") -> nn.Module:
        """Build the network of a run and check by shape inference that it accepts the run's images.

        Raises:
            ConfigError: it does not, or does not take `train`, or `data.mean` and `data.std` are given to a family
                that does not normalize.
        """
        network, shape = self.build(run, dtype), run.data.image_shape
        numbers = run.data.mean or run.data.std
        wanted = f"none: a {self.title} takes images in [0, 1] as they are"
        require(self.normalizes or not numbers, "data.mean, data.std", numbers, wanted)

        def init(key: Any, image: Any) -> Any:
            return network.init(key, image, train=False)

        try:
            jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ConfigError(f"the network does not fit {shape[0]}x{shape[1]} images: {error}") from error
        return network

    def load(self, run: Run[M], run_dir: Path, which: Which, fingerprint: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the network of a trained run, in float32, and its variables from a checkpoint in its folder."""
        with naming(run_dir / "config.json"):
            network = self.network(run)
        return network, load_variables(run_dir, network, run.data.image_shape, which, fingerprint=fingerprint)

    def check(self, run: Run[M], network: nn.Module, data: Dataset | Stream) -> None:
        """Raise ConfigError for what could not be trained, before anything is written."""
        self.loss(run, network)
        augmentation(run.augment)
        check_batches(run.train, jax.device_count(), steps_per_epoch(run, data))

    def pretrain(self, run: Run[M]) -> Run[M] | None:
        """Return the run that is trained first, if any."""
        return None

    def init_from(
        self, run: Run[M], network: nn.Module, variables: Any, pretrained: Any, data: Dataset | Stream
    ) -> Any:
        """Return what training starts from: random `variables`, and those of the pretrained run; by default random."""
        return variables

    def frozen_params(self, run: Run[M]) -> Callable[[str], bool] | None:
        """Return a test, by path such as "body/kernel", for parameters that are not trained; None: all are trained."""
        return None

    def fingerprint(self, run: Run[M]) -> Mapping[str, Any]:
        """Return JSON values that a trained run depends on beside its configuration: what its names stood for."""
        return {}

    def optimizer(self, run: Run[M], steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Return the optimizer of a run with `steps` in an epoch, and its learning rate by step."""
        optim = run.optim
        schedule = make_schedule(
            optim.schedule,
            learning_rate=optim.learning_rate,
            epochs=run.train.epochs,
            steps_per_epoch=steps,
            end_lr=optim.end_lr,
            warmup_epochs=optim.warmup_epochs,
        )
        optimizer = make_optimizer(
            optim.optimizer,
            schedule,
            epsilon=optim.epsilon,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
            decay_all=optim.decay_all,
            clip=optim.clip,
            frozen=self.frozen_params(run),
        )
        return optimizer, schedule

    def fit(self, job: Job[M]) -> FitResult:
        """Fit a run; by default train it by stochastic gradient descent."""
        run = job.run
        optimizer, schedule = self.optimizer(run, steps_per_epoch(run, job.data))
        return fit(
            job.run_dir,
            job.network,
            targeted(self.loss(run, job.network), run),
            optimizer,
            job.data,
            job.test,
            augmentation(run.augment),
            run.train,
            allow_older=job.allow_older,
            validation=job.validation,
            schedule=schedule,
            fingerprint=job.fingerprint,
            init_from=job.init_from,
        )

    def measure(self, trained: TrainedRun[M], log: Log) -> dict[str, Any]:
        """Measure what only this family's runs are measured for; `metrics` of the JSON values join the others."""
        return {}

    def explain_image(
        self, trained: TrainedRun[M], image: Float[np.ndarray, "h w c"], top: Int[np.ndarray, " t"]
    ) -> Reading | None:
        """Return the family's own reading of an image, for the `top` classes."""
        return None

    def explore(
        self,
        trained: TrainedRun[M],
        images: Float[np.ndarray, "n h w c"],
        targets: Int[np.ndarray, " n"],
        rows: Int[np.ndarray, " n"] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> Sequence[Panel]:
        """Return the family's own readings of images for the explorer of a page.

        Args:
            trained: the run.
            images: in [0, 1].
            targets: the class that each is read as.
            rows: their places among the test images; None of others.
            results: evaluation.json, of a run that was measured.
        """
        return ()

    def report(self, report: Report) -> Sequence[Section]:
        """Return the sections that only this family's reports have."""
        return ()
