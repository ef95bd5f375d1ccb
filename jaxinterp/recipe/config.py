"""The configuration of a run, composed of parts."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator

from jaxinterp.checks import Checked, nearest, require, require_key, typed
from jaxinterp.data.own import KINDS, OnBad, is_own
from jaxinterp.data.pictures import Background, Bits, Conversion, Fit
from jaxinterp.files import printable
from jaxinterp.train.config import TrainConfig

DataSet = Literal["digits", "mnist-2000", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012"]
Schedule = Literal["constant", "staircase", "warmup", "ramp", "cosine", "cosine_by_epoch", "onecycle"]
Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NonNegative = Annotated[float, Ge(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Lt(1)]
MAX_MAGNITUDE = {"uda": 30, "timm": 10}  # of RandAugment
OWN_SIDE = 64  # pixels of images of one's own, unless a run says another
SIDES = {
    "digits": 8,
    "mnist-2000": 28,
    "mnist": 28,
    "fashion_mnist": 28,
    "cifar10": 32,
    "cifar100": 32,
    "imagenet2012": 224,
}


@dataclass(frozen=True)
class Model(Checked):
    """Base of a run's `model` part: what a family's network is made of.

    Attributes:
        CLASSES: name of the field that gives the number of outputs, as an error names it.
    """

    CLASSES: ClassVar[str] = "model.classes"

    if TYPE_CHECKING:  # a property would be the default of a subclass's field

        @property
        def classes(self) -> int:
            """Number of outputs; a field or a property of every subclass."""


def _known(name: str) -> str:
    """Return a name of a data set or of one's own; the error for another one gives the nearest."""
    from pydantic_core import PydanticCustomError

    known = get_args(DataSet)
    if printable(name) != name:
        raise PydanticCustomError("data_set", "a name or a path in UTF-8")
    if name not in known and not is_own(name):
        places = ", ".join([*known, *(f"{kind}:{place}" for kind, place in KINDS.items())])
        close = " or ".join(nearest(name, known))
        raise PydanticCustomError("data_set", "{wanted}", {"wanted": close or f"one of {places}"})
    return name


