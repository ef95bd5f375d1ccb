"""The pages that are written when the site is built: one for each method, metric and room of the package.

They lie in reference/methods, reference/metrics and reference/api, are not committed, and have their words from the
docstrings, from `catalogue`, and, for distances from the truth, from experiments/results/audit_*.json.
"""

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from catalogue import METHODS, METRICS, Entry
from docstrings import process
from pictures import draw
from public import OPEN, ROOMS, documented, functions, kind, modules, room
from results import audited_methods, audited_metric
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import jaxinterp

DOCS = Path(__file__).parents[1]
FOLDERS = {"attribute": "methods", "metrics": "metrics"}
ALTS = {
    "methods": "a handwritten 4, its exact contributions, and the map of {name} beside them",
    "metrics": "bars of the mean {name} of the exact decomposition and of four other methods on sixteen digits",
    "pairs": "a handwritten 4, and what each pixel contributes together with three chosen ones",
    "tracin": "a digit, and the training images that speak most for and against its label",
    "influence_functions": "a digit, and the training images that speak most for and against its label",
}
SHOWN = {
    "methods": "A digit that the packaged CoDA net reads, its exact contributions to that class, and the map of "
    "`{name}`. Full color is each map's largest.",
    "metrics": "The mean over sixteen digits, of the packaged CoDA net; the exact decomposition in blue, and in "
    "parentheses the cosine of each method's maps with it. A metric to believe orders the bars as the cosines.",
    "pairs": "The second order of the packaged TaylorNet: what each pixel contributes together with one other.",
    "tracin": "A digit, the three training images that lowered its loss most, and the three that raised it most: a "
    "linear classifier of 400 digits.",
    "influence_functions": "A digit, the three training images that lowered its loss most, and the three that "
    "raised it most: a linear classifier of 400 digits.",
}
WITHOUT = {
    "attention_rollout": "No network of the package has attention, so there is no picture.",
    "gradient_rollout": "No network of the package has attention, so there is no picture.",
}


def page(name: str, where: str, entry: Entry) -> str:
    """Write the page of a method or metric."""
    full, folder = f"jaxinterp.{where}.{name}", FOLDERS[where]
    picture = draw(name, folder, DOCS / "reference" / folder / "pictures")
    parts = [f"# {name}", f"```{{eval-rst}}\n.. autofunction:: {full}\n```", "## Cost", entry.cost, "## When to use"]
    parts.append(entry.use)
    if picture:
        alt, text = (table.get(name, table[folder]).format(name=name) for table in (ALTS, SHOWN))
        parts += ["## Picture", f"![{alt}](pictures/{picture.name})", text]
    elif name in WITHOUT:
        parts += ["## Picture", WITHOUT[name]]
    found = audited_methods(entry.audit or (name,)) if where == "attribute" else audited_metric(name)
    if where == "metrics" and entry.group.startswith(("Detection", "Parts")):
        return "\n\n".join(parts) + "\n"
    parts += ["## Distance from the truth", found]
    return "\n\n".join(parts) + "\n"


def index(title: str, where: str, entries: Mapping[str, Entry], text: str) -> str:
    """Write the table of contents of all methods or metrics."""
    parts = [f"# {title}", text]
    for group in dict.fromkeys(entry.group for entry in entries.values()):
        names = [name for name, entry in entries.items() if entry.group == group]
        rows = [f"| [{name}]({name}.md) | {_line(f'jaxinterp.{where}', name)} |" for name in names]
        parts += [f"## {group}", "\n".join(["| | |", "|---|---|", *rows])]
    tree = "\n".join(["```{toctree}", ":hidden:", "", *entries, "```"])
    return "\n\n".join([*parts, tree]) + "\n"


