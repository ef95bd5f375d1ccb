"""Deep gated networks and their neural path kernel: the tables of NPF and DLGN, and kernel regression.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN").

    python experiments/gated.py RUN [part.field=value ...]    trains, evaluates and reports
    jaxinterp train RUN [part.field=value ...]                e.g. gated/mnist-learnt-adam --seeds 0,1,2
    jaxinterp evaluate runs/RUN                accuracy, NPK regression if the run asks for it, removal, completeness

`jaxinterp list` shows for each run where it stands in the papers, how long it took, and the printed numbers: they are
the fields of `RUNS` below. Regimes: fixed random gates, independent of the values' weights (`frozen`, FR-II) or equal
to them (`copied`, FR-DI); gates of a trained ReLU network (`learnt`, FLNPF: it is trained first, in the run's own
folder `pretrained`); gates trained together with the values (`decoupled`, DNPFL) or alone, with fixed random values
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

from typing import Any

from jaxinterp.gated.family import GatedModel, Regime
from jaxinterp.recipe.config import Augment, Data, Evaluate, Experiment, Optim, Run
from jaxinterp.recipe.presets import LAPTOP
from jaxinterp.train import TrainConfig

REGIMES: tuple[Regime, ...] = ("frozen", "copied", "decoupled", "learnt", "relu")

# NPF's table (README of the authors' code): mean of five runs, the best test accuracy over the epochs of each.
NPF: dict[tuple[str, str], tuple[float, ...]] = {
    ("fc", "sgd"): (0.9585, 0.9585, 0.9786, 0.971, 0.9785),
    ("fc", "adam"): (0.9602, 0.9609, 0.9822, 0.9782, 0.9814),
    ("vconv", "sgd"): (0.5892, 0.5883, 0.6321, 0.6306, 0.6702),
    ("vconv", "adam"): (0.6486, 0.6468, 0.6945, 0.714, 0.7243),
    ("gconv", "sgd"): (0.6736, 0.6686, 0.7457, 0.7852, 0.789),
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
    ("cifar100", "c4gap"): (0.518, 0.474, 0.473, 0.474, 0.48),
    ("cifar10", "vgg16"): (0.936, 0.93, 0.93, 0.87, 0.87, 0.849),
    ("cifar10", "resnet"): (0.94, 0.933, 0.932, 0.879, 0.878),
    ("cifar100", "vgg16"): (0.734, 0.703, 0.705, 0.615, 0.615, 0.563),
    ("cifar100", "resnet"): (0.727, 0.708, 0.708, 0.623, 0.627),
}

MNIST = Run(
    GatedModel(),
    data=Data(name="mnist", channels=1),
    augment=Augment(flip=False, crop_padding=0),
    optim=Optim(learning_rate=1e-4, schedule="constant"),
    train=TrainConfig(epochs=100, batch_size=32, val_fraction=0.02),
    evaluate=Evaluate(grid_sizes=(), removal_images=200, occlusion_stride=4),
)

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01}

DIGITS = MNIST.replace(
    data={"name": "digits"},
    model={"kernel_images": 1437},
    optim={"learning_rate": 0.001},
    train={"epochs": 40, "val_fraction": 0.1},
    evaluate={"removal_images": 120, "occlusion": (3, 5), "occlusion_stride": 2},
)

CIFAR = MNIST.replace(
    data={"name": "cifar10", "channels": 3},
    model={"sharpness": 10.0, "scale": 1.0},
    optim={"learning_rate": 0.0003},
    evaluate={"grids": 100},
)

POOLED = CIFAR.replace(evaluate={"grid_sizes": (3,)})

VCONV = CIFAR.replace(model={"architecture": "vconv", "sharpness": 4.0, "scale": 1.1}, train={"epochs": 80})

GCONV = VCONV.replace(model={"architecture": "gconv"}, train={"epochs": 200}, evaluate={"grid_sizes": (3,)})

RAMP = POOLED.replace(
    augment={"flip": True, "crop_padding": 4},
    model={"standardize": True, "weights": "normal"},
    optim={"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "schedule": "ramp"},
    train={"batch_size": 128, "epochs": 168},
)

# λ of weight decay is twice that of Keras' λ ||w||².
RECIPES: dict[str, Run[GatedModel]] = {
    "c4gap": POOLED.replace(model={"architecture": "c4gap", "depth": 4}, train={"epochs": 200}),
    "vgg16": RAMP.replace(model={"architecture": "vgg16", "width": 64}, optim={"weight_decay": 0.0005}),
    "resnet": RAMP.replace(model={"architecture": "resnet", "width": 16, "depth": 110}, optim={"weight_decay": 0.0002}),
}

KERNEL = MNIST.replace(model={"kernel_images": 60000})

SMALL = RECIPES["c4gap"].replace(
    data={"image_size": 16, "max_images": 600},
    model={"kernel_images": 600, "kernel_tests": 300, "width": 64},
    optim={"learning_rate": 0.001},
    train={"epochs": 60},
)

FLAT = KERNEL.replace(data={"name": "cifar10", "channels": 3, "max_images": 10_000}, model={"kernel_images": 10_000})

# Each of four, by `python experiments/claims.py tune`; SOFT: of gates that are trained.
CONV_RATE, SOFT_RATE, RESNET_RATE, RESNET_SOFT_RATE = 0.01, 0.003, 0.01, 0.003
SMALLER = RAMP.replace(**LAPTOP).replace(optim={"momentum": 0.0, "weight_decay": 0.02}, evaluate={"grid_sizes": ()})
CONV = SMALLER.replace(
    model={"architecture": "c4gap", "depth": 4, "width": 32, "stride": 2, "regime": "relu"},
    train={"epochs": 10},
)
RESNET = SMALLER.replace(
    model={"architecture": "resnet", "depth": 8, "width": 32, "stride": 2, "regime": "relu"},
    train={"epochs": 60},
    evaluate={"grid_sizes": (3,)},
)
SHORT = RESNET.replace(train={"epochs": 20}, evaluate={"grid_sizes": ()})
# The networks of `jaxinterp claims`: where they start from, learning rate, fields, what they are.
LAPTOPS: dict[str, tuple[Run[GatedModel], float, dict[str, Any], str]] = {
    "conv-dnn": (CONV, CONV_RATE, MODELS["dnn"], "a ReLU network, four convolutions"),
    "conv-dlgn": (CONV, SOFT_RATE, {"regime": "decoupled", **MODELS["dlgn-x"]}, "its DLGN"),
    "conv-dlgn-1": (CONV, SOFT_RATE, {"regime": "decoupled", **MODELS["dlgn-1"]}, "its DLGN, values of ones"),
    "conv-dlgn-permuted": (
        CONV, SOFT_RATE, {"regime": "decoupled", **MODELS["dlgn-x"], "order": (3, 2, 1, 0)},
        "its DLGN, gates in reverse order",
    ),
    "conv-frozen": (CONV, CONV_RATE, {"regime": "frozen"}, "values alone, random gates"),
    "conv-decoupled": (CONV, SOFT_RATE, {"regime": "decoupled", **MODELS["dgn-x"]}, "its DGN, gates trained too"),
    "conv-learnt": (CONV, CONV_RATE, {"regime": "learnt"}, "values alone, gates of the ReLU network"),
    "resnet8-dnn": (RESNET, RESNET_RATE, MODELS["dnn"], "ResNet-8, the baseline of CoDA and TaylorNet too"),
    "resnet8-short-dnn": (SHORT, RESNET_RATE, MODELS["dnn"], "ResNet-8"),
    "resnet8-short-dlgn": (SHORT, RESNET_SOFT_RATE, {"regime": "decoupled", **MODELS["dlgn-x"]}, "its DLGN"),
}  # fmt: skip
# Training with another run on the other core; conv-learnt with the ReLU network that is trained first.
LAPTOP_MINUTES = {
    "conv-dnn": 6, "conv-dlgn": 18, "conv-dlgn-1": 15, "conv-dlgn-permuted": 16, "conv-frozen": 8, "conv-decoupled": 14,
    "conv-learnt": 15, "resnet8-dnn": 57, "resnet8-short-dnn": 23, "resnet8-short-dlgn": 58,
}  # fmt: skip

# Of one core among two that were shared; learnt gates with the ReLU network that is trained first.
MINUTES: dict[str, dict[Regime, int]] = {
    "adam": {"frozen": 6, "copied": 7, "decoupled": 11, "learnt": 13, "relu": 6},
    "sgd": {"frozen": 10, "copied": 14, "decoupled": 13, "learnt": 22, "relu": 10},
}


def _npf(architecture: str, optimizer: str, config: Run[GatedModel]) -> dict[str, Experiment[GatedModel]]:
    """Return the five regimes of one row of NPF's table."""
    stem = "mnist" if architecture == "fc" else f"cifar10-{architecture}"
    return {
        f"gated/{stem}-{regime}-{optimizer}": Experiment(
            config.replace(model={"regime": regime}, train={"eval_test_each_epoch": True}),
            f"NPF, table of test accuracies: {architecture.upper()}, {optimizer.upper()}",
            time=f"{MINUTES[optimizer][regime]} min on one CPU core" if architecture == "fc" else "not measured",
            paper={"test_accuracy_highest": accuracy},
            headline=optimizer == "adam" and regime in ("learnt", "relu"),
        )
        for regime, accuracy in zip(REGIMES, NPF[architecture, optimizer], strict=True)
    }