@dataclass(frozen=True)
class Data(Checked):
    """Images of a run, for training and measuring.

    Attributes:
        name: digits, mnist, fashion_mnist, cifar10, cifar100 or imagenet2012 (its first classes); or one's own:
            folder:PATH, csv:FILE, npz:FILE or tfds:NAME[:VERSION], see `jaxinterp.data.own_set`.
        distilled: file of distilled images to train on, in place of the data set's training images; none if empty.
            What is held out, and what is measured on training images, are the data set's.
        image_size: side of the square images in pixels; if None the data set's own, 64 with one's own.
        channels: channels of the images, 1 or 3.
        class_subset: classes to keep, in the order of the outputs; all if empty.
        max_images: use only the first images of each split; all if None.
        rotated: turn every image of both splits by an angle of its own, always the same.
        classes: names of the classes of one's own, in the order of their labels; all that are found, sorted, if empty.
        fit: how images of one's own become square: resized until the shorter side fits and cut to the center, or
            resized until the longer side fits and padded.
        background: color under transparent parts and padding.
        bits: of gray values beyond 8 bits; 0 assumes 8, 12 or 16 by the largest value.
        test_fraction: share of each class of one's own that tests, where the set has no test part.
        split_seed: of that split, and of the order of images of one's own.
        on_bad: whether files that cannot be read raise, or are left out.
        memory: GiB of training images of one's own that are held in memory; more are streamed.
        mean: of each channel, taken off before the network sees an image; the model's own if empty.
        std: of each channel, divided by; the model's own if empty.
        normalize: compute mean and std from the training images.
        class_weights: of each class's examples in the loss; all 1 if empty.
        balanced: compute the weights N / (K n_k) from the training images, K classes of n_k images, N in all.
    """

    name: Annotated[str, AfterValidator(_known)] = "cifar10"
    distilled: str = ""
    image_size: Count | None = None
    channels: Literal[1, 3] = 3
    class_subset: tuple[Natural, ...] = ()
    max_images: Count | None = None
    rotated: bool = False
    classes: tuple[str, ...] = ()
    fit: Fit = "crop"
    background: Background = "black"
    bits: Bits = 0
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2
    split_seed: Natural = 0
    on_bad: OnBad = "raise"
    memory: Positive = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[Positive, ...] = ()
    normalize: bool = False
    class_weights: tuple[NonNegative, ...] = ()
    balanced: bool = False

    def check(self) -> None:
        """Require numbers for every channel, and one source of numbers."""
        require(self.own or not self.classes, "classes", self.classes, f"none with {self.name}")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            require(count in (0, self.channels), name, getattr(self, name), f"{self.channels} numbers, or none")
        got = f"{'mean' if self.mean else 'std'} alone"
        require(bool(self.mean) == bool(self.std), "mean, std", got, "both, or none")
        require(not (self.normalize and self.mean), "normalize", True, "False where mean and std are given")
        require(not (self.balanced and self.class_weights), "balanced", True, "False where class_weights are given")

    @property
    def own(self) -> bool:
        """Whether the images are one's own."""
        return is_own(self.name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (H, W, C)."""
        side = self.image_size or SIDES.get(self.name, OWN_SIDE)
        return side, side, self.channels

    @property
    def conversion(self) -> Conversion:
        """How pictures become images of the run."""
        return Conversion(self.image_shape[0], self.channels, self.fit, self.background, self.bits)


@dataclass(frozen=True)
class Augment(Checked):
    """Augmentation of the training images.

    Attributes:
        flip: mirror with probability 1/2.
        crop_padding: random crop after zero padding by this many pixels.
        rand_augment: (n, m) of RandAugment; none if empty.
        rand_augment_kind: its table of operations, UDA's or timm's.
        rand_augment_first: before all others instead of after them.
        rotation: largest angle in degrees, drawn uniformly from ± this.
        color_jitter: brightness, contrast, saturation: factors drawn uniformly from [1 - v, 1 + v]; none if empty.
        mixup: α of mixup, which blends pairs of images and of labels; none if 0.
        cutmix: α of cutmix, which pastes a box of another image; with mixup each image gets one of the two.
        label_smoothing: s of the labels (1 - s) y + s / K.
    """

    flip: bool = True
    crop_padding: Natural = 4
    rand_augment: tuple[Natural, ...] = ()
    rand_augment_kind: Literal["uda", "timm"] = "uda"
    rand_augment_first: bool = False
    rotation: Annotated[float, Ge(0), Le(180)] = 0.0
    color_jitter: tuple[Annotated[float, Ge(0), Le(1)], ...] = ()
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    label_smoothing: Share = 0.0

    def check(self) -> None:
        """Require two numbers of RandAugment, the second a magnitude of its kind, and three of the color jitter."""
        jitter = self.color_jitter
        require(len(jitter) in (0, 3), "color_jitter", jitter, "three numbers, or nothing")
        numbers, most = self.rand_augment, MAX_MAGNITUDE[self.rand_augment_kind]
        require(len(numbers) in (0, 2), "rand_augment", numbers, "n,m or nothing")
        require(not numbers or numbers[1] <= most, "rand_augment", numbers, f"a magnitude of at most {most}")


@dataclass(frozen=True)
class Optim(Checked):
    """Optimizer and learning rate.

    Attributes:
        optimizer: adam, adamw or sgd.
        learning_rate: peak rate.
        epsilon: Adam's ε.
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: λ, which adds λ w to the gradient of every kernel; adamw takes λ w off, times the rate.
        decay_all: decay every parameter, BatchNorm's too.
        clip: largest norm of the gradient of all parameters together; no clipping if 0.
        schedule: constant, staircase (÷1.5 every 30 epochs), warmup (of CoDA Nets on ImageNet), ramp (of DLGN),
            cosine, cosine_by_epoch (of Coded ResNeXt; changes once per epoch and ends at `end_lr`), or onecycle
            (up for three tenths of the run, then down to 0).
        end_lr: last rate of cosine_by_epoch.
        warmup_epochs: epochs in which cosine_by_epoch rises from 1e-4.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 1e-3
    epsilon: Positive = 1e-8
    momentum: Share = 0.0
    nesterov: bool = False
    weight_decay: Share = 0.0
    decay_all: bool = False
    clip: NonNegative = 0.0
    schedule: Schedule = "cosine"
    end_lr: NonNegative = 0.0
    warmup_epochs: Natural = 0

    def check(self) -> None:
        """Require a schedule that falls."""
        peak = self.learning_rate
        require(self.end_lr <= peak, "end_lr", self.end_lr, f"at most learning_rate={peak}")


@dataclass(frozen=True)
class Evaluate(Checked):
    """Measures of explanations.

    Attributes:
        grid_sizes: images along one side of the grids of the grid pointing game; not played if empty.
        grids: most grids of each size; fewer if images are not enough.
        eligible: images of the grids: those predicted right with p > 0.5, or all (for tests).
        removal_images: the first test images, used for pixel deletion and completeness.
        occlusion: window sizes of the occlusion baselines in pixels.
        occlusion_stride: step of their windows in pixels.
    """

    grid_sizes: tuple[Count, ...] = (3, 2)
    grids: Count = 500
    eligible: Literal["right", "all"] = "right"
    removal_images: Count = 1024
    occlusion: tuple[Count, ...] = (5, 9)
    occlusion_stride: Count = 2


TRAIN = TrainConfig(epochs=100, batch_size=64, val_fraction=0.02)
M = TypeVar("M", bound=Model)
AnyRun = TypeVar("AnyRun", bound="Run[Any]")


@dataclass(frozen=True)
class Run(Generic[M]):
    """A run: a family's network, its data, how it is trained and how it is measured.

    Attributes:
        model: the network; its type tells the family.
        data: images.
        augment: augmentation of the training images.
        optim: optimizer and learning rate.
        train: epochs, batches, seed, held-out share, precision.
        evaluate: what explanations are measured on.
    """

    model: M
    data: Data = Data()
    augment: Augment = Augment()
    optim: Optim = Optim()
    train: TrainConfig = TRAIN
    evaluate: Evaluate = Evaluate()

    __pydantic_config__ = Checked.__pydantic_config__

    def __post_init__(self) -> None:
        """Check what depends on several parts; every part has checked itself."""
        warmup, epochs = self.optim.warmup_epochs, self.train.epochs
        require(warmup < epochs or not warmup, "optim.warmup_epochs", warmup, f"less than train.epochs={epochs}")

    def replace(self: AnyRun, **parts: Mapping[str, Any]) -> AnyRun:
        """Return the run with fields of its parts replaced.

        Example:
            >>> run = Run(Model())
            >>> run.replace(data={"name": "mnist", "channels": 1}, train={"epochs": 4}).train.epochs
            4
        """
        merged = {name: dataclasses.replace(getattr(self, name), **fields) for name, fields in parts.items()}
        return dataclasses.replace(self, **merged)

    def with_seed(self: AnyRun, seed: int) -> AnyRun:
        """Return the run with another seed."""
        return self.replace(train={"seed": seed})

    def fields(self) -> dict[str, Any]:
        """Return every field by its key, such as "train.epochs"."""
        parts = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in vars(part).items()}

    def own_fields(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, by key."""
        parts = {part.name: dataclasses.fields(getattr(self, part.name)) for part in dataclasses.fields(self)}
        defaults = {f"{name}.{one.name}": one.default for name, part in parts.items() for one in part}
        return {key: value for key, value in self.fields().items() if value != defaults[key]}

    def sweep(self: AnyRun, **choices: Any) -> "Sweep[AnyRun]":
        """Return one run for every combination of values.

        Args:
            **choices: field → values, a field being written part__name; `seed` is short for train__seed. A field that
                is a tuple takes a sequence of tuples.

        Returns:
            The runs, the last field varying fastest; `jaxinterp.train(runs)` trains them all.

        Raises:
            ConfigError: an unknown field, no or equal values, or a value out of range.

        Example:
            >>> runs = Run(Model()).sweep(seed=(0, 1, 2), optim__learning_rate=(0.1, 0.01))
            >>> len(runs), runs[1].optim.learning_rate, runs.changes[1]
            (6, 0.01, {'train.seed': 0, 'optim.learning_rate': 0.01})
        """
        known = {"seed": "train.seed"} | {key.replace(".", "__"): key for key in self.fields()}
        axes = dict[str, tuple[Any, ...]]()
        for written, values in choices.items():
            require_key(written, known, "__")
            key = known[written]
            several = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
            require(several, written, values, "the values to try, such as (0, 1, 2)")
            part, name = key.split(".")
            kind = type(getattr(self, part))
            axes[key] = tuple(typed(kind, name, tuple(v) if isinstance(v, list) else v, written) for v in values)
            different = all(value not in axes[key][:i] for i, value in enumerate(axes[key]))
            require(different, written, axes[key], "different values")
        require(axes, "choices", "none", "at least one field with its values, such as seed=(0, 1, 2)")
        changes = tuple(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
        return Sweep(tuple(self.with_fields(change) for change in changes), changes)

    def with_fields(self: AnyRun, values: Mapping[str, Any]) -> AnyRun:
        """Return the run with fields, by their keys such as "train.epochs", replaced."""
        parts = dict[str, dict[str, Any]]()
        for key, value in values.items():
            part, name = key.split(".")
            parts.setdefault(part, {})[name] = value
        return self.replace(**parts)


@dataclass(frozen=True)
class Sweep(Sequence[AnyRun]):
    """Runs that differ in a few fields.

    Attributes:
        runs: the runs.
        changes: of each run: key → value of the fields that differ among them.
    """

    runs: tuple[AnyRun, ...]
    changes: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        """Return a run, or several."""
        return self.runs[index]

    def __iter__(self) -> Iterator[AnyRun]:
        """Iterate over the runs."""
        return iter(self.runs)


@dataclass(frozen=True)
class Experiment(Generic[M]):
    """A named run of a paper.

    Attributes:
        run: the configuration.
        source: where it stands in the paper.
        time: how long training takes, and on what.
        paper: metric → the paper's number for this configuration.
        headline: whether it is one of the results to show first.
        reference: metric → the paper's numbers for `reference_name`, for orientation.
        reference_name: the configuration that `reference` is about.
    """

    run: Run[M]
    source: str
    time: str = "not measured"
    paper: Mapping[str, float] = field(default_factory=dict)
    headline: bool = True
    reference: Mapping[str, float] = field(default_factory=dict)
    reference_name: str = ""


def small(run: AnyRun) -> AnyRun:
    """Shrink a run to seconds: one epoch on 64 embedded digits at the run's image size, and the least evaluation.

    Of one's own data the first 64 images are taken, not the digits.
    """
    sides, accum = {**SIDES, "digits": None, "imagenet2012": 48}, min(run.train.grad_accum_steps, 2)
    name, size = (run.data.name, run.data.image_size) if run.data.own else ("digits", sides.get(run.data.name))
    evaluate = {"grid_sizes": (2,), "grids": 1, "eligible": "all", "removal_images": 4, "occlusion_stride": 8}
    return run.replace(
        data={"name": name, "image_size": size, "max_images": 64},
        augment={"rand_augment": ()},
        optim={"warmup_epochs": 0},
        train={"epochs": 1, "batch_size": 16, "grad_accum_steps": accum, "val_fraction": 0.25, "eval_batch": 16},
        evaluate={**evaluate, "occlusion": run.evaluate.occlusion[:1]},
    )
