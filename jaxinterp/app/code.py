"""Objects of the user's own code, by `module:name` or `file.py:name`."""

import importlib
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxinterp.checks import require, require_one_of
from jaxinterp.errors import ConfigError

FILE = "_jaxinterp_file_"  # beginning of the name of a module that was read from a file


def names_file(text: str) -> bool:
    """Whether a text is a file of runs, or a name in one, whatever else has a colon.

    Example:
        >>> names_file("my_run.toml"), names_file("my_run.py:FAST"), names_file("gated on folder:photos")
        (True, True, False)
    """
    return text.endswith((".toml", ".py")) or ".py:" in text


def load(option: str, reference: str) -> Any:
    """Return what `module:name` or `file.py:name` names.

    Args:
        option: what the reference was given as, for errors.
        reference: a module is looked for in the working folder first, as `python -m` does.

    Raises:
        ConfigError: no such module, file or name, or it does not import.

    Example:
        >>> load("--net", "math:hypot")(3, 4)
        5.0
    """
    place, colon, name = reference.rpartition(":")
    require(colon and place and name, option, reference, "module:name or file.py:name")
    module = load_module(option, place)
    own = {one for one, value in vars(module).items() if not one.startswith("_") and not isinstance(value, ModuleType)}
    public = [f"{place}:{one}" for one in [*sorted(own), *({name} & vars(module).keys() - own)]]
    require_one_of(option, reference, public, f"a name that {place} defines")
    return getattr(module, name)


def load_module(option: str, place: str) -> ModuleType:
    """Import a module by its name, or read a file once per version of it; errors as of `load`."""
    path = Path(place)
    is_file = path.suffix == ".py"
    require(not is_file or path.is_file(), option, place, "a file that exists")
    folders = [str(Path().resolve()), *([str(path.parent.resolve())] if is_file else [])]
    new = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    sys.path[:0] = new
    try:
        return _read(path) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever the code raises
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{option}: got {place}, which does not import ({fault}), expected code that does") from error
    finally:  # what is imported later finds them last: a json.py there hides nobody's
        sys.path[:] = [*(folder for folder in sys.path if folder not in new), *new]


def _read(path: Path) -> ModuleType:
    """Run a file as a module of a name of its own."""
    version = zlib.crc32(f"{path.resolve()} {path.stat().st_mtime_ns}".encode())
    name = f"{FILE}{path.stem}_{version:08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def own_file(kind: type) -> Path | None:
    """Return the file of a class that was read by `load`, or that a script defines; None of an importable module."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    alone = kind.__module__ == "__main__" or kind.__module__.startswith(FILE)
    return Path(file) if alone and file and "<locals>" not in kind.__qualname__ else None
