"""The page of what is there, and a browser that shows it."""

import webbrowser
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import require
from jaxinterp.errors import DataError
from jaxinterp.explain.attribution import Attribution
from jaxinterp.recipe.run_folder import EVALUATION, near_runs

NEEDED = ("contributions", "logits", "targets")
MEASURED = ("metrics.jsonl", EVALUATION)  # files of a run that its report shows


def page_of(path: Path, data_dir: Path | None = None) -> Path:
    """Return the page of a run's folder, of a saved attribution, or the page itself.

    A run's report.html is written where it is missing or older than the run; the page of NAME.npz is
    NAME.explorer.html, written anew.

    Raises:
        ConfigError: it is no folder of a run and no file of these kinds.
        DataError: the file is damaged, or holds no attribution of images.
    """
    if path.is_dir():
        page = path / "report.html"
        parts = [file for name in MEASURED if (file := path / name).exists()]
        if page.exists() and all(file.stat().st_mtime <= page.stat().st_mtime for file in parts):
            return page
        from jaxinterp.app.stages import report

        return report(path, data_dir)
    known = path.is_file() and path.suffix in (".html", ".npz")
    wanted = " or ".join(near_runs(path)) or "the folder of a trained run, an .npz file of Attribution.save, or a page"
    require(known, "RUN_DIR|FILE", path, wanted)
    if path.suffix == ".html":
        return path
    content, given = read_attribution(path)
    page = path.with_suffix(".explorer.html")
    content.explore(**given).write(page, path.name)
    return page


def read_attribution(path: Path) -> tuple[Attribution, dict[str, Any]]:
    """Return what `Attribution.save` wrote, and the images, labels and names of classes beside it.

    Raises:
        DataError: the file is damaged, or holds no attribution.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: got a damaged file ({error}), expected what Attribution.save writes") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise DataError(f"{path}: got no {', '.join(missing)}, expected what Attribution.save writes")
    _check_shapes(path, arrays)
    words = {name: str(arrays[name]) for name in ("method", "layer") if name in arrays}
    parts = {name: arrays[name] for name in (*NEEDED, "bias", "residual") if name in arrays}
    given: dict[str, Any] = {name: arrays[name] for name in ("images", "labels") if name in arrays}
    if "classes" in arrays:
        given["classes"] = [str(name) for name in arrays["classes"]]
    return Attribution(**{name: jnp.asarray(part) for name, part in parts.items()}, **words), given  # type: ignore[arg-type]


def _check_shapes(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise DataError unless all arrays are of the same examples and targets."""
    pair = arrays["logits"].shape
    for name in (*NEEDED, "bias", "residual"):
        shape = arrays[name].shape if name in arrays else pair
        if len(pair) != 2 or (shape[:2] if name == "contributions" else shape) != pair:
            raise DataError(f"{path}: got {name} of shape {shape}, expected (examples, targets), as logits {pair}")
    if not np.issubdtype(arrays["targets"].dtype, np.integer) or (arrays["targets"] < 0).any():
        raise DataError(f"{path}: got targets that are no classes, expected integers from 0")
    for name, axes in (("images", 4), ("labels", 1)):
        if name in arrays and (arrays[name].ndim != axes or len(arrays[name]) != pair[0]):
            raise DataError(f"{path}: got {name} of shape {arrays[name].shape}, expected {pair[0]}, as logits")


def open_page(page: Path) -> str:
    """Open a page in a browser, and return a line about it."""
    opened = webbrowser.open(page.resolve().as_uri())
    return f"{page}: {'opened in a browser' if opened else 'no browser was found here; open it in one'}"
