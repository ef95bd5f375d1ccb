"""Deep gated networks as a family of runs: regimes of gates, networks, and regression with the path kernel.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN"). Regimes: fixed random
gates, independent of the values' weights (`frozen`, FR-II) or equal to them (`copied`, FR-DI); gates of a trained ReLU
network (`learnt`, FLNPF: it is trained first, in the run's own folder `pretrained`); gates trained together with the
values (`decoupled`, DNPFL) or alone, with fixed random values (`gates`); and the ReLU network (`relu`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.program import INPUT
from jaxinterp.figures.explorer import Panel
from jaxinterp.figures.html import Section
from jaxinterp.gated.architecture import Architecture, Gate, c4gap, fc, gate_count, gate_shapes, resnet, vconv, vgg16
from jaxinterp.gated.network import GatedNetwork, Gates, Gating, Network
from jaxinterp.gated.npk_regression import NPKRegressor, evaluate
from jaxinterp.gated.path_network import PathNetwork
from jaxinterp.gated.report import deciding, filters, open_gates, overlaps, regression
from jaxinterp.nn.layers import ConvNet
from jaxinterp.recipe.config import Count, Model, Natural, Positive, Run, small
from jaxinterp.recipe.family import Family, Log, Report, TrainedRun
from jaxinterp.recipe.page import first_of_each_class
from jaxinterp.recipe.presets import SCALES, Images, Scale, fitted
from jaxinterp.train import predict

Regime = Literal["relu", "decoupled", "gates", "frozen", "copied", "learnt"]
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of the code base that DLGN names


@dataclass(frozen=True)
class GatedModel(Model):
    """A gated network; the defaults are NPF's fully connected DGN on MNIST with Adam.

    Attributes:
        architecture: fc, c4gap, vconv, gconv, vgg16 or resnet.
        width: units of a layer (fc), channels (c4gap), or channels of the first stage (vgg16, resnet).
        depth: gated layers (fc, c4gap), or all layers (resnet, 6n + 2).
        stride: step of the first convolution in pixels (c4gap, resnet).
        classes: outputs.
        regime: relu, decoupled, gates, frozen, copied or learnt; see above.
        gates_epochs: epochs of the ReLU network whose gates are taken; as many as the values' if 0.
        gating: relu (DGN), linear (DLGN) or shallow (DLGN-SF).
        sharpness: β of gates that are trained.
        scale: their factor 1 + ε.
        value_input: x, or ones.
        order: permutation of the gates; none if empty.
        roll: seed of tile-and-roll; none if None.
        weights: initial weights, normal (He) or glorot (uniform).
        standardize: subtract mean and divide by deviation of the CIFAR-10 channels.
        kernel_images: first training images, of which the NPK regression learns; no regression if 0.
        kernel_tests: first test images, which it predicts.
        kernel_memory: GiB of kernel that may be held in memory; a larger one is kept in tiles on disk.
    """

    architecture: Literal["fc", "c4gap", "vconv", "gconv", "vgg16", "resnet"] = "fc"
    width: Count = 128
    depth: Count = 5
    classes: Count = 10
    stride: Count = 1
    regime: Regime = "decoupled"
    gates_epochs: Natural = 0
    gating: Gating = "relu"
    sharpness: Positive = 4.0
    scale: Positive = 1.1
    value_input: Literal["x", "ones"] = "x"
    order: tuple[int, ...] = ()
    roll: Natural | None = None
    weights: Literal["normal", "glorot"] = "glorot"
    standardize: bool = False
    kernel_images: Natural = 0
    kernel_tests: Count = 10_000
    kernel_memory: Positive = 4.0

    def check(self) -> None:
        """Require regimes, gates and value input that fit one another."""
        taken, two = self.regime in ("copied", "learnt"), self.regime != "relu"
        require(not taken or self.gating == "relu", "gating", f"{self.gating} with regime={self.regime}", "relu")
        for name, none in (("order", ()), ("roll", None), ("value_input", "x")):
            value = getattr(self, name)
            require(two or value == none, name, value, f"{none!r} with regime=relu, which has one network only")
        seeing = self.architecture != "fc" or self.value_input == "x"
        stepping = self.architecture in ("c4gap", "resnet") or self.stride == 1
        require(stepping, "stride", f"{self.stride} with {self.architecture}", "1; c4gap and resnet take another")
        require(seeing, "value_input", "ones with fc", "x: values would see nothing of an image")

    @property
    def layers(self) -> Architecture:
        """The architecture."""
        return {
            "fc": lambda: fc(self.width, self.depth, self.classes, bias=True, flatten=True),
            "c4gap": lambda: c4gap(self.width, self.classes, self.depth, stride=self.stride),
            "vconv": lambda: vconv(self.classes),
            "gconv": lambda: vconv(self.classes, pooled=True),
            "vgg16": lambda: vgg16(self.classes, self.width),
            "resnet": lambda: resnet(self.depth, self.classes, self.width, self.stride),
        }[self.architecture]()


class Classifier(ConvNet):
    """A ReLU or gated network, `body`, on standardized images."""

    body: Network | GatedNetwork

    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False, frozen: bool = False, encoded: bool = False
    ) -> Float[Array, "n classes"]:
        """Return logits of images, or of standardized images."""
        return self.body(x if encoded else self.standardize(x), train=train, frozen=frozen)

    def preactivations(self, x: Float[Array, "n h w c"]) -> Gates:
        """Return the pre-activations of a gated network's gates at standardized images."""
        assert isinstance(self.body, GatedNetwork)
        return self.body.gating_network(x)