def _line(package: str, name: str) -> str:
    value = getattr(jaxinterp if package == "jaxinterp" else room(package.rpartition(".")[2]), name)
    return (inspect.getdoc(value) or "").splitlines()[0].replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def api() -> dict[str, str]:
    """Write a page for the package and for each room; functions with a page of their own are linked."""
    top = [name for name in jaxinterp.__all__ if name not in ROOMS]
    pages = {"jaxinterp": "\n\n".join(["# jaxinterp", _rst("jaxinterp", top)])}
    for name in ROOMS:
        package = f"jaxinterp.{name}"
        intro = f"```{{eval-rst}}\n.. automodule:: {package}\n   :no-index:\n```"
        parts = [f"# {package}", intro]
        if name in OPEN:
            rows = [f"| [{one}](../{FOLDERS[name]}/{one}.md) | {_line(package, one)} |" for one in functions(name)]
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
            parts.append(_rst(package, [one for one in room(name).__all__ if one not in functions(name)]))
        elif found := modules(name):
            for module in found:
                names = [full.rpartition(".")[2] for full in documented() if full.rpartition(".")[0] == module]
                head = f"```{{eval-rst}}\n.. automodule:: {module}\n   :no-index:\n```"
                parts += [f"## {module}", head, _rst(module, names)]
        else:
            parts.append(_rst(package, room(name).__all__))
        pages[package] = "\n\n".join(filter(None, parts))
    rows = [f"| [{name}]({name}.md) | {_first(name)} |" for name in pages]
    tree = "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
    pages["index"] = "\n\n".join(["# All public names", "\n".join(["| | |", "|---|---|", *rows]), tree])
    return pages


def _first(package: str) -> str:
    module = jaxinterp if package == "jaxinterp" else room(package.rpartition(".")[2])
    return (module.__doc__ or "").strip().splitlines()[0].replace("`", "")


def _rst(package: str, names: list[str]) -> str:
    """Write the directives that document names of a package."""
    rows = list[str]()
    for name in names:
        home = documented()[f"{package}.{name}"]
        if home != f"{package}.{name}":
            rows += [f"``{package}.{name}``", f"   The same as :py:obj:`{home}`.", ""]
            continue
        what = kind(getattr(import_module(package), name))
        if what == "data":
            rows += [
                f".. py:data:: {name}",
                f"   :module: {package}",
                "",
                *(f"   {line}" for line in comment(package, name)),
                "",
            ]
            continue
        members = ["   :members:", "   :exclude-members: name, parent, scope"] if what == "class" else []
        rows += [f".. auto{what}:: {package}.{name}", *members, ""]
    return "\n".join(["```{eval-rst}", *rows, "```"]) if rows else ""


def comment(package: str, name: str) -> list[str]:
    """Return what stands below a constant in the module that defines it, as reStructuredText."""
    value, lines = getattr(import_module(package), name), list[str]()
    for module in [one for key, one in sorted(sys.modules.items()) if key.startswith("jaxinterp.")]:
        if vars(module).get(name) is value and (found := _comments(module.__name__).get(("", name))):
            lines = list(found)
    process(None, "data", name, value, None, lines)
    return lines or [f"``{value!r}``"]


@cache
def _comments(module: str) -> dict[tuple[str, str], list[str]]:
    return ModuleAnalyzer.for_module(module).find_attr_docs()


def build(app: Sphinx) -> None:
    """Write all pages, each only where it has changed, so that a second build reads what it must."""
    for where, entries in {"attribute": METHODS, "metrics": METRICS}.items():
        missing = set(functions(where)) ^ set(entries)
        if missing:
            raise ExtensionError(f"docs/_ext/catalogue.py: {sorted(missing)} are not both public and described")
    pages = {f"api/{name}": text for name, text in api().items()}
    texts = {
        "methods": "Every method is `method(net, x, targets=None, *, layer=None, ...)`, and returns an `Attribution`.",
        "metrics": "Every metric is `metric(net, method, x, labels, ...)`, and has `scores`, one for each example.",
    }
    for folder, package, entries in (("methods", "attribute", METHODS), ("metrics", "metrics", METRICS)):
        pages[f"{folder}/index"] = index(folder.capitalize(), package, entries, texts[folder])
        for i, (name, entry) in enumerate(entries.items()):
            logging.getLogger(__name__).info(f"{folder}: {name} ({i + 1} of {len(entries)})")
            pages[f"{folder}/{name}"] = page(name, package, entry)
    for name, text in pages.items():
        path = DOCS / "reference" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def complete(app: Sphinx, exception: Exception | None) -> None:
    """Require that every public name is documented."""
    missing = set(documented().values()) - set(app.env.domaindata["py"]["objects"])
    if missing and exception is None:
        raise ExtensionError(f"public names without a place in the reference: {sorted(missing)}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the pages, which are there before Sphinx looks for them."""
    app.connect("config-inited", lambda app, config: build(app))
    app.connect("build-finished", complete)
    return {"parallel_read_safe": True}
