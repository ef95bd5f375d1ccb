"""Data sets read: those of one's own into memory or as a stream, and all of them by one name."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.checks import require, require_one_of
from jaxinterp.data.datasets import NAMES, Dataset, load_named
from jaxinterp.data.own import (
    KINDS,
    PART_NAMES,
    BadFiles,
    Examples,
    OnBad,
    OwnSet,
    is_own,
    some,
    split_set,
)
from jaxinterp.data.own_arrays import npz_set
from jaxinterp.data.own_files import find, list_folder, list_table, listed_files
from jaxinterp.data.pictures import Conversion, Picture, assumed_bits, convert, largest_deep_value, quiet
from jaxinterp.data.stream import Stream, host_batches
from jaxinterp.data.tfds import Prepared, data_folder, open_named
from jaxinterp.errors import DataError
from jaxinterp.files import printable

SAMPLE = 100  # images whose largest value tells the bits of deep gray images


def load(
    name: str | OwnSet,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    conversion: Conversion | None = None,
    on_bad: OnBad = "raise",
    classes: Sequence[str] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Load one split of a data set into memory.

    Of a known name as its authors made it: `digits` is embedded (scikit-learn's 1,797 8 x 8 digits, pixel values 0 to
    16, split 1,437 / 360, stratified), and so is the test split `mnist-2000`, 200 test images of each of MNIST's
    classes (CC BY-SA 3.0, LeCun, Cortes, Burges). The others are looked for in `data_dir`: as tensorflow-datasets
    prepared them (array_record), then as official raw files (idx, idx.gz, CIFAR binary batches or their tar.gz), whose
    md5 sums are checked. Nothing is downloaded: `download` does that.

    Of one's own: folder:PATH, csv:FILE, npz:FILE or tfds:NAME[:VERSION], as `own_set` lists and `read_part` reads it.

    Args:
        name: mnist, mnist-2000, fashion_mnist, cifar10, cifar100, digits, one's own, or what `own_set` or `own_arrays`
            returned; imagenet2012 is streamed: see `jaxinterp.data.stream`.
        split: "train" or "test"; of one's own also "val".
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        conversion: of images of one's own: 64 x 64 RGB by default. The others keep size and channels.
        on_bad: see `own_set`.
        classes: see `own_set`.
        test_fraction: see `own_set`.
        seed: see `own_set`.

    Raises:
        DataError: the data are missing (the message has the commands that get them), truncated, foreign or altered.

    >>> load("digits", "test")
    Dataset(digits, test: 360 images uint8 8x8x1, 10 classes, maximum 16)
    """
    if isinstance(name, str) and not is_own(name):
        known = ", ".join([*NAMES, "mnist-2000", *(f"{kind}:{place}" for kind, place in KINDS.items())])
        require(":" not in name, "name", name, f"one of {known}")
        require(conversion is None, "conversion", conversion, f"none for {name}, which is loaded as it is")
        return load_named(name, split, data_dir)
    if isinstance(name, str):
        name = own_set(name, data_dir, classes=classes, on_bad=on_bad, test_fraction=test_fraction, seed=seed)
    return read_part(name, split, conversion or Conversion(), on_bad=on_bad)


