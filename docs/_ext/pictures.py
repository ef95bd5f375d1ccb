"""Pictures of methods and metrics, on one network and images of the package; drawn anew when the code has changed.

Every method explains the same digit by the same CoDA net, beside the exact decomposition; every metric scores the same
five maps of the same sixteen digits. Compiled programs are shared, and kept in a cache by jax.
"""

import hashlib
import inspect
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp
from jaxinterp import attribute, metrics
from jaxinterp.data import load
from jaxinterp.explain.attribute.segments import squares
from jaxinterp.figures.maps import panel

NETWORK, DIGIT, BATCH = "coda-mnist", 4, 16
SOURCES = Path(jaxinterp.__file__).parent / "explain"
COMPARED: dict[str, Callable[..., Any]] = {
    "exact": jaxinterp.decompose,
    "LRP ε+": attribute.lrp,
    "occlusion": attribute.occlusion,
    "int. gradients": attribute.integrated_gradients,
    "input × gradient": attribute.input_x_gradient,
}
COLORS = "#0072b2", "#999999", "#999999", "#999999", "#999999"


@cache
def material() -> tuple[Any, np.ndarray, np.ndarray, Any]:
    """Return the network, sixteen digits that it reads rightly, their labels, and their exact contributions."""
    net, data = jaxinterp.load(NETWORK), load("mnist-2000", "test")
    first = [np.flatnonzero(data.labels == k)[1:4] for k in range(10)]
    order = np.array([first[DIGIT][0], *[places[0] for k, places in enumerate(first) if k != DIGIT]])
    order = np.concatenate([order, np.array([places[1] for places in first])])[:BATCH]
    x, labels = np.asarray(data.images[order], np.float32) / 255, np.asarray(data.labels[order])
    return net, x, labels, jaxinterp.decompose(net, x, labels)


@cache
def compared() -> list[Any]:
    """Return the sixteen digits' explanation by each method that is compared."""
    net, x, labels, _ = material()
    return [method(net, x, labels) for method in COMPARED.values()]


def draw(name: str, kind: str, folder: Path) -> Path | None:
    """Draw a method's or metric's picture unless it is there; None for those that have none."""
    if name in WITHOUT:
        return None
    drawing = METHODS.get(name, one_map) if kind == "methods" else bars
    path = folder / f"{name}-{_stamp(name, drawing)}.png"
    if not path.exists():
        for old in folder.glob(f"{name}-*.png"):
            old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        drawing(name).savefig(path, dpi=110)
    return path


@cache
def _code() -> bytes:
    """Return all that explains, and the networks."""
    files = [*sorted(SOURCES.rglob("*.py")), *sorted((SOURCES.parent / "pretrained").glob("*.safetensors"))]
    return b"".join(path.read_bytes() for path in files)


def _stamp(name: str, drawing: Callable[..., Any]) -> str:
    """Return a short hash of all that a picture depends on."""
    how = [inspect.getsource(drawing), inspect.getsource(material), str(sorted(OPTIONS.get(name, {}))), str(COLORS)]
    return hashlib.sha256(_code() + "".join(how).encode()).hexdigest()[:12]


