"""Deep gated networks and their neural path kernel: the tables of NPF and DLGN, and kernel regression.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN").

    jaxinterp train RUN [key=value ...]        e.g. jaxinterp train gated/mnist-learnt-adam --seeds 0,1,2
    jaxinterp evaluate runs/RUN                accuracy, NPK regression where the run asks for it, removal, completeness
    jaxinterp report runs/RUN                  report.html

`jaxinterp list` shows for each run where it stands in the papers, how long it took, and the printed numbers: they are
the fields of `RUNS` below. Regimes: fixed random gates, independent of the values' weights (`frozen`, FR-II) or equal
to them (`copied`, FR-DI); gates of a trained ReLU network (`learnt`, FLNPF: it is trained first, in the run's own
folder `gates`); gates trained together with the values (`decoupled`, DNPFL) or alone, with fixed random values
(`gates`); and the ReLU network (`relu`).

The papers print the best *test* accuracy over the epochs of a run, which is chosen on the test images: it stands here
as `test_accuracy_highest`, beside the paper's number. What we report as the accuracy is that of the last epoch, and
apart from it that of the epoch best on a small part of the training images that is held out.
Where the text and the code of NPF differ, the code is followed (five hidden layers with biases, Adam at 1e-4, gates of
1.1 sigmoid(4 q)). The 64,000 steps of DLGN's recipe are 168 epochs of what is left of CIFAR-10 after holding out. What
neither paper states, and is assumed: the initial weights (Glorot's, the default of the framework; He's in the recipe
that DLGN's code base has), Adam's ε, the epochs of C4GAP, its padding and its lack of biases, DLGN's weight decay (that
of its code base), and how a ResNet's gates are wired.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable
from jaxinterp.figures.html import Section
from jaxinterp.gated import report as gated_page
from jaxinterp.gated.architecture import (
    Architecture,
    BatchNorm,
    Flatten,
    Gate,
    c4gap,
    fc,
    gate_count,
    gate_shapes,
    iter_layers,
    resnet,
    vconv,
    vgg16,
)
from jaxinterp.gated.kernels.path import Norm, PathKernel
from jaxinterp.gated.network import EPSILON, GatedNetwork, Gates, Gating, GatingNetwork, Network
from jaxinterp.gated.npk_regression import Side, regress
from jaxinterp.gated.paths import class_overlap
from jaxinterp.recipe.config import DataSet, Experiment, Run, Schedule, Split, at_least, shown, small
from jaxinterp.recipe.page import Report, first_of_each_class
from jaxinterp.train import LossFn, classification_loss, predict, softmax_cross_entropy

Regime = Literal["relu", "decoupled", "gates", "frozen", "copied", "learnt"]


@dataclass(frozen=True)
class GatedRun(Run):
    """A gated network and how it is trained; the defaults are NPF's fully connected DGN on MNIST with Adam.

    Attributes:
        architecture: fc, c4gap, vconv, gconv, vgg16 or resnet.
        width: units of a layer (fc), channels (c4gap), or channels of the first stage (vgg16, resnet).
        depth: gated layers (fc, c4gap), or all layers (resnet, 6n + 2).
        classes: outputs.
        regime: relu, decoupled, gates, frozen, copied or learnt; see above.
        gates_epochs: epochs of the ReLU network whose gates are taken; as many as the values' where 0.
        gating: relu (DGN), linear (DLGN) or shallow (DLGN-SF).
        sharpness: β of gates that are trained.
        scale: their factor 1 + ε.
        value_input: x, or ones.
        order: permutation of the gates; none where empty.
        roll: seed of tile-and-roll; none where None.
        weights: initial weights, normal (He) or glorot (uniform).
        standardize: subtract mean and divide by deviation of the CIFAR-10 channels.
        kernel_images: first so many training images of which the NPK regression learns; none where 0.
        kernel_tests: first so many test images that it predicts.
        memory: GiB of kernel that may be held in memory; a larger one is kept in tiles on disk.
    """

    architecture: Literal["fc", "c4gap", "vconv", "gconv", "vgg16", "resnet"] = "fc"
    width: int = 128
    depth: int = 5
    classes: int = 10
    regime: Regime = "decoupled"
    gates_epochs: int = 0
    gating: Gating = "relu"
    sharpness: float = 4.0
    scale: float = 1.1
    value_input: Literal["x", "ones"] = "x"
    order: tuple[int, ...] = ()
    roll: int | None = None
    weights: Literal["normal", "glorot"] = "glorot"
    standardize: bool = False
    kernel_images: int = 0
    kernel_tests: int = 10_000
    memory: float = 4.0
    dataset: DataSet = "mnist"
    channels: int = 1
    flip: bool = False
    crop: int = 0
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    batch_size: int = 32
    grid_sizes: tuple[int, ...] = ()
    removal_images: int = 200
    occlusion_stride: int = 4

    def __post_init__(self) -> None:
        """Refuse values that no run can have.

        Raises:
            ConfigError: in one line, which field, what came and what was expected.
        """
        super().__post_init__()
        at_least(self, 1, "width", "depth", "classes", "kernel_tests")
        at_least(self, 0, "kernel_images", "roll", "gates_epochs")
        for name in ("sharpness", "scale", "memory"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a positive finite number")
        if self.regime in ("copied", "learnt") and self.gating != "relu":
            raise ConfigError(f"gating: got {self.gating} with regime={self.regime}, expected relu")
        if self.dataset == "imagenet2012":
            raise ConfigError("dataset: got imagenet2012, expected one that fits in memory")
        for name, none in (("order", ()), ("roll", None), ("value_input", "x")):
            if self.regime == "relu" and getattr(self, name) != none:
                raise ConfigError(
                    f"{name}: got {shown(getattr(self, name))} with regime=relu, which has one network only"
                )


SOFT = ("decoupled", "gates")  # regimes whose gates are trained
REGIMES: tuple[Regime, ...] = ("frozen", "copied", "decoupled", "learnt", "relu")
# NPF's table (README of the authors' code): mean of five runs, the best test accuracy over the epochs of each.
NPF: dict[tuple[str, str], tuple[float, ...]] = {
    ("fc", "sgd"): (0.9585, 0.9585, 0.9786, 0.9710, 0.9785),
    ("fc", "adam"): (0.9602, 0.9609, 0.9822, 0.9782, 0.9814),
    ("vconv", "sgd"): (0.5892, 0.5883, 0.6321, 0.6306, 0.6702),
    ("vconv", "adam"): (0.6486, 0.6468, 0.6945, 0.7140, 0.7243),
    ("gconv", "sgd"): (0.6736, 0.6686, 0.7457, 0.7852, 0.7890),
    ("gconv", "adam"): (0.6709, 0.6708, 0.7712, 0.7968, 0.8043),
}
# DLGN's Tables I and II: DNN, DGN(x, x), DGN(x, 1), DLGN(x, x), DLGN(x, 1), and of Table III DLGN-SF(x, 1).
MODELS: dict[str, dict[str, Any]] = {
    "dnn": {"regime": "relu"},
    "dgn-x": {"gating": "relu"},
    "dgn-1": {"gating": "relu", "value_input": "ones"},
    "dlgn-x": {"gating": "linear"},
    "dlgn-1": {"gating": "linear", "value_input": "ones"},
    "sf-1": {"gating": "shallow", "value_input": "ones"},
}
DLGN: dict[tuple[str, str], tuple[float, ...]] = {
    ("cifar10", "c4gap"): (0.805, 0.774, 0.775, 0.754, 0.754),
    ("cifar100", "c4gap"): (0.518, 0.474, 0.473, 0.474, 0.480),
    ("cifar10", "vgg16"): (0.936, 0.930, 0.930, 0.870, 0.870, 0.849),
    ("cifar10", "resnet"): (0.940, 0.933, 0.932, 0.879, 0.878),
    ("cifar100", "vgg16"): (0.734, 0.703, 0.705, 0.615, 0.615, 0.563),
    ("cifar100", "resnet"): (0.727, 0.708, 0.708, 0.623, 0.627),
}

MNIST = GatedRun()
SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e-2}
DIGITS = replace(
    MNIST, dataset="digits", epochs=40, learning_rate=1e-3, validation=0.1, kernel_images=1437, removal_images=120,
    occlusion=(3, 5), occlusion_stride=2,
)  # fmt: skip
CIFAR = replace(MNIST, dataset="cifar10", channels=3, learning_rate=3e-4, sharpness=10.0, scale=1.0, grids=100)
POOLED = replace(CIFAR, grid_sizes=(3,))
VCONV = replace(CIFAR, architecture="vconv", sharpness=4.0, scale=1.1, epochs=80)
GCONV = replace(VCONV, architecture="gconv", grid_sizes=(3,), epochs=200)
RAMP = replace(
    POOLED, flip=True, crop=4, standardize=True, optimizer="sgd", momentum=0.9, learning_rate=0.1, schedule="ramp",
    batch_size=128, epochs=168, weights="normal",
)  # fmt: skip
RECIPES: dict[str, GatedRun] = {  # λ of weight decay is twice that of Keras' λ ||w||²
    "c4gap": replace(POOLED, architecture="c4gap", depth=4, epochs=200),
    "vgg16": replace(RAMP, architecture="vgg16", width=64, weight_decay=5e-4),
    "resnet": replace(RAMP, architecture="resnet", width=16, depth=110, weight_decay=2e-4),
}
KERNEL = replace(MNIST, kernel_images=60_000)
SMALL = replace(
    RECIPES["c4gap"], image_size=16, images=600, kernel_images=600, kernel_tests=300, epochs=60, width=64,
    learning_rate=1e-3,
)  # fmt: skip


# Of one core among two that were shared; learnt gates with the ReLU network that is trained first.
MINUTES: dict[str, dict[Regime, int]] = {
    "adam": {"frozen": 6, "copied": 7, "decoupled": 11, "learnt": 13, "relu": 6},
    "sgd": {"frozen": 10, "copied": 14, "decoupled": 13, "learnt": 22, "relu": 10},
}


def _npf(architecture: str, optimizer: str, config: GatedRun) -> dict[str, Experiment[GatedRun]]:
    """The five regimes of one row of NPF's table."""
    stem = "mnist" if architecture == "fc" else f"cifar10-{architecture}"
    return {
        f"gated/{stem}-{regime}-{optimizer}": Experiment(
            replace(config, regime=regime, watch_test=True),
            f"NPF, table of test accuracies: {architecture.upper()}, {optimizer.upper()}",
            time=f"{MINUTES[optimizer][regime]} min on one CPU core" if architecture == "fc" else "not measured",
            paper={"test_accuracy_highest": accuracy},
            headline=optimizer == "adam" and regime in ("learnt", "relu"),
        )
        for regime, accuracy in zip(REGIMES, NPF[architecture, optimizer], strict=True)
    }


