"""Typed overrides of a run's fields, and what tyro says of a wrong one in one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

from jaxinterp.checks import expected, field_adapters, require, require_key
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.config import AnyRun, Run


def override(run: AnyRun, assignments: Sequence[str]) -> AnyRun:
    """Replace fields of a run by typed assignments, "part.field=value"; entries of a tuple are separated by commas.

    Example:
        >>> from jaxinterp.recipe.config import Model
        >>> run = override(Run(Model()), ["train.epochs=4", "evaluate.grid_sizes="])
        >>> run.train.epochs, run.evaluate.grid_sizes
        (4, ())
    """
    import tyro

    arguments, known, given = list[str](), run.fields(), dict[str, str]()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        require(equals, "KEY=VALUE", assignment, "an assignment such as train.epochs=4")
        require_key(key, known)
        require(key not in given, key, f"{given.get(key)}, then {text}", "one value")
        given[key] = text
        entries = text.split(",") if text else []
        arguments += [f"--{key}", *(entries if isinstance(known[key], tuple) else [text])]
    kind: Any = Run[type(run.model)]  # type: ignore[misc]
    box, options = io.StringIO(), (tyro.conf.FlagConversionOff,)
    try:
        with contextlib.redirect_stderr(box):
            changed: AnyRun = tyro.cli(kind, default=run, args=arguments, config=options)
    except SystemExit:
        for assignment in assignments:
            _require_type(run, *assignment.split("=", 1))
        fault = re.sub(r"^Error parsing \w+: ", "", in_one_line(box.getvalue()))  # a part's own check, as it stands
        raise ConfigError(fault) from None
    return changed


def _require_type(run: Run[Any], key: str, text: str) -> None:
    """Raise for a text that is not of its field's type, in the grammar of all errors."""
    from pydantic import ValidationError

    part, name = key.split(".")
    old = run.fields()[key]
    kind: Any = type(getattr(run, part))
    entries = tuple(text.split(",")) if text else ()
    try:
        field_adapters(kind)[name].validate_python(entries if isinstance(old, tuple) else text)
    except ValidationError as error:
        require(False, key, text or "nothing", expected(error))


def in_one_line(box: str) -> str:
    r"""Join what tyro prints in a framed box: its first paragraph, and the options or commands that it suggests.

    Example:
        >>> in_one_line("╭─── Oops ─╮\n│ a is  │\n│ wrong │\n│ ───── │\n│ Perhaps you meant: │\n│ --b INT │\n╰──────╯")
        'a is wrong; perhaps you meant --b'
    """
    lines = ["\0" if "───" in line or "---" in line else line.strip("│| ") for line in box.splitlines()]
    _, fault, *hints = (" ".join(paragraph.split()) for paragraph in " ".join(lines).split("\0"))
    text = [fault.partition(" Got errors:")[0], *(hint for hint in hints if hint.startswith("Available"))]
    options = [option for hint in hints if hint.startswith("Perhaps") for option in re.findall(r"--[\w-]+", hint)]
    near = " or ".join(option for option in dict.fromkeys(options) if option != "--help")
    return "; ".join([*text, *([f"perhaps you meant {near}"] if near else [])])
