"""Speed of attributions beside Captum, Zennit and a plain loop of RISE, with the same weights, images and threads.

    python -m benchmarks.attribution                      # ResNet-20 and VGG-11 of width 16, 16 images of 32×32
    python -m benchmarks.attribution --networks vgg11     # one of them; printed, not written

A row is one method on one network, for one class or all ten; PyTorch's tools loop over classes, and run in the faster
of two memory formats and batch sizes. Sides alternate in one process; medians and minima of the rounds. RISE is
written for PyTorch as its authors wrote it: masks drawn before, batches of masked copies of one image, and one product
of logits and masks, which gives all classes at once; so it is timed once for both rows. Results are compared before
they are timed, but for the methods that draw noise or masks of their own.
"""

import statistics
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import captum.attr as captum
import jax
import numpy as np
import torch
import tyro
import zennit.attribution
import zennit.canonizers
import zennit.composites
from torch import nn

from benchmarks.measuring import alternate, record, relative, timed, torch_device, wait
from benchmarks.networks import CLASSES, NETWORKS, examples, network, variables
from benchmarks.torch_networks import in_torch
from jaxinterp import attribute

TOLERANCE = 1e-2  # relative, in float32: the ReLUs of two frameworks may round either way at 0
DRAWN = ("smooth_grad", "rise")
WINDOW, STRIDE, STEPS, MASKS, CELLS, KEPT = 8, 4, 32, 1000, 7, 0.5


@dataclass(frozen=True)
class Options:
    """Command line."""

    networks: tuple[str, ...] = ("resnet20", "vgg11")
    """Networks, of benchmarks/networks.py; of some only, results are printed and not written."""
    methods: tuple[str, ...] = ()
    """Methods, all by default; of some only, results are printed and not written."""
    images: int = 16
    """Images explained in a call."""
    rounds: int = 7
    """Calls of each side that are timed."""
    write: bool = False
    """Write the results of some networks or methods too."""


class Side(NamedTuple):
    """PyTorch's network, the layer of its CAMs, how many images it reads at once, and Zennit's rules for it."""

    net: nn.Module
    layer: nn.Module
    batch: int
    composite: Any


Method = Callable[[Side, torch.Tensor, int], torch.Tensor]


def lrp(side: Side, x: torch.Tensor, target: int) -> torch.Tensor:
    """Zennit's EpsilonPlus, which is registered already."""
    chosen = torch.eye(CLASSES, device=x.device)[target]
    return zennit.attribution.Gradient(side.net, attr_output=lambda out: out * chosen)(x.clone().requires_grad_())[1]


