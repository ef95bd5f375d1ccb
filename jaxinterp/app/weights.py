"""Trained networks as single files: exported with a card, loaded by file or by the name of one in the package.

A file holds arrays, and as texts the configuration of the run, the names of the classes, the format of the input and
the card. Nothing in it is executed; what it claims is bounded by what it holds before anything is built.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxinterp.app.network import NetFamily
from jaxinterp.app.registry import BUILT_IN, training
from jaxinterp.checks import require, require_one_of, shown
from jaxinterp.data.embedded import LICENCES
from jaxinterp.data.images import read_images
from jaxinterp.errors import CheckpointError
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.files import check_folder, write_text
from jaxinterp.nn.weights import (
    DAMAGE,
    SUFFIXES,
    checksum,
    fault,
    flat,
    one_line,
    read_weights,
    variables_of,
    write_weights,
)
from jaxinterp.provenance import commit, versions
from jaxinterp.recipe.config import Experiment, Run
from jaxinterp.recipe.data import split
from jaxinterp.recipe.family import TrainedRun
from jaxinterp.recipe.run_folder import validate_json

if TYPE_CHECKING:
    from PIL import Image

FORMAT = "jaxinterp.network/1"
FOLDER = Path(__file__).parents[1] / "pretrained"
INDEX = "index.json"  # of a folder of networks: name → file, its checksum, its card
PACKAGED = {"digits": "digits", "mnist": "mnist-2000"}  # data sets → those in the package with test images of them
EXPORTED = {family.Model.__name__: family for family in BUILT_IN.values() if not isinstance(family, NetFamily)}
MOST = 1 << 16  # the largest whole number of a network's configuration, unless an array has a longer axis
Dtype = Literal["float32", "float16", "bfloat16"]
Picture: TypeAlias = "str | PathLike[str] | Image.Image | np.ndarray"


@dataclass(frozen=True)
class Card:
    """What there is to know of an exported network.

    Attributes:
        family: of the network, in words.
        run: name of the run that trained it.
        overrides: fields in which the run differs from the named one.
        seed: of the run.
        checkpoint: "last", or "best" on the held-out images.
        epochs: of the training.
        data: name of the data set.
        licence: of the data.
        test_accuracy: on the test split, as measured in training; None where it was not.
        packaged_accuracy: of the weights as written on the packaged test images; None where there are none.
        packaged: name of these.
        parameters: their number.
        dtype: of the arrays.
        checksum: SHA-256 of the arrays.
        made_by: version and commit.
    """

    family: str
    run: str
    overrides: str
    seed: int
    checkpoint: str
    epochs: int
    data: str
    licence: str
    test_accuracy: float | None
    packaged_accuracy: float | None
    packaged: str
    parameters: int
    dtype: str
    checksum: str
    made_by: str

    @property
    def summary(self) -> str:
        """The card in a line."""
        accuracy = self.test_accuracy if self.test_accuracy is not None else self.packaged_accuracy
        known = "" if accuracy is None else f", test accuracy {accuracy:.2%}"
        return f"{self.family}, {self.run}, {self.parameters:,} parameters{known}"

    def markdown(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the card as a page.

        Args:
            name: of the network, or its file.
            shape: of one image, (H, W, C).
        """
        rows = {
            "run": f"`{self.run}`" + (f" with {self.overrides}" if self.overrides else ""),
            "seed": self.seed,
            "checkpoint": f"{self.checkpoint}, of {self.epochs} epochs",
            "data": f"{self.data}; licence: {self.licence}",
            "input": f"{shape[0]}×{shape[1]} pixels, {shape[2]} channel{'s' * (shape[2] > 1)}, float32 in [0, 1]",
            "test accuracy": "not measured" if self.test_accuracy is None else f"{self.test_accuracy:.2%}",
        }
        if self.packaged_accuracy is not None:
            rows[f"accuracy on the packaged {self.packaged}"] = (
                f"{self.packaged_accuracy:.2%}, of the weights as written"
            )
        rows |= {"parameters": f"{self.parameters:,}, {self.dtype}", "SHA-256 of the arrays": f"`{self.checksum}`"}
        table = "\n".join(f"| {key} | {value} |" for key, value in {**rows, "made by": self.made_by}.items())
        load = f'net = jaxinterp.load("{name}")\nparts = jaxinterp.decompose(net, net.read("image.png"))'
        return f"# {name}\n\n{self.family}\n\n| | |\n|---|---|\n{table}\n\n```python\nimport jaxinterp\n\n{load}\n```\n"