def one_map(name: str, method: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Draw a digit, its exact contributions, and the map of a method, with its cosine to these."""
    net, x, labels, exact = material()
    few = slice(None if name == "feature_permutation" else 1)  # which takes values from the rest of the batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parts = (method or getattr(attribute, name))(net, x[few], labels[few], **{**OPTIONS.get(name, {}), **options})
    true, own = (np.asarray(found.maps(x.shape[1:3]))[0, 0] for found in (exact, parts))
    cosine = (true * own).sum() / (np.linalg.norm(true) * np.linalg.norm(own) or 1)
    return panel(x[:1], np.stack([true, own])[None], [["exact", f"cosine {cosine:.2f}"]], ["a 4"], scale="map")


def baselines(name: str) -> Any:
    """Draw a method whose baselines are examples."""
    return one_map(name, baselines=material()[1])


def tunnel(name: str) -> Any:
    """Draw `noise_tunnel` of input × gradient."""
    return one_map(name, partial(attribute.noise_tunnel, method=attribute.input_x_gradient))


def of_pairs(name: str) -> Any:
    """Draw the second order of a TaylorNet: what each pixel contributes together with three chosen ones."""
    _, x, labels, _ = material()
    net, x0 = jaxinterp.load("taylor-mnist"), np.mean(np.asarray(load("mnist-2000", "test").images), 0) / 255
    bright = np.argwhere(x[0, ..., 0] > 0.95)
    places = bright[np.linspace(0, len(bright) - 1, 3).astype(int)]
    parts = attribute.pairs(net, x[:1], labels[:1], x0=x0.astype(np.float32), pixels=places)
    titles = [[f"with ({row}, {column})" for row, column in places]]
    return panel(x[:1], np.asarray(parts.contributions)[:, 0], titles, ["a 4"], scale="row")


def training_images(name: str) -> Any:
    """Draw the training images that speak most for and against a digit's label, of a linear softmax classifier."""
    data = load("mnist-2000", "test")
    x, y = np.asarray(data.images[:, ::2, ::2, 0], np.float32).reshape(-1, 196) / 255, np.asarray(data.labels)
    order = np.random.default_rng(0).permutation(len(x))[:401]
    train, test = (x[order[1:]], y[order[1:]]), (x[order[:1]], y[order[:1]])
    net = jaxinterp.explainable(lambda w, x: x @ w, jnp.zeros((196, 10)))

    def loss(w: Any) -> Any:
        return -jax.nn.log_softmax(train[0] @ w)[jnp.arange(400), train[1]].mean() + 1e-3 * (w**2).sum()

    step = jax.jit(lambda w: w - 0.5 * jax.grad(loss)(w))
    w, checkpoints = net.variables, []
    for i in range(200):
        checkpoints += [w] * (i % 20 == 0)
        w = step(w)
    net = jaxinterp.explainable(net.network, w)
    if name == "tracin":
        found = attribute.tracin(net, checkpoints, train, test, rates=10 / 400)[0]
    else:
        found = attribute.influence_functions(net, train, test, damping=2e-3)[0]
    rank = np.argsort(-found)
    shown = [*rank[:3], *rank[-3:][::-1]]
    images = np.stack([test[0][0], *train[0][shown]]).reshape(7, 14, 14)
    names = [f"a {test[1][0]}", *(f"a {train[1][i]}: {found[i]:+.3f}" for i in shown)]
    gray = np.repeat(1 - images[1:, :, :, None], 3, -1)[None]
    return panel(1 - images[:1, :, :, None], gray, [names[1:]], names[:1])


def bars(name: str) -> Any:
    """Draw a metric's mean score of five methods on the same digits, with the cosine of each to the exact one."""
    from jaxinterp.figures.curves import blank, plain

    net, x, labels, exact = material()
    given: dict[str, Any] = {"mask": x[..., 0] > 0.3} if name in MASKED else dict(OPTIONS.get(name, {}))
    heights, cosines = list[float](), list[float]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method, parts in zip(COMPARED.values(), compared(), strict=True):
            pair = [np.asarray(found.maps(x.shape[1:3]))[:, 0].reshape(len(x), -1) for found in (exact, parts)]
            sizes = np.prod([np.linalg.norm(one, axis=1) for one in pair], axis=0)
            cosines.append(float(((pair[0] * pair[1]).sum(1) / np.where(sizes > 0, sizes, 1)).mean()))
            if name == "completeness":
                scores = metrics.completeness(net, parts).relative
            elif name == "grid_pointing_game":
                scores = metrics.grid_pointing_game(net, method, x, labels, n=2, count=4).scores
            else:
                use = method if name in RERUN else parts
                scores = getattr(metrics, name)(net, use, x, labels, **given).scores
            scores = np.asarray(scores, float)
            heights.append(float(scores[np.isfinite(scores)].mean()) if np.isfinite(scores).any() else 0.0)
    figure = blank(6.4, 2.4)
    axes = figure.subplots()
    places = np.arange(len(heights))[::-1]
    axes.barh(places, heights, color=COLORS, height=0.7)
    axes.set_yticks(places, [f"{title}  (cosine {c:.2f})" for title, c in zip(COMPARED, cosines, strict=True)])
    for place, value in zip(places, heights, strict=True):
        axes.annotate(f"{value:.3g}", (value, place), (4 if value >= 0 else -4, 0), textcoords="offset points",
                      ha="left" if value >= 0 else "right", va="center")  # fmt: skip
    plain(axes, "x")
    axes.margins(x=0.2)
    axes.set_xlabel(f"mean {name} of {len(x)} digits")
    return figure


WITHOUT = {  # no network of the package has attention; the others take no method
    "attention_rollout", "gradient_rollout",
    "detect", "best_threshold", "sample_grids", "tile_grid", "grid_pointing_scores", "removal_counts", "removal_ranks",
}  # fmt: skip
METHODS: dict[str, Callable[[str], Any]] = {
    "expected_gradients": baselines,
    "deep_lift_shap": baselines,
    "noise_tunnel": tunnel,
    "pairs": of_pairs,
    "tracin": training_images,
    "influence_functions": training_images,
}
SQUARES: dict[str, Any] = {"mask": squares((28, 28), 8)}
OPTIONS: dict[str, dict[str, Any]] = {
    "feature_ablation": {**SQUARES, "rule": "spread"},
    "feature_permutation": {**SQUARES, "rule": "spread", "samples": 8},
    "kernel_shap": {**SQUARES, "samples": 1000},
    "shapley_sampling": SQUARES,
    "shapley_values": {"mask": squares((28, 28), 4)},
    "extremal_perturbation": {"steps": 200},
    "monotonicity_correlation": {"samples": 4},
    "max_sensitivity": {"samples": 4},
    "average_sensitivity": {"samples": 4},
    "local_lipschitz": {"samples": 4},
    "relative_input_stability": {"samples": 4},
    "relative_output_stability": {"samples": 4},
    "infidelity": {"scaled": True},
}
MASKED = {
    "pointing_game", "attribution_localization", "top_k_intersection", "relevance_mass_accuracy",
    "relevance_rank_accuracy", "localization_auc",
}  # fmt: skip
RERUN = {
    "max_sensitivity", "average_sensitivity", "local_lipschitz", "relative_input_stability",
    "relative_output_stability", "parameter_randomization", "efficient_randomization", "random_logit",
    "input_invariance", "non_sensitivity", "sufficiency",
}  # fmt: skip