def _dlgn(dataset: str, architecture: str) -> dict[str, Experiment[GatedModel]]:
    """Return one row of DLGN's tables."""
    classes = 100 if dataset == "cifar100" else 10
    config = RECIPES[architecture].replace(
        data={"name": dataset}, model={"classes": classes}, train={"eval_test_each_epoch": True}
    )
    name = "resnet110" if architecture == "resnet" else architecture
    return {
        f"gated/{dataset}-{name}-{model}": Experiment(
            config.replace(model=fields),
            f"DLGN, Table {('I' if architecture == 'c4gap' else 'III' if model == 'sf-1' else 'II')}: {name}",
            paper={"test_accuracy_highest": accuracy},
        )
        for (model, fields), accuracy in zip(MODELS.items(), DLGN[dataset, architecture], strict=False)
    }


def _scrambled(model: str) -> dict[str, Experiment[GatedModel]]:
    """Return C4GAP with its gates in reverse order, and tiled and rolled."""
    config = RECIPES["c4gap"].replace(model=MODELS[model], train={"eval_test_each_epoch": True})
    printed = {"dgn-x": 0.773, "dgn-1": 0.779, "dlgn-x": 0.759, "dlgn-1": 0.76}[model]
    return {
        f"gated/cifar10-c4gap-{model}-permuted": Experiment(
            config.replace(model={"order": (3, 2, 1, 0)}),
            "DLGN, Table I: one of its 23 permutations",
            paper={"test_accuracy_highest": printed},
        ),
        f"gated/cifar10-c4gap-{model}-rolled": Experiment(
            config.replace(model={"roll": 0}, train={"eval_test_each_epoch": False}, evaluate={"grid_sizes": ()}),
            "DLGN, drafts: tile and roll",
        ),
    }