def rise_masks(side: int) -> torch.Tensor:
    """Random cells, enlarged and shifted (arXiv 1806.07421, Sec. 3.2)."""
    drawn = torch.Generator().manual_seed(0)
    cell = -(-side // CELLS)
    cells = (torch.rand(MASKS, 1, CELLS, CELLS, generator=drawn) < KEPT).float()
    large = nn.functional.interpolate(cells, size=(CELLS + 1) * cell, mode="bilinear", align_corners=False)
    shifts = torch.randint(0, cell, (MASKS, 2), generator=drawn).tolist()
    return torch.stack([m[:, i : i + side, j : j + side] for m, (i, j) in zip(large, shifts, strict=True)])


def rise(net: nn.Module, masks: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Maps of all classes, (images, classes, H, W)."""
    maps = []
    with torch.no_grad():
        for image in x:
            logits = torch.cat([net(part * image) for part in masks.split(100)])
            maps.append((logits.T @ masks.flatten(1)).unflatten(1, image.shape[1:]) / (MASKS * KEPT))
    return torch.stack(maps)


def smooth_grad(side: Side, x: torch.Tensor, target: int) -> torch.Tensor:
    """Captum's noise tunnel."""
    run, at_once = captum.NoiseTunnel(captum.Saliency(side.net)).attribute, max(1, side.batch // len(x))
    return run(x, nt_samples=STEPS, nt_samples_batch_size=at_once, stdevs=0.15, target=target, abs=False)


def grad_cam(side: Side, x: torch.Tensor, target: int) -> torch.Tensor:
    """Captum's, at the image's size."""
    cam = captum.LayerGradCam(side.net, side.layer).attribute(x, target, relu_attributions=True)
    return captum.LayerAttribution.interpolate(cam, tuple(x.shape[2:]), "nearest")


def integrated(side: Side, x: torch.Tensor, target: int) -> torch.Tensor:
    """Captum's."""
    run = captum.IntegratedGradients(side.net).attribute
    return run(x, target=target, n_steps=STEPS, internal_batch_size=side.batch)


def occlusion(side: Side, x: torch.Tensor, target: int) -> torch.Tensor:
    """Captum's, one channel of equal ones."""
    run, at_once = captum.Occlusion(side.net).attribute, max(1, side.batch // len(x))
    shape, strides = (3, WINDOW, WINDOW), (3, STRIDE, STRIDE)
    return run(x, shape, strides, target=target, perturbations_per_eval=at_once)[:, :1]


METHODS: dict[str, tuple[dict[str, Any], Method | None]] = {  # ours' name and keywords, PyTorch's of one class
    "gradient": ({}, lambda side, x, t: captum.Saliency(side.net).attribute(x, t, abs=False)),
    "input_x_gradient": ({}, lambda side, x, t: captum.InputXGradient(side.net).attribute(x, t)),
    "integrated_gradients": ({"steps": STEPS}, integrated),
    "occlusion": ({"window": WINDOW, "stride": STRIDE}, occlusion),
    "grad_cam": ({"layer": None}, grad_cam),
    "smooth_grad": ({"samples": STEPS}, smooth_grad),
    "rise": ({"masks": MASKS}, None),
    "lrp": ({"composite": "epsilon_plus"}, lrp),
    "deep_lift": ({}, lambda side, x, t: captum.DeepLift(side.net).attribute(x, target=t)),
}


def stacked(theirs: Method, side: Side, x: torch.Tensor, classes: int) -> torch.Tensor:
    """Classes one after the other, (images, classes, H, W, C); LRP's rules are registered once for all of them."""
    with side.composite.context(side.net) if theirs is lrp else nullcontext():
        return torch.stack([theirs(side, x, k) for k in range(classes)], 1).permute(0, 1, 3, 4, 2)


def waited(device: torch.device, run: Callable[..., Any], *args: Any, **keywords: Any) -> Callable[[], Any]:
    """A job of PyTorch that ends when its device has done it."""

    def job() -> Any:
        found = run(*args, **keywords)
        wait(device)
        return found

    return job


def fastest(net: nn.Module, x: torch.Tensor) -> tuple[torch.memory_format, int]:
    """Memory format, and images in a batch, with which integrated gradients take the least time."""
    seconds = {}
    for kind, batch in product((torch.contiguous_format, torch.channels_last), (64, 512)):
        run = captum.IntegratedGradients(net.to(memory_format=kind)).attribute
        arguments = {"target": 0, "n_steps": STEPS, "internal_batch_size": batch}
        job = waited(x.device, run, x.contiguous(memory_format=kind), **arguments)
        seconds[kind, batch] = min(timed(job) for _ in range(3))
    return min(seconds, key=lambda choice: seconds[choice])


def rows_of(name: str, options: Options) -> tuple[dict[str, Any], dict[str, float], dict[str, str]]:
    """Seconds of both sides of every row of a network, differences, and what there was to say of a row."""
    values, images = variables(name), examples(name, options.images).astype(np.float32)
    device = torch_device()
    net, module = network(name, values), in_torch(name, values).to(device)
    layer = NETWORKS[name][2]
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
    kind, batch = fastest(module, x)
    module, x = module.to(memory_format=kind), x.contiguous(memory_format=kind)
    composite = zennit.composites.EpsilonPlus(canonizers=[zennit.canonizers.SequentialMergeBatchNorm()])
    side = Side(module, module.get_submodule(layer.replace("/", ".")), batch, composite)
    masks = rise_masks(images.shape[1]).to(device)
    seconds: dict[str, Any] = {}
    differences: dict[str, float] = {}
    notes = {name: f"PyTorch runs {kind}, {batch} images in a batch, and 100 for RISE"}
    for row, (keywords, theirs) in METHODS.items():
        if options.methods and row not in options.methods:
            continue
        function = getattr(attribute, row, None)
        if function is None:
            notes[f"{name}/{row}"] = f"left out: jaxinterp.attribute has no {row}"
            continue
        given = {**keywords, "layer": layer} if "layer" in keywords else keywords
        jobs: dict[str, Callable[[], Any]] = {}
        for classes in (1, CLASSES):
            rows = np.tile(np.arange(classes), (len(images), 1))
            jobs[f"{classes}/ours"] = partial(_ours, function, net, images, rows, given)
            if theirs is not None:
                jobs[f"{classes}/torch"] = waited(device, stacked, theirs, side, x, classes)
                if row not in DRAWN:
                    pair = [jobs[f"{classes}/{which}"]() for which in ("ours", "torch")]
                    differences[f"{name}/{row}/{classes}"] = relative(*pair)
        if theirs is None:
            jobs[f"{CLASSES}/torch"] = waited(device, rise, module, masks, x)
        times = alternate(jobs, options.rounds)
        if theirs is None:
            times["1/torch"] = times[f"{CLASSES}/torch"]
        for job, result in times.items():
            seconds[f"{name}/{row}/{job}"] = result
        print(name, row, {job: round(result["median"], 4) for job, result in times.items()}, flush=True)
    return seconds, differences, notes


def _ours(function: Callable[..., Any], net: Any, x: np.ndarray, rows: np.ndarray, keywords: dict[str, Any]) -> Any:
    return jax.block_until_ready(function(net, x, rows, **keywords).contributions)


def main(options: Options) -> None:
    """Measure, print and write the results."""
    warnings.filterwarnings("ignore", module="captum|zennit|torch")
    measured: dict[str, dict[str, Any]] = {field: {} for field in ("seconds", "relative_difference", "notes")}
    for name in options.networks:
        for field, found in zip(measured, rows_of(name, options), strict=True):
            measured[field] |= found
    seconds = measured["seconds"]
    faster = {
        row.removesuffix("/ours"): {
            kind: seconds[row.replace("/ours", "/torch")][kind] / seconds[row][kind] for kind in ("median", "minimum")
        }
        for row in seconds
        if row.endswith("/ours")
    }
    medians = {row: ratio["median"] for row, ratio in faster.items()}
    ten = [ratio for row, ratio in medians.items() if row.endswith(f"/{CLASSES}")]
    ratios = {
        "geometric_mean_vs_torch": statistics.geometric_mean(ten),
        "least_vs_torch": min(medians.values()),
    }
    if not options.write and (set(options.networks) != set(Options.networks) or options.methods):
        print(ratios, medians, measured["relative_difference"], sep="\n")
    else:
        record(
            "attribution",
            seconds,
            ratios,
            speed_vs_torch=faster,
            relative_difference=measured["relative_difference"],
            notes=measured["notes"],
            setting={
                "images": options.images,
                "rounds": options.rounds,
                "steps": STEPS,
                "masks": MASKS,
                "window": WINDOW,
                "stride": STRIDE,
            },
        )
    wrong = {row: d for row, d in measured["relative_difference"].items() if not d <= TOLERANCE}
    if wrong:
        raise SystemExit(f"relative_difference: got {wrong}, expected <= {TOLERANCE}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
