"""Theorem 5.1 of NPF, measured: the tangent kernel of independent value weights tends to the neural path kernel.

    python experiments/npk_theorem.py [--out DIR] [--results experiments/results] [--smoke]

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529). With gates of a network of its own, value weights of
variance σ² and depth d, E[K] = d σ^{2(d−1)} NPK at every width, and a single K tends to it. The authors report no
rates; their bound on the variance gives w^{−1/2}. Shown, on random inputs: the mean of draws at small widths against
the number of draws; the error of one draw against the width, for two depths and two distributions; the same for gates
of the *same* weights (a ReLU network), which does not converge; and for the gates of one narrow network, each repeated
m times (App. C), which is how the theorem is tested for a given gating network. About 3 minutes on 2 CPU cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure

from jaxinterp.app.console import command_of, errors_in_one_line
from jaxinterp.app.results import Results, summarize, write_results
from jaxinterp.checks import require
from jaxinterp.figures.html import picture
from jaxinterp.files import check_folder, write_bytes
from jaxinterp.gated.architecture import Architecture, Conv, Dense, Gate, GlobalAvgPool, Padding, fc
from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.gated.kernels.tangent import tangent_kernel
from jaxinterp.gated.network import Gates, GatingNetwork, Network, Weights, open_gates
from jaxinterp.provenance import machine, versions
from jaxinterp.recipe.family import Log

Curves = dict[str, list[float]]


@dataclass(frozen=True)
class Theorem:
    """Sizes of the measurement.

    Attributes:
        widths: of the networks whose single draws are compared.
        depths: weight layers d.
        draws: of value weights and gates, at each width.
        examples: inputs.
        features: of an input.
        mean_widths: of the networks whose draws are averaged.
        mean_draws: of those networks.
        repeats: m of DGN^(m).
        seed: of all random numbers.
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


def random_gates(
    layers: Architecture, x: Float[Array, "n ..."], key: PRNGKeyArray, variance: float | None = None
) -> Gates:
    """Return the gates of a random ReLU network."""
    gating = GatingNetwork(layers, gating="relu", variance=variance)
    preactivations: Any = gating.apply(gating.init(key, x), x)
    return open_gates(preactivations)


def draw(
    depth: int,
    width: int,
    x: Float[Array, "n features"],
    weights: Weights,
    key: PRNGKeyArray,
    gates: Gates | None = None,
    same: bool = False,
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """Compute the tangent kernel of one draw of value weights of variance 2 / width, and its expectation.

    Gates are given, or those of a ReLU network drawn with the values, or, as the negative control for which the theorem
    does not hold, those of the `same` weights. There are `depth` layers of weights.
    """
    layers, variance, keys = fc(width, depth - 1, classes=1), 2 / width, jax.random.split(key)
    value = Network(layers, weights=weights, variance=variance)
    params = value.init(key if same else keys[1], x)["params"]
    if same:
        shared = {"params": {name: params[name] for name in list(params)[:-1]}}
        preactivations: Any = GatingNetwork(layers, gating="relu").apply(shared, x)
        gates = open_gates(preactivations)
    elif gates is None:
        gates = random_gates(layers, x, keys[0], variance)

    def outputs(params: Any, inputs: Any) -> Any:
        return value.apply({"params": params}, *inputs)

    kernel = tangent_kernel(outputs, params, (x, gates))
    return kernel, PathKernel(layers, get="ntk", weight_variances=variance)(x, gates)


def relative(kernel: Float[Array, "n n"], limit: Float[Array, "n n"]) -> Float[Array, ""]:
    """Return ||K − E K|| / ||E K||, Frobenius."""
    return jnp.linalg.norm(kernel - limit) / jnp.linalg.norm(limit)


def mean_error(pair: Any, draws: int, key: PRNGKeyArray) -> float:
    """Return the mean relative error of single draws."""
    return float(jax.lax.map(jax.jit(lambda key: relative(*pair(key))), jax.random.split(key, draws)).mean())


def slope(widths: Sequence[int], errors: Sequence[float]) -> float:
    """Return the slope of log error against log width."""
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0])


def means(config: Theorem, x: Float[Array, "n features"], key: PRNGKeyArray) -> tuple[Curves, dict[str, float]]:
    """Measure the error of the mean of 1, 2, 4, ... draws for fixed gates, d = 4, and its bias in standard errors."""
    curves, metrics, keys = {}, {}, jax.random.split(key)
    for width in config.mean_widths:
        gates = random_gates(fc(width, 3, classes=1), x, keys[0])
        pair = partial(draw, 4, width, x, "rademacher", gates=gates)
        kernels, limits = jax.lax.map(jax.jit(pair), jax.random.split(keys[1], config.mean_draws), batch_size=64)
        counts = [2**k for k in range(config.mean_draws.bit_length())]
        curves[f"width {width}"] = [float(relative(kernels[:count].mean(0), limits[0])) for count in counts]
        error = np.asarray(kernels).std(0) / np.sqrt(config.mean_draws)
        bias = np.abs(np.asarray(kernels.mean(0) - limits[0]))
        metrics[f"bias_in_standard_errors_width_{width}"] = float(np.median(bias / np.where(error > 0, error, 1)))
        metrics[f"mean_error_width_{width}"] = curves[f"width {width}"][-1]
    return curves, metrics


