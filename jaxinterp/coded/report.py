"""What only coded networks show in their report: paths beside their code, decoding, classifiers, removals."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxinterp.coded.figures import decoding_curve, exit_curve, paths_beside_code, removal_lines, specificity_matrix
from jaxinterp.coded.network import CodedResNeXt
from jaxinterp.coded.paths import path_shares
from jaxinterp.figures.html import Section, Table, picture
from jaxinterp.recipe.family import Reading, Report

SHOWN = 200  # test images whose paths are read


def sections(report: Report, model: CodedResNeXt) -> list[Section]:
    """All of them, in the order of the paper."""
    classifiers = [_classifiers(report)] if report.results["classifiers"] else []
    return [_paths(report, model), _decoding(report), *classifiers, _removals(report)]


def _paths(report: Report, model: CodedResNeXt) -> Section:
    """The class × path maps of the last block of each code."""
    images, labels = report.images[:SHOWN], report.labels[:SHOWN].astype(int)
    parts = path_shares(model, report.explainable.variables, jnp.asarray(images), labels)
    size = float(jnp.abs(parts.logits).max())
    missed = float(jnp.abs(parts.residual).max()) / size
    pictures = []
    blocks = [i for i, (stage, _) in enumerate(model.blocks) if stage.code is not None]
    for block in blocks:
        code = model.blocks[block][0].code
        if code is None or (block + 1 in blocks and model.blocks[block + 1][0].code == code):
            continue
        present = np.unique(labels)
        share = np.asarray(parts.paths[block])[:, 0]
        mean = np.stack([share[labels == k].mean(0) for k in present])
        names = [report.classes[k] for k in present]
        figure = paths_beside_code(mean, code.table[present], names)
        active = code.table[present].astype(bool)
        caption = (
            f"Block {block + 1}, mean over the first {len(images)} test images; its code has distance {code.distance}, "
            f"{code.bound} is the upper bound. Active paths contribute "
            f"{mean[active].mean():+.2g} each on average, the others {mean[~active].mean():+.2g}."
        )
        pictures.append(picture(figure, caption, f"Paths of block {block + 1} and their code", 900))
    return Section(
        "The paths of every class",
        [
            "A logit is, without remainder, the sum of what the paths of all blocks hand on to it through the "
            "shortcuts, of the stem and of constants. On the left which paths the code gives to each class; on the "
            "right what they contribute to that class' logit on its images. Largest relative remainder: "
            f"{missed:.1e}."
        ],
        pictures,
    )


def reading(
    model: CodedResNeXt,
    variables: Any,
    image: Float[np.ndarray, "h w c"],
    top: Int[np.ndarray, " t"],
    names: Sequence[str],
) -> Reading:
    """Of one image: what each path of every block hands on to the `top` classes' logits; the last coded one drawn."""
    parts = path_shares(model, variables, jnp.asarray(image)[None], top[None].astype(np.int32))
    codes = [stage.code for stage, _ in model.blocks]
    numbers = [
        {
            "class": names[k],
            "logit": float(parts.logits[0, t]),
            "stem": float(parts.stem[0, t]),
            "shift": float(parts.shift[0, t]),
            "residual": float(parts.residual[0, t]),
            "blocks": [
                {"word": code and code.table[k].tolist(), "contributions": np.asarray(shares)[0, t].tolist()}
                for code, shares in zip(codes, parts.paths, strict=True)
            ],
        }
        for t, k in enumerate(top)
    ]
    last, code = [(i, code) for i, code in enumerate(codes) if code is not None][-1]
    drawn = paths_beside_code(np.asarray(parts.paths[last])[0], code.table[top], [names[k] for k in top])
    return Reading("paths", numbers, drawn)


def _decoding(report: Report) -> Section:
    found, paper = report.results, report.paper
    printed = {
        key.removeprefix("decoding_accuracy_block_"): value
        for key, value in paper.items()
        if key.startswith("decoding_accuracy_block_")
    }
    whole = found["metrics"]["test_accuracy"]
    curve = decoding_curve(found["decoding"], whole, printed, 1 / len(report.classes))
    pictures = [picture(curve, "The class whose word lies nearest to a block's energies.", "Decoding by block", 700)]
    text = ["The class can be read off the energies of a coded block, before the network has come to its end."]
    if "exits" in found:
        metrics = found["metrics"]
        caption = (
            "Numbers are the points of accuracy that thresholds may lose on the held-out images they are chosen on."
        )
        pictures.append(picture(exit_curve(found["exits"], whole), caption, "Early exit", 700))
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
    found, metrics = report.results, report.results["metrics"]
    text = ["Paths of one block are removed that are active for the image's own class, or that are not."]
    drawn = removal_lines(found["removed"])
    pictures = [picture(drawn, "Other paths are drawn for every image.", "Removal of paths", 600)]
    if "specificity" in found:
        lost = np.array(found["specificity"]["lost"], float)
        overlap = np.array(found["specificity"]["overlap"], int)
        text.append(
            "Then all paths of one class are removed for everybody: a class loses "
            f"{metrics['specificity_own']:.3f} of its accuracy without its own paths and "
            f"{metrics['specificity_others']:.3f} without another's, and that loss and the number of shared paths have "
            f"a correlation of {metrics['specificity_correlation']:.2f}."
        )
        matrix = specificity_matrix(lost, overlap, [name[:12] for name in report.classes])
        caption = "Red: the class of the column loses accuracy when the paths of the class of the row are gone."
        pictures.append(picture(matrix, caption, "Specificity of paths", 900))
    return Section("What is lost without a path", text, pictures)