def _dlgn(dataset: Literal["cifar10", "cifar100"], architecture: str) -> dict[str, Experiment[GatedRun]]:
    """One row of DLGN's tables."""
    classes = 100 if dataset == "cifar100" else 10
    config = replace(RECIPES[architecture], dataset=dataset, classes=classes, watch_test=True)
    name = "resnet110" if architecture == "resnet" else architecture
    return {
        f"gated/{dataset}-{name}-{model}": Experiment(
            replace(config, **fields),
            f"DLGN, Table {'I' if architecture == 'c4gap' else 'III' if model == 'sf-1' else 'II'}: {name}",
            paper={"test_accuracy_highest": accuracy},
        )
        for (model, fields), accuracy in zip(MODELS.items(), DLGN[dataset, architecture], strict=False)
    }


def _scrambled(model: str) -> dict[str, Experiment[GatedRun]]:
    """C4GAP with its gates in reverse order, and tiled and rolled."""
    config = replace(RECIPES["c4gap"], watch_test=True, **MODELS[model])
    printed = {"dgn-x": 0.773, "dgn-1": 0.779, "dlgn-x": 0.759, "dlgn-1": 0.760}[model]
    return {
        f"gated/cifar10-c4gap-{model}-permuted": Experiment(
            replace(config, order=(3, 2, 1, 0)),
            "DLGN, Table I: one of its 23 permutations",
            paper={"test_accuracy_highest": printed},
        ),
        f"gated/cifar10-c4gap-{model}-rolled": Experiment(
            replace(config, roll=0, grid_sizes=(), watch_test=False), "DLGN, drafts: tile and roll"
        ),
    }