def rates(config: Theorem, x: Float[Array, "n features"], key: PRNGKeyArray) -> tuple[Curves, dict[str, float]]:
    """Measure the error of one draw by width, for every depth and distribution, and for gates of the same weights."""
    curves, metrics = {}, {}
    kinds: tuple[Weights, ...] = ("rademacher", "normal")
    for depth, weights in product(config.depths, kinds):
        errors = [mean_error(partial(draw, depth, width, x, weights), config.draws, key) for width in config.widths]
        curves[f"d = {depth}, {weights}"] = errors
        metrics[f"slope_depth_{depth}_{weights}"] = slope(config.widths, errors)
    depth = config.depths[0]
    pairs = [partial(draw, depth, width, x, "normal", same=True) for width in config.widths]
    curves[f"d = {depth}, gates of the same weights"] = same = [mean_error(pair, config.draws, key) for pair in pairs]
    return curves, metrics | {"slope_same_weights": slope(config.widths, same), "error_same_weights": same[-1]}


def padded(config: Theorem, x: Float[Array, "n features"], key: PRNGKeyArray) -> tuple[Curves, dict[str, float]]:
    """Measure the error of one draw for the gates of one network of width 16, d = 4, each repeated m times."""
    keys = jax.random.split(key)
    gates, errors = random_gates(fc(16, 3, classes=1), x, keys[0]), []
    for m in config.repeats:
        repeated = tuple(jnp.repeat(gate, m, axis=1) for gate in gates)
        errors.append(mean_error(partial(draw, 4, 16 * m, x, "rademacher", gates=repeated), config.draws, keys[1]))
    return {"16 gates a layer, each m times": errors}, {"slope_padded": slope(config.repeats, errors)}


def invariances(key: PRNGKeyArray) -> dict[str, float]:
    """Measure how much rotated images (on the torus) or permuted gates change the kernel; relative, Frobenius."""
    keys = jax.random.split(key, 2)
    x = jax.random.normal(keys[0], (4, 6, 6, 2))
    turned, changes = jnp.roll(x, (2, 3), (1, 2)), {}
    paddings: tuple[Padding, ...] = ("circular", "zero")
    for padding in paddings:
        layers = (*((Conv(8, padding=padding), Gate()) * 3), GlobalAvgPool(), Dense(1))
        kernel, gates = PathKernel(layers, normalize="width"), random_gates(layers, x, keys[1])
        k = kernel(x, gates)
        moved = kernel(x, gates, turned, random_gates(layers, turned, keys[1]))  # of the same network
        changes[f"rotation_{padding}_padding"] = float(relative(moved, k))
        if padding == "circular":
            changes["gates_permuted_conv"] = float(relative(kernel(x, gates[::-1]), k))
    kernel, y = PathKernel(fc(8, 3, classes=1), normalize="width"), x.reshape(4, -1)[:, :5]
    gate = jax.random.normal(keys[1], (4, 8)) > 0
    gates = tuple(jnp.roll(gate, i, 1) for i in range(3))
    changes["gates_permuted_fc"] = float(relative(kernel(y, gates[::-1]), kernel(y, gates)))
    return changes


def measure(config: Theorem, log: Log = lambda line: None) -> tuple[dict[str, Curves], dict[str, float]]:
    """Measure all curves, panel by panel, and the numbers that are published.

    Args:
        config: sizes, and the seed.
        log: called with a line before each panel; by default nothing is said.

    Returns:
        Panel ↦ curves, and name ↦ number.
    """
    keys = jax.random.split(jax.random.key(config.seed), 5)
    x = jax.random.normal(keys[0], (config.examples, config.features))
    curves, metrics = dict[str, Curves](), dict[str, float]()
    for panel, part, key in zip(("mean", "width", "padded"), (means, rates, padded), keys[1:4], strict=True):
        log(f"seed {config.seed}, panel {len(curves) + 1} of 3: {panel}")
        curves[panel], numbers = part(config, x, key)
        metrics |= numbers
    return curves, metrics | invariances(keys[4])


def plot(config: Theorem, curves: Mapping[str, Curves]) -> Figure:
    """Draw the three panels, with lines of slope −1/2 for the eye."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = {
        "mean": ("the mean of draws is unbiased", "draws", 2.0 ** np.arange(config.mean_draws.bit_length())),
        "width": ("one draw: error falls with width", "width", np.array(config.widths)),
        "padded": ("given gates, repeated (DGN$^{(m)}$)", "m", np.array(config.repeats)),
    }
    for axes, (panel, (title, label, xs)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, errors in curves[panel].items():
            line = "--" if "normal" in name else ":" if "same" in name else "-"
            axes.plot(xs, errors, line, marker="" if panel == "mean" else "o", markersize=3, label=name)
        first = next(iter(curves[panel].values()))[0]
        axes.plot(xs, 0.8 * first * (xs / xs[0]) ** -0.5, color="#999999", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel=label, title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    figure.axes[0].set_ylabel("relative error of the tangent kernel")
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
        """Measure, print, draw and write."""
        require(not (self.smoke and self.results), "--results", "--smoke", "a measurement in full")
        for folder in (self.out, self.results):
            if folder is not None:
                check_folder(folder)
        config = SMOKE if self.smoke else Theorem()
        runs = [measure(replace(config, seed=seed), partial(print, flush=True)) for seed in self.seeds]
        write_bytes(self.out / "npk_theorem.png", picture(plot(config, runs[0][0]), "", "").png)
        metrics = summarize({name: [numbers[name] for _, numbers in runs] for name in runs[0][1]})
        for name, metric in metrics.items():
            print(f"{name}: {metric.mean:.4g} ± {metric.std:.2g}")
        print(f"figure: {self.out / 'npk_theorem.png'}")
        if self.results is not None:
            seeds = " ".join(map(str, self.seeds))
            command = f"python experiments/npk_theorem.py --seeds {seeds} --results experiments/results"
            results = Results("gated/theorem", command, machine(), versions(), self.seeds, metrics)
            write_results(self.results / "gated_theorem.json", results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; status 2 if a folder cannot be written."""
    with errors_in_one_line():
        command_of(Program, arguments, "npk_theorem.py", __doc__)()


if __name__ == "__main__":
    main()