DIGITS_RUNS: dict[str, dict[str, Any]] = {
    **{regime: {"regime": regime} for regime in REGIMES},
    "dlgn": {"gating": "linear"},
    "dlgn-sf": {"gating": "shallow"},
}

RUNS: dict[str, Experiment[GatedModel]] = {
    **{
        f"gated/digits-{name}": Experiment(DIGITS.replace(model=fields), "ours") for name, fields in DIGITS_RUNS.items()
    },
    **_npf("fc", "adam", MNIST),
    **_npf("fc", "sgd", MNIST.replace(train={"epochs": 300}, optim=SGD)),
    "gated/mnist-dlgn-adam": Experiment(MNIST.replace(model={"gating": "linear"}), "ours: DLGN with NPF's recipe"),
    "gated/mnist-npk-random": Experiment(
        KERNEL.replace(model={"regime": "frozen"}), "ours: NPK regression, random gates"
    ),
    "gated/mnist-npk-learnt": Experiment(
        KERNEL.replace(model={"regime": "learnt"}), "ours: NPK regression, learnt gates"
    ),
    **_npf("vconv", "adam", VCONV),
    **_npf("vconv", "sgd", VCONV.replace(optim=SGD)),
    **_npf("gconv", "adam", GCONV),
    **_npf("gconv", "sgd", GCONV.replace(optim={"optimizer": "sgd", "learning_rate": 0.1}, train={"epochs": 100})),
    **{name: run for row in DLGN for name, run in _dlgn(*row).items()},
    **{name: run for model in ("dgn-x", "dgn-1", "dlgn-x", "dlgn-1") for name, run in _scrambled(model).items()},
    **{
        f"gated/cifar10-gconv-staged-{epochs}": Experiment(
            GCONV.replace(model={"regime": "learnt", "gates_epochs": epochs}, train={"epochs": 80}),
            f"NPF, staged: gates of a ReLU network after {epochs} epochs",
        )
        for epochs in (10, 20, 30, 40, 50, 60)
    },
    "gated/cifar10-gconv-gates-adam": Experiment(
        GCONV.replace(model={"regime": "gates"}), "drafts of DLGN: gates trained alone"
    ),
    "gated/cifar10-c1gap-dnn": Experiment(
        RECIPES["c4gap"].replace(
            model={"depth": 1, "width": 512, "regime": "relu"},
            optim={"learning_rate": 0.001},
            train={"eval_test_each_epoch": True},
        ),
        "DLGN, Table III: C1GAP, 200 epochs",
        paper={"test_accuracy_highest": 0.622},
    ),
    "gated/cifar10-c4gap-sf-1": Experiment(
        RECIPES["c4gap"].replace(
            model={"width": 512, **MODELS["sf-1"]},
            optim={"learning_rate": 0.001},
            train={"epochs": 50, "eval_test_each_epoch": True},
        ),
        "DLGN, Table III: C4GAP-DLGN-SF, width 512",
        paper={"test_accuracy_highest": 0.751},
    ),
    **{
        f"gated/cifar10-laptop-{name}": Experiment(
            base.replace(model=fields, optim={"learning_rate": rate}),
            f"ours: {what}, for `jaxinterp claims`",
            time=f"{LAPTOP_MINUTES[name]} min on one CPU core",
            headline=False,
        )
        for name, (base, rate, fields, what) in LAPTOPS.items()
    },
    **{
        f"gated/cifar10-npk-{name}": Experiment(
            base.replace(model={"regime": regime}),
            f"ours: {what}",
            time=f"{took} min on one CPU core, and {kernel} for the kernel",
            headline=False,
        )
        for name, base, regime, what, took, kernel in (
            ("random", SMALL, "frozen", "conv + GAP NPK of 600 16x16 images", 3, 6),
            ("learnt", SMALL, "learnt", "the same, learnt gates", 3, 5),
            ("fc-random", FLAT, "frozen", "fully connected NPK of 10,000 images", 2, 3),
            ("fc-learnt", FLAT, "learnt", "the same, learnt gates", 4, 3),
        )
    },
}

REFERENCE_NAME = "fully connected networks on MNIST with Adam, learnt gates"

REFERENCE = {"test_accuracy_highest": NPF["fc", "adam"][3]}

if __name__ == "__main__":
    from jaxinterp.app.cli import run_experiment

    run_experiment(__file__)