@dataclass(frozen=True, repr=False)
class Pretrained(Explainable):
    """A trained network with all that is needed to use it; an `Explainable`, as every method takes it.

    Attributes:
        name: its name in the package, or the name of its file.
        classes: a name for every output.
        image_shape: of the input, (H, W, C).
        card: where it comes from; `card.markdown(net.name, net.image_shape)` is a page.
        run: the configuration of the run that trained it.
    """

    name: str = ""
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] = (1, 1, 1)
    card: Card | None = None
    run: Run[Any] | None = None

    def read(self, *images: Picture) -> Float[np.ndarray, "n h w c"]:
        """Read images of any kind as the network's input.

        Args:
            *images: paths of image files, PIL images, or arrays: one image (H, W) or (H, W, C), or several
                (N, H, W, C); uint8 in 0..255, bool, or floating in [0, 1]. What has another size or other channels is
                converted as a picture of 8 bits is.

        Returns:
            (N, H, W, C), float32 in [0, 1].

        Raises:
            DataError: a file cannot be read.
            ConfigError: an array is no image, or out of its range.
        """
        require(images, "images", "none", "at least one: a path, a PIL image or an array")
        return np.concatenate([self._read(image) for image in images])

    def _read(self, image: Any) -> Float[np.ndarray, "n h w c"]:
        if isinstance(image, str | PathLike):
            return self._read_files([Path(image)])
        if hasattr(image, "convert"):
            return self._read_pictures([image])
        array = _unit_range(image)
        if array.shape[1:] == self.image_shape:
            return array
        return self._read_pictures([_picture(one) for one in array])

    def _read_pictures(self, pictures: Sequence[Any]) -> Float[np.ndarray, "n h w c"]:
        """Read pictures in memory as their files are read."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [
                Path(folder) / f"{i}.{'tiff' if one.mode in ('F', 'I', 'CMYK') else 'png'}"
                for i, one in enumerate(pictures)
            ]
            for path, one in zip(paths, pictures, strict=True):
                kept = path.suffix == ".tiff" or one.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
                (one if kept else one.convert("RGB")).save(path, exif=one.getexif())
            return self._read_files(paths)

    def _read_files(self, paths: Sequence[Path]) -> Float[np.ndarray, "n h w c"]:
        """Read image files as the run that trained the network does."""
        conversion = None if self.run is None else self.run.data.conversion
        return read_images(paths, *self.image_shape, conversion)[0]


jax.tree_util.register_dataclass(
    Pretrained,
    data_fields=["variables"],
    meta_fields=[field.name for field in dataclasses.fields(Pretrained) if field.name != "variables"],
)


def _unit_range(image: Any) -> Float[np.ndarray, "n h w c"]:
    """Return an array of images as float32 in [0, 1], (N, H, W, C)."""
    array = np.asarray(image)
    wanted = "uint8, bool or floating (H, W), (H, W, C) or (N, H, W, C), none of them 0"
    known = array.dtype in (np.uint8, bool) or np.issubdtype(array.dtype, np.floating)
    require(known and array.ndim in (2, 3, 4) and array.size, "images", f"{array.dtype}{array.shape}", wanted)
    array = array[None, ..., None] if array.ndim == 2 else array[None] if array.ndim == 3 else array
    require(array.shape[-1] in (1, 3), "images", f"{array.shape[-1]} channels", "1 or 3, the last axis")
    array = array.astype(np.float32) / np.float32(255 if array.dtype == np.uint8 else 1)
    low, high = float(array.min()), float(array.max())
    require(0 <= low <= high <= 1, "images", f"values in {low:g}..{high:g}", "[0, 1]")
    return array


def _picture(image: Float[np.ndarray, "h w c"]) -> Any:
    """Return an image in [0, 1] as a picture of 8 bits."""
    from PIL import Image

    pixels = np.rint(255 * image).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def export(
    run_dir: str | Path, path: str | Path, which: Literal["last", "best"] = "last", dtype: Dtype = "float32"
) -> Card:
    """Write the network of a trained run to one file, and its card beside it, FILE with the ending .md.

    In a folder with an index of networks, such as `jaxinterp/pretrained`, it is entered there too.

    Args:
        run_dir: the run's folder.
        path: the file, .safetensors or .npz.
        which: the last epoch, or the one that was best on the validation part.
        dtype: of the arrays; networks that are loaded compute in float32.

    Returns:
        The card.

    Raises:
        ConfigError: the folder holds no run, the file's name has another ending, or weights overflow in float16.
        CheckpointError: the run has no intact checkpoint.
    """
    from jaxinterp.app.stages import trained
    from jaxinterp.recipe.run_folder import read_json

    run_dir, path = Path(run_dir), Path(path)
    require_one_of("FILE", path.suffix, SUFFIXES)
    require_one_of("dtype", dtype, get_args(Dtype))
    check_folder(path.parent)
    found = trained(run_dir, which)
    require(type(found.run.model).__name__ in EXPORTED, "RUN_DIR", f"{found.family.title}", "a family of jaxinterp")
    summary = read_json(run_dir / "run.json", training(found.name, found.run)).get("summary", {})
    return write_network(found, path, which, dtype, summary.get(which, {}).get("test_accuracy"))


def write_network(
    found: TrainedRun[Any],
    path: Path,
    which: Literal["last", "best"] = "last",
    dtype: Dtype = "float32",
    test_accuracy: float | None = None,
) -> Card:
    """Write a trained network, its card and its entry in the folder's index: see `export`."""
    run, shape = _without_place(found.run), found.run.data.image_shape
    with np.errstate(over="ignore"):  # found as infinite
        arrays = {name: array.astype(jnp.dtype(dtype)) for name, array in flat(found.variables).items()}
    wrong = fault(arrays, {name: array.shape for name, array in arrays.items()})
    require(not wrong, "dtype", f"{dtype}: {wrong}", "a type that holds the weights")
    variables = variables_of(found.network, shape, arrays)
    packaged = PACKAGED.get(run.data.name, "")
    named, own = found.experiment.run.fields(), run.fields()
    differing = [key for key in own if own[key] != named.get(key) and key != "train.seed"]
    card = Card(
        family=found.family.title,
        run=found.name,
        overrides=", ".join(f"{key}={shown(own[key])}" for key in differing),
        seed=run.train.seed,
        checkpoint=which,
        epochs=run.train.epochs,
        data=run.data.name,
        licence=LICENCES.get(run.data.name, "its owner's"),
        test_accuracy=test_accuracy,
        packaged_accuracy=accuracy(run, found.network, variables) if packaged else None,
        packaged=packaged,
        parameters=found.parameters,
        dtype=dtype,
        checksum=checksum(arrays),
        made_by=f"jaxinterp {versions().get('jaxinterp', '')}, commit {commit()}",
    )
    config = dataclasses.asdict(run)
    _require_bounded(json.loads(json.dumps(config)), arrays)
    name = path.stem if _index(path.parent) is not None else path.name
    page = card.markdown(name, shape)
    height, width, channels = shape
    texts = {
        "format": FORMAT,
        "model": type(run.model).__name__,
        "run": found.name,
        "config": json.dumps(config),
        "classes": json.dumps(found.classes),
        "input": json.dumps(
            {"height": height, "width": width, "channels": channels, "scale": "[0, 1]", "layout": "NHWC"}
        ),
        "card": json.dumps(dataclasses.asdict(card)),
        "readme": page,
    }
    write_weights(path, arrays, texts)
    write_text(path.with_suffix(".md"), page)
    if (index := _index(path.parent)) is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"file": path.name, "sha256": digest, "card": f"{path.stem}.md", "summary": card.summary}
        index[path.stem] = {**entry, "data": run.data.name, "shape": "x".join(map(str, shape))}
        write_text(path.parent / INDEX, json.dumps(dict(sorted(index.items())), indent=2) + "\n")
    return card


