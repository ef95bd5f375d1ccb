"""TaylorNet: networks that are polynomials, trained, truncated and read order by order.

After Yang, Xie & Yang, "Exploring explicit coarse-grained structure in artificial neural networks" (Chin. Phys. Lett.
40, 020501, 2023, arXiv 2211.01779), of which the abstract could be read and neither the full text nor code: the design
and the recipes are ours, no number of the paper is quoted, and no run reproduces one.

    python experiments/taylor.py RUN [part.field=value ...]    trains, evaluates and reports
    jaxinterp train RUN [part.field=value ...]                 e.g. taylor/mnist --seeds 0,1,2
    jaxinterp evaluate runs/RUN                accuracy, also of truncated series, and the energy of each order

`jaxinterp list` shows for each run how long it took. Images are centered on the mean training image, which is the
expansion point. A run ending in `-low-orders` has the penalty λ Σ_m c^m ⟨f_m²⟩, which moves weight to low orders.

The runs `distill/...` are the paper's other half, coarse-grained data distillation: a data set distilled level by level
down to one image per class.

    jaxinterp train distill/mnist              learns the embedding and the map that merges images
    jaxinterp evaluate runs/distill-mnist      distills the training set, measures every level and the baselines

The images lie in the run's folder, distilled/level_<k>.npz (with labels, level and provenance) and distilled/sheet.png;
`data.distilled=FILE` trains any run on such a file in place of its data set's training images.

Baselines in the same table: random images, class means, k-means centers, and dataset condensation (DC; Zhao et al.,
ICLR 2021), each as references and as training set of a ConvNet. Published numbers of that literature are for networks
trained on the images (MNIST, 1 and 10 per class: DC 91.7 and 97.4 %; CIFAR-10: 28.3 and 44.9 %, its readme).
"""

from typing import Any

from jaxinterp.recipe.config import Augment, Data, Evaluate, Experiment, Optim, Run
from jaxinterp.recipe.presets import LAPTOP
from jaxinterp.taylor.distill.family import DistillModel
from jaxinterp.taylor.family import TaylorModel
from jaxinterp.train import TrainConfig

MNIST = Run(
    TaylorModel(),
    data=Data(name="mnist", channels=1),
    augment=Augment(flip=False, crop_padding=2),
    optim=Optim(optimizer="adamw", learning_rate=4e-3, weight_decay=1e-4, clip=1.0, schedule="onecycle"),
    train=TrainConfig(epochs=16, batch_size=128, val_fraction=0.02),
    evaluate=Evaluate(grid_sizes=(), removal_images=200, occlusion_stride=4),
)
SMALL = MNIST.replace(model={"side": 2, "features": (8, 16, 32, 64)}, train={"epochs": 20})
DIGITS = MNIST.replace(
    data={"name": "digits"},
    augment={"crop_padding": 1},
    model={"features": (8, 16, 32), "size": 8},
    optim={"learning_rate": 0.003},
    train={"epochs": 40, "batch_size": 32, "val_fraction": 0.1},
    evaluate={"removal_images": 120, "occlusion": (3,)},
)
MINI = MNIST.replace(
    data={"name": "cifar10", "channels": 3},
    augment={"flip": True, "crop_padding": 3},
    model={
        "features": (16, 32, 64, 96),
        "ranks": (32, 64, 96, 96),
        "quadratic": 0.25,
        "scale": 0.25,
        "order_images": 2000,
    },
    optim={"learning_rate": 0.003, "weight_decay": 0.001},
    train={"epochs": 12},
)
LAPTOP_RATE = 0.001  # of four, by `python experiments/claims.py tune`
SMALLER = MINI.replace(**LAPTOP).replace(
    model={"features": (24, 48, 96, 128), "ranks": (48, 96, 128, 128)},
    optim={"learning_rate": LAPTOP_RATE},
    train={"epochs": 44},
)
CIFAR10 = MINI.replace(
    augment={"crop_padding": 4},
    model={
        "design": "residual",
        "features": (32, 64, 128, 160),
        "ranks": (),
        "depths": (2, 2, 2, 2),
        "orders": 8,
        "order_images": 1000,
    },
    optim={"clip": 1.0},
    train={"epochs": 100},
)


def _distill(run: Run[TaylorModel], **fields: Any) -> Run[DistillModel]:
    """Return the distillation with the embedding of a Taylor run."""
    model = DistillModel(**vars(run.model), **fields)
    distillation = Run(model, run.data, run.augment, run.optim, run.train, run.evaluate)
    return distillation.replace(train={"epochs": 20, "batch_size": 512})


LOW_ORDERS: dict[str, Any] = {"penalty": 0.0001, "growth": 2.0}
RUNS: dict[str, Experiment[Any]] = {
    "taylor/digits": Experiment(DIGITS, "ours"),
    "taylor/mnist": Experiment(MNIST, "ours: windows 4x4, degree 16", time="5 min on 2 CPU cores"),
    "taylor/mnist-small": Experiment(
        SMALL, "ours: disjoint blocks, degree 16", time="2 min on one CPU core", headline=False
    ),
    "taylor/mnist-low-orders": Experiment(
        MNIST.replace(model=LOW_ORDERS),
        "ours: with the order penalty",
        time="40 min on one busy CPU core",
        headline=False,
    ),
    **{
        f"taylor/mnist-direct{order}": Experiment(
            MNIST.replace(
                model={"features": (), "size": None, "head_order": order, "head_form": "ccp", "head_rank": 64},
                optim={"learning_rate": 0.003},
                train={"epochs": 6},
            ),
            f"ours: direct expansion of order {order}",
        )
        for order in (1, 2, 4)
    },
    "taylor/cifar10-mini": Experiment(MINI, "ours: windows 4x4, degree 16", time="20 min on one busy CPU core"),
    "taylor/cifar10-laptop": Experiment(
        SMALLER,
        "ours: windows 4x4, degree 16, for `jaxinterp claims`",
        time="45 min on one CPU core",
        headline=False,
    ),
    "taylor/cifar10": Experiment(CIFAR10, "ours: residual blocks, degree 256"),
    "distill/mnist": Experiment(
        _distill(MNIST), "ours: one reference per class out of 4096 images", time="10 min on 2 CPU cores"
    ),
    "distill/cifar10": Experiment(
        _distill(MINI, net_width=128, condense_iterations=1000, condense_batch=256).replace(train={"epochs": 60}),
        "ours: one reference per class out of 4096 images",
    ),
}

if __name__ == "__main__":
    from jaxinterp.app.cli import run_experiment

    run_experiment(__file__)
