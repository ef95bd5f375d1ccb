"""Theorem 5.1 of NPF, measured: the tangent kernel of independent value weights tends to the neural path kernel.

    python -m experiments.npk_theorem [--out DIR] [--results experiments/results] [--smoke]

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529). With gates of a network of its own, value weights of
variance σ² and depth d, E[K] = d σ^{2(d−1)} NPK at every width, and a single K tends to it. The authors report no
rates; their bound on the variance gives w^{−1/2}. Shown, on random inputs: the mean of draws at small widths against
the number of draws; the error of one draw against the width, for two depths and two distributions; the same for gates
of the *same* weights (a ReLU network), which does not converge; and for the gates of one narrow network, each repeated
m times (App. C), which is how the theorem is tested for a given gating network. About 3 minutes on 2 CPU cores.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, PRNGKeyArray

from jaxinterp.app.results import Results, summarize, write_results
from jaxinterp.errors import ConfigError, JaxInterpError
from jaxinterp.figures.html import picture
from jaxinterp.files import check_folder, write_bytes
from jaxinterp.gated.architecture import Architecture, Conv, Dense, Gate, GlobalAvgPool, fc, gate_shapes
from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.gated.kernels.tangent import tangent_kernel
from jaxinterp.gated.network import Gates, GatingNetwork, Network, Weights, open_gates
from jaxinterp.provenance import machine, versions

Curves = dict[str, list[float]]

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theorem:
    """What is measured.

    Attributes:
        widths: of the networks whose single draws are compared.
        depths: weight layers d.
        draws: of value weights and gates, at each width.
        examples: inputs.
        features: of an input.
        mean_widths: of the networks whose draws are averaged.
        mean_draws: how many.
        repeats: m of DGN^(m).
        seed: of everything random.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 5)
    draws: int = 24
    examples: int = 8
    features: int = 7
    mean_widths: tuple[int, ...] = (4, 8, 16)
    mean_draws: int = 4096
    repeats: tuple[int, ...] = (1, 4, 16, 32)
    seed: int = 0


SMOKE = Theorem(widths=(8, 32), depths=(3,), draws=3, examples=3, mean_widths=(4,), mean_draws=64, repeats=(1, 4))


