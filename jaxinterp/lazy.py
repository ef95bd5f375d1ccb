"""Packages whose public names are their modules."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def modules(package: str, names: Sequence[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that imports its modules when they are first used."""

    def get(name: str) -> Any:
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted([*names, "__doc__"])
