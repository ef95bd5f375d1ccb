"""The configuration of a run, composed of parts; typed overrides; and the files of a run's folder.

What reads a file raises ConfigError if it is missing or damaged: one line with the file, the fault, and how to make it.
"""

import contextlib
import dataclasses
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar
from zipfile import BadZipFile

import numpy as np
from annotated_types import Ge, Gt, Lt

from jaxinterp.checks import Checked, expected, field_adapters, require, require_one_of, shown
from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text
from jaxinterp.train.config import TrainConfig

DataSet = Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012"]
Schedule = Literal["constant", "staircase", "warmup", "ramp", "cosine", "cosine_by_epoch", "onecycle"]
Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NonNegative = Annotated[float, Ge(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Lt(1)]
MAX_MAGNITUDE = {"uda": 30, "timm": 10}  # of RandAugment
MAX_LINES = 2000  # of a log that are kept, more than a curve can show
SIDES = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32, "imagenet2012": 224}


@dataclass(frozen=True)
class Model(Checked):
    """Base of a run's `model` part: what a family's network is made of.

    Attributes:
        CLASSES: name of the field that gives the number of outputs, as an error names it.
    """

    CLASSES: ClassVar[str] = "model.classes"

    @property
    def classes(self) -> int:
        """Number of outputs; a field or a property of every subclass."""
        raise NotImplementedError


@dataclass(frozen=True)
class Data(Checked):
    """Images of a run, for training and measuring.

    Attributes:
        name: digits, mnist, fashion_mnist, cifar10, cifar100 or imagenet2012 (its first classes).
        distilled: file of distilled images to train on, in place of the data set's training images; none if empty.
            What is held out, and what is measured on training images, are the data set's.
        image_size: side of the square images in pixels; the data set's own if None.
        channels: channels of the images, 1 or 3.
        class_subset: classes to keep, in the order of the outputs; all if empty.
        max_images: use only the first images of each split; all if None.
        rotated: turn every image of both splits by an angle of its own, always the same.
    """

    name: DataSet = "cifar10"
    distilled: str = ""
    image_size: Count | None = None
    channels: Literal[1, 3] = 3
    class_subset: tuple[Natural, ...] = ()
    max_images: Count | None = None
    rotated: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (H, W, C)."""
        side = self.image_size or SIDES[self.name]
        return side, side, self.channels


@dataclass(frozen=True)
class Augment(Checked):
    """Augmentation of the training images.

    Attributes:
        flip: mirror with probability 1/2.
        crop_padding: random crop after zero padding by this many pixels.
        rand_augment: (n, m) of RandAugment; none if empty.
        rand_augment_kind: its table of operations, UDA's or timm's.
        rand_augment_first: before flip and crop instead of after them.
    """

    flip: bool = True
    crop_padding: Natural = 4
    rand_augment: tuple[Natural, ...] = ()
    rand_augment_kind: Literal["uda", "timm"] = "uda"
    rand_augment_first: bool = False

    def check(self) -> None:
        """Require two numbers of RandAugment, the second a magnitude of its kind."""
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
    """Shrink a run to seconds: one epoch on 64 embedded digits at the run's image size, and the least evaluation."""
    sides, accum = {**SIDES, "digits": None, "imagenet2012": 48}, min(run.train.grad_accum_steps, 2)
    evaluate = {"grid_sizes": (2,), "grids": 1, "eligible": "all", "removal_images": 4, "occlusion_stride": 8}
    return run.replace(
        data={"name": "digits", "image_size": sides[run.data.name], "max_images": 64},
        augment={"rand_augment": ()},
        optim={"warmup_epochs": 0},
        train={"epochs": 1, "batch_size": 16, "grad_accum_steps": accum, "val_fraction": 0.25, "eval_batch": 16},
        evaluate={**evaluate, "occlusion": run.evaluate.occlusion[:1]},
    )


def override(run: AnyRun, assignments: Sequence[str]) -> AnyRun:
    """Replace fields of a run by typed assignments, "part.field=value"; entries of a tuple are separated by commas.

    Example:
        >>> run = override(Run(Model()), ["train.epochs=4", "evaluate.grid_sizes="])
        >>> run.train.epochs, run.evaluate.grid_sizes
        (4, ())
    """
    import tyro

    arguments, known = list[str](), run.fields()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        require(equals, "KEY=VALUE", assignment, "an assignment such as train.epochs=4")
        bare = [name for name in known if name.endswith(f".{key}")]
        require_one_of("KEY", key, known, " or ".join(bare) or "a field of the run, such as train.epochs")
        entries = text.split(",") if text else []
        arguments += [f"--{key}", *(entries if isinstance(known[key], tuple) else [text])]
    kind: Any = Run[type(run.model)]  # type: ignore[misc]
    box, options = io.StringIO(), (tyro.conf.FlagConversionOff,)
    try:
        with contextlib.redirect_stderr(box):
            changed: AnyRun = tyro.cli(kind, default=run, args=arguments, config=options)
    except SystemExit:
        for assignment in assignments:
            _require_type(run, *assignment.split("=", 1))
        fault = re.sub(r"^Error parsing \w+: ", "", in_one_line(box.getvalue()))  # a part's own check, as it stands
        raise ConfigError(fault) from None
    return changed


