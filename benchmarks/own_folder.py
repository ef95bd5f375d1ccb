"""From a folder of photographs to its report: seconds of `train --data folder:...` and of `explain`, by family.

    python -m benchmarks.own_folder
    python -m benchmarks.own_folder --families coda gated

The folder has 3 classes of 60 pictures, of sizes from 200 to 640 pixels and of mixed formats: JPEG in RGB, gray and
CMYK, some turned by EXIF, PNG with 8 bits, 16 bits, palettes and transparency, GIF, BMP, TIFF and WebP. They are drawn
by this program: one, two or three bright disks on a colored, noisy ground, so that there is something to learn. Every
command runs in a process of its own; the first one of a family has an empty cache of compiled programs.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from benchmarks.measuring import record

CLASSES = ("one", "two", "three")
FORMATS = ("jpg", "gray.jpg", "cmyk.jpg", "turned.jpg", "png", "deep.png", "palette.png", "clear.png", "gif", "bmp",
           "tiff", "webp")  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    families: tuple[str, ...] = ("coda", "coded", "taylor", "gated")
    images: int = 60
    """Pictures of each class."""


def draw(rng: np.random.Generator, disks: int) -> np.ndarray:
    """Draw bright disks on a colored, noisy ground; uint8 (H, W, 3)."""
    height, width = rng.integers(200, 641, 2)
    ground = rng.integers(20, 110, 3) + rng.normal(0, 12, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    places = rng.permutation(4)[:disks]  # quarters of the center
    for place in places:
        y, x = top + side * (0.28 + 0.44 * (place // 2)), left + side * (0.28 + 0.44 * (place % 2))
        inside = (rows - y) ** 2 + (columns - x) ** 2 < (side * rng.uniform(0.11, 0.17)) ** 2
        ground[inside] = rng.integers(180, 256, 3)
    return ground.clip(0, 255).astype(np.uint8)


def save(pixels: np.ndarray, path: Path) -> None:
    """Save a picture in the format that its name says."""
    image, kind = Image.fromarray(pixels), path.name.split(".", 1)[1]
    if kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    elif kind == "deep.png":
        Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(path)
    elif kind == "clear.png":
        image.putalpha(Image.new("L", image.size, 255))
        image.save(path)
    else:
        modes = {"gray.jpg": "L", "cmyk.jpg": "CMYK", "palette.png": "P", "gif": "P"}
        image.convert(modes.get(kind, "RGB")).save(path)


def photographs(folder: Path, count: int) -> Path:
    """Fill a folder with pictures; return it."""
    rng = np.random.default_rng(0)
    for disks, name in enumerate(CLASSES, 1):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            save(draw(rng, disks), folder / name / f"{i}.{FORMATS[i % len(FORMATS)]}")
    return folder


def seconds(folder: Path, *words: str) -> tuple[float, str]:
    """Run a command in a folder; return its seconds and what it said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    command, start = [str(Path(sys.executable).with_name("jaxinterp")), *words], time.perf_counter()
    options = {"env": {**environment, "XDG_CACHE_HOME": str(folder / f"cache-{words[1]}")}, "cwd": folder}
    found = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if found.returncode:
        raise SystemExit(found.stdout + found.stderr)
    return time.perf_counter() - start, found.stdout


def main(options: Options) -> None:
    """Measure every family, and write the table."""
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = photographs(folder / "photos", options.images)
        for family in options.families:
            trained, said = seconds(folder, "train", family, "--data", "folder:photos")
            print(said, flush=True)
            run = next((folder / "runs").glob(f"{family}-*"))
            explained, said = seconds(folder, "explain", str(run), str(pictures / "two" / "0.jpg"))
            print(said, flush=True)
            evaluation = next(line for line in (run / "evaluation.json").read_text().splitlines() if "test_acc" in line)
            accuracy = float(evaluation.split(":")[1].strip(" ,"))
            table.append({"family": family, "train": trained, "explain": explained, "test_accuracy": accuracy})
    ratios = {f"{row['family']}_seconds": row["train"] + row["explain"] for row in table}
    record("own_folder", {}, ratios, name="own-folder", setting=asdict(options), table=table)


if __name__ == "__main__":
    main(tyro.cli(Options))
