"""The package's docstrings as reStructuredText: formulas stay as they are set, and names in backticks become links."""

import re
from typing import Any

from docutils import nodes
from public import places
from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Example|Examples|Source|Yields):\s*$")
QUOTED = re.compile(r"(`+)([^`]+)\1")


def process(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place, before napoleon reads its sections."""
    written, section, literal, previous = list[str](), False, False, ""
    item = None  # indentation of the list that is being written
    for line in lines:
        indent = len(line) - len(line.lstrip())
        starts = line.lstrip().startswith("- ")
        begins, ends = (
            starts and item is None,
            item is not None and bool(line.strip()) and indent <= item and not starts,
        )
        if (begins or ends) and previous.strip():
            written.append("")
        item = indent if starts else None if ends else item
        if SECTION.match(line):
            section, literal = True, False
        elif not section and line.strip() and not previous.strip():
            formula = indent >= 4 and not line.lstrip().startswith(">>>")
            if formula and not literal:
                written += ["::", ""]
            literal = formula
        doctest = line.lstrip().startswith((">>>", "...")) or (bool(line.strip()) and _doctest(written))
        written.append(line if literal or doctest else _text(line))
        previous = line
    lines[:] = written


def _doctest(written: list[str]) -> bool:
    """Return whether the paragraph that is being written began with a doctest."""
    for line in reversed(written):
        if not line.strip():
            return False
        if line.lstrip().startswith(">>>"):
            return True
    return False


def _text(line: str) -> str:
    """Escape what reStructuredText would read as markup, and link names in backticks."""
    parts, at = list[str](), 0
    for match in QUOTED.finditer(line):
        parts += [_escaped(line[at : match.start()]), _quoted(match[2])]
        at = match.end()
    return "".join([*parts, _escaped(line[at:])])


def _quoted(text: str) -> str:
    full = places().get(text.removesuffix("()"))
    return f":py:obj:`{text} <{full}>`" if full else f"``{text}``"


def _escaped(text: str) -> str:
    text = re.sub(r"([\\*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=[\s.,;)’']|$)", r"\\_", text)


def resolve(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Link a type of a signature to where it is documented; types without a page, and of others, are plain text."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    full = places().get(target) or places().get(target.rsplit(".", 1)[-1] if target.startswith("jaxinterp.") else "")
    if full and full != target:
        return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, contnode)
    written = node["reftype"] == "class" or not target.startswith("jaxinterp.")
    return contnode if written else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