def accuracy(run: Run[Any], network: Any, variables: Any) -> float:
    """Return the accuracy of a network on the packaged test images of its data set."""
    from jaxinterp.train import predict

    test = split(run.replace(data={"name": PACKAGED[run.data.name], "max_images": None}), "test", None)
    images = test.floats()
    logits = predict(network.apply, variables, images, run.train.eval_batch)
    return float((logits.argmax(-1) == test.labels).mean())


def load(source: str | PathLike[str]) -> Pretrained:
    """Load a trained network from a file that `export` wrote, or one of the package by its name.

    Args:
        source: a .safetensors or .npz file; or a name that `jaxinterp.pretrained()` lists.

    Returns:
        The network, as every method takes it, with its classes' names, its card, and `read` for images of any kind.

    Raises:
        ConfigError: there is no network of this name.
        CheckpointError: the file is missing, damaged, foreign, or claims more than it holds; in one line.
    """
    found, card, name = _load(source)
    net = found.explainable
    whole = {field.name: getattr(net, field.name) for field in dataclasses.fields(Explainable)}
    shape = found.run.data.image_shape
    return Pretrained(**whole, name=name, classes=found.classes, image_shape=shape, card=card, run=found.run)


def load_trained(source: str | PathLike[str]) -> tuple[TrainedRun[Any], Card]:
    """Load what `load` loads as a trained run, which has no folder, and its card."""
    return _load(source)[:2]


def pretrained() -> dict[str, str]:
    """Return the names of the networks in the package, each with a line about it."""
    return {name: entry["summary"] for name, entry in (_index(FOLDER) or {}).items()}


