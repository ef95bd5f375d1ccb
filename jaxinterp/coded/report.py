"""Report sections of coded networks: paths beside their code, decoding, classifiers, removals."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.coded.early_exit import decode
from jaxinterp.coded.figures import paths_beside_code
from jaxinterp.coded.network import CodedResNeXt
from jaxinterp.coded.paths import by_block, path_shares
from jaxinterp.figures import charts
from jaxinterp.figures.explorer import Panel
from jaxinterp.figures.html import Drawing, Section, Table
from jaxinterp.recipe.family import Reading, Report, TrainedRun

MAX_PATH_IMAGES = 200  # test images whose paths are drawn


def sections(report: Report) -> list[Section]:
    """Return all sections, in the order of the paper."""
    classifiers = [_classifiers(report)] if report.results["classifiers"] else []
    return [_paths(report), _decoding(report), *classifiers, _removals(report)]


def _paths(report: Report) -> Section:
    """Draw the class × path maps of the last block of each code."""
    model, classes = report.trained.network, np.unique(report.labels[:MAX_PATH_IMAGES])
    images, labels = report.images[:MAX_PATH_IMAGES], report.labels[:MAX_PATH_IMAGES].astype(int)
    parts = path_shares(report.explainable, images, labels)
    paths = by_block(model, parts).paths
    missed = float(jnp.abs(parts.residual).max()) / float(jnp.abs(parts.logits).max())
    pictures = list[Drawing]()
    last = dict(zip(model.codes, model.coded_blocks, strict=True))  # a code's later blocks replace the earlier
    for code, block in last.items():
        share = np.asarray(paths[block - 1])[:, 0]
        mean = np.stack([share[labels == k].mean(0) for k in classes])
        words = code.table[classes]
        caption = (
            f"Block {block}, mean over the first {len(images)} test images; its code has distance {code.distance}, "
            f"{code.bound} is the upper bound. Active paths contribute "
            f"{mean[words == 1].mean():+.2g} each on average, the others {mean[words == 0].mean():+.2g}."
        )
        names, numbers = [report.classes[k] for k in classes], [str(n) for n in range(1, words.shape[1] + 1)]
        given = names, numbers, "class", "path"
        said = f"Paths that the code of block {block} gives to each class"
        pictures.append(charts.matrix(words, *given, f"The code of block {block}: which paths a class has.", said))
        said = f"What each path of block {block} contributes to the logit of each class"
        pictures.append(charts.matrix(mean, *given, caption, said, diverging=True))
    return Section(
        "The paths of every class",
        [
            "A logit is the sum of what the paths of all blocks hand on to it through the shortcuts, of the stem and "
            "of the bias. On the left which paths the code gives to each class; on the right what they contribute to "
            f"that class' logit on its images. Largest relative residual: {missed:.1e}."
        ],
        pictures,
    )


def reading(trained: TrainedRun[Any], image: Float[np.ndarray, "h w c"], top: Int[np.ndarray, " t"]) -> Reading:
    """Return what each path of every block hands on to the `top` classes' logits; the last coded one is drawn."""
    model, names = trained.network, trained.classes
    parts = path_shares(trained.explainable, image[None], top[None])
    named = by_block(model, parts)
    codes = [stage.code for stage, _ in model.blocks]
    numbers = [
        {
            "class": names[k],
            "logit": float(parts.logits[0, t]),
            "stem": float(named.stem[0, t]),
            "shift": float(named.shift[0, t]),
            "residual": float(parts.residual[0, t]),
            "blocks": [
                {"word": code and code.table[k].tolist(), "contributions": np.asarray(shares)[0, t].tolist()}
                for code, shares in zip(codes, named.paths, strict=True)
            ],
        }
        for t, k in enumerate(top)
    ]
    shares, words = named.paths[model.coded_blocks[-1] - 1], model.codes[-1].table[top]
    return Reading("paths", numbers, paths_beside_code(np.asarray(shares)[0], words, [names[k] for k in top]))


def panel(trained: TrainedRun[Any], images: Float[np.ndarray, "n h w c"], targets: Int[np.ndarray, " n"]) -> Panel:
    """Return the energy of every path of the coded blocks, what it hands on to the read class, and what decodes."""
    model = trained.network
    energies, decoded = (np.stack(part, axis=1) for part in _energies(model, trained.variables, jnp.asarray(images)))
    paths = by_block(model, path_shares(trained.explainable, images, targets.astype(int))).paths
    shares = np.stack([np.asarray(paths[block - 1])[:, 0] for block in model.coded_blocks], axis=1)
    return Panel(
        "paths",
        "Paths and the code word",
        "The code gives paths to every class. Energies of a block's paths, filled where the word of the explained "
        "class is active, and what each path hands on to the logit; the slider goes through the coded blocks.",
        {
            "energies": energies.astype(np.float32),
            "shares": shares.astype(np.float32),
            "words": np.stack([code.table for code in model.codes]).astype(np.uint8),
            "decoded": decoded.astype(np.int32),
            "names": [f"block {block}" for block in model.coded_blocks],
        },
    )