DIGITS_RUNS: dict[str, dict[str, Any]] = {
    **{regime: {"regime": regime} for regime in REGIMES},
    "dlgn": {"gating": "linear"},
    "dlgn-sf": {"gating": "shallow"},
}
RUNS: dict[str, Experiment[GatedRun]] = {
    **{f"gated/digits-{name}": Experiment(replace(DIGITS, **fields), "ours") for name, fields in DIGITS_RUNS.items()},
    **_npf("fc", "adam", MNIST),
    **_npf("fc", "sgd", replace(MNIST, **SGD, epochs=300)),
    "gated/mnist-dlgn-adam": Experiment(replace(MNIST, gating="linear"), "ours: DLGN with NPF's recipe"),
    "gated/mnist-npk-random": Experiment(replace(KERNEL, regime="frozen"), "ours: NPK regression, random gates"),
    "gated/mnist-npk-learnt": Experiment(replace(KERNEL, regime="learnt"), "ours: NPK regression, learnt gates"),
    **_npf("vconv", "adam", VCONV),
    **_npf("vconv", "sgd", replace(VCONV, **SGD)),
    **_npf("gconv", "adam", GCONV),
    **_npf("gconv", "sgd", replace(GCONV, epochs=100, optimizer="sgd", learning_rate=0.1)),
    **{name: run for row in DLGN for name, run in _dlgn(*row).items()},  # type: ignore[arg-type]
    **{name: run for model in ("dgn-x", "dgn-1", "dlgn-x", "dlgn-1") for name, run in _scrambled(model).items()},
    **{
        f"gated/cifar10-gconv-staged-{epochs}": Experiment(
            replace(GCONV, regime="learnt", epochs=80, gates_epochs=epochs),
            f"NPF, staged: gates of a ReLU network after {epochs} epochs",
        )
        for epochs in (10, 20, 30, 40, 50, 60)
    },
    "gated/cifar10-gconv-gates-adam": Experiment(replace(GCONV, regime="gates"), "drafts of DLGN: gates trained alone"),
    "gated/cifar10-c1gap-dnn": Experiment(
        replace(RECIPES["c4gap"], depth=1, width=512, regime="relu", learning_rate=1e-3, watch_test=True),
        "DLGN, Table III: C1GAP, 200 epochs",
        paper={"test_accuracy_highest": 0.622},
    ),
    "gated/cifar10-c4gap-sf-1": Experiment(
        replace(RECIPES["c4gap"], width=512, epochs=50, learning_rate=1e-3, watch_test=True, **MODELS["sf-1"]),
        "DLGN, Table III: C4GAP-DLGN-SF, width 512",
        paper={"test_accuracy_highest": 0.751},
    ),
    "gated/cifar10-npk-random": Experiment(
        replace(SMALL, regime="frozen"), "ours: conv + GAP NPK of 600 16x16 images", headline=False
    ),
    "gated/cifar10-npk-learnt": Experiment(
        replace(SMALL, regime="learnt"), "ours: the same, learnt gates", headline=False
    ),
}

