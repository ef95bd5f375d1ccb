"""Cost of an exact explanation of all classes, in forward passes, for every family.

    python -m benchmarks.explanation_cost                       # the published networks of the package, and S-CoDA
    python -m benchmarks.explanation_cost --only coda taylor    # some of them

`forward` is the network's logits, as it is trained. `explained` is `decompose` of its input for all classes, with what
it measures of itself: the frozen pass, one backward pass a class, two directional derivatives (bias and curvature), a
free forward pass (discrepancy) and the raised errors; `unchecked` is the same with `check=False`, which raises none.
Ratios are medians over medians of the same rounds, with ratios of minima beside; of one image and of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.measuring import alternate, record
from jaxinterp import decompose, explainable, load
from jaxinterp.coda.network import s_coda
from jaxinterp.explain.explainable import Explainable

PUBLISHED = {family: f"{family}-mnist" for family in ("coda", "coded", "gated", "glassbox", "taylor")}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    only: tuple[str, ...] = (*PUBLISHED, "s_coda")
    batch: int = 16
    rounds: int = 9


def network(name: str) -> tuple[Explainable, tuple[int, ...]]:
    """The network of a name, and the shape of its images."""
    if name != "s_coda":
        return load(PUBLISHED[name]), (28, 28, 1)
    model, shape = s_coda(1.0), (32, 32, 3)
    return explainable(model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))), shape


def jobs(name: str, count: int) -> dict[str, Callable[[], Any]]:
    """The forward pass of some images, and their explanations."""
    net, shape = network(name)
    x = jnp.asarray(np.random.default_rng(0).random((count, *shape), np.float32))
    forward = jax.jit(net.apply)
    return {
        "forward": lambda: jax.block_until_ready(forward(net.variables, x)),
        "explained": lambda: jax.block_until_ready(decompose(net, x)),
        "unchecked": lambda: jax.block_until_ready(decompose(net, x, check=False)),
    }


def main(options: Options) -> None:
    """Measure every family, and write the ratios."""
    seconds, ratios, minima = dict[str, Any](), dict[str, float](), dict[str, float]()
    with jax.default_matmul_precision("highest"):
        for name in options.only:
            for images, count in {"image": 1, "batch": options.batch}.items():
                found = alternate(jobs(name, count), options.rounds)
                seconds |= {f"{name}/{images}/{job}": times for job, times in found.items()}
                for job in ("explained", "unchecked"):
                    key = f"{name}_{images}_{job}_over_forward"
                    ratios[key] = found[job]["median"] / found["forward"]["median"]
                    minima[key] = found[job]["minimum"] / found["forward"]["minimum"]
                    print(key, round(ratios[key], 2), round(minima[key], 2), flush=True)
    record(
        "explanation_cost", seconds, ratios, name="explanation-cost", setting={"batch": options.batch}, minima=minima
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
