"""Report sections of distillations: the levels as pictures, their accuracy, and the baselines."""

from typing import Any

from jaxinterp.figures import charts
from jaxinterp.figures.html import Cell, MapTable, Section, Table
from jaxinterp.recipe.family import Report
from jaxinterp.taylor.distill import read_set

COLUMNS = 12  # images of a class, over all levels
FOLDER = "distilled"  # in the run folder
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {  # test accuracy in percent with 1 and 10 images per class
    "mnist": {
        "DC (Zhao et al., ICLR 2021)": (91.7, 97.4),
        "DSA (Zhao & Bilen, ICML 2021)": (88.7, 97.8),
        "KIP to network (Nguyen et al., NeurIPS 2021)": (90.1, 97.5),
        "IDC (Kim et al., ICML 2022)": (94.2, 98.4),
    },
    "cifar10": {
        "DC (Zhao et al., ICLR 2021)": (28.3, 44.9),
        "DSA (Zhao & Bilen, ICML 2021)": (28.8, 52.1),
        "KIP to network (Nguyen et al., NeurIPS 2021)": (50.0, 62.7),
        "IDC (Kim et al., ICML 2022)": (50.6, 67.5),
    },
}


def sections(report: Report) -> list[Section]:
    """Return the sections of a distillation's report."""
    return [_levels(report), _baselines(report)]


def _levels(report: Report) -> Section:
    rows, metrics, model = report.results["levels"], report.results["metrics"], report.run.model
    levels = [read_set(report.trained.run_dir / FOLDER / f"level_{row['level']}.npz") for row in rows]
    text = (
        f"One learned map merges {model.group} images of a class into one, then {model.group} of its results into one, "
        f"until one image is left of {model.group**model.levels}. A test image is classified by the "
        "reference with the most similar embedding: with one reference per class "
        f"{metrics['one_reference_accuracy']:.2%}, with one random real image per class "
        f"{metrics['one_real_image_accuracy']:.2%}. Merging copies of a reference changes it by "
        f"{metrics['fixed_point_distance']:.3f} (root mean square; pixels run from 0 to 1). The last references are "
        f"{metrics['distance_from_mean']:.3f} from the means of the same images; class means classify "
        f"{metrics['class_mean_1_embedding']:.2%} in the same embedding."
    )
    caption = "Images of every class at every level, real ones on the left, the last one on the right."
    each = max(1, COLUMNS // len(levels))
    images = [
        [
            Cell(f"{name}\nlevel {level.level}", image=image, alt=f"A {name} at level {level.level}")
            for level in levels
            for image in level.images[level.labels == k][:each]
        ]
        for k, name in enumerate(report.classes)
    ]
    sheet = MapTable(images, caption, "Levels of abstraction", cell=56)
    caption = "Accuracy by references of each level, on test images."
    names = {"one": "one reference per class", "nearest": "the nearest of all", "mean": "mean embedding"}
    place = [row["level"] for row in rows]
    series: dict[str, Any] = {name: (place, [row[key] for row in rows]) for key, name in names.items()}
    said = f"Accuracy by level, {rows[-1]['one']:.2%} with one reference per class at the last"
    curves = charts.lines(series, "level", "accuracy", caption, said, ticks=place)
    return Section("From images to archetypes", [text], [sheet, curves])


def _baselines(report: Report) -> Section:
    keys, config = ("images", "pixels", "embedding", "trained"), report.run.model
    rows = [[row["set"].replace("_", " "), *(f"{row[key]:.4g}" for key in keys)] for row in report.results["baselines"]]
    tables = [Table(["set", "images per class", "nearest in pixels", "nearest in the embedding", "ConvNet"], rows)]
    if report.run.data.name in PUBLISHED:
        published = PUBLISHED[report.run.data.name].items()
        cells = [[name, *(f"{value:.1f} %" for value in values)] for name, values in published]
        tables.append(Table(["published, ConvNet of width 128", "1 image per class", "10"], cells))
    return Section(
        "Beside its baselines",
        [
            "Accuracy on the test images by the nearest reference, in pixels and in our embedding, and of a ConvNet "
            f"trained on the set ({config.net_steps} steps, width {config.net_width}; mean of {config.net_seeds} "
            f"networks). The condensed sets are gradient matching with {config.condense_iterations} networks of that "
            f"width and {config.condense_batch} real images of a class (the paper: 1000 of width 128 and 256), and "
            "without its inner training where there are more images than one. Published numbers are the authors', read "
            "in their repositories or papers; they measure what the last column measures, with larger networks."
        ],
        [],
        tables,
    )
