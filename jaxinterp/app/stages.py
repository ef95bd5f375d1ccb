"""The stages of every run: train, evaluate, explain, report. A paper's file says what is trained and examined."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from jaxinterp.app.registry import paper_in, paper_of, runs
from jaxinterp.data import Augment, Dataset, compose, crop, flip, hold_out, load, rand_augment
from jaxinterp.data.class_names import CLASSES
from jaxinterp.data.imagenet import held_images, training_images, training_stream
from jaxinterp.data.images import all_turned, first, kept, read_images, resized
from jaxinterp.errors import ConfigError, JaxInterpError
from jaxinterp.explain.explainable import Explainable, summed
from jaxinterp.figures.html import picture, write
from jaxinterp.files import check_folder, write_arrays, write_bytes, write_text
from jaxinterp.recipe.config import Run, naming_config, read_arrays, read_config, read_json, read_lines, write_config
from jaxinterp.recipe.evaluation import Log, measure
from jaxinterp.recipe.page import Report, compose_page, likeliest, top_maps
from jaxinterp.taylor.distill import read_set
from jaxinterp.train import Checkpoints, FitResult, Stream, TrainConfig, fit, load_variables, predict
from jaxinterp.train.config import check, check_steps
from jaxinterp.train.optimizer import optimizer_of, schedule_of

CHECKPOINTS = "checkpoints"  # folder, within a run's, of the trainer's checkpoints
PRIOR = "gates"  # folder, within a run's, of the run that is trained first
MAPS = "maps.npz"  # file, within a run's folder, of the first grid's maps
SAMPLE = 10_000  # training images of a streamed data set, where some are looked at
LOGITS = "logits.npz"  # and of the test images' logits, "last" and "best"


def augmentation(config: Run) -> Augment:
    """Flip, then crop, then RandAugment, or RandAugment first (as the authors' codes have it).

    Raises:
        ConfigError: RandAugment's numbers are out of range.
    """
    operations = [flip()] if config.flip else []
    operations += [crop(config.crop)] if config.crop else []
    if config.rand_augment:
        count, magnitude = config.rand_augment
        try:
            rand = rand_augment(count, magnitude, config.rand_augment_kind)
            operations = [rand, *operations] if config.rand_augment_first else [*operations, rand]
        except ValueError as error:
            raise ConfigError(f"rand_augment: {error}") from error
    return compose(*operations)


def split(config: Any, which: Literal["train", "test"], data_dir: Path | None) -> Dataset:
    """A split of the run's data set, at the run's size and number of images.

    Of ImageNet all validation images of the run's classes, and a sample of the training images.

    Raises:
        DataError: the data are missing or damaged.
        ConfigError: color images are asked for with fewer channels, or ImageNet is to be turned.
    """
    if config.dataset == "imagenet2012" and config.rotated:
        raise ConfigError("rotated: got True with imagenet2012, which is streamed; expected False")
    if config.dataset == "imagenet2012" and which == "train":
        return training_images(config, config.classes, SAMPLE, data_dir)
    if config.dataset == "imagenet2012":
        return held_images(config, config.classes, data_dir)
    data = kept(load(config.dataset, which, data_dir), config.only)
    data = first(resized(data, config.image_size, config.channels), config.images)
    return all_turned(data) if config.rotated else data


def network(paper: ModuleType, config: Any) -> nn.Module:
    """The network of a run, once it has been found to fit the run's images; nothing is computed.

    Raises:
        ConfigError: fields that do not fit one another, or the images.
    """
    model = paper.build(config)
    shape = config.image_shape
    try:
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"the network does not fit {shape[0]}x{shape[1]} images: {error}") from error
    return model


def train(name: str, config: Any, run_dir: Path, data_dir: Path | None = None, allow_older: bool = False) -> FitResult:
    """Train a run, or go on with it.

    Args:
        name: the run's name, among those of `jaxinterp.app.registry.runs`.
        config: its configuration.
        run_dir: its folder.
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        allow_older: if the newest checkpoint is damaged, go on from the newest intact one.

    Raises:
        JaxInterpError: see `jaxinterp.train.fit`, `split` and `write_config`; of a folder that was not there,
            or empty, nothing is left unless a checkpoint was saved.
    """
    check_folder(run_dir)
    new = not run_dir.exists() or not any(run_dir.iterdir())
    try:
        return _train(name, config, run_dir, data_dir, allow_older)
    except JaxInterpError:
        saved = any((run_dir / CHECKPOINTS).glob("*/*")) or (run_dir / PRIOR).exists()
        if new and not saved and jax.process_index() == 0:  # the corrected command may use the folder
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _train(name: str, config: Any, run_dir: Path, data_dir: Path | None, allow_older: bool) -> FitResult:
    paper = paper_of(name)
    model, augment = network(paper, config), augmentation(config)
    loss = paper.loss_of(config, model)
    settings = TrainConfig(
        config.epochs,
        config.batch_size,
        config.seed,
        config.accumulate,
        validation=config.validation,
        eval_batch=config.eval_batch,
        watch_test=config.watch_test,
    )
    data: Dataset | Stream
    validation: Dataset | None = None
    if config.dataset == "imagenet2012":
        if config.distilled:
            raise ConfigError(
                f"distilled: got {config.distilled} with imagenet2012, which is streamed; expected nothing"
            )
        data = training_stream(config, config.classes, data_dir)
        steps = data.steps
    else:
        data = split(config, "train", data_dir)
        if config.validation:
            try:
                data, validation = hold_out(data, config.validation, config.seed)
            except ValueError as error:
                raise ConfigError(f"validation: {error}") from error
        if config.distilled:
            data = resized(read_set(Path(config.distilled)).dataset(data.name, data.classes), *config.image_shape[1:])
        steps = len(data) // config.batch_size
    test = split(config, "test", data_dir)
    check_fits(config, test)
    if steps < 1:
        raise ConfigError(f"batch_size: got {config.batch_size}, more than there are training images")
    check(settings, None, jax.device_count())
    check_steps(config.epochs, steps)
    schedule = schedule_of(config, steps)
    write_config(run_dir, name, config)
    first_run, started = paper.prior(name, config) if hasattr(paper, "prior") else None, None
    if first_run is not None:
        done = train(first_run[0], first_run[1], run_dir / PRIOR, data_dir, allow_older)
        if done.interrupted:
            return done
        started = trained(run_dir / PRIOR, "best" if config.validation else "last")[2].variables
    if isinstance(data, Dataset):
        sources = {part.split: dict(part.provenance) for part in (data, test)}
        write_text(run_dir / "data.json", json.dumps(sources, indent=2) + "\n")
    return fit(
        run_dir,
        model,
        loss,
        optimizer_of(config, schedule, paper.fixed(config) if hasattr(paper, "fixed") else None),
        data,
        test,
        augment,
        settings,
        allow_older=allow_older,
        validation=validation,
        schedule=schedule,
        identity=json.loads(json.dumps({**asdict(config), **identity(paper, config)})),
        initial=partial(paper.initial, config, prior=started, data=data) if hasattr(paper, "initial") else None,
    )


def identity(paper: ModuleType, config: Any) -> dict[str, Any]:
    """JSON values beside its configuration that a trained run depends on: what its names stood for."""
    return paper.identity(config) if hasattr(paper, "identity") else {}


def check_fits(config: Any, data: Dataset) -> None:
    """Refuse a network with fewer outputs than the data set has classes, or crops beyond its images.

    Raises:
        ConfigError: it has, or they are.
    """
    if config.crop >= min(data.images.shape[1:3]):
        raise ConfigError(f"crop: got {config.crop}, expected less than the image's side, {data.images.shape[1]}")
    if len(data.classes) > config.classes:
        raise ConfigError(f"{config.OUTPUTS} {config.classes}, {data.name} has {len(data.classes)} classes")


def trained(
    run_dir: Path, which: Literal["last", "best"] = "last", dtype: Literal["float32"] = "float32"
) -> tuple[str, Any, Explainable]:
    """The name, configuration and network of a run folder; what is examined runs in float32.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: it holds no intact checkpoint of this network.
    """
    name, paper = paper_in(run_dir)
    _, config = read_config(run_dir, type(paper.RUNS[name].config))
    with naming_config(run_dir):
        model = network(paper, replace(config, dtype=dtype))
    variables = load_variables(run_dir, model, config.image_shape, which, same=identity(paper, config))
    return name, config, paper.subject(config, model, variables)


def last_step(run_dir: Path) -> int:
    """The step of a run folder's newest checkpoint, 0 where there is none."""
    with Checkpoints(run_dir) as checkpoints:
        return max(checkpoints.steps(), default=0)


def test_images(config: Any, data_dir: Path | None) -> tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """Test images in [0, 1] and their labels."""
    test = split(config, "test", data_dir)
    return test.images.astype(np.float32) / np.float32(test.maximum), test.labels


def class_names(config: Any) -> tuple[str, ...]:
    """A name for every output of the network: the data set's, then numbers."""
    names = CLASSES.get(config.dataset, ())
    names = tuple(names[k] for k in config.only) if config.only else names
    return (*names, *map(str, range(len(names), config.classes)))


def evaluate(run_dir: Path, data_dir: Path | None = None, log: Log = print) -> dict[str, Any]:
    """Measure a trained run on the test split; write evaluation.json into its folder, and maps to be drawn.

    Args:
        run_dir: the run's folder.
        data_dir: the data folder.
        log: called with a line about each measurement.

    Returns:
        The JSON values of `jaxinterp.recipe.evaluation.measure`, and the `step` of the checkpoint that was measured.

    Raises:
        ConfigError: the folder holds no run, or may not be written to.
    """
    check_folder(run_dir)
    step = last_step(run_dir)
    name, config, last = trained(run_dir)
    paper = paper_of(name)
    epochs = {"last": last} | ({"best": trained(run_dir, "best")[2]} if config.validation else {})
    images, labels = test_images(config, data_dir)
    # One function for both, which is compiled once.
    logits = {which: predict(last.apply, one.variables, images, config.eval_batch) for which, one in epochs.items()}
    found, first_maps = measure(
        last,
        images,
        labels,
        logits,
        sizes=config.grid_sizes,
        grids=config.grids,
        eligible=config.eligible,
        removal_images=config.removal_images,
        batch=config.eval_batch,
        seed=config.seed,
        log=log,
    )
    write_arrays(run_dir / MAPS, first_maps)
    write_arrays(run_dir / LOGITS, logits)
    if hasattr(paper, "measure"):
        write_text(run_dir / "evaluation.json", json.dumps(found) + "\n")  # should what follows fail
        source = partial(split, data_dir=data_dir)
        further = paper.measure(config, last.variables, run_dir, images, labels, source, log)
        found["metrics"] |= further.pop("metrics", {})
        found |= further
    watched = read_json(run_dir / "run.json", f"jaxinterp train {name}").get("summary", {}).get("highest", {})
    if watched:
        found["metrics"]["test_accuracy_highest"] = watched["test_accuracy"]
    found["step"] = step
    write_text(run_dir / "evaluation.json", json.dumps(found) + "\n")
    return found


def explain(
    run_dir: Path, paths: Sequence[Path], out: Path, which: Literal["last", "best"] = "last", top: int = 3
) -> Iterator[str]:
    """Explain a trained run's predictions on image files.

    For every image <out>/<stem>.png holds the contribution maps of the likeliest classes, and <out>/<stem>.json for
    every class the logit, the sum of the contributions, the bias and the residual. Some families have a reading of
    their own, such as the orders of a series: <out>/<stem>-<reading>.png, and a key of the JSON file.

    Args:
        run_dir: the run's folder.
        paths: image files of any size.
        out: folder to write to; nothing is written unless all images can be read.
        which: the last epoch, or the one that was best on the validation part.
        top: how many classes get a map.

    Yields:
        A line for every image: how it was converted, the prediction, and what was written.

    Raises:
        ConfigError: the folder holds no run, or `out` may not be written to.
        DataError: a file is missing or is not an image.
    """
    check_folder(out)
    name, config, subject = trained(run_dir, which)
    images, lines = read_images(paths, *config.image_shape)
    classes, paper = class_names(config), paper_of(name)
    used: set[Path] = set()
    for path, image, line in zip(paths, images, lines, strict=True):
        whole = subject.decompose(image[None])
        parts = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), whole)
        chance = 1 / (1 + np.exp(-subject.log_odds(parts.logits[None])[0]))
        entries = [
            {
                "class": label,
                "logit": float(parts.logits[k]),
                "probability": float(chance[k]),
                "contributions": float(parts.contributions[k].sum()),
                "bias": float(parts.bias[k]),
                "residual": float(parts.residual[k]),
            }
            for k, label in enumerate(classes)
        ]
        best = likeliest(parts.logits[None], top)[0]
        maps = np.asarray(summed(whole, image[None]))[:, best]
        figures = {"": top_maps(subject, image[None], [path.name], parts.logits[None], classes, maps)}
        content: dict[str, Any] = {
            "image": str(path),
            "run": name,
            "checkpoint": which,
            "level": subject.layer or "input",
            "classes": entries,
        }
        if hasattr(paper, "reading") and (reading := paper.reading(config, subject, image, best, classes)):
            figures[f"-{reading.name}"] = reading.figure
            content[reading.name] = reading.numbers
        drawn = {end: picture(figure, "", "").png for end, figure in figures.items()}
        stems = (path.stem if i == 1 else f"{path.stem}-{i}" for i in count(1))
        stem = next(s for s in stems if not {out / f"{s}{end}.png" for end in drawn} & used)
        files = {out / f"{stem}{end}.png": png for end, png in drawn.items()}
        used |= set(files)
        for file, png in files.items():
            write_bytes(file, png)
        write_text(out / f"{stem}.json", json.dumps(content, indent=2) + "\n")
        written = ", ".join([f"{out / stem}.png", *(f"{end}.png" for end in list(drawn)[1:]), ".json"])
        first_of = entries[best[0]]
        yield (
            f"{line}: {first_of['class']} (p {first_of['probability']:.3f}, logit {first_of['logit']:.4f} = "
            f"contributions {first_of['contributions']:.4f} + bias {first_of['bias']:.4f}) -> {written}"
        )


