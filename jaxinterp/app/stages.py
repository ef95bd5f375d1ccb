"""The stages of every run: train, evaluate, explain, audit, report."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.app.registry import family_of, family_reference, keep_source, name_of, run_in, training
from jaxinterp.checks import counted, require, warn
from jaxinterp.data import Dataset
from jaxinterp.errors import JaxInterpError
from jaxinterp.explain.audit import Audit
from jaxinterp.explain.audit import audit as run_audit
from jaxinterp.explain.decompose import decompose
from jaxinterp.figures.explorer import Explorable
from jaxinterp.figures.html import picture, write
from jaxinterp.files import check_folder, printable, write_arrays, write_bytes, write_json, write_text
from jaxinterp.provenance import commit, machine, versions
from jaxinterp.recipe.config import Run
from jaxinterp.recipe.data import check_fits, record, require_recorded, resolved, split, training_data, with_outputs
from jaxinterp.recipe.evaluation import measure
from jaxinterp.recipe.explored import explored
from jaxinterp.recipe.family import Family, Job, Log, Report, TrainedRun
from jaxinterp.recipe.page import audit_page, compose_page, likeliest, top_maps
from jaxinterp.recipe.run_folder import (
    EVALUATION,
    HELD_OUT,
    read_arrays,
    read_json,
    read_lines,
    unfinished_line,
    write_config,
)
from jaxinterp.train import Checkpoints, FitResult, predict
from jaxinterp.train.lock import LOCK, only_trainer
from jaxinterp.train.result import Which

CHECKPOINTS = "checkpoints"  # folder, within a run's, of the trainer's checkpoints
PRETRAINED = "pretrained"  # folder, within a run's, of the run that is trained first
MAPS = "maps.npz"  # file, within a run's folder, of the first grid's maps
LOGITS = "logits.npz"  # and of the test images' logits, "last" and "best"


def train(
    name: str, run: Run[Any], run_dir: str | Path, data_dir: str | Path | None = None, allow_older: bool = False
) -> FitResult:
    """Train a run, or go on with it.

    Args:
        name: the run's name, among those of `registry.runs`, or one of one's own.
        run: its configuration.
        run_dir: its folder.
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        allow_older: if the newest checkpoint is damaged, go on from the newest intact one.

    Raises:
        JaxInterpError: see `jaxinterp.train.fit`; nothing is left of a new folder unless a checkpoint was saved.
    """
    run_dir, data_dir = Path(run_dir), _folder(data_dir)
    check_folder(run_dir)
    with only_trainer(run_dir):
        new = {path.name for path in run_dir.iterdir()} <= {LOCK}
        try:
            return _train(name, run, run_dir, data_dir, allow_older)
        except JaxInterpError:
            saved = any((run_dir / CHECKPOINTS).glob("[0-9]*")) or (run_dir / PRETRAINED).exists()
            if new and not saved and jax.process_index() == 0:  # the corrected command may use the folder
                shutil.rmtree(run_dir, ignore_errors=True)
            raise


def _train(name: str, run: Run[Any], run_dir: Path, data_dir: Path | None, allow_older: bool) -> FitResult:
    family = family_of(run)
    wanted = f"False: a {family.title} takes images in [0, 1] as they are"
    require(family.normalizes or not run.data.normalize, "data.normalize", True, wanted)
    run = resolved(run, data_dir)
    network = family.network(run, run.train.dtype)
    data, validation = training_data(run, data_dir)
    fits = isinstance(data, Dataset) or family.streams
    require(fits, "data.memory", run.data.memory, f"more: a {family.title} needs its training images in memory")
    test = split(run, "test", data_dir)
    check_fits(run, test)
    family.check(run, network, data)
    write_config(run_dir, name, run, family_reference(name, run))
    keep_source(family, run_dir)
    pretrained = None
    if (first := family.pretrain(run)) is not None and not last_step(run_dir):
        result = train(name_of(first, name), first, run_dir / PRETRAINED, data_dir, allow_older)
        if result.interrupted:
            return result
        pretrained = trained(run_dir / PRETRAINED, "best" if run.train.val_fraction else "last").variables
    for line in record(run, run_dir, data_dir, data, test):
        print(line)
    init_from = partial(family.init_from, run, network, pretrained=pretrained, data=data)
    same = fingerprint(family, run)
    outputs = run.model.classes
    fitted = with_outputs(data, outputs) if isinstance(data, Dataset) else data
    held = None if validation is None else with_outputs(validation, outputs)
    tested = with_outputs(test, outputs)
    return family.fit(Job(run_dir, run, network, fitted, held, tested, init_from, same, allow_older))


def outcome(run_dir: Path, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe a finished training in a line: test accuracy of the last epoch, and of the best on held-out images."""
    tested = {which: record for which, record in summary.items() if "test_accuracy" in record}
    parts = [f"{which} (epoch {int(one['epoch'])}) {one['test_accuracy']:.2%}" for which, one in tested.items()]
    return f"{run_dir}: test accuracy {', '.join(parts)}" if parts else f"{run_dir}: trained"


