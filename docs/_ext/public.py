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
    """Return full name → the full name under which it is documented, of all public names.

    What several rooms show is documented once: methods and metrics on pages of their own, then by the shortest name.
    """
    found, first = dict[str, str](), dict[int, str]()
    packages = {
        **{f"jaxinterp.{name}": functions(name) for name in OPEN},
        "jaxinterp": [name for name in jaxinterp.__all__ if name not in ROOMS],
        **{f"jaxinterp.{name}": room(name).__all__ for name in ROOMS if not modules(name)},
    }
    for module in (module for name in ROOMS for module in modules(name)):
        packages[module] = [name for name, value in vars(import_module(module)).items() if _own(module, name, value)]
    for package, names in packages.items():
        for name in names:
            value, full = getattr(import_module(package), name), f"{package}.{name}"
            found[full] = first.setdefault(id(value), full) if kind(value) != "data" else full
    return found


def _own(module: str, name: str, value: object) -> bool:
    """Return whether a name of a module is public and made there."""
    here = getattr(value, "__module__", None) == module
    return here and not name.startswith("_") and callable(value) and bool(getattr(value, "__doc__", None))


def kind(value: object) -> str:
    """Return which directive documents a value."""
    if isinstance(value, type):
        return "class"
    return "function" if callable(value) and hasattr(value, "__name__") else "data"


@cache
def places() -> dict[str, str]:
    """Return short or internal name → full public name; of several, the shortest one."""
    found: dict[str, str] = {}
    for full in sorted(documented(), key=lambda name: (name.count("."), len(name)), reverse=True):
        package, _, name = full.rpartition(".")
        value, home = getattr(import_module(package), name), documented()[full]
        inner = f"{getattr(value, '__module__', package)}.{getattr(value, '__qualname__', name)}"
        found |= {name: home, full: home, inner: home, full.removeprefix("jaxinterp."): home}
    return found
