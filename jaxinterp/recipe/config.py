"""What the files of all papers share: a named run, typed overrides, and the folder in which a run lives."""

import contextlib
import dataclasses
import difflib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints
from zipfile import BadZipFile

import numpy as np

from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text

if TYPE_CHECKING:
    from jaxinterp.data import Dataset

Config = TypeVar("Config")
AnyRun = TypeVar("AnyRun", bound="Run")
Split = Callable[["Run", Literal["train", "test"]], "Dataset"]
"""What gives a run's data set to what is measured of one paper's runs only."""
DataSet = Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012"]
Schedule = Literal["constant", "staircase", "warmup", "ramp", "cosine", "cosine_by_epoch", "onecycle"]
SIDES = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32, "imagenet2012": 224}


@dataclass(frozen=True)
class Experiment(Generic[Config]):
    """A named run: its place in the paper, how long it took, metric → the paper's number, and `Results.headline`."""

    config: Config
    source: str
    time: str = "not measured"
    paper: Mapping[str, float] = field(default_factory=dict)
    headline: bool = True


@dataclass(frozen=True)
class Run:
    """What the runs of all papers have: data, optimizer, evaluation; the defaults are for CIFAR-10.

    Attributes:
        dataset: digits, mnist, fashion_mnist, cifar10, cifar100 or imagenet2012 (its first classes).
        distilled: file of distilled images to train on, in the place of the data set's; none where empty. What is
            held out, and what is measured on training images, are the data set's.
        image_size: side of the square images in pixels; the data set's own where None.
        channels: channels of the images, 1 or 3.
        only: classes that are kept, in the order of the outputs; all where empty.
        images: use only so many images of each split; all where None.
        rotated: turn every image of both splits by an angle of its own, always the same.
        flip: mirror training images with probability 1/2.
        crop: random crop of the training images after zero padding of so many pixels.
        rand_augment: (n, m) of RandAugment; none where empty.
        rand_augment_kind: its table of operations, that of UDA or timm's.
        rand_augment_first: before flip and crop instead of after them.
        dtype: type of the large products in training; what is measured and explained runs in float32.
        optimizer: adam, adamw or sgd.
        learning_rate: peak rate.
        epsilon: Adam's ε.
        momentum: SGD's.
        nesterov: Nesterov's form of it.
        weight_decay: λ, which adds λ w to the gradient of every kernel; adamw takes λ w off, times the rate.
        decay_all: of every parameter instead, those of BatchNorm too.
        clip: largest norm of the gradient of all parameters together, to which it is scaled down; none where 0.
        schedule: constant, staircase (÷1.5 every 30 epochs), warmup (of CoDA Nets on ImageNet), ramp (of DLGN) or
            cosine, or cosine_by_epoch (of Coded ResNeXt; it changes once per epoch and ends at `floor`), or onecycle
            (up for three tenths of the run, then down to nothing).
        floor: last rate of cosine_by_epoch.
        warmup_epochs: epochs in which cosine_by_epoch rises from 1e-4.
        epochs: passes over the training images.
        batch_size: images of one optimizer step.
        accumulate: micro-batches in which they are computed.
        validation: share of the training images held out to choose the best epoch.
        watch_test: look at the test images after every epoch, for papers that print the highest of these accuracies;
            nothing is chosen by it.
        seed: seed of initialization, order and augmentation.
        grid_sizes: images along one side of the grids on which localization is measured.
        grids: most grids of each size; fewer where images are not enough.
        eligible: images of the grids: those predicted right with p > 0.5, or all (for tests).
        removal_images: first so many test images are used for pixel removal and completeness.
        occlusion: window sizes of the occlusion baselines in pixels.
        occlusion_stride: step of their windows in pixels.
        eval_batch: images of one evaluation batch.
    """

    OUTPUTS: ClassVar[str] = "classes: got"  # how an error names the field that says how many outputs there are

    dataset: DataSet = "cifar10"
    distilled: str = ""
    image_size: int | None = None
    channels: int = 3
    only: tuple[int, ...] = ()
    images: int | None = None
    rotated: bool = False
    flip: bool = True
    crop: int = 4
    rand_augment: tuple[int, ...] = ()
    rand_augment_kind: Literal["uda", "timm"] = "uda"
    rand_augment_first: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    epsilon: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_all: bool = False
    clip: float = 0.0
    schedule: Schedule = "cosine"
    floor: float = 0.0
    warmup_epochs: int = 0
    epochs: int = 100
    batch_size: int = 64
    accumulate: int = 1
    validation: float = 0.02
    watch_test: bool = False
    seed: int = 0
    grid_sizes: tuple[int, ...] = (3, 2)
    grids: int = 500
    eligible: Literal["right", "all"] = "right"
    removal_images: int = 1024
    occlusion: tuple[int, ...] = (5, 9)
    occlusion_stride: int = 2
    eval_batch: int = 256

    def __post_init__(self) -> None:
        """Refuse values that no run can have.

        Raises:
            ConfigError: in one line, which field, what came and what was expected.
        """
        at_least(self, 0, "crop", "seed", "floor", "warmup_epochs", "clip")
        at_least(self, 1, "image_size", "images", "epochs", "batch_size", "accumulate", "eval_batch")
        at_least(self, 1, "grid_sizes", "grids", "removal_images", "occlusion", "occlusion_stride")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels: got {self.channels}, expected 1 or 3")
        if self.seed >= 2**32:  # JAX keeps 32 bits: a larger seed would be another one's double
            raise ConfigError(f"seed: got {self.seed}, expected less than 2**32")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation: got {self.validation}, expected a share in [0, 1)")
        for name in ("learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a positive finite number")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a number in [0, 1)")
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs: got {self.warmup_epochs}, expected less than epochs={self.epochs}")
        if not self.floor <= self.learning_rate:
            raise ConfigError(f"floor: got {self.floor}, expected at most learning_rate={self.learning_rate}")
        if len(self.rand_augment) not in (0, 2):
            raise ConfigError(f"rand_augment: got {shown(self.rand_augment)}, expected n,m or nothing")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (H, W, C)."""
        side = self.image_size or SIDES[self.dataset]
        return side, side, self.channels


def at_least(config: Run, bound: int, *names: str) -> None:
    """Refuse fields below a bound: numbers (None is none), or any entry of tuples.

    Raises:
        ConfigError: in one line, which field, what came and what was expected.
    """
    for name in names:
        value = getattr(config, name)
        if any(x is not None and x < bound for x in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{name}: got {shown(value)}, expected at least {bound}")


def small(config: AnyRun) -> AnyRun:
    """The same run in seconds: one epoch on 64 embedded digits, enlarged to the run's images, and least evaluation."""
    sides = {**SIDES, "digits": None, "imagenet2012": 48}
    return dataclasses.replace(
        config,
        dataset="digits",
        image_size=sides[config.dataset],
        images=64,
        rand_augment=(),
        epochs=1,
        warmup_epochs=0,
        batch_size=16,
        accumulate=min(config.accumulate, 2),
        validation=0.25,
        grid_sizes=(2,),
        grids=1,
        eligible="all",
        removal_images=4,
        occlusion=config.occlusion[:1],
        occlusion_stride=8,
        eval_batch=16,
    )


