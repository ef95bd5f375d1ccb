"""The keys of a run: what each is called, which values it takes, which it has, and what it means."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxinterp.checks import shown
from jaxinterp.recipe.config import Run

HEADER = ("key", "value", "type", "meaning")


def key_rows(run: Run[Any]) -> list[tuple[str, str, str, str]]:
    """Return a row under `HEADER` for every field of a run's parts."""
    rows = []
    for part in dataclasses.fields(run):
        values: Any = getattr(run, part.name)
        hints, meanings = get_type_hints(type(values), include_extras=True), attributes(type(values))
        for field in dataclasses.fields(values):
            value = shown(getattr(values, field.name))
            rows.append((f"{part.name}.{field.name}", value, in_words(hints[field.name]), meanings.get(field.name, "")))
    return rows


def attributes(kind: type) -> Mapping[str, str]:
    """Return what the docstrings of a class and its bases say of each attribute.

    Example:
        >>> from jaxinterp.train import TrainConfig
        >>> attributes(TrainConfig)["epochs"]
        'Epochs.'
    """
    found = dict[str, str]()
    for one in reversed(kind.__mro__):
        _, _, text = (inspect.cleandoc(one.__doc__ or "")).partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", "\n" + text.split("\n\n")[0])[1:]:
            name, _, meaning = entry.strip().partition(":")
            found[name] = " ".join(meaning.split())
    return found


def in_words(hint: Any) -> str:
    """Describe the type of a field.

    Example:
        >>> from annotated_types import Ge, Lt
        >>> in_words(Annotated[int, Ge(1)]), in_words(Annotated[float, Ge(0), Lt(1)] | None)
        ('int >= 1', 'float >= 0 < 1 or None')
        >>> in_words(tuple[int, ...]), in_words(Literal["a", "b"])
        ('int,int,...', 'a | b')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        bounds = [
            (sign, getattr(bound, key))
            for bound in hint.__metadata__
            for key, sign in signs.items()
            if hasattr(bound, key)
        ]
        return " ".join(
            [in_words(arguments[0]), *(f"{sign} {limit}" for sign, limit in bounds if limit != float("inf"))]
        )
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is tuple:
        entries = [in_words(entry) for entry in arguments if entry is not Ellipsis]
        return ",".join([*entries * 2, "..."] if Ellipsis in arguments else entries)
    return "None" if hint is type(None) else str(getattr(hint, "__name__", hint))