REFERENCE_NAME = "fully connected networks on MNIST with Adam, learnt gates"
REFERENCE = {"test_accuracy_highest": NPF["fc", "adam"][3]}

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of the code base that DLGN names


def smoke(config: GatedRun) -> GatedRun:
    """The same run in seconds: see `small`, with narrow layers."""
    made = small(config)
    return replace(
        made,
        image_size=12 if config.architecture in ("c4gap", "vconv", "gconv") else made.image_size,
        width=4,
        depth={"resnet": 8, "c4gap": min(config.depth, 4)}.get(config.architecture, 2),
        grid_sizes=made.grid_sizes if config.grid_sizes else (),
        kernel_images=min(config.kernel_images, 24),
        kernel_tests=8,
    )


def layers_of(config: GatedRun) -> Architecture:
    """The architecture of a run.

    Raises:
        ConfigError: it does not exist at this depth, or does not fit the run's images.
    """
    made = {
        "fc": lambda: fc(config.width, config.depth, config.classes, bias=True, flatten=True),
        "c4gap": lambda: c4gap(config.width, config.classes, config.depth),
        "vconv": lambda: vconv(config.classes),
        "gconv": lambda: vconv(config.classes, pooled=True),
        "vgg16": lambda: vgg16(config.classes, config.width),
        "resnet": lambda: resnet(config.depth, config.classes, config.width),
    }[config.architecture]
    try:
        layers = made()
        gate_shapes(layers, config.image_shape)
    except ValueError as error:
        raise ConfigError(f"architecture={config.architecture}: {error}") from error
    return layers


