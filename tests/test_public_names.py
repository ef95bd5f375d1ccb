import subprocess
import sys

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


def test_rooms_work_after_importing_the_package_alone() -> None:
    program = """if True:
        import jaxinterp
        print(jaxinterp.kernels.PathKernel.__name__, jaxinterp.attribute.grad_cam.__name__,
              jaxinterp.metrics.grid_pointing_game.__name__, jaxinterp.models.CoDANet.__name__,
              jaxinterp.data.load.__name__, jaxinterp.train.fit.__name__)"""
    assert run(program).split() == ["PathKernel", "grad_cam", "grid_pointing_game", "CoDANet", "load", "fit"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="kernel_"):
        _ = jaxinterp.kernel_