def report(run_dir: Path, data_dir: Path | None = None, log: Log = print) -> Path:
    """Write report.html into a trained run's folder; it is evaluated first where that is missing.

    Returns:
        The page's path.

    Raises:
        ConfigError: the folder holds no run, may not be written to, or one of its files is missing or damaged.
    """
    check_folder(run_dir)
    name, config, subject = trained(run_dir)
    measured, sources = run_dir / "evaluation.json", run_dir / "data.json"
    by_training, by_evaluation = f"jaxinterp train {name}", f"jaxinterp evaluate {run_dir}"
    parts = ("metrics", "localization", "grids", "removal", "residuals")
    history, info = read_lines(run_dir / "metrics.jsonl", by_training), read_json(run_dir / "run.json", by_training)
    found = read_json(measured, by_evaluation, *parts) if measured.exists() else {}
    if found.get("step") != last_step(run_dir) or not all((run_dir / file).exists() for file in (MAPS, LOGITS)):
        found = evaluate(run_dir, data_dir, log)
    images, labels = test_images(config, data_dir)
    paper, experiment = paper_of(name), runs()[name]
    content = Report(
        run_dir=run_dir,
        name=name,
        source=experiment.source,
        config=config,
        subject=subject,
        images=images,
        labels=labels,
        logits=read_arrays(run_dir / LOGITS, by_evaluation)["last"],
        classes=class_names(config),
        found=found,
        first_maps=read_arrays(run_dir / MAPS, by_evaluation),
        history=history,
        info=info,
        sources=read_json(sources, by_training) if sources.exists() else {},
        paper=experiment.paper if experiment.config == replace(config, seed=experiment.config.seed) else {},
        reference=paper.REFERENCE,
        reference_name=paper.REFERENCE_NAME,
    )
    if hasattr(paper, "sections"):
        content = replace(content, further=paper.sections(content, partial(split, data_dir=data_dir)))
    write(compose_page(content), run_dir / "report.html")
    return run_dir / "report.html"