class Classifier(nn.Module):
    """A ReLU or gated network, `body`, on standardized images.

    Attributes:
        body: the network.
        mean: of each channel, subtracted.
        deviation: of each channel, divided by.
    """

    body: Network | GatedNetwork
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def encode(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Images of [0, 1] as the network reads them."""
        mean, deviation = (jnp.asarray(part, x.dtype).reshape(1, 1, 1, -1) for part in (self.mean, self.deviation))
        return (x - mean) / deviation

    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False, frozen: bool = False, encoded: bool = False
    ) -> Float[Array, "n classes"]:
        """Logits of images, or of what `encode` made of them."""
        return self.body(x if encoded else self.encode(x), train=train, frozen=frozen)

    def gates(self, x: Float[Array, "n h w c"]) -> Gates:
        """Gates of a gated network at images."""
        assert isinstance(self.body, GatedNetwork)
        return self.body.gates(self.encode(x))

    def preactivations(self, x: Float[Array, "n h w c"]) -> Gates:
        """What the gates of a gated network are made of, at what `encode` made of images."""
        assert isinstance(self.body, GatedNetwork)
        return self.body.gating_network(x)


def build(config: GatedRun) -> nn.Module:
    """The network of a run, on images of [0, 1].

    Raises:
        ConfigError: fields that do not fit one another.
    """
    if config.grid_sizes and config.architecture in ("fc", "vconv"):
        sizes = shown(config.grid_sizes)
        raise ConfigError(f"grid_sizes: got {sizes}, expected none: {config.architecture} takes one image size only")
    if config.grid_sizes and config.roll is not None:
        raise ConfigError("roll: scrambles grids unlike single images; expected grid_sizes= (none) with it")
    if config.architecture == "fc" and config.value_input == "ones":
        raise ConfigError("value_input: got ones with fc, whose values then see nothing of an image; expected x")
    if config.standardize and config.channels != len(MEAN):
        raise ConfigError(f"standardize: got {config.channels} channels, expected {len(MEAN)}")
    layers = layers_of(config)
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    body: Network | GatedNetwork
    if config.regime == "relu":
        body = Network(layers, config.weights, dtype=dtype)
    else:
        gates = gate_count(layers)
        if config.order and sorted(config.order) != list(range(gates)):
            raise ConfigError(f"order: got {shown(config.order)}, expected a permutation of 0 to {gates - 1}")
        body = GatedNetwork(
            layers,
            config.gating,
            hard=config.regime not in SOFT,
            sharpness=config.sharpness,
            scale=config.scale,
            value_input=config.value_input,
            order=config.order or None,
            roll=config.roll,
            weights=config.weights,
            dtype=dtype,
        )
    return Classifier(body, MEAN, DEVIATION) if config.standardize else Classifier(body)


def loss_of(config: GatedRun, model: nn.Module) -> LossFn:
    """Softmax cross-entropy."""
    return classification_loss(model, softmax_cross_entropy)


def fixed(config: GatedRun) -> Callable[[str], bool] | None:
    """Which parameters are not trained: those of fixed gates, or of the values where gates are trained alone."""
    if config.regime in ("relu", "decoupled"):
        return None
    part = "value_network" if config.regime == "gates" else "gating_network"
    return lambda path: part in path.split("/")


def prior(name: str, config: GatedRun) -> tuple[str, GatedRun] | None:
    """The run that is trained first, in the folder `gates`: the ReLU network that learnt gates are taken from."""
    if config.regime != "learnt":
        return None
    epochs = config.gates_epochs or config.epochs
    relu = replace(
        config, regime="relu", value_input="x", order=(), roll=None, kernel_images=0, epochs=epochs, gates_epochs=0
    )
    known = name.replace("learnt", "relu")
    return (known if known in RUNS else name), relu


def initial(config: GatedRun, variables: Any, prior: Any | None, data: Any = None) -> Any:
    """Where training starts: gates equal to the initial values (FR-DI), or those of a trained ReLU network.

    Args:
        config: the run.
        variables: random ones of its network.
        prior: variables of the run that the function `prior` names.
        data: the training data, of which nothing is needed here.
    """
    if config.regime not in ("copied", "learnt"):
        return variables
    started = dict(variables)
    for kind, values in variables.items():
        body = dict(values.get("body", {}))
        if "gating_network" in body:
            source = body["value_network"] if prior is None else prior[kind]["body"]
            body["gating_network"] = {layer: source[layer] for layer in body["gating_network"]}
            started[kind] = {**values, "body": body}
    return started


def subject(config: GatedRun, model: nn.Module, variables: Any) -> Explainable:
    """A trained network as it is examined: affine in the standardized image, whatever the gates are."""
    assert isinstance(model, Classifier)
    network = "body" if config.regime == "relu" else "body/value_network"
    spatial = config.architecture != "fc"
    gates = [f"{network}/gate_{i}" for i in levels(layers_of(config), config.image_shape)]
    return Explainable(
        variables=variables,
        apply=lambda variables, x: model.apply(variables, x),
        predict=lambda variables, x: model.apply(variables, x, encoded=True),
        frozen=lambda variables, x: model.apply(variables, x, encoded=True, frozen=True),
        encode=model.encode,
        bias=None,
        layer=gates[0] if spatial and config.regime != "relu" and config.value_input == "ones" else None,
        layers=tuple(gates) if spatial else (),
        pooled=gates[-1] if spatial else None,
        occlusions=config.occlusion,
        stride=config.occlusion_stride,
        probability="softmax",
    )


def levels(layers: Architecture, shape: tuple[int, ...], most: int = 5) -> list[int]:
    """Gates that all of the value passes, and that still have places: not those of one branch of a residual block.

    Args:
        layers: the architecture.
        shape: of an example.
        most: how many, evenly from the first to the last.

    Example:
        >>> levels(c4gap(8), (32, 32, 3)), levels(resnet(20), (32, 32, 3))
        ([0, 1, 2, 3], [18])
    """
    number, found = 0, []
    for layer in layers:
        if isinstance(layer, Gate) and len(gate_shapes(layers, shape)[number]) == 3:
            found.append(number)
        number += gate_count((layer,))
    kept = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[i] for i in kept]


def gates_at(config: GatedRun, model: nn.Module, variables: Any) -> Callable[[Float[Array, "n h w c"]], Gates]:
    """A compiled function of images: the gates that the values meet, booleans where they are hard."""
    assert isinstance(model, Classifier)
    if config.regime != "relu":

        def opened(x: Array) -> Gates:
            gates: Any = model.apply(variables, x, method="gates")
            return gates if config.regime in SOFT else tuple(gate > 0 for gate in gates)

        return jax.jit(opened)
    network = GatingNetwork(layers_of(config), gating="relu")
    image = jnp.zeros((1, *config.image_shape), jnp.float32)
    shapes: Any = jax.eval_shape(network.init, jax.random.key(0), image)
    taken: dict[str, Any] = {
        kind: {name: variables[kind]["body"][name] for name in layers} for kind, layers in dict(shapes).items()
    }

    def rectified(x: Array) -> Gates:
        preactivations: Any = network.apply(taken, model.encode(x))
        return tuple(q > 0 for q in preactivations)

    return jax.jit(rectified)


def norms_of(variables: Any, count: int) -> tuple[Norm, ...]:
    """Evaluation batch normalization of a network, as affine maps."""
    norms = []
    for i in range(count):
        own, seen = variables["params"][f"norm_{i}"], variables["batch_stats"][f"norm_{i}"]
        scale = own["scale"] * jax.lax.rsqrt(seen["var"] + EPSILON)
        norms.append(Norm(scale, own["bias"] - seen["mean"] * scale))
    return tuple(norms)


def kernel_of(config: GatedRun, variables: Any) -> tuple[PathKernel, Callable[[Float[Array, "n h w c"]], Array]]:
    """The neural path kernel of a run's value network, and how it takes (standardized) images."""
    flat = config.architecture == "fc"
    layers = tuple(layer for layer in layers_of(config) if not (flat and isinstance(layer, Flatten)))
    body = {kind: values["body"] for kind, values in variables.items() if "body" in values}
    if config.regime != "relu":
        body = {kind: values["value_network"] for kind, values in body.items() if "value_network" in values}
    kernel = PathKernel(
        layers,
        normalize="width",
        value_input=config.value_input,
        norms=norms_of(body, sum(isinstance(layer, BatchNorm) for layer in iter_layers(layers))),
        exact=config.regime not in SOFT,
    )
    return kernel, (lambda x: x.reshape(len(x), -1)) if flat else (lambda x: x)


def measure(
    config: GatedRun,
    variables: Any,
    run_dir: Path,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    split: Split,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """The NPK regression with a run's gates, where it asks for one; and how much classes share open sub-networks.

    Returns:
        JSON values: `metrics`, `deciding` (see `jaxinterp.gated.npk_regression.regress`), and `overlap`, one matrix of
        classes × classes for each gate.

    Raises:
        ConfigError: more images are asked for than there are, the kernel's folder is that of another kernel, or the
            regression cannot be solved.
    """
    if not config.kernel_images:
        return {}
    model = build(replace(config, dtype="float32"))
    assert isinstance(model, Classifier)
    kernel, shaped = kernel_of(config, variables)
    inputs, opened = jax.jit(lambda x: shaped(model.encode(x))), gates_at(config, model, variables)
    data, count = split(config, "train"), config.kernel_images
    if count > len(data):
        raise ConfigError(f"kernel_images: got {count}, {data.name} has {len(data)} training images here")
    chosen = data.images[:count].astype(np.float32) / np.float32(data.maximum)
    train = Side.of(chosen, data.labels[:count], inputs, opened, config.eval_batch)
    images, labels = images[: config.kernel_tests], labels[: config.kernel_tests]
    test = Side.of(images, labels, inputs, opened, config.eval_batch)
    logits = predict(lambda v, x: model.apply(v, x), variables, images, config.eval_batch)
    right = float((logits.argmax(1) == labels).mean())
    try:
        found = regress(
            kernel,
            train,
            test,
            config.classes,
            run_dir / "kernel",
            {key: shown(value) for key, value in asdict(config).items()},
            memory=config.memory,
            seed=config.seed,
            shown=first_of_each_class(test.labels, 5),
            log=log,
        )
    except ValueError as error:
        raise ConfigError(f"NPK regression: {error}") from error
    found["metrics"]["npk_value_network_accuracy"] = right
    return {**found, "overlap": class_overlap(test.gates, test.labels, config.classes).round(6).tolist()}


def sections(report: Report, split: Split) -> list[Section]:
    """What the report of a gated run shows besides: deciding training images, filters of gates, shared sub-networks."""
    config: GatedRun = report.config
    made: list[Section] = []
    if "deciding" in report.found:
        made.append(gated_page.regression(report, split(config, "train")))
        made.append(gated_page.overlaps(report))
    if config.regime != "relu" and config.gating != "relu":
        model = build(replace(config, dtype="float32"))
        count = gate_count(layers_of(config))
        chosen = sorted({0, count // 2, count - 1})
        layers = gated_page.linear_gates(model, report.subject.variables, count)
        made.append(gated_page.filters([layers[i] for i in chosen], config.image_shape, [f"gate {i}" for i in chosen]))
    return made
