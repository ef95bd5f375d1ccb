"""The public names of the package, and where each is documented."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import jaxinterp

ROOMS = [name for name in jaxinterp.__all__ if isinstance(getattr(jaxinterp, name), ModuleType)]
OPEN = ("attribute", "metrics")  # rooms with a page for each function


def room(name: str) -> ModuleType:
    """Return a room, such as `jaxinterp.metrics`."""
    return import_module(f"jaxinterp.{name}")


def modules(name: str) -> list[str]:
    """Return the modules of a room that has modules alone, such as `jaxinterp.coda`; empty of others."""
    package = room(name)
    names = [found.name for found in iter_modules(getattr(package, "__path__", ()))]
    return [f"jaxinterp.{name}.{module}" for module in names] if package.__all__ == sorted(names) else []


def functions(name: str) -> list[str]:
    """Return the functions of a room."""
    return [found for found in room(name).__all__ if not isinstance(getattr(room(name), found), type)]


@cache
def documented() -> dict[str, str]:
    """Return full name → kind ("function", "class" or "data") of everything the reference has."""
    found = {}
    for package, names in {
        "jaxinterp": [name for name in jaxinterp.__all__ if name not in ROOMS],
        **{f"jaxinterp.{name}": room(name).__all__ for name in ROOMS if not modules(name)},
    }.items():
        found |= {f"{package}.{name}": kind(getattr(import_module(package), name)) for name in names}
    for module in (module for name in ROOMS for module in modules(name)):
        for name, value in vars(import_module(module)).items():
            own = getattr(value, "__module__", None) == module
            if own and not name.startswith("_") and getattr(value, "__doc__", None) and callable(value):
                found[f"{module}.{name}"] = kind(value)
    return found


def kind(value: object) -> str:
    """Return which directive documents a value."""
    return "class" if isinstance(value, type) else "function" if callable(value) and hasattr(value, "__name__") else "data"


@cache
def places() -> dict[str, str]:
    """Return short or internal name → full public name; of several, the shortest one."""
    found: dict[str, str] = {}
    for full in sorted(documented(), key=lambda name: (name.count("."), len(name)), reverse=True):
        package, _, name = full.rpartition(".")
        value = getattr(import_module(package), name)
        inner = f"{getattr(value, '__module__', package)}.{getattr(value, '__qualname__', name)}"
        found |= {name: full, full: full, inner: full, full.removeprefix("jaxinterp."): full}
    return found