def _require_type(run: Run[Any], key: str, text: str) -> None:
    """Raise for a text that is not of its field's type, in the grammar of all errors."""
    from pydantic import ValidationError

    part, name = key.split(".")
    old = run.fields()[key]
    kind: Any = type(getattr(run, part))
    entries = tuple(text.split(",")) if text else ()
    try:
        field_adapters(kind)[name].validate_python(entries if isinstance(old, tuple) else text)
    except ValidationError as error:
        require(False, key, text or "nothing", expected(error))


def in_one_line(box: str) -> str:
    r"""Join what tyro prints in a framed box: its first paragraph, and the options or commands that it suggests.

    Example:
        >>> in_one_line("╭─── Oops ─╮\n│ a is  │\n│ wrong │\n│ ───── │\n│ Perhaps you meant: │\n│ --b INT │\n╰──────╯")
        'a is wrong; perhaps you meant --b'
    """
    lines = ["\0" if "───" in line or "---" in line else line.strip("│| ") for line in box.splitlines()]
    _, fault, *hints = (" ".join(paragraph.split()) for paragraph in " ".join(lines).split("\0"))
    text = [fault.partition(" Got errors:")[0], *(hint for hint in hints if hint.startswith("Available"))]
    options = [option for hint in hints if hint.startswith("Perhaps") for option in re.findall(r"--[\w-]+", hint)]
    near = " or ".join(option for option in dict.fromkeys(options) if option != "--help")
    return "; ".join([*text, *([f"perhaps you meant {near}"] if near else [])])


def write_config(run_dir: Path, name: str, run: Run[Any]) -> None:
    """Write a run's name and configuration to `run_dir`/config.json.

    Raises:
        ConfigError: the folder holds a run of another name or configuration; the line names what differs.
    """
    path = run_dir / "config.json"
    if not path.exists():
        write_text(path, json.dumps({"run": name, "config": dataclasses.asdict(run)}, indent=2) + "\n")
        return
    held, hint = read_name(run_dir), "choose another --run-dir"
    require(held == name, "RUN", name, f"{held}, which {run_dir} holds; {hint}")
    old, new = read_config(run_dir, type(run.model)).fields(), run.fields()
    differing = [key for key in new if old[key] != new[key]]
    had, asked = (", ".join(f"{key}={shown(values[key])}" for key in differing) for values in (old, new))
    require(not differing, str(run_dir), f"a run with {asked}", f"{had}, which it holds; {hint}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of a value name the file it was read from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def validate_json(kind: Any, text: str) -> Any:
    """Return the dataclass that a JSON text holds; raise for a field that is unknown, missing or out of range."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        require(False, ".".join(map(str, first["loc"])) or "content", first["input"], expected(error))


def read_name(run_dir: Path) -> str:
    """Return the name of the run that a folder holds."""
    path = run_dir / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{run_dir} is not a run folder: it has no config.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a run's configuration ({error})") from None


def read_config(run_dir: Path, model: type[M]) -> Run[M]:
    """Return the configuration that `write_config` wrote of a run whose `model` part is of this class."""
    read_name(run_dir)
    path = run_dir / "config.json"
    with naming(path):
        content = json.loads(path.read_text(encoding="utf-8")).get("config")
        run: Run[M] = validate_json(Run[model], json.dumps(content))  # type: ignore[valid-type]
    return run


def read_json(path: Path, made_by: str, *keys: str) -> dict[str, Any]:
    """Return a JSON object of a run folder that has at least these keys; `made_by` is the command that writes it."""
    with _naming(path, made_by):
        content = _parsed(path.read_text(encoding="utf-8"))
        if lacking := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {', '.join(lacking)}")
    return content


def read_lines(path: Path, made_by: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a file that has one in every line; of a long file every k-th one, and the last."""
    with _naming(path, made_by), path.open(encoding="utf-8") as file:
        step = -(-sum(1 for _ in file) // MAX_LINES)
        file.seek(0)
        contents, last = list[dict[str, Any]](), None
        for i, line in enumerate(file):
            last = _parsed(line)
            if i % step == 0:
                contents.append(last)
    return contents if last is None or contents[-1] is last else [*contents, last]


def read_arrays(path: Path, made_by: str) -> dict[str, np.ndarray]:
    """Return the named arrays of a run folder's .npz file."""
    with _naming(path, made_by), path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def _parsed(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


@contextlib.contextmanager
def _naming(path: Path, made_by: str) -> Iterator[None]:
    """Let errors of reading a file name it, and the command that makes it."""
    try:
        yield
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is missing or damaged ({error}); it is made by `{made_by}`") from error
