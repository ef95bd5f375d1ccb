"""A network of the user's own, trained elsewhere, as a run that is explained, evaluated, audited and reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.app import code
from jaxinterp.checks import require
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.nn.weights import SUFFIXES
from jaxinterp.recipe.config import Count, Data, Experiment, Model, Run
from jaxinterp.recipe.data import check_fits, record, resolved, split
from jaxinterp.recipe.family import Family, TrainedRun
from jaxinterp.recipe.presets import Images, fitted
from jaxinterp.recipe.run_folder import write_classes, write_config, write_finished
from jaxinterp.train.result import Which


@dataclass(frozen=True)
class NetModel(Model):
    """A network that a function of the user's own makes.

    Attributes:
        net: the function, `module:name` or `file.py:name`.
        classes: outputs of the network.
    """

    net: str
    classes: Count


class Outside:
    """An `Explainable` as the stages call a network."""

    def __init__(self, net: Explainable) -> None:
        """Take the network."""
        self.net = net

    def apply(self, variables: Mapping[str, Any], x: Float[Array, "n ..."]) -> Float[Array, "n classes"]:
        """Return logits."""
        logits: Array = self.net.apply(variables["params"], x)
        return logits


class NetFamily(Family[NetModel]):
    """Networks that are not trained here."""

    title = "a network of one's own"
    Model = NetModel

    def load(self, run: Run[NetModel], run_dir: Path, which: Which, fingerprint: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the network that the function makes, and its variables."""
        net = OwnNet(run.model.net).net
        return Outside(net), {"params": net.variables}

    def explainable(self, trained: TrainedRun[NetModel]) -> Explainable:
        """Return the network as it was made."""
        net: Explainable = trained.network.net
        return net


@dataclass(frozen=True)
class OwnNet:
    """What a function of the user's own makes: an `Explainable`, or what `explainable` takes; perhaps class names.

    Or an exported network, by its file or by its name in the package.

    The function returns a network, a pair (module, variables), or one of them and the names of the classes:
    (network, names), (module, variables, names).

    Attributes:
        reference: the function, `module:name` or `file.py:name`; or a file that `jaxinterp export` wrote, or a name
            that `jaxinterp.pretrained()` lists.
    """

    reference: str

    @cached_property
    def _made(self) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """The arguments of `explainable`, and names."""
        if not self.is_code:
            require(not self.reference.endswith(".py"), "--net", self.reference, f"{self.reference}:FUNCTION")
            exported = code.load("--net", "jaxinterp.app.weights:load")(self.reference)  # which knows this family
            return (exported,), exported.classes
        function = code.load("--net", self.reference)
        require(callable(function), "--net", f"{self.reference}, a {type(function).__name__}", "a function")
        try:
            made = function()
        except (Exception, SystemExit) as error:  # whatever the code raises
            fault = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"--net: got {self.reference}, which fails: {fault}") from error
        parts = made if isinstance(made, tuple) else (made,)
        names = parts[-1] if len(parts) > 1 and _are_names(parts[-1]) else ()
        return parts[: len(parts) - bool(names)], tuple(names)

    @cached_property
    def net(self) -> Explainable:
        """The network."""
        (first, *rest), _ = self._made
        if isinstance(first, Explainable):
            return first
        wanted = "an Explainable, or what jaxinterp.explainable takes"
        require(first is not None and len(rest) < 2, "--net", f"{self.reference}, which returns {first!r}", wanted)
        try:
            return explainable(first, *rest)
        except (TypeError, ValueError) as error:
            fault = " ".join(str(error).split())
            raise ConfigError(f"--net: got {self.reference}, which returns no network: {fault}") from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; none if the function gives none."""
        return self._made[1]

    @property
    def is_code(self) -> bool:
        """Whether the reference is a function, and not an exported network's file or name."""
        return ":" in self.reference and not self.reference.endswith(SUFFIXES)

    @property
    def stem(self) -> str:
        """The reference as the name of a folder."""
        if not self.is_code:
            return Path(self.reference).stem
        place, _, name = self.reference.rpartition(":")
        return f"{Path(place).stem if place.endswith('.py') else place}-{name}"

    @property
    def absolute(self) -> str:
        """The reference from any folder."""
        if not self.is_code:
            return str(Path(self.reference).resolve()) if self.reference.endswith(SUFFIXES) else self.reference
        place, _, name = self.reference.rpartition(":")
        return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else self.reference

    def outputs(self, shape: tuple[int, ...]) -> int:
        """Return how many logits images of this shape, (H, W, C), have.

        Raises:
            ConfigError: the network does not take them.
        """
        size, net = "x".join(map(str, shape)), self.net
        try:
            return int(net.logits(jnp.zeros((1, *shape))).shape[1])
        except (ConfigError, TypeError, ValueError) as error:
            fault = " ".join(str(error).split())
            raise ConfigError(f"--net: got {self.reference}, which does not take {size} images: {fault}") from error

    def trained(self, shape: tuple[int, int, int], names: Sequence[str] = ()) -> TrainedRun[NetModel]:
        """Return the network as a trained run that has no folder, for images of a shape.

        Args:
            shape: (H, W, C) of its images, H = W.
            names: of the classes, if the function gives none.
        """
        count = self.outputs(shape)
        data = Data(image_size=shape[0], channels=1 if shape[2] == 1 else 3)
        known = self.names or tuple(names) or tuple(map(str, range(count)))  # not those of some data set
        run, family = Run(NetModel(self.absolute, count), data), NetFamily()
        parts = Outside(self.net), {"params": self.net.variables}
        return TrainedRun(Path(), self.reference, Experiment(run, ""), run, family, *parts, names=known)


def _are_names(value: Any) -> bool:
    """Whether a value is the names of classes."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)


def write_run(net: OwnNet, images: Images, image_size: int | None, run_dir: Path, data_dir: Path | None) -> None:
    """Write a network of one's own as a run folder, so that all that reads a trained run's works on it.

    Args:
        net: the network.
        images: the data that it is measured on.
        image_size: side of its images in pixels; the data's own if None.
        run_dir: the folder.
        data_dir: the data folder.

    Raises:
        ConfigError: the data do not fit the network, or the folder holds another run.
    """
    side = image_size or images.side
    count = net.outputs((side, side, images.channels))
    run = fitted(NetModel(net.absolute, count), images, side, steps=1)
    try:
        net.outputs((2 * side, 2 * side, images.channels))
    except ConfigError:  # no grids of images for a network of one size
        run = run.replace(evaluate={"grid_sizes": ()})
    run = resolved(run.replace(train={"val_fraction": 0.0}, augment={"crop_padding": 0}), data_dir)
    test = split(run, "test", data_dir)
    check_fits(run, test)
    write_config(run_dir, net.reference, run, NetFamily.name)
    write_classes(run_dir, net.names or test.classes)
    for line in record(run, run_dir, data_dir, test):
        print(line)
    write_finished(run_dir)