def fingerprint(family: Family[Any], run: Run[Any]) -> dict[str, Any]:
    """Return the JSON values that identify a run: its fields but defaults, and what its names stand for.

    Without defaults, so that a field that a later version adds changes nothing of a run that does not use it; and
    without the number of epochs, as a run may go on.
    """
    own = {key: value for key, value in run.own_fields().items() if key != "train.epochs"}
    values: dict[str, Any] = json.loads(json.dumps({"run": own, **family.fingerprint(run)}))
    return values


def trained(run_dir: str | Path, which: Which = "last", data_dir: str | Path | None = None) -> TrainedRun[Any]:
    """Load the trained run of a folder; what is examined runs in float32.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: it holds no intact checkpoint of this run.
    """
    run_dir = Path(run_dir)
    name, experiment, run = run_in(run_dir)
    family = family_of(run)
    network, variables = family.load(run, run_dir, which, fingerprint(family, run))
    return TrainedRun(run_dir, name, experiment, run, family, network, variables, _folder(data_dir))


def _folder(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def last_step(run_dir: str | Path) -> int:
    """Return the step of a run folder's newest checkpoint, 0 if there is none."""
    with Checkpoints(run_dir) as checkpoints:
        return max(checkpoints.steps(), default=0)


def evaluate(run_dir: str | Path, data_dir: str | Path | None = None, log: Log = print) -> dict[str, Any]:
    """Measure a trained run on the test split; write evaluation.json into its folder, and maps to be drawn.

    Args:
        run_dir: the run's folder.
        data_dir: the data folder.
        log: called with a line about each measurement.

    Returns:
        The JSON values of `recipe.evaluation.measure`, the family's own, and the `step` of the checkpoint measured.
    """
    run_dir = Path(run_dir)
    check_folder(run_dir)
    step = last_step(run_dir)
    last = trained(run_dir, data_dir=data_dir)
    epochs = {"last": last} | ({"best": trained(run_dir, "best")} if last.run.train.val_fraction else {})
    images, batch = last.test_data[0], last.run.train.eval_batch
    # One function for both, which is compiled once.
    apply = last.network.apply
    logits = {which: predict(apply, one.variables, images, batch) for which, one in epochs.items()}
    results, first_maps = measure(last, last.test_data, logits, log)
    write_arrays(run_dir / MAPS, first_maps)
    write_arrays(run_dir / LOGITS, logits)
    write_json(run_dir / EVALUATION, results)  # in case the family's own measures fail
    further = last.family.measure(last, log)
    results["metrics"] |= further.pop("metrics", {})
    results |= further
    summary = read_json(run_dir / "run.json", training(last.name, last.run)).get("summary", {})
    if "highest" in summary:
        results["metrics"]["test_accuracy_highest"] = summary["highest"]["test_accuracy"]
    results["step"] = step
    _write_measured(run_dir / EVALUATION, results, last.run)
    return results


def evaluate_held_out(run_dir: str | Path, data_dir: str | Path | None = None, log: Log = print) -> dict[str, Any]:
    """Measure a trained run on the images that it held out of training; write held_out.json into its folder.

    Choose networks and their parameters by these numbers, and the test images of `evaluate` remain unseen. Only the
    last epoch is measured: the best one was chosen on these images.

    Args:
        run_dir: the run's folder.
        data_dir: the data folder.
        log: called with a line about each measurement.

    Returns:
        `metrics`: name ↦ number, as of `evaluate`, but `val_accuracy`, and without the family's own.

    Raises:
        ConfigError: the run held nothing out.
    """
    run_dir = Path(run_dir)
    check_folder(run_dir)
    last = trained(run_dir, data_dir=data_dir)
    held = training_data(last.run, last.data_dir)[1]
    share = last.run.train.val_fraction
    require(held is not None, "train.val_fraction", share, f"a run with held-out images; {run_dir} has none")
    assert held is not None
    data = require_recorded(run_dir, held).floats(), held.labels
    logits = {"last": predict(last.network.apply, last.variables, data[0], last.run.train.eval_batch)}
    metrics = measure(last, data, logits, log)[0]["metrics"]
    results: dict[str, Any] = {"metrics": {"val_accuracy": metrics.pop("test_accuracy"), **metrics}}
    _write_measured(run_dir / HELD_OUT, results, last.run)
    return results


def _write_measured(path: Path, results: dict[str, Any], run: Run[Any]) -> None:
    """Write what was measured into a run's folder; of a run that has not ended, say so there and in a warning."""
    if unfinished := unfinished_line(path.parent, run):
        results["unfinished"] = unfinished
        warn(f"{path.parent}: {unfinished}")
    write_json(path, results)


def explain(
    run_dir: str | Path | TrainedRun[Any],
    paths: Sequence[str | Path],
    out: str | Path,
    which: Which = "last",
    top: int = 3,
) -> Iterator[str]:
    """Explain a trained run's predictions on image files.

    For every image <out>/<stem>.png holds the contribution maps of the likeliest classes, and <out>/<stem>.json for
    every class the logit, the sum of the contributions, the bias and the residual. Some families have a reading of
    their own, such as the orders of a series: <out>/<stem>-<reading>.png, and a key of the JSON file.

    Args:
        run_dir: the run's folder, or the run.
        paths: image files of any size.
        out: folder to write to; nothing is written unless all images can be read.
        which: the last epoch, or the one that was best on the validation part.
        top: how many classes get a map.

    Yields:
        A line for every image: how it was converted, the prediction, and what was written.

    Raises:
        DataError: a file is missing or is not an image.
    """
    from jaxinterp.data.images import read_images

    sources, out = [Path(path) for path in paths], Path(out)
    check_folder(out)
    run = run_dir if isinstance(run_dir, TrainedRun) else trained(run_dir, which)
    net = run.explainable
    images, lines = read_images(sources, *run.run.data.image_shape, run.run.data.conversion)
    used: set[Path] = set()
    for path, image, line in zip(sources, images, lines, strict=True):
        parts = decompose(net, image[None])
        logits, bias, residual = (np.asarray(a)[0].tolist() for a in (parts.logits, parts.bias, parts.residual))
        sums = np.asarray(parts.contributions, np.float64)[0].sum((1, 2, 3))
        probability = net.probabilities(np.asarray(parts.logits))[0]
        entries = [
            {
                "class": label,
                "logit": logits[k],
                "probability": float(probability[k]),
                "contributions": float(sums[k]),
                "bias": bias[k],
                "residual": residual[k],
            }
            for k, label in enumerate(run.classes)
        ]
        best = likeliest(np.asarray(parts.logits), top)[0]
        maps = np.asarray(parts.maps(image.shape[:2]))[:, best]
        figures = {"": top_maps(net, image[None], [printable(path.name)], np.asarray(parts.logits), run.classes, maps)}
        content: dict[str, Any] = {
            "image": printable(path),
            "run": run.name,
            "checkpoint": which,
            "layer": net.layer,
            "curvature": float(np.asarray(parts.curvature)[0]),
            "discrepancy": float(np.asarray(parts.discrepancy)[0]),
            "classes": entries,
        }
        if (reading := run.family.explain_image(run, image, best)) is not None:
            figures[f"-{reading.name}"] = reading.figure
            content[reading.name] = reading.numbers
        drawn = {end: picture(figure, "", "").png for end, figure in figures.items()}
        name = os.fsdecode(os.fsencode(path.stem)[: 250 - max(map(len, drawn)) - 4])  # 255 bytes, with its ends
        stems = (name if i == 1 else f"{name}-{i}" for i in count(1))
        stem = next(s for s in stems if not {out / f"{s}{end}.png" for end in drawn} & used)
        files = {out / f"{stem}{end}.png": png for end, png in drawn.items()}
        used |= set(files)
        for file, png in files.items():
            write_bytes(file, png)
        write_text(out / f"{stem}.json", json.dumps(content, indent=2) + "\n")
        written = ", ".join([f"{out / stem}.png", *(f"{end}.png" for end in list(drawn)[1:]), ".json"])
        first = entries[best[0]]
        yield (
            f"{line}: {first['class']} (p {first['probability']:.3f}, logit {first['logit']:.4f} = "
            f"contributions {first['contributions']:.4f} + bias {first['bias']:.4f}, residual {first['residual']:.1e}, "
            f"curvature {content['curvature']:.1e}, discrepancy {content['discrepancy']:.1e}) -> {written}"
        )


def explore(
    run_dir: str | Path | TrainedRun[Any], paths: Sequence[str | Path], file: str | Path, which: Which = "last"
) -> Path:
    """Write one page on which the contributions to a trained run's predictions on image files can be explored.

    Args:
        run_dir: the run's folder, or the run.
        paths: image files of any size; of more than `Explorable.MAX_IMAGES` the first, and the page says so.
        file: the page.
        which: the last epoch, or the one that was best on the validation part.

    Raises:
        DataError: a file is missing or is not an image.
    """
    from jaxinterp.data.images import read_images

    run = run_dir if isinstance(run_dir, TrainedRun) else trained(run_dir, which)
    given, paths = len(paths), paths[: Explorable.MAX_IMAGES]
    images, _ = read_images([Path(path) for path in paths], *run.run.data.image_shape, run.run.data.conversion)
    images, names = np.stack(list(images)), [printable(Path(path).name) for path in paths]
    targets = np.asarray(run.explainable.logits(images)).argmax(1)
    own = run.family.explore(run, images, targets)
    content = explored(run.explainable, images, run.classes, names=names, panels=own)
    if given > len(paths):
        content = replace(content, notes=[*content.notes, f"The first {len(paths)} of {given} images are shown."])
    title = f"{run.run_dir.name or run.name}: {counted(len(names), 'image')}"
    content.write(file, title, f"{run.family.title}, {which} checkpoint")
    return Path(file)


def audit(
    run_dir: str | Path,
    methods: Sequence[str] | None = None,
    images: int = 64,
    data_dir: str | Path | None = None,
    log: Log = lambda line: None,
) -> Audit:
    """Audit post-hoc methods on a trained run's first test images; write audit.json and audit.html into its folder.

    Args:
        run_dir: the run's folder.
        methods: their names, see `explain.methods.catalogue`; all that can be computed by default.
        images: how many images, at most.
        data_dir: the data folder.
        log: called with a line about each method; by default nothing is said.
    """
    run_dir = Path(run_dir)
    check_folder(run_dir)
    run = trained(run_dir, data_dir=data_dir)
    x, labels = (part[:images] for part in run.test_data)
    found = run_audit(run.explainable, x, labels, methods=methods, log=log)
    made = {
        "run": run.name,
        "step": last_step(run_dir),
        "machine": machine(),
        "commit": commit(),
        "versions": versions(),
    }
    write_json(run_dir / "audit.json", {**made, **found.to_dict()})
    write(audit_page(run, found), run_dir / "audit.html")
    return found


def report(run_dir: str | Path, data_dir: str | Path | None = None, log: Log = print) -> Path:
    """Write report.html into a trained run's folder, evaluated first if that is missing; return the page's path.

    Args:
        run_dir: the run's folder.
        data_dir: the data folder.
        log: called with a line before the evaluation, one about each measurement, and one before the page is written.
    """
    run_dir = Path(run_dir)
    check_folder(run_dir)
    run = trained(run_dir, data_dir=data_dir)
    measured, sources = run_dir / EVALUATION, run_dir / "data.json"
    by_training, by_evaluation = training(run.name, run.run), f"jaxinterp evaluate {run_dir}"
    parts = ("metrics", "localization", "grids", "removal", "residuals")
    history, info = read_lines(run_dir / "metrics.jsonl", by_training), read_json(run_dir / "run.json", by_training)
    results = read_json(measured, by_evaluation, *parts) if measured.exists() else {}
    if results.get("step") != last_step(run_dir) or not all((run_dir / file).exists() for file in (MAPS, LOGITS)):
        log(f"{run_dir}: evaluated first, as it was not since it was trained; this may take minutes")
        results = evaluate(run_dir, data_dir, log)
    log(f"{run_dir}: writing report.html")
    images, labels = run.test_data
    content = Report(
        trained=run,
        images=images,
        labels=labels,
        logits=read_arrays(run_dir / LOGITS, by_evaluation)["last"],
        results=results,
        first_maps=read_arrays(run_dir / MAPS, by_evaluation),
        history=history,
        info=info,
        sources=read_json(sources, by_training) if sources.exists() else {},
    )
    write(compose_page(content), run_dir / "report.html")
    return run_dir / "report.html"
