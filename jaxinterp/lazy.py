"""What `dir` shows: public names, those of modules that are imported when they are first used among them."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def modules(package: str, names: Sequence[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that imports its modules when they are first used."""

    def get(name: str) -> Any:
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, public(names)


def public(names: Sequence[str]) -> Callable[[], list[str]]:
    """Return `__dir__` of a module that shows its public names alone."""
    return lambda: sorted([*names, "__doc__"])