def own_set(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    classes: Sequence[str] = (),
    on_bad: OnBad = "raise",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> OwnSet:
    """List an image classification set of one's own; no picture is decoded.

    - folder:PATH, a folder for each class, or train, test and perhaps val (also training, valid, validation, testing)
      above them; files of deeper folders belong to the class. Those that are no images by their names are left out,
      and the set's `notes` count them.
    - csv:FILE, with a header: path (relative to the file), label, and perhaps split; commas, semicolons or tabs.
    - npz:FILE, arrays images and labels, perhaps classes; or train_images, train_labels, test_images, ... or x_train,
      y_train, x_test, ...: pixels (N, H, W[, C]) as `own_arrays` takes them.
    - tfds:NAME[:VERSION], prepared by tensorflow-datasets in array_record, with one image and one class label.

    Where there is no test part, the validation part is taken; where there is none either, `test_fraction` of every
    class (at least one image) is taken from the training part: those whose names hash lowest, so that an image that is
    added later moves few others. Examples are in the order of such hashes, which mixes the classes.

    Args:
        name: one of the four.
        data_dir: where prepared sets lie, and paths that are not found otherwise; see `load`.
        classes: the classes' names, in the order of their labels; by default all that are found, sorted.
        on_bad: whether image files that are empty, paths that are missing and classes without images raise or are left
            out.
        test_fraction: in (0, 1).
        seed: of the split and the order.

    Raises:
        DataError: one line that names the first files, classes or rows at fault, and counts them.
    """
    require(is_own(name), "name", name, " or ".join(f"{kind}:{place}" for kind, place in KINDS.items()))
    require(0 < test_fraction < 1, "test_fraction", test_fraction, "in (0, 1)")
    require_one_of("on_bad", on_bad, ("raise", "skip"))
    kind, _, place = name.partition(":")
    if kind == "tfds":
        return _prepared(name, place, data_folder(data_dir), classes, test_fraction, seed)
    path = find(place, data_dir)
    if kind == "npz":
        return npz_set(name, path, classes, test_fraction, seed)
    found = list_folder(path) if kind == "folder" else list_table(path)
    return listed_files(name, path, found, classes, on_bad, test_fraction, seed)


def _prepared(name: str, place: str, folder: Path, classes: Sequence[str], fraction: float, seed: int) -> OwnSet:
    """Open a set that tensorflow-datasets prepared."""
    dataset, _, version = place.partition(":")
    opened, names, (image, label) = open_named(dataset, version, folder)
    if classes and tuple(classes) != names:
        raise DataError(f"{printable(name)}: got the classes {some(names, 10)}, expected {some(classes, 10)}")

    def examples(part: str, prepared: Prepared) -> Examples:
        def fetch(place: int) -> tuple[bytes, int]:
            record = prepared.fetch([place])[0]
            return record[image], int(record[label])

        def labels_at(index: np.ndarray) -> np.ndarray:
            pieces = (index[i : i + 4096].tolist() for i in range(0, len(index), 4096))
            return np.array([int(record[label]) for piece in pieces for record in prepared.fetch(piece)], np.int32)

        sizes = " ".join(str(shard.stat().st_size) for shard in prepared.shards)
        mark = hashlib.sha256(sizes.encode()).hexdigest()
        places, name = np.arange(sum(prepared.lengths)), f"{part} record"
        return Examples(places, lambda place: f"{name} {place}", fetch, lambda place: mark, labels_at)

    used = {PART_NAMES[split]: split for split in reversed(opened) if split in PART_NAMES}
    others = [split for split in opened if split not in used.values()]
    if "train" not in used and "test" not in used and "val" not in used:
        raise DataError(f"{printable(name)}: got the splits {some(others)}, expected train, validation or test")
    notes = [f"left out, splits that are no train, validation or test: {some(others)}"] if others else []
    parts = {part: examples(split, opened[split]) for part, split in used.items()}
    provenance = next(iter(opened.values())).provenance
    return split_set(OwnSet(name, names, parts, "", tuple(notes), provenance), fraction, seed, mixed=True)


def set_bits(own: OwnSet, conversion: Conversion) -> Conversion:
    """Return a conversion whose bits are known: those given, else what the first 100 images of a part need.

    0 stays where no deep gray image is among them.
    """
    if conversion.bits or own.bits:
        return replace(conversion, bits=conversion.bits or own.bits)
    examples = next(iter(own.parts.values()))
    first = (examples.fetch(place)[0] for place in islice(examples.index.tolist(), SAMPLE))
    with quiet():
        largest = max((largest_deep_value(content) for content in first if isinstance(content, bytes)), default=-1.0)
    return replace(conversion, bits=assumed_bits(largest)) if largest >= 0 else conversion


def read_part(
    own: OwnSet,
    part: str,
    conversion: Conversion,
    *,
    on_bad: OnBad = "raise",
    limit: int | None = None,
) -> Dataset:
    """Read a part of a set of one's own into memory, by as many threads as there are processors.

    Args:
        own: the set.
        part: "train", "val" or "test".
        conversion: size, channels and the rest.
        on_bad: whether pictures that cannot be read raise, all counted and the first named, or are left out.
        limit: read the first ones only.

    Returns:
        uint8 images; `provenance` says how they were converted ("conversions"), what was left out ("left out"), how the
        set was split ("split"), and has a sum of names, labels and contents ("sha256").
    """
    examples, shown = own.part(part).take(slice(limit)), printable(own.name)
    conversion = set_bits(own, conversion)

    def read(place: int) -> tuple[Picture | str, int, bytes]:
        try:
            content, label = examples.fetch(place)
            if label < 0:
                raise DataError(f"got the label {label}, expected one from 0 on")
            digest = hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest()
            return convert(content, conversion.size, conversion.size, conversion), label, digest
        except DataError as error:
            return str(error), 0, b""

    images = np.empty((len(examples), conversion.size, conversion.size, conversion.channels), np.uint8)
    labels, kept, bad = np.empty(len(examples), np.int32), 0, list[tuple[str, str]]()
    counts, total = Counter[str](), hashlib.sha256()
    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        places = examples.index.tolist()
        for start in range(0, len(places), 1024):  # `map` would start on all, and hold what it has read
            chunk = places[start : start + 1024]
            for place, (picture, label, digest) in zip(chunk, pool.map(read, chunk), strict=True):
                name = examples.name(place)
                if isinstance(picture, str):
                    bad.append((name, picture))
                    continue
                images[kept], labels[kept], kept = picture.pixels, label, kept + 1
                counts.update(picture.notes)
                total.update(f"{name}\0{label}\0".encode("utf-8", "surrogateescape") + digest)
    left_out = BadFiles(on_bad)(shown, bad, len(examples))
    if not kept:
        raise DataError(f"{shown} ({part}): got no image that can be read, expected at least one")
    conversions = ", ".join(f"{note}: {count}" for note, count in sorted(counts.items()))
    told = {
        "split": own.split,
        "sha256": total.hexdigest(),
        "conversions": conversions,
        "left out": "; ".join(left_out),
    }
    provenance = {**own.provenance, **{key: text for key, text in told.items() if text}}
    return Dataset(own.name, part, images[:kept], labels[:kept], own.classes, 255, provenance)


def stream_part(
    own: OwnSet,
    part: str,
    conversion: Conversion,
    *,
    on_bad: OnBad = "raise",
    batch_size: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    log: Callable[[str], None] = print,
) -> Stream:
    """Stream a part of a set of one's own by grain: shuffled anew in every epoch, each host its share.

    Args:
        own: the set.
        part: "train", "val" or "test".
        conversion: size, channels and the rest.
        on_bad: whether a picture that cannot be read raises when its turn comes, or gives way to the next example.
        batch_size: images per step over all hosts, a multiple of their number.
        seed: of the order.
        shard: (index, count): which of how many hosts this is.
        log: gets a line for every file that is passed over, once.

    Returns:
        The stream; its `provenance` has a sum of the names, labels and sizes of the files ("listing").
    """
    examples, (index, hosts) = own.part(part), shard
    count, size = len(examples), conversion.size
    require(batch_size % hosts == 0, "batch_size", batch_size, f"a multiple of {hosts} hosts")
    require(1 <= batch_size <= count, "batch_size", batch_size, f"at most {count}, the images of {printable(own.name)}")
    conversion, said = set_bits(own, conversion), set[str]()

    def example(number: Any) -> dict[str, np.ndarray]:
        for step in range(count):
            place = int(examples.index[(int(number) + step) % count])
            try:
                content, label = examples.fetch(place)
                if label < 0:
                    raise DataError(f"got the label {label}, expected one from 0 on")
                picture = convert(content, size, size, conversion)
            except DataError as error:
                line = f"{printable(own.name)}: {printable(examples.name(place))}: {error}"
                if on_bad == "raise":
                    raise DataError(line) from error
                if line not in said:
                    said.add(line)
                    log(f"{line}; passed over")
            else:
                numbers = {"label": np.asarray(label, np.int32), "index": np.asarray(number, np.int32)}
                return {"image": picture.pixels, **numbers}
        raise DataError(f"{printable(own.name)} ({part}): got no image that can be read, expected at least one")

    def batches(epoch: int) -> Iterator[dict[str, np.ndarray]]:
        return host_batches(
            count, example, batch_size // hosts, train=True, seed=seed, epoch=epoch, shard=(index, hosts)
        )

    shape = (size, size, conversion.channels)
    provenance = {**own.provenance, "split": own.split, "listing": examples.sha256}
    return Stream(own.name, count // batch_size, shape, batches, provenance=provenance)
