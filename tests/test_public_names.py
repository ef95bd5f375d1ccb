import importlib
import subprocess
import sys
from pkgutil import iter_modules
from types import ModuleType

import pytest

import jaxinterp


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, jaxinterp; print([name for name in ('jax', 'numpy', 'flax', 'sklearn') if name in sys.modules])"
    )
    assert run(program).strip() == "[]"


def test_decompose_needs_neither_the_application_nor_the_training() -> None:
    heavy = "('tensorflow_datasets', 'orbax', 'sklearn', 'matplotlib', 'pydantic', 'tyro', 'grain')"
    program = f"import sys, jaxinterp; jaxinterp.decompose; print([name for name in {heavy} if name in sys.modules])"
    assert run(program).strip() == "[]"


@pytest.mark.parametrize("name", jaxinterp.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(jaxinterp)
    assert getattr(jaxinterp, name) is not None


ROOMS = {name: module for name in dir(jaxinterp) if isinstance(module := getattr(jaxinterp, name), ModuleType)}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_shows_its_public_names_and_modules_alone(name: str) -> None:
    room = ROOMS[name]
    public = {shown: getattr(room, shown) for shown in dir(room) if not shown.startswith("_")}
    assert set(room.__all__) <= set(public)
    hook = {"jaxtyping"}  # which checks the types in tests
    others = {shown: value for shown, value in public.items() if shown not in {*room.__all__, *hook}}
    for shown, value in others.items():
        assert isinstance(value, ModuleType), f"{name}.{shown}"
        assert value.__name__ == f"{room.__name__}.{shown}"


@pytest.mark.parametrize("name", ["coda", "coded", "figures", "glassbox", "nn", "symmetry"])
def test_a_room_without_names_of_its_own_lists_all_its_modules(name: str) -> None:
    room = ROOMS[name]
    assert room.__all__ == sorted(module.name for module in iter_modules(room.__path__))
    with pytest.raises(AttributeError, match=f"module 'jaxinterp.{name}' has no attribute 'nothing'"):
        _ = room.nothing


def test_modules_of_a_room_are_imported_when_they_are_used() -> None:
    program = (
        "import jaxinterp, sys; room = jaxinterp.coda; print('flax' in sys.modules, room.network.CoDANet.__name__)"
    )
    assert run(program).split() == ["False", "CoDANet"]


def test_rooms_work_after_importing_the_package_alone() -> None:
    program = """if True:
        import jaxinterp
        print(jaxinterp.kernels.PathKernel.__name__, jaxinterp.attribute.grad_cam.__name__,
              jaxinterp.metrics.grid_pointing_game.__name__, jaxinterp.models.CoDANet.__name__,
              jaxinterp.data.load.__name__, jaxinterp.train.fit.__name__)"""
    assert run(program).split() == ["PathKernel", "grad_cam", "grid_pointing_game", "CoDANet", "load", "fit"]


@pytest.mark.parametrize("name", ["attribute", "kernels", "metrics", "series"])
def test_rooms_of_public_names_are_modules(name: str) -> None:
    room = importlib.import_module(f"jaxinterp.{name}")
    home = importlib.import_module({"kernels": "jaxinterp.gated.kernels"}.get(name, f"jaxinterp.explain.{name}"))
    assert getattr(jaxinterp, name) is room
    assert {shown for shown in dir(room) if not shown.startswith("_")} == set(home.__all__)
    assert dir(home) == dir(room)
    assert all(getattr(room, shown) is getattr(home, shown) for shown in home.__all__)
    assert run(f"from jaxinterp.{name} import {home.__all__[0]} as found; print(callable(found))").strip() == "True"


def test_rules_are_a_room_of_their_own() -> None:
    program = "import jaxinterp; room = jaxinterp.rules; print(room.rules.__name__, room.Composite(first=room.ZBox()))"
    assert run(program).startswith("rules Composite(")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="kernel_"):
        _ = jaxinterp.kernel_