@dataclass(frozen=True)
class Standardized:
    """The input of a `Classifier`, as of an `Explainable`; no variables are needed."""

    network: Classifier

    def __call__(self, variables: Any, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return standardized images."""
        return self.network.standardize(x)


class GatedFamily(Family[GatedModel]):
    """ReLU and gated networks."""

    title = "gated network"
    Model = GatedModel
    scales = SCALES
    normalizes = True

    def smoke(self, run: Run[GatedModel]) -> Run[GatedModel]:
        """Shrink a run to seconds: see `small`, with narrow layers."""
        model, shrunk = run.model, small(run)
        convolutional = model.architecture in ("c4gap", "vconv", "gconv")
        depth = {"resnet": 8, "c4gap": min(model.depth, 4)}.get(model.architecture, 2)
        return shrunk.replace(
            data={"image_size": 12 if convolutional else shrunk.data.image_size},
            model={"width": 4, "depth": depth, "kernel_images": min(model.kernel_images, 24), "kernel_tests": 8},
            evaluate={"grid_sizes": shrunk.evaluate.grid_sizes if run.evaluate.grid_sizes else ()},
        )

    def preset(self, scale: Scale, images: Images) -> Run[GatedModel]:
        """Return a gated network: fully connected up to 12 pixels, else a ResNet; the paper's is DLGN's ResNet-110."""
        side = min(images.side, {"small": 32, "medium": 64, "paper": 64}[scale])
        if scale == "paper":
            model = GatedModel("resnet", 16, 110, images.classes, weights="normal", sharpness=10.0, scale=1.0)
            optim: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "schedule": "ramp"}
            run = fitted(model, images, side, steps=1, batch_size=128, weight_decay=2e-4, **optim)
            return run.replace(train={"epochs": 168})
        if side <= 12:
            model = GatedModel("fc", 128, 4, images.classes)
            run = fitted(model, images, side, steps=3000 if scale == "small" else 12_000, learning_rate=1e-3)
            return run.replace(evaluate={"grid_sizes": ()}, augment={"flip": False})
        width, depth, steps = (8, 8, 1000) if scale == "small" else (16, 20, 8000)
        model = GatedModel("resnet", width, depth, images.classes, weights="normal")
        return fitted(model, images, side, steps=steps, batch_size=32, learning_rate=2e-3)

    def build(self, run: Run[GatedModel], dtype: Literal["float32", "bfloat16"] = "float32") -> Classifier:
        """Return the network of a run."""
        model, data, sizes = run.model, run.data, run.evaluate.grid_sizes
        require(data.name != "imagenet2012", "data.name", data.name, "a data set that fits in memory")
        resizable = not sizes or model.architecture not in ("fc", "vconv")
        require(resizable, "evaluate.grid_sizes", sizes, f"none: {model.architecture} takes one image size only")
        straight = not sizes or model.roll is None
        require(straight, "model.roll", model.roll, "None with evaluate.grid_sizes: grids get scrambled")
        colored = not model.standardize or data.channels == len(MEAN)
        require(colored, "data.channels", data.channels, "3 with model.standardize")
        try:
            layers = model.layers
            gate_shapes(layers, data.image_shape)
        except ValueError as error:
            raise ConfigError(f"model.architecture={model.architecture}: {error}") from error
        kind = jnp.bfloat16 if dtype == "bfloat16" else None
        body: Network | GatedNetwork = Network(layers, model.weights, dtype=kind)
        if model.regime != "relu":
            gates = gate_count(layers)
            permuted = sorted(model.order) in ([], list(range(gates)))
            require(permuted, "model.order", model.order, f"a permutation of 0 to {gates - 1}")
            fields = {name: getattr(model, name) for name in ("sharpness", "scale", "value_input", "roll", "weights")}
            hard, order = model.regime not in ("decoupled", "gates"), model.order or None
            body = GatedNetwork(layers, model.gating, hard=hard, order=order, dtype=kind, **fields)
        mean, std = (MEAN, DEVIATION) if model.standardize else (None, None)
        return Classifier(body, mean=data.mean or mean, std=data.std or std)

    def frozen_params(self, run: Run[GatedModel]) -> Callable[[str], bool] | None:
        """Freeze the parameters of fixed gates, or the values' where gates are trained alone."""
        if run.model.regime in ("relu", "decoupled"):
            return None
        part = "value_network" if run.model.regime == "gates" else "gating_network"
        return lambda path: part in path.split("/")

    def pretrain(self, run: Run[GatedModel]) -> Run[GatedModel] | None:
        """Return the ReLU network whose gates are taken."""
        if run.model.regime != "learnt":
            return None
        relu = {"regime": "relu", "value_input": "x", "order": (), "roll": None, "kernel_images": 0, "gates_epochs": 0}
        return run.replace(model=relu, train={"epochs": run.model.gates_epochs or run.train.epochs})

    def init_from(self, run: Run[GatedModel], network: nn.Module, variables: Any, pretrained: Any, data: Any) -> Any:
        """Return random variables whose gates equal the values (FR-DI) or those of the trained ReLU network."""
        if run.model.regime not in ("copied", "learnt"):
            return variables
        initial = dict(variables)
        for kind, values in variables.items():
            body = values.get("body", {})
            if "gating_network" in body:
                source = body["value_network"] if pretrained is None else pretrained[kind]["body"]
                gates = {layer: source[layer] for layer in body["gating_network"]}
                initial[kind] = {**values, "body": {**body, "gating_network": gates}}
        return initial

    def explainable(self, trained: TrainedRun[GatedModel]) -> Explainable:
        """Explain a network: affine in the standardized image, whatever the gates are."""
        network, model = trained.network, trained.run.model
        value = "body" if model.regime == "relu" else "body/value_network"
        spatial = model.architecture != "fc"
        gates = [f"{value}/gate_{i}" for i in spatial_gates(model.layers, trained.run.data.image_shape)]
        return explainable(
            network,
            trained.variables,
            keywords={"encoded": True},
            encoding=Standardized(network),
            layer=gates[0] if spatial and model.regime != "relu" and model.value_input == "ones" else INPUT,
            levels=tuple(gates) if spatial else (),
            pooled=gates[-1] if spatial else None,
        )

    def measure(self, trained: TrainedRun[GatedModel], log: Log) -> dict[str, Any]:
        """Measure NPK regression with the run's gates, if it asks for one, and the overlap of open sub-networks."""
        model, batch = trained.run.model, trained.run.train.eval_batch
        count = model.kernel_images
        if not count:
            return {}
        train = trained.train_data
        require(count <= len(train), "model.kernel_images", count, f"at most {len(train)}, the training images here")
        known = train.floats(slice(count))
        images, labels = (part[: model.kernel_tests] for part in trained.test_data)
        logits = predict(trained.network.apply, trained.variables, images, batch)
        regressor = NPKRegressor(
            path_network(trained),
            model.classes,
            max_bytes=int(model.kernel_memory * 2**30),
            folder=trained.run_dir / "kernel",
            seed=trained.run.train.seed,
            batch_size=batch,
            log=log,
        )
        results = evaluate(regressor.fit(known, train.labels[:count]), images, labels, first_of_each_class(labels, 5))
        results["metrics"]["npk_value_network_accuracy"] = float((logits.argmax(1) == labels).mean())
        return results

    def explore(
        self,
        trained: TrainedRun[GatedModel],
        images: Float[np.ndarray, "n h w c"],
        targets: Int[np.ndarray, " n"],
        rows: Int[np.ndarray, " n"] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> Sequence[Panel]:
        """Return the open gates, and the training images that decided where a regression was measured."""
        model, panels = trained.run.model, list[Panel]()
        found = [np.asarray(gate, np.float32) for gate in path_network(trained).read(images)[1]]
        soft = model.regime in ("decoupled", "gates")
        fully = model.architecture == "fc"
        panels.append(open_gates([gate > (model.scale / 2 if soft else 0) for gate in found], images[0].size, fully))
        if results and rows is not None and results.get("deciding"):
            panels += deciding(trained, rows, results["deciding"])
        return panels

    def report(self, report: Report) -> Sequence[Section]:
        """Return the sections: deciding training images, shared sub-networks, filters of linear gates."""
        model, sections = report.run.model, list[Section]()
        if "deciding" in report.results:
            sections += [regression(report), overlaps(report)]
        if model.regime != "relu" and model.gating != "relu":
            count = gate_count(model.layers)
            sections.append(filters(report.trained, sorted({0, count // 2, count - 1})))
        return sections


def path_network(trained: TrainedRun[GatedModel]) -> PathNetwork:
    """Return kernel, value inputs and gates of a run's network, as functions of images."""
    body = {kind: values["body"] for kind, values in trained.variables.items() if "body" in values}
    return PathNetwork.of(trained.network.body, body, trained.network.standardize)


def spatial_gates(layers: Architecture, shape: tuple[int, ...]) -> list[int]:
    """Return at most five spatial gates, evenly from the first to the last, that no residual block goes around."""
    shapes, spatial = gate_shapes(layers, shape), list[int]()
    for i, layer in enumerate(layers):
        number = gate_count(layers[:i])
        if isinstance(layer, Gate) and len(shapes[number]) == 3:
            spatial.append(number)
    kept = np.linspace(0, len(spatial) - 1, min(5, len(spatial))).round().astype(int)
    return [spatial[i] for i in kept]
