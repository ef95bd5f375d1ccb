"""Values of Captum 0.9 and Zennit 0.5.1, made by `python -m benchmarks.agreement --golden`, on two small networks."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.networks import NETWORKS, stored
from jaxinterp import attribute, decompose

GOLDEN = np.load(Path(__file__).parents[2] / "golden/attribution/references.npz")
TARGETS = np.array([[0, 3]])
QUARTERS = 2 * (np.arange(12) // 6)[:, None] + np.arange(12) // 6
SMALL: dict[str, Any] = {"steps": 8, "baseline": "baseline"}
COALITIONS: dict[str, Any] = {"mask": QUARTERS, "baseline": "baseline"}
LAYER = {"layer": "layer"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {  # strings "baseline", "references" and "layer" are the network's own
    "gradient/captum.Saliency(abs=False)": ("gradient", {}),
    "input_x_gradient/captum.InputXGradient": ("input_x_gradient", {}),
    "integrated_gradients, gauss-legendre/captum.IntegratedGradients(gausslegendre)": ("integrated_gradients", SMALL),
    "integrated_gradients, riemann/captum.IntegratedGradients(riemann_right)": (
        "integrated_gradients",
        SMALL | {"nodes": "riemann"},
    ),
    "integrated_gradients at a layer/captum.LayerIntegratedGradients": ("integrated_gradients", SMALL | LAYER),
    "gradient at a layer × activation/captum.LayerGradientXActivation": ("input_x_gradient", LAYER),
    "grad_cam/captum.LayerGradCam": ("grad_cam", LAYER),
    "guided_grad_cam/captum.GuidedGradCam": ("guided_grad_cam", LAYER),
    "feature_ablation/captum.FeatureAblation": ("feature_ablation", COALITIONS),
    "shapley_values, 4 groups/exact, of all 16 coalitions": ("shapley_values", COALITIONS),
    "deep_lift/captum.DeepLift": ("deep_lift", {"baseline": "baseline"}),
    "deep_lift_shap/captum.DeepLift, mean over baselines": ("deep_lift_shap", {"baselines": "references"}),
    "guided_backpropagation/captum.GuidedBackprop": ("guided_backpropagation", {}),
    "deconvolution/captum.Deconvolution": ("deconvolution", {}),
    "excitation_backprop/zennit.ExcitationBackprop": ("excitation_backprop", {"bias": True}),
    "lrp, epsilon_plus/zennit.EpsilonPlus": ("lrp", {"composite": "epsilon_plus"}),
    "lrp, epsilon_gamma_box/zennit.EpsilonGammaBox": (
        "lrp",
        {"composite": "epsilon_gamma_box", "low": 0.0, "high": 1.0},
    ),
    "lrp, epsilon_plus_flat/zennit.EpsilonPlusFlat": ("lrp", {"composite": "epsilon_plus_flat"}),
    "lrp, epsilon_alpha2_beta1/zennit.EpsilonAlpha2Beta1": ("lrp", {"composite": "epsilon_alpha2_beta1"}),
}


def own(name: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords with a network's own arrays and layer."""
    arrays = {part: GOLDEN[f"{name}/{part}"].astype(float) for part in ("baseline", "references")}
    known = arrays | {"layer": NETWORKS[name][2]}
    return {
        key: known[value] if isinstance(value, str) and value in known else value for key, value in keywords.items()
    }


def relative(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


# On the residual network always those that treat its sums and its BatchNorm in a way of their own.
OF_SUMS = ("lrp, epsilon_plus/", "lrp, epsilon_alpha2", "deep_lift/", "excitation")
STORED = [
    pytest.param(name, case, marks=() if name == "cnn" or case.startswith(OF_SUMS) else pytest.mark.slow)
    for name in ("cnn", "resnet")
    for case in CASES
    if f"{name}/{case}" in GOLDEN.files
]


@pytest.mark.parametrize(("name", "case"), STORED)
def test_values_of_the_reference_libraries(name: str, case: str) -> None:
    method, keywords = CASES[case]
    with jax.enable_x64(True):
        x = GOLDEN[f"{name}/x"].astype(float)
        got = getattr(attribute, method)(stored(name, GOLDEN), x, TARGETS, **own(name, keywords)).contributions
        assert relative(np.asarray(got), GOLDEN[f"{name}/{case}"]) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_decomposition_of_a_relu_network_is_captums_input_x_gradient(name: str) -> None:
    with jax.enable_x64(True):
        got = decompose(stored(name, GOLDEN), GOLDEN[f"{name}/x"].astype(float), TARGETS).contributions
        assert relative(np.asarray(got), GOLDEN[f"{name}/input_x_gradient/captum.InputXGradient"]) < 1e-5
