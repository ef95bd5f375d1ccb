"""The glass box: fitting, transforming, and how near the orbit × template product comes to a plain matrix product.

    python -m benchmarks.glassbox               # the representation of glassbox/mnist-3-8; 2,000 and 10,000 images

`fit` is the complete fit (templates, features of 2,000 images, standardization, PCA, RBF SVM), `transform` the features
of 10,000 images, `respond` the orbit × template product of 1,000 of them, and `gemm` the same product of two matrices
that lie ready. Images are random. All alternate in one process; medians.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from benchmarks.measuring import alternate, record, relative
from jaxinterp.app.registry import runs
from jaxinterp.glassbox.classifier import GlassBoxClassifier
from jaxinterp.glassbox.network import OrbitRepresentation, orbit_kernel, respond


@dataclass(frozen=True)
class Options:
    """Sizes of the measurement."""

    fit: int = 2000
    transform: int = 10_000
    chunk: int = 1000  # images of one product
    rounds: int = 5


def main(options: Options) -> None:
    """Measure, print and write the results."""
    model = runs()["glassbox/mnist-3-8"].run.model
    group = model.elements
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(options.transform, 28, 28, 1)).astype(np.float32)
    labels = np.arange(options.fit) % 2
    classifier = GlassBoxClassifier(
        OrbitRepresentation(group, model.templates, model.invariants), "svm_rbf", model.components, batch=options.chunk
    )
    with warnings.catch_warnings():  # of a group that leaves the grid, which is not the point here
        warnings.simplefilter("ignore")
        fitted = classifier.fit(images[: options.fit], labels)
    kernel = jax.jit(orbit_kernel, static_argnums=0)(group, jnp.asarray(fitted.templates))
    matrix, chunk = kernel.reshape(len(kernel), -1), jnp.asarray(images[: options.chunk])
    rows = chunk.reshape(options.chunk, -1)
    answer, product = jax.jit(respond), jax.jit(jnp.matmul)
    difference = relative(answer(kernel, chunk), torch.from_numpy(np.array(product(rows, matrix))))

    def fit() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return classifier.fit(images[: options.fit], labels)

    seconds = alternate(
        {
            "fit": fit,
            "transform": lambda: fitted.transform(images),
            "respond": lambda: jax.block_until_ready(answer(kernel, chunk)),
            "gemm": lambda: jax.block_until_ready(product(rows, matrix)),
        },
        options.rounds,
    )
    median = {name: times["median"] for name, times in seconds.items()}
    chunks = options.transform / options.chunk
    ratios = {
        "respond_vs_gemm": median["gemm"] / median["respond"],
        "gemm_share_of_transform": chunks * median["gemm"] / median["transform"],
        "fit_seconds": median["fit"],
        "transform_seconds": median["transform"],
    }
    setting = {**vars(options), "group": group.name, "templates": model.templates, "components": model.components}
    record("glassbox", seconds, ratios, setting=setting, relative_difference={"respond": difference})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