def draw(
    depth: int,
    width: int,
    x: Float[Array, "n features"],
    weights: Weights,
    key: PRNGKeyArray,
    gates: Gates | None = None,
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """The tangent kernel of one draw of value weights, and its expectation given the gates.

    Args:
        depth: weight layers.
        width: of the hidden layers.
        x: inputs.
        weights: distribution of the weights, of variance 2 / width in all layers.
        key: of the draw.
        gates: given ones; where None, of a ReLU network drawn with them.
    """
    layers, variance, keys = fc(width, depth - 1, classes=1), 2 / width, jax.random.split(key)
    value = Network(layers, weights=weights, variance=variance)
    if gates is None:
        gating = GatingNetwork(layers, gating="relu", variance=variance)
        preactivations: Any = gating.apply(gating.init(keys[0], x), x)
        gates = open_gates(preactivations)
    params = value.init(keys[1], x)["params"]

    def outputs(params: Any, inputs: Any) -> Any:
        return value.apply({"params": params}, *inputs)

    found = tangent_kernel(outputs, params, (x, gates))
    return found, PathKernel(layers, get="ntk", weight_variances=variance)(x, gates)


def draw_relu(
    depth: int, width: int, x: Float[Array, "n features"], key: PRNGKeyArray
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """The negative control: gates and values of the same weights, and what the theorem would say of them."""
    layers, variance = fc(width, depth - 1, classes=1), 2 / width
    value, gating = Network(layers, variance=variance), GatingNetwork(layers, gating="relu", variance=variance)
    params = value.init(key, x)["params"]
    preactivations: Any = gating.apply({"params": {name: params[name] for name in list(params)[:-1]}}, x)

    def outputs(params: Any, x: Any) -> Any:
        return value.apply({"params": params}, x)

    found = tangent_kernel(outputs, params, x)
    return found, PathKernel(layers, get="ntk", weight_variances=variance)(x, open_gates(preactivations))


def relative(found: Float[Array, "n n"], limit: Float[Array, "n n"]) -> Float[Array, ""]:
    """||K − E K|| / ||E K||, Frobenius."""
    return jnp.linalg.norm(found - limit) / jnp.linalg.norm(limit)


def errors(pairs: Any, draws: int, key: PRNGKeyArray) -> float:
    """Mean relative error of single draws."""
    return float(jax.lax.map(jax.jit(lambda key: relative(*pairs(key))), jax.random.split(key, draws)).mean())


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Of log error against log width."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def opened(layers: Architecture, x: Float[Array, "n ..."], key: PRNGKeyArray) -> Gates:
    """Gates of a random ReLU network."""
    gating = GatingNetwork(layers, gating="relu")
    preactivations: Any = gating.apply(gating.init(key, x), x)
    return open_gates(preactivations)


def means(config: Theorem, x: Float[Array, "n features"], key: PRNGKeyArray) -> tuple[Curves, dict[str, float]]:
    """Error of the mean of 1, 2, 4, ... draws for fixed gates, d = 4; and how far it is off in standard errors."""
    curves, metrics, keys = {}, {}, jax.random.split(key)
    for width in config.mean_widths:
        pair = partial(draw, 4, width, x, "rademacher", gates=opened(fc(width, 3, classes=1), x, keys[0]))
        found, limits = jax.lax.map(jax.jit(pair), jax.random.split(keys[1], config.mean_draws), batch_size=64)
        counts = [2**k for k in range(config.mean_draws.bit_length())]
        curves[f"width {width}"] = [float(relative(found[:count].mean(0), limits[0])) for count in counts]
        error = np.asarray(found).std(0) / np.sqrt(config.mean_draws)
        off = np.abs(np.asarray(found.mean(0) - limits[0]))
        metrics[f"bias_in_standard_errors_width_{width}"] = float(np.median(off / np.where(error > 0, error, 1)))
        metrics[f"mean_error_width_{width}"] = curves[f"width {width}"][-1]
    return curves, metrics


def rates(config: Theorem, x: Float[Array, "n features"], key: PRNGKeyArray) -> tuple[Curves, dict[str, float]]:
    """Error of one draw against the width, for every depth and distribution, and for gates of the same weights."""
    curves, metrics = {}, {}
    kinds: tuple[Weights, ...] = ("rademacher", "normal")
    for depth, weights in product(config.depths, kinds):
        found = [errors(partial(draw, depth, width, x, weights), config.draws, key) for width in config.widths]
        curves[f"d = {depth}, {weights}"] = found
        metrics[f"slope_depth_{depth}_{weights}"] = slope(config.widths, found)
    depth = config.depths[0]
    same = [errors(partial(draw_relu, depth, width, x), config.draws, key) for width in config.widths]
    curves[f"d = {depth}, gates of the same weights"] = same
    return curves, metrics | {"slope_same_weights": slope(config.widths, same), "error_same_weights": same[-1]}


def padded(config: Theorem, x: Float[Array, "n features"], key: PRNGKeyArray) -> tuple[Curves, dict[str, float]]:
    """Error of one draw for the gates of one network of width 16, d = 4, each repeated m times."""
    keys = jax.random.split(key)
    gates = opened(fc(16, 3, classes=1), x, keys[0])
    found = []
    for m in config.repeats:
        repeated = tuple(jnp.repeat(gate, m, axis=1) for gate in gates)
        found.append(errors(partial(draw, 4, 16 * m, x, "rademacher", gates=repeated), config.draws, keys[1]))
    return {"16 gates a layer, each m times": found}, {"slope_padded": slope(config.repeats, found)}


def measure(config: Theorem) -> tuple[dict[str, Curves], dict[str, float]]:
    """All curves, panel by panel, and the numbers that are published."""
    keys = jax.random.split(jax.random.key(config.seed), 5)
    x = jax.random.normal(keys[0], (config.examples, config.features))
    curves: dict[str, Curves] = {}
    metrics: dict[str, float] = {}
    for panel, part, key in zip(("mean", "width", "padded"), (means, rates, padded), keys[1:4], strict=True):
        curves[panel], numbers = part(config, x, key)
        metrics |= numbers
    return curves, metrics | invariances(keys[4])


def invariances(key: PRNGKeyArray) -> dict[str, float]:
    """How much the kernel changes when images are rotated (on the torus), or gates permuted; relative, Frobenius."""
    keys = jax.random.split(key, 2)
    x = jax.random.normal(keys[0], (4, 6, 6, 2))
    found = {}
    for padding in ("circular", "zero"):
        layers = (*((Conv(8, padding=padding), Gate()) * 3), GlobalAvgPool(), Dense(1))  # type: ignore[arg-type]
        kernel, turned = PathKernel(layers, normalize="width"), jnp.roll(x, (2, 3), (1, 2))
        gates = opened(layers, x, keys[1])  # the same network at both, its key being the same
        whole, moved = kernel(x, gates), kernel(x, gates, turned, opened(layers, turned, keys[1]))
        found[f"rotation_{padding}_padding"] = float(relative(moved, whole))
        if padding == "circular":
            found["gates_permuted_conv"] = float(relative(kernel(x, gates[::-1]), whole))
    dense = fc(8, 3, classes=1)
    shapes = gate_shapes(dense, (5,))
    y, gates_y = x.reshape(4, -1)[:, :5], tuple((jax.random.normal(keys[1], (4, *s)) > 0) for s in shapes)
    gates_y = tuple(jnp.roll(gate, i, 1) for i, gate in enumerate(gates_y))
    kernel = PathKernel(dense, normalize="width")
    found["gates_permuted_fc"] = float(relative(kernel(y, gates_y[::-1]), kernel(y, gates_y)))
    return found


def drawn(config: Theorem, curves: Mapping[str, Curves]) -> "Figure":
    """The three panels, with lines of slope −1/2 for the eye."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, values in curves["mean"].items():
        left.plot(2.0 ** np.arange(len(values)), values, label=name)
    for name, values in curves["width"].items():
        dashed = "--" if "normal" in name else ":" if "same" in name else "-"
        middle.plot(config.widths, values, dashed, marker="o", markersize=3, label=name)
    for name, values in curves["padded"].items():
        right.plot(config.repeats, values, marker="o", markersize=3, label=name)
    titles = (
        "the mean of draws is unbiased",
        "one draw: error falls with width",
        "given gates, repeated (DGN$^{(m)}$)",
    )
    for axes, title, label in zip((left, middle, right), titles, ("draws", "width", "m"), strict=True):
        low, high = axes.get_xlim()
        xs = np.array([max(low, 1.0), high])
        first = axes.lines[0]
        start = float(np.asarray(first.get_ydata())[0]) * 0.8
        axes.plot(xs, start * (xs / float(np.asarray(first.get_xdata())[0])) ** -0.5, color="#999999", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel=label, title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    left.set_ylabel("relative error of the tangent kernel")
    return figure


@dataclass(frozen=True)
class Program:
    """Measure the theorem, draw it, and write what was measured."""

    out: Path = Path("runs/npk-theorem")
    """Folder of the figure, npk_theorem.png."""
    results: Path | None = None
    """Folder of gated_theorem.json, such as experiments/results."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every number is measured with each of them; the figure shows the first."""
    smoke: bool = False
    """In seconds, with few draws."""

    def __call__(self) -> None:
        """Run the whole of it."""
        if self.smoke and self.results is not None:
            raise ConfigError("--results: expected a measurement in full, got --smoke")
        check_folder(self.out)
        config = SMOKE if self.smoke else Theorem()
        found = [measure(replace(config, seed=seed)) for seed in self.seeds]
        write_bytes(self.out / "npk_theorem.png", picture(drawn(config, found[0][0]), "", "").png)
        values = {name: [metrics[name] for _, metrics in found] for name in found[0][1]}
        for name, numbers in values.items():
            print(f"{name}: {np.mean(numbers):.4g} ± {np.std(numbers, ddof=1) if len(numbers) > 1 else 0:.2g}")
        print(f"figure: {self.out / 'npk_theorem.png'}")
        if self.results is not None:
            check_folder(self.results)
            seeds = " ".join(map(str, self.seeds))
            command = f"python -m experiments.npk_theorem --seeds {seeds} --results experiments/results"
            made = Results("gated/theorem", command, machine(), versions(), self.seeds, summarize(values))
            write_results(self.results / "gated_theorem.json", made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; 2 where a folder cannot be written."""
    try:
        tyro.cli(Program, prog="experiments.npk_theorem", args=arguments)()
    except JaxInterpError as error:
        print(f"experiments.npk_theorem: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