@partial(jax.jit, static_argnums=0)
def _energies(model: CodedResNeXt, variables: Any, images: Array) -> tuple[list[Array], list[Array]]:
    """Return the energies of every coded block, and the classes that they decode to."""
    _, energies = model.apply(variables, images, energies=True)  # type: ignore[misc]
    return list(energies), [decode(one, code).classes for one, code in zip(energies, model.codes, strict=True)]


def _decoding(report: Report) -> Section:
    results, metrics, prefix = report.results, report.results["metrics"], "decoding_accuracy_block_"
    printed = {key.removeprefix(prefix): value for key, value in report.paper.items() if key.startswith(prefix)}
    whole = metrics["test_accuracy"]
    blocks = [int(block) for block in results["decoding"]]
    series: dict[str, Any] = {"decoded from energies": (blocks, list(results["decoding"].values()))}
    if printed:
        series["the paper's"] = ([int(block) for block in printed], list(printed.values()))
    rules = [(whole, "logits of the whole network"), (1 / len(report.classes), "chance")]
    best = max(results["decoding"].values())
    pictures = [
        charts.lines(
            series,
            "block",
            "test accuracy",
            "The class whose word lies nearest to a block's energies.",
            f"Accuracy decoded by block, {best:.2%} at best; {whole:.2%} of the whole network",
            rules=rules,
            range=[0, 1],
            ticks=blocks,
        )
    ]
    text = ["The class can be read off the energies of a coded block, before the network has come to its end."]
    if "exits" in results:
        caption = "From left to right thresholds lose less accuracy on the held-out images they are chosen on."
        points = sorted((value["compute"], value["accuracy"]) for value in results["exits"].values())
        compute, accuracy = zip(*points, strict=True)
        axis = "multiply-adds, as a share of the whole network's"
        said = f"Accuracy of early exit: {accuracy[0]:.2%} with {compute[0]:.1%} of the multiply-adds"
        rule = [(whole, "whole network")]
        pictures.append(
            charts.lines({"early exit": (compute, accuracy)}, axis, "test accuracy", caption, said, rules=rule)
        )
        text.append(
            "An image may leave at the first block that is sure of it, and the later blocks are not run. With half a "
            f"point allowed on held-out images: test accuracy {metrics['early_exit_accuracy']:.2%} instead of "
            f"{whole:.2%}, with {metrics['early_exit_compute']:.1%} of the multiply-adds in "
            f"{metrics['early_exit_time']:.1%} of the time on the machine that measured."
        )
    return Section("Decisions before the end", text, pictures)


def _classifiers(report: Report) -> Section:
    metrics, records = report.results["metrics"], report.results["classifiers"]
    keys = [key for key in records[0] if key != "class"]
    rows = [[report.classes[int(r["class"])], *(f"{r[key]:.3f}" for key in keys)] for r in records[:20]]
    header = ["class", *(key.replace("_", " ") for key in keys)]
    return Section(
        "One class cut out of the network",
        [
            f"The paths of a class are a network of their own, with {metrics['parameters_kept']:.1%} of the parameters "
            f"({metrics['parameters_kept_without_shortcuts']:.1%} where projection shortcuts, which nothing can be "
            "removed from, are left out of both counts, as the paper seems to), "
            f"{metrics['multiply_adds_kept']:.1%} of the multiply-adds and {metrics['classifier_time_share']:.1%} of "
            f"the time. Its logit is that of the whole network with the other paths off, to "
            f"{metrics['classifier_difference']:.1e}. Thresholds have the best F1 on training images without "
            "augmentation (ImageNet's are cropped at random); the numbers are of test images."
        ],
        [],
        [Table(header, rows)],
    )


def _removals(report: Report) -> Section:
    results, metrics = report.results, report.results["metrics"]
    text = ["Paths of one block are removed that are active for the image's own class, or that are not."]
    caption = "Other paths are drawn for every image."
    removed: dict[str, Any] = {
        f"{kind} paths": ([int(k) for k in values], list(values.values()))
        for kind, values in results["removed"].items()
    }
    pictures = [charts.lines(removed, "paths removed", "test accuracy", caption, "Accuracy when paths are removed")]
    if "specificity" in results:
        lost = np.array(results["specificity"]["lost"], float)
        overlap = np.array(results["specificity"]["overlap"], int)
        text.append(
            "Then all paths of one class are removed for everybody: a class loses "
            f"{metrics['specificity_own']:.3f} of its accuracy without its own paths and "
            f"{metrics['specificity_others']:.3f} without another's, and that loss and the number of shared paths have "
            f"a correlation of {metrics['specificity_correlation']:.2f}."
        )
        names = [name[:12] for name in report.classes]
        given = names, names, "paths removed of", "accuracy lost by"
        caption = "Red: the class of the column loses accuracy when the paths of the class of the row are gone."
        pictures.append(charts.matrix(lost, *given, caption, "Accuracy that each class loses", diverging=True))
        caption = "How many paths two classes share, over all coded blocks."
        pictures.append(charts.matrix(overlap, *given, caption, "Paths that two classes share"))
    return Section("What is lost without a path", text, pictures)
