"""Attributions and metrics beside Captum, Zennit and Quantus, with the same weights and images in float64.

    python -m benchmarks.agreement             # benchmarks/results/agreement.json
    python -m benchmarks.agreement --golden    # the references' values of small networks, for tests without PyTorch

A row is the largest |ours − theirs| over the largest |theirs|, over examples and classes. Rows whose convention differs
by choice say how, and do not count in the ratio. Methods that this copy of the library does not have are listed.

Every relevance starts from the logit, and guided gradients from 1, whatever a reference's default. Captum runs one
example at a time where its DeepLIFT takes the gradient of the first example of a batch for all of them.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import captum.attr as captum
import jax
import numpy as np
import quantus
import torch
import tyro
import zennit.attribution
import zennit.canonizers
import zennit.composites
from torch import nn

import jaxinterp
from benchmarks import metrics
from benchmarks.measuring import RESULTS, provenance
from benchmarks.networks import NETWORKS, examples, network, variables
from benchmarks.torch_networks import in_torch
from jaxinterp.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "tests/golden/attribution/references.npz"
TARGETS = (0, 3)
RELU, SMALL, ALL = ("cnn", "resnet", "vgg"), ("cnn", "resnet"), ("cnn", "resnet", "mlp", "vit", "vgg")
TWICE = ("zennit.GuidedBackprop", "zennit.DeconvNet")  # equal to Captum's
MAPS = ("cnn", "resnet", "vit", "vgg")


@dataclass
class Pair:
    """A network in both frameworks, with examples, a baseline for each and a feature mask."""

    name: str
    count: int = 2
    variables: Any = field(init=False)
    x: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Draw weights and examples."""
        self.variables, self.x = variables(self.name), examples(self.name, self.count)

    @cached_property
    def net(self) -> Any:
        """Ours."""
        return network(self.name, self.variables, np.float64)

    @cached_property
    def torch(self) -> nn.Module:
        """Theirs."""
        return in_torch(self.name, self.variables, torch.float64)

    @property
    def layer(self) -> str:
        """Name of the layer with a map."""
        return NETWORKS[self.name][2]

    @property
    def module(self) -> nn.Module:
        """The same layer in PyTorch."""
        return self.torch.get_submodule(self.layer.replace("/", "."))

    @property
    def baseline(self) -> np.ndarray:
        """Other examples, as baselines."""
        return examples(self.name, self.count, seed=1)

    @property
    def references(self) -> np.ndarray:
        """A distribution of baselines."""
        return examples(self.name, 3, seed=2)

    @property
    def groups(self) -> np.ndarray:
        """Quarters of the image, as groups of features."""
        high, wide = ((np.arange(n) * 2) // n for n in self.x.shape[1:3])
        return 2 * high[:, None] + wide


def forward(array: np.ndarray) -> torch.Tensor:
    """Channels first, as PyTorch takes them."""
    return torch.from_numpy(array if array.ndim != 4 else np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def backward(tensor: torch.Tensor) -> np.ndarray:
    """Channels last."""
    array = tensor.detach().numpy()
    return array if array.ndim != 4 else array.transpose(0, 2, 3, 1)


class Case(NamedTuple):
    """A method and its reference.

    Attributes:
        row: the method's name in the table.
        networks: names.
        reference: library and function.
        method: name in `jaxinterp.attribute`, or `decompose`.
        keywords: of a pair ↦ keyword arguments of ours.
        theirs: (pair, x, class, slice of the examples) ↦ attribution in PyTorch.
        each: whether theirs runs one example at a time.
        convention: of what the method's options are, in words, by which the two differ; empty where they share one.
        change: whether contributions are to sum to the change of the logit from the baseline, so that the largest
            relative residuals of both are written.
    """

    row: str
    networks: tuple[str, ...]
    reference: str
    method: str
    keywords: Callable[[Pair], dict[str, Any]]
    theirs: Callable[[Pair, torch.Tensor, int, slice], torch.Tensor]
    each: bool = False
    convention: Callable[[Callable[..., Any]], str] = lambda function: ""
    change: bool = False


def nothing(pair: Pair) -> dict[str, Any]:
    """No keywords."""
    return {}


def at_layer(pair: Pair) -> dict[str, Any]:
    """The layer with a map."""
    return {"layer": pair.layer}


def with_bias(pair: Pair) -> dict[str, Any]:
    """Biases take their share, as in Zennit."""
    return {"bias": True}


def relevance(make: Callable[..., Any], times: bool, **keywords: Any) -> Callable[..., torch.Tensor]:
    """Run a composite of Zennit with BatchNorm folded; the seed is the logit if `times`, else 1."""

    def run(pair: Pair, x: torch.Tensor, target: int, at: slice) -> torch.Tensor:
        composite = make(canonizers=[zennit.canonizers.SequentialMergeBatchNorm()], **keywords)

        def seed(out: torch.Tensor) -> torch.Tensor:
            chosen = torch.eye(out.shape[1], dtype=out.dtype)[target]
            return chosen * (out if times else torch.ones_like(out))

        with zennit.attribution.Gradient(pair.torch, composite, attr_output=seed) as attributor:
            return attributor(x.clone().requires_grad_())[1]

    return run


def upsampled(cam: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A map at the image's size, nearest neighbors."""
    return captum.LayerAttribution.interpolate(cam, tuple(x.shape[2:]), "nearest")


def _occlusion_differs(function: Callable[..., Any]) -> str:
    has = "rule" in inspect.signature(function).parameters
    return "" if has else "drops over the window's size, summed over windows centered at multiples of the stride"


def _said(text: str, function: Callable[..., Any]) -> str:
    return text


def cases() -> Iterator[Case]:
    """Every method with a reference."""
    yield Case(
        "gradient",
        ALL,
        "captum.Saliency(abs=False)",
        "gradient",
        nothing,
        lambda p, x, t, at: captum.Saliency(p.torch).attribute(x, t, abs=False),
    )
    times = lambda p, x, t, at: captum.InputXGradient(p.torch).attribute(x, t)  # noqa: E731
    yield Case("input_x_gradient", ALL, "captum.InputXGradient", "input_x_gradient", nothing, times)
    yield Case("decompose", RELU, "captum.InputXGradient", "decompose", nothing, times)
    for nodes, name in (("gauss-legendre", "gausslegendre"), ("riemann", "riemann_right")):
        yield Case(
            f"integrated_gradients, {nodes}",
            ALL,
            f"captum.IntegratedGradients({name})",
            "integrated_gradients",
            lambda p, nodes=nodes: {"steps": 8, "nodes": nodes, "baseline": p.baseline},
            lambda p, x, t, at, name=name: captum.IntegratedGradients(p.torch).attribute(
                x, forward(p.baseline[at]), t, n_steps=8, method=name
            ),
        )
    yield Case(
        "occlusion",
        MAPS,
        "captum.Occlusion",
        "occlusion",
        lambda p: {"window": 3, "stride": 2, "baseline": 0.5},
        lambda p, x, t, at: captum.Occlusion(p.torch).attribute(x, (3, 3, 3), (3, 2, 2), baselines=0.5, target=t)[
            :, :1
        ],
        convention=_occlusion_differs,
    )
    grad_cam = lambda p, x, t, at: upsampled(  # noqa: E731
        captum.LayerGradCam(p.torch, p.module).attribute(x, t, relu_attributions=True), x
    )
    yield Case("grad_cam", RELU, "captum.LayerGradCam", "grad_cam", at_layer, grad_cam)
    yield Case(
        "gradient at a layer × activation",
        ALL,
        "captum.LayerGradientXActivation",
        "input_x_gradient",
        at_layer,
        lambda p, x, t, at: captum.LayerGradientXActivation(p.torch, p.module).attribute(x, t),
    )
    yield Case(
        "integrated_gradients at a layer",
        ALL,
        "captum.LayerIntegratedGradients",
        "integrated_gradients",
        lambda p: {"layer": p.layer, "steps": 8, "baseline": p.baseline},
        lambda p, x, t, at: captum.LayerIntegratedGradients(p.torch, p.module).attribute(
            x, forward(p.baseline[at]), t, n_steps=8, method="gausslegendre"
        ),
        each=True,
    )
    mask = lambda p: torch.from_numpy(p.groups)[None, None]  # noqa: E731
    yield Case(
        "feature_ablation",
        MAPS,
        "captum.FeatureAblation",
        "feature_ablation",
        lambda p: {"mask": p.groups, "baseline": p.baseline},
        lambda p, x, t, at: captum.FeatureAblation(p.torch).attribute(
            x, forward(p.baseline[at]), t, feature_mask=mask(p)
        )[:, :1],
    )
    for name in ("shapley_values", "kernel_shap"):
        yield Case(
            f"{name}, 4 groups",
            ("cnn", "vit"),
            "exact, of all 16 coalitions",
            name,
            lambda p: {"mask": p.groups, "baseline": p.baseline},
            every_order,
        )
    for networks, pooled, text in (
        (("resnet",), "", ""),
        (
            ("cnn", "vgg"),
            " with max pooling",
            "Captum's parts do not sum to the change of the logit where a ReLU adjoins a max pooling",
        ),
        (("mlp",), " with GELU", "Captum has no rule for GELU and takes its gradient, so that its parts do not sum"),
    ):
        convention = partial(_said, text)
        yield Case(
            f"deep_lift{pooled}",
            networks,
            "captum.DeepLift",
            "deep_lift",
            lambda p: {"baseline": p.baseline},
            lambda p, x, t, at: captum.DeepLift(p.torch).attribute(x, forward(p.baseline[at]), t),
            each=True,
            convention=convention,
            change=True,
        )
        yield Case(
            f"deep_lift_shap{pooled}",
            networks,
            "captum.DeepLift, mean over baselines",
            "deep_lift_shap",
            lambda p: {"baselines": p.references},
            lambda p, x, t, at: torch.stack(
                [captum.DeepLift(p.torch).attribute(x, forward(b[None]), t) for b in p.references]
            ).mean(0),
            each=True,
            convention=convention,
        )
    for name, kind in (("smooth_grad", "smoothgrad"), ("smooth_grad_squared", "smoothgrad_sq")):
        yield Case(
            f"{name}, without noise",
            ("cnn", "resnet", "vit"),
            f"captum.NoiseTunnel(stdevs=0), {kind}",
            name,
            lambda p: {"samples": 3, "noise": 0.0},
            lambda p, x, t, at, kind=kind: captum.NoiseTunnel(captum.Saliency(p.torch)).attribute(
                x, nt_type=kind, nt_samples=3, stdevs=0.0, target=t, abs=False
            ),
        )
    yield Case(
        "guided_backpropagation",
        RELU,
        "captum.GuidedBackprop",
        "guided_backpropagation",
        nothing,
        lambda p, x, t, at: captum.GuidedBackprop(p.torch).attribute(x, t),
    )
    yield Case(
        "deconvolution",
        RELU,
        "captum.Deconvolution",
        "deconvolution",
        nothing,
        lambda p, x, t, at: captum.Deconvolution(p.torch).attribute(x, t),
    )
    yield Case(
        "guided_grad_cam",
        RELU,
        "captum.GuidedGradCam",
        "guided_grad_cam",
        at_layer,
        lambda p, x, t, at: captum.GuidedGradCam(p.torch, p.module).attribute(x, t),
    )
    zennits = zennit.composites
    guided = relevance(zennits.GuidedBackprop, False)
    yield Case("guided_backpropagation", RELU, "zennit.GuidedBackprop", "guided_backpropagation", nothing, guided)
    yield Case("deconvolution", RELU, "zennit.DeconvNet", "deconvolution", nothing, relevance(zennits.DeconvNet, False))
    excitation = relevance(zennits.ExcitationBackprop, False)
    yield Case("excitation_backprop", RELU, "zennit.ExcitationBackprop", "excitation_backprop", with_bias, excitation)
    box = {"low": 0.0, "high": 1.0}
    for name, keywords in (
        ("EpsilonPlus", {}),
        ("EpsilonGammaBox", box),
        ("EpsilonPlusFlat", {}),
        ("EpsilonAlpha2Beta1", {}),
    ):
        ours = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")
        yield Case(
            f"lrp, {ours}",
            RELU,
            f"zennit.{name}",
            "lrp",
            lambda p, ours=ours, more=keywords: {"composite": ours, **more},
            relevance(getattr(zennits, name), True, **keywords),
        )


def every_order(pair: Pair, x: torch.Tensor, target: int, at: slice) -> torch.Tensor:
    """Exact Shapley values of the four groups, by definition, from the logits of all 16 coalitions; of each pixel."""
    base, groups, players = forward(pair.baseline[at]), torch.from_numpy(pair.groups), 4
    value = {
        kept: pair.torch(torch.where(torch.tensor(kept, dtype=torch.bool)[groups], x, base))[:, target]
        for kept in product((0, 1), repeat=players)
    }
    total = []
    for g in range(players):
        gains = [
            (value[*kept[:g], 1, *kept[g + 1 :]] - out) / (players * comb(players - 1, sum(kept)))
            for kept, out in value.items()
            if not kept[g]
        ]
        total.append(torch.stack(gains).sum(0))
    return (torch.stack(total, 1) / torch.bincount(groups.ravel()))[:, groups][:, None]


def reference(case: Case, pair: Pair) -> np.ndarray:
    """Theirs, (examples, classes, ...), channels last."""
    parts = [slice(i, i + 1) for i in range(pair.count)] if case.each else [slice(None)]
    found = []
    for target in TARGETS:
        rows = [backward(case.theirs(pair, forward(pair.x[at]), target, at)) for at in parts]
        found.append(np.concatenate(rows))
    return np.stack(found, 1)


def ours(case: Case, pair: Pair) -> np.ndarray:
    """Ours, (examples, classes, ...)."""
    method = function_of(case.method)
    return np.asarray(method(pair.net, pair.x, np.tile(TARGETS, (pair.count, 1)), **case.keywords(pair)).contributions)


def function_of(name: str) -> Callable[..., Any]:
    """A method by name."""
    return getattr(jaxinterp if name == "decompose" else jaxinterp.attribute, name)  # type: ignore[no-any-return]


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference over the largest entry, or as it is where all entries are 0; shapes must agree."""
    if got.shape != want.shape:
        raise ConfigError(f"shape: got {got.shape}, expected {want.shape}")
    return float(np.abs(got - want).max() / (np.abs(want).max() or 1))


RESIDUALS = "residual_of_ours", "residual_of_theirs"


def residual(pair: Pair, parts: np.ndarray) -> float:
    """Largest |change of the logit from the baseline − sum of the contributions| over the largest |change|."""
    with torch.no_grad():
        logits, base = (pair.torch(forward(x)).numpy()[:, TARGETS] for x in (pair.x, pair.baseline))
    return relative(parts.reshape(*parts.shape[:2], -1).sum(-1), logits - base)


class Double(nn.Module):
    """A network in float64 for Quantus, which casts images to float32."""

    def __init__(self, net: nn.Module):
        """Wrap a network."""
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.net(x.double())


QUIET: dict[str, Any] = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}


def metric_references(pair: Pair, maps: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Quantus' values of every example, for maps (examples, H, W) of class 0.

    Args:
        pair: network and images.
        maps: attributions, summed over channels.
        masks: true objects, bool.
    """
    x, a = forward(pair.x).numpy(), maps[:, None]
    y, s = np.zeros(pair.count, int), masks[:, None]
    flips = {"features_in_step": 6, "perturb_baseline": 0.0, **QUIET}
    known = {
        "sparseness": quantus.Sparseness(**QUIET | {"abs": True}),
        "complexity": quantus.Complexity(**QUIET | {"abs": True}),
        "effective_complexity": quantus.EffectiveComplexity(eps=0.05, **QUIET | {"abs": True}),
        "pointing_game": quantus.PointingGame(**QUIET),
        "attribution_localisation": quantus.AttributionLocalisation(**QUIET, positive_attributions=True),
        "top_k_intersection": quantus.TopKIntersection(k=20, **QUIET),
        "relevance_mass_accuracy": quantus.RelevanceMassAccuracy(**QUIET | {"abs": True}),
        "relevance_rank_accuracy": quantus.RelevanceRankAccuracy(**QUIET),
        "auc": quantus.AUC(**QUIET),
        "pixel_flipping": quantus.PixelFlipping(**flips),
        "monotonicity": quantus.Monotonicity(**flips),
        "faithfulness_estimate": quantus.FaithfulnessEstimate(**flips),
        "selectivity": quantus.Selectivity(patch_size=4, perturb_baseline=0.0, **QUIET),
        "sufficiency": quantus.Sufficiency(threshold=17.0, **QUIET),
    }
    found = {}
    for name, metric in known.items():
        data = {"x_batch": x, "y_batch": y, "a_batch": a, "s_batch": s}
        values = metric(model=Double(pair.torch).eval(), **data, device="cpu", channel_first=True, softmax=False)
        found[name] = np.asarray(values, float)
    return found


RANDOM = {
    "smooth_grad, expected_gradients, lime, shapley_value_sampling": "draw their own noise, baselines and coalitions",
    "faithfulness_correlation, infidelity, max_sensitivity": "draw their own subsets and perturbations",
}


def metric_rows(pair: Pair, skipped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of the metrics, of one network."""
    maps, masks = localized(pair)
    for name, want in metric_references(pair, maps, masks).items():
        same = metrics.METRICS[name]
        try:
            difference = relative(metrics.ours(name, pair.net, pair.x, maps, masks), want)
        except (AttributeError, ConfigError, TypeError) as error:
            skipped[name] = f"{type(error).__name__}: {error}"
            continue
        row = {"network": pair.name, "method": same.name, "reference": f"quantus, {name}"}
        yield {**row, "relative_difference": difference, "convention": same.convention}


def localized(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Maps of class 0 and an object in each image, for metrics."""
    maps = reference(next(c for c in cases() if c.row == "input_x_gradient"), pair)[:, 0].sum(-1)
    masks = np.zeros(maps.shape, bool)
    masks[:, 2:8, 3:9] = True
    return maps, masks


@dataclass(frozen=True)
class Options:
    """Command line."""

    golden: bool = False
    """Write the references' values for the tests, and nothing else."""


def flat(tree: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """Leaves of a tree by their path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join([name, *(part.key for part in path)]): leaf for path, leaf in leaves}


def golden() -> None:
    """Write weights, examples and values of the CNN and the residual network, in float32."""
    kept: dict[str, np.ndarray] = {}
    pairs, scored = {name: Pair(name, 1) for name in SMALL}, Pair("cnn", 4)
    for name, pair in pairs.items():
        arrays = {"x": pair.x, "baseline": pair.baseline, "references": pair.references}
        kept |= flat(pair.variables, f"{name}/variables") | {f"{name}/{key}": array for key, array in arrays.items()}
    for case in cases():
        left_out = case.reference in TWICE or "max pooling" in case.row or "without noise" in case.row
        if left_out or case.row in ("decompose", "kernel_shap, 4 groups"):
            continue
        for name in sorted(set(case.networks) & set(SMALL)):
            kept[f"{name}/{case.row}/{case.reference}"] = reference(case, pairs[name])
    maps, masks = localized(scored)
    kept |= {"metrics/x": scored.x.astype(np.float32), "metrics/maps": maps, "metrics/masks": masks}
    kept |= {f"metrics/{k}": v for k, v in metric_references(scored, maps, masks).items()}
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    small = {k: v if v.dtype == bool or k.startswith("metrics/") else v.astype(np.float32) for k, v in kept.items()}
    np.savez_compressed(GOLDEN, **small)
    print(f"written: {GOLDEN}, {GOLDEN.stat().st_size} bytes")


def main(options: Options) -> None:
    """Compare, print and write the results."""
    jax.config.update("jax_enable_x64", True)
    warnings.filterwarnings("ignore", module="captum|zennit|quantus|torch")
    if options.golden:
        golden()
        return
    rows, skipped, pairs = [], {}, {name: Pair(name) for name in ALL}
    for case in cases():
        for name in case.networks:
            try:
                pair = ours(case, pairs[name]), reference(case, pairs[name])
                difference = relative(*pair)
                convention = case.convention(function_of(case.method))
            except (AttributeError, ConfigError, TypeError) as error:
                skipped[case.row] = f"{type(error).__name__}: {error}"
                continue
            row = {"network": name, "method": case.row, "reference": case.reference}
            residuals = (
                dict(zip(RESIDUALS, map(partial(residual, pairs[name]), pair), strict=True)) if case.change else {}
            )
            rows.append({**row, "relative_difference": difference, "convention": convention, **residuals})
    for name in SMALL:
        rows += metric_rows(Pair(name, 4), skipped)
    for row in rows:
        print("{relative_difference:.1e}  {network:8} {method:40} {reference} {convention}".format(**row))
    same = [row["relative_difference"] for row in rows if not row["convention"]]
    largest = float(np.max(same))  # NaN, where a row is, which `max` may pass over
    result = {
        **provenance("agreement"),
        "setting": {"dtype": "float64", "classes": TARGETS, "examples": 2},
        "rows": rows,
        "skipped": skipped,
        "random": RANDOM,
        "ratios": {"largest_relative_difference": largest},
    }
    path = RESULTS / "agreement.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(skipped, indent=2), f"largest: {largest:.1e}", f"written: {path}", sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
