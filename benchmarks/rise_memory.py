"""Memory of RISE with 8,000 masks on one image of 224×224 pixels, of a ResNet-20, beside its budget.

    python -m benchmarks.rise_memory                      # some minutes

`rise_over_budget` is the growth of the resident set during the call, beyond what the process held after a call with a
few masks that compiled the same programs, over `max_bytes`.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.measuring import peak, record, timed
from benchmarks.networks import network, variables
from jaxinterp import attribute


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    pixels: int = 224
    masks: int = 8000
    max_bytes: int = 1 << 30


def main(options: Options) -> None:
    """Measure, and write the record."""
    net = network("resnet20", variables("resnet20"))
    x = np.random.default_rng(0).random((1, options.pixels, options.pixels, 3), np.float32)

    def run(masks: int) -> Any:
        return jax.block_until_ready(attribute.rise(net, x, masks=masks, max_bytes=options.max_bytes).contributions)

    run(8)
    grown, seconds = peak(lambda: timed(partial(run, options.masks)))
    print(f"{seconds:.0f} s")
    ratios = {"rise_over_budget": grown / options.max_bytes}
    record("rise_memory", {}, ratios, name="rise-memory", setting=asdict(options))


if __name__ == "__main__":
    main(tyro.cli(Options))