def inputs() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return of each network in the package the data set that it was trained on, and the shape of one image."""
    index = _index(FOLDER) or {}
    return {name: (entry["data"], tuple(map(int, entry["shape"].split("x")))) for name, entry in index.items()}


def _index(folder: Path) -> dict[str, dict[str, str]] | None:
    """Return the index of a folder of networks; None where it has none."""
    path = folder / INDEX
    if not path.is_file():
        return None
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _load(source: str | PathLike[str]) -> tuple[TrainedRun[Any], Card, str]:
    """Return the network of a file, or of a name of the package, with its card and its name."""
    path, index, name = Path(source), _index(FOLDER) or {}, str(source)
    if name not in index and (path.suffix in SUFFIXES or path.is_file()):
        return *_read(path, path.name), path.name
    require_one_of("NAME", name, index, f"a file, or one of {', '.join(index) or 'no networks in the package'}")
    path = FOLDER / index[name]["file"]
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != index[name]["sha256"]:
        raise CheckpointError(f"{path}: got a missing or altered file, expected the package's; install jaxinterp anew")
    return *_read(path, name), name


def _read(path: Path, name: str) -> tuple[TrainedRun[Any], Card]:
    arrays, texts = read_weights(path, "a network that jaxinterp exported")
    try:
        require(texts.get("format") == FORMAT, "format", texts.get("format"), FORMAT)
        require(texts["model"] in EXPORTED, "model", texts["model"], ", ".join(EXPORTED))
        family = EXPORTED[texts["model"]]
        card = validate_json(Card, texts["card"])
        require(card.checksum == checksum(arrays), "checksum", "another one", f"{card.checksum} of the arrays")
        config = json.loads(texts["config"])
        _require_bounded(config, arrays)
        run: Run[Any] = validate_json(Run[family.Model], texts["config"])  # type: ignore[name-defined]
        classes, shape = tuple(json.loads(texts["classes"])), run.data.image_shape
        wanted = f"{run.model.classes} names"
        require(all(isinstance(one, str) for one in classes), "classes", "other values", wanted)
        require(len(classes) == run.model.classes, "classes", f"{len(classes)} names", wanted)
        network = family.build(run)
        variables = variables_of(network, shape, arrays)
        experiment: Experiment[Any] = Experiment(run, "exported")
        found = TrainedRun(Path(), name, experiment, run, family, network, variables, names=classes)
        _ = found.explainable
    except DAMAGE as error:
        raise CheckpointError(f"{path}: not a network that jaxinterp exported ({one_line(error)})") from None
    return found, card


def _require_bounded(config: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise for a whole number of the model, or a side of its images, beyond `MOST` and beyond the arrays' axes."""
    most = max([MOST, *(n for array in arrays.values() for n in array.shape)])
    for part, values in (("model", list(config["model"].values())), ("data", [config["data"]["image_size"]])):
        while values:
            one = values.pop()
            values += one if isinstance(one, list) else []
            wanted = f"at most {most}, as the arrays are"
            require(not isinstance(one, int) or one <= most, part, f"the number {one}", wanted)


def _without_place(run: Run[Any]) -> Run[Any]:
    """Return a run without the folder that its images lie in, which is nobody's concern."""
    kind, _, place = run.data.name.partition(":")
    return run.replace(data={"name": f"{kind}:{Path(place).name}"}) if kind in ("folder", "csv", "npz") else run


def from_torch(source: Any, network: Any = None, **fields: Any) -> Explainable:
    """Wrap a PyTorch network's weights for everything that explains: a classical network, or a coded ResNeXt.

    Args:
        source: a state dict, or a file of one, by `torch.save` or as safetensors; see `nn.torch_weights`.
        network: the network that it is of; what names and shapes tell if None.
        **fields: further attributes of the network that is made, such as `**jaxinterp.nn.torch_weights.IMAGENET`.

    Example:
        >>> from jaxinterp.nn.baselines import CifarResNet
        >>> from jaxinterp.nn.torch_weights import to_torch
        >>> net = CifarResNet(8, classes=3, width=4)
        >>> state_dict = to_torch(net, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
        >>> from_torch(state_dict).logits(jnp.zeros((1, 8, 8, 3))).shape
        (1, 3)
    """
    from jaxinterp.coded import torch_weights as coded
    from jaxinterp.nn import torch_weights as classical

    state_dict = classical.read_state_dict(source) if isinstance(source, str | PathLike) else source
    if network is None and coded.is_coded(state_dict):
        return explainable(*coded.from_torch(state_dict, **fields))
    return explainable(*classical.from_torch(state_dict, network, **fields))
