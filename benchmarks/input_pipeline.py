"""Images a second from a folder of JPEGs to batches, and what training a ResNet-50 on a TPU v5e-4 would need.

    python -m benchmarks.input_pipeline                     # 512 JPEGs of 500 × 375, to 224 × 224

The photographs are drawn by this program: smooth colors, edges and noise, of about 100 kB each, as ImageNet's are. The
folder is read as `--data folder:PATH` streams it: grain, Pillow, whole batches of bytes; flips and crops happen on the
device, in the training step. `threads` are grain's, 0 decodes within the loop that asks for batches. Every figure is an
epoch, files in the page cache. `parts` are milliseconds of one image in one thread.

`needed` is a bound for the devices: images/s = chips · peak · utilization / FLOPs of a training step per image, three
times a forward pass. A Coded ResNeXt-50 (32×4d) has nearly a ResNet-50's FLOPs: 4.2 and 4.1 billion multiply-adds.
"""

import io
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageOps

from benchmarks.measuring import alternate, record, timed
from jaxinterp.data.loading import own_set
from jaxinterp.data.pictures import Conversion, convert
from jaxinterp.data.stream import host_batches

MULTIPLY_ADDS = {"resnet50": 4.1e9, "coded_resnext50": 4.2e9}  # of a forward pass at 224 × 224
CHIPS, PEAK = 4, 197e12  # of a v5e: bfloat16 FLOP/s a chip, as published


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    images: int = 512
    height: int = 375
    width: int = 500
    size: int = 224
    batch: int = 64
    rounds: int = 7
    utilization: float = 0.4
    """Share of the devices' peak that training reaches."""


def photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Draw smooth colors, edges and noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.float32)
    for _ in range(20):  # blocks of one color, with sharp edges
        top, left = rng.integers(height), rng.integers(width)
        block = pixels[top : top + rng.integers(10, 120), left : left + rng.integers(10, 120)]
        block[:] = 0.5 * block + 0.5 * rng.integers(0, 256, 3)
    return Image.fromarray((pixels + rng.normal(0, 15, pixels.shape)).clip(0, 255).astype(np.uint8))


def parts(content: bytes, size: int, rounds: int) -> dict[str, float]:
    """Milliseconds of decoding, resizing and all of one image."""
    conversion = Conversion(size=size)
    decoded = Image.open(io.BytesIO(content)).convert("RGB")
    jobs = {
        "decode": lambda: Image.open(io.BytesIO(content)).load(),
        "resize": lambda: ImageOps.fit(decoded, (size, size), Image.Resampling.BICUBIC),
        "convert": lambda: convert(content, size, size, conversion),
    }
    return {name: 1e3 * statistics.median(timed(job) for _ in range(20 * rounds)) for name, job in jobs.items()}


def main(options: Options) -> None:
    """Measure and write."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        for i in range(options.images):
            folder = Path(name) / f"class{i % 4}"
            folder.mkdir(exist_ok=True)
            photograph(rng, options.height, options.width).save(folder / f"{i}.jpg", quality=90)
        examples = own_set(f"folder:{name}", test_fraction=0.01).part("train")
        places, conversion = examples.index.tolist(), Conversion(size=options.size)

        def example(number: int) -> dict[str, np.ndarray]:
            content, label = examples.fetch(places[int(number)])
            pixels = convert(content, options.size, options.size, conversion).pixels
            return {"image": pixels, "label": np.asarray(label, np.int32), "index": np.asarray(number, np.int32)}

        def epoch(threads: int) -> int:
            batches = host_batches(
                len(places), example, options.batch, train=True, seed=0, epoch=0, num_threads=threads
            )
            return sum(len(batch["label"]) for batch in batches)

        count, content = epoch(2), examples.fetch(places[0])[0]
        jobs = {f"threads_{threads}": lambda threads=threads: epoch(threads) for threads in (0, 1, 2, 4, 16)}
        seconds = alternate(jobs, options.rounds)  # type: ignore[arg-type]
        each = parts(content, options.size, options.rounds)
        file_bytes = statistics.mean(len(examples.fetch(place)[0]) for place in places)
    rates = {name: count / times["median"] for name, times in seconds.items()}
    best, cores = max(rates.values()), len(os.sched_getaffinity(0))
    flops = {name: 3 * 2 * macs for name, macs in MULTIPLY_ADDS.items()}
    needed = {name: CHIPS * PEAK * options.utilization / each for name, each in flops.items()}
    record(
        "input_pipeline",
        seconds,
        {f"cores_for_v5e4_{name}": cores * images / best for name, images in needed.items()},
        name="input-pipeline",
        setting=asdict(options) | {"chips": CHIPS, "peak_flops": PEAK, "file_bytes": file_bytes},
        images_per_second=rates,
        images_per_second_and_core=best / cores,
        parts_milliseconds=each,
        needed_images_per_second=needed,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