def nearest(kind: str, wrong: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name, with the known names closest to it.

    Example:
        >>> print(nearest("key", "temprature", ["temperature", "features"]))
        unknown key 'temprature'; did you mean temperature?
    """
    names = list(known)
    close = " or ".join(difflib.get_close_matches(wrong, names, n=3, cutoff=0.7))
    hint = f"did you mean {close}?" if close else f"known: {', '.join(names)}"
    return ConfigError(f"unknown {kind} {wrong!r}; {hint}")


def shown(value: Any) -> str:
    """A field's value as an override writes it: the entries of a tuple separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def override(config: Config, assignments: Sequence[str]) -> Config:
    """A run's configuration with fields replaced by typed key=value assignments.

    Args:
        config: a frozen dataclass.
        assignments: "key=value" each; the entries of a tuple are separated by commas, "key=" is an empty one.

    Returns:
        The new configuration; `config` is left as it is.

    Raises:
        ConfigError: not of the form key=value, an unknown key, or a value that is not of the field's type.

    Example:
        >>> from dataclasses import make_dataclass
        >>> Net = make_dataclass("Net", [("width", int, 8), ("ranks", tuple[int, ...], (4,))], frozen=True)
        >>> override(Net(), ["ranks=2,3", "width=16"])
        Net(width=16, ranks=(2, 3))
    """
    import tyro

    hints, values = get_type_hints(type(config)), dict[str, Any]()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, got {assignment!r}")
        if key not in hints or not hasattr(config, key):
            raise nearest("key", key, [f.name for f in dataclasses.fields(config)])
        old = getattr(config, key)
        words = (text.split(",") if text else []) if isinstance(old, tuple) else [text]
        alone = dataclasses.make_dataclass("Alone", [(key, hints[key], old)], frozen=True)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # tyro says it in a box of many lines
                found: Any = tyro.cli(alone, args=[f"--{key}", *words], config=(tyro.conf.FlagConversionOff,))
        except SystemExit:
            kind, such = in_words(hints[key]), shown(old)
            raise ConfigError(f"{key}: expected {kind} (such as {such}), got {text!r}") from None
        values[key] = getattr(found, key)
    return dataclasses.replace(config, **values)  # at once: what a field may be can depend on others


def in_words(hint: Any) -> str:
    """A field's type as an error names it."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type: a plain one, a Literal, a union or tuple[X, ...]; an int is a float too.

    Example:
        >>> [is_of(value, tuple[int, ...]) for value in ((1, 2), (1, "2"), 1)]
        [True, False, False]
    """
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return value in parts
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(is_of(entry, parts[0]) for entry in value)
    if parts:
        return any(is_of(value, part) for part in parts)
    return type(value) is hint or (hint is float and type(value) is int)


def write_config(run_dir: Path, name: str, config: Any) -> None:
    """Write the run's name and resolved configuration to `run_dir`/config.json.

    Raises:
        ConfigError: the folder holds a run of another name or configuration; the line names what differs.
    """
    path = run_dir / "config.json"
    values = dataclasses.asdict(config)
    if path.exists():
        old_name, old = read_config(run_dir, type(config))
        if old_name != name:
            raise ConfigError(f"{run_dir} holds the run {old_name}, not {name}; choose another --run-dir")
        differing = [k for k, v in values.items() if getattr(old, k) != v]
        if differing:
            had, asked = (", ".join(f"{k}={shown(getattr(c, k))}" for k in differing) for c in (old, config))
            raise ConfigError(f"{run_dir} holds the run with {had}, not {asked}; choose another --run-dir")
        return
    write_text(path, json.dumps({"run": name, "config": values}, indent=2) + "\n")


@contextlib.contextmanager
def naming_config(run_dir: Path) -> Iterator[None]:
    """Let a configuration's errors name the file that it was read from.

    Raises:
        ConfigError: what was raised, after the path of the folder's config.json.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{run_dir / 'config.json'}: {error}") from error


def read_name(run_dir: Path) -> str:
    """The name of the run that a folder holds.

    Raises:
        ConfigError: there is no config.json, or it is damaged.
    """
    path = run_dir / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} is not a run folder: it has no config.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a run's configuration ({error})") from None


def read_config(run_dir: Path, kind: type[Config]) -> tuple[str, Config]:
    """The name and configuration that `write_config` wrote.

    Args:
        run_dir: a run folder.
        kind: the run's dataclass.

    Raises:
        ConfigError: there is no config.json, it is damaged, or its fields are not those of `kind` or have wrong values.
    """
    name = read_name(run_dir)
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["config"]
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for key, hint in get_type_hints(kind).items():
            if key in values and not is_of(values[key], hint):
                raise ConfigError(f"{key}: got {values[key]!r}, expected {in_words(hint)}")
        return name, kind(**values)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ConfigError(f"{path}: not a configuration of {kind.__name__} ({error})") from None


def read_json(path: Path, made_by: str, *keys: str) -> dict[str, Any]:
    """A JSON object of a run folder, with at least these keys.

    Raises:
        ConfigError: it is missing or damaged; the line says which command makes it.
    """
    (content,) = _objects(path, made_by, lambda text: [text])
    lacking = [key for key in keys if key not in content]
    if lacking:
        raise ConfigError(f"{path} is damaged (it has no {', '.join(lacking)}); it is made by `{made_by}`")
    return content


def read_lines(path: Path, made_by: str) -> list[dict[str, Any]]:
    """The JSON objects of a run folder's file that has one in every line.

    Raises:
        ConfigError: it is missing or damaged; the line says which command makes it.
    """
    return _objects(path, made_by, str.splitlines)


def read_arrays(path: Path, made_by: str) -> dict[str, np.ndarray]:
    """The named arrays of a run folder's .npz file.

    Raises:
        ConfigError: it is missing or damaged; the line says which command makes it.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is missing or damaged ({error}); it is made by `{made_by}`") from error


def _objects(path: Path, made_by: str, parts: Callable[[str], list[str]]) -> list[dict[str, Any]]:
    try:
        contents = [json.loads(part) for part in parts(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is missing or damaged ({error}); it is made by `{made_by}`") from error
    if not all(isinstance(content, dict) for content in contents):
        raise ConfigError(f"{path}: expected a JSON object; it is made by `{made_by}`")
    return contents
