"""The page of what is there, and a browser that shows it."""

import webbrowser
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import require
from jaxinterp.errors import DataError
from jaxinterp.explain.attribution import Attribution

NEEDED = ("contributions", "logits", "targets")


def page_of(path: Path, data_dir: Path | None = None) -> Path:
    """Return the page of a run's folder, of a saved attribution, or the page itself; it is written where it is missing.

    Raises:
        ConfigError: it is no folder of a run and no file of these kinds.
        DataError: the file is damaged, or holds no attribution of images.
    """
    if path.is_dir():
        page = path / "report.html"
        if page.exists():
            return page
        from jaxinterp.app.stages import report

        return report(path, data_dir)
    known = path.is_file() and path.suffix in (".html", ".npz")
    require(known, "RUN_DIR|FILE", path, "the folder of a trained run, an .npz file of Attribution.save, or a page")
    if path.suffix == ".html":
        return path
    content, given = read_attribution(path)
    page = path.with_suffix(".html")
    content.explore(**given).write(page, path.name)
    return page


def read_attribution(path: Path) -> tuple[Attribution, dict[str, Any]]:
    """Return what `Attribution.save` wrote, and the images, labels and names of classes beside it.

    Raises:
        DataError: the file is damaged, or holds no attribution.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: got a damaged file ({error}), expected what Attribution.save writes") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise DataError(f"{path}: got no {', '.join(missing)}, expected what Attribution.save writes")
    words = {name: str(arrays[name]) for name in ("method", "layer") if name in arrays}
    parts = {name: arrays[name] for name in (*NEEDED, "bias", "residual") if name in arrays}
    given: dict[str, Any] = {name: arrays[name] for name in ("images", "labels") if name in arrays}
    if "classes" in arrays:
        given["classes"] = [str(name) for name in arrays["classes"]]
    return Attribution(**{name: jnp.asarray(part) for name, part in parts.items()}, **words), given  # type: ignore[arg-type]


def open_page(page: Path) -> str:
    """Open a page in a browser, and return a line about it."""
    opened = webbrowser.open(page.resolve().as_uri())
    return f"{page}: {'opened in a browser' if opened else 'no browser was found here; open it in one'}"
