from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Ge

from jaxinterp.checks import (
    Checked,
    nearest,
    random_key,
    require_at_least,
    require_classes,
    require_finite,
    require_labels,
    require_number,
    require_one_of,
    require_whole,
    warn,
)
from jaxinterp.errors import ConfigError


def test_non_finite_values_raise_and_known_ones_do_under_a_trace_too():
    def traced(known):
        @jax.jit
        def function(x):
            require_finite("x", x)
            require_finite("known", known)
            return x

        return function(jnp.ones(2))

    traced(jnp.ones(3))
    for wrong in (jnp.array([1.0, jnp.nan]), np.array([np.inf, 1.0, np.nan])):
        with pytest.raises(ConfigError, match="known"):
            traced(wrong)


def test_labels_of_no_image_are_said_to_be_none():
    with pytest.raises(ConfigError, match=r"^y: got none, expected at least one image and its label$"):
        require_labels("y", np.zeros(0, int), 0)
    with pytest.raises(ConfigError, match=r"^y: got int64\(2,\), expected integers \(1,\), one for each image$"):
        require_labels("y", np.zeros(2, int), 1)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("lrp", ["lrp_epsilon", "lrp_gamma", "deep_lrp"]),  # those that begin with it, then those that have it
        ("lrp-gama", ["lrp_gamma"]),
        ("Gradient", ["gradient"]),
        ("smooth", []),
        ("", []),
    ],
)
def test_a_mistaken_name_has_near_ones(wrong, near):
    known = ["deep_lrp", "gradient", "lrp_epsilon", "lrp_gamma"]
    assert nearest(wrong, known) == near
    with pytest.raises(ConfigError, match="^method: .*expected " + (" or ".join(near) or "one of deep_lrp, gradient")):
        require_one_of("method", wrong, known)


@pytest.mark.parametrize(("values", "farthest"), [(10, 10), ([3, 12, 10], 12), ([-2, 12], -2)])
def test_the_class_that_is_farthest_out_is_named(values, farthest):
    require_classes("targets", [0, 9], 10)
    require_classes("targets", np.zeros(0, int), 10)
    with pytest.raises(ConfigError, match=rf"^targets: got {farthest}, expected classes in \[0, 10\)$"):
        require_classes("targets", values, 10)


@dataclass(frozen=True)
class Part(Checked):
    clip: Annotated[float, Ge(0)] = 0.0
    sides: tuple[float, ...] = ()


def test_a_whole_number_is_a_number_as_a_file_has_it():
    part = Part(clip=1, sides=(1, 2.5))
    assert str(part) == "Part(clip=1.0, sides=(1.0, 2.5))"


@pytest.mark.parametrize("fields", [{"clip": -1.0}, {"clip": "1"}, {"clip": True}, {"clip": float("nan")}])
def test_a_field_out_of_its_range_or_type_is_named(fields):
    with pytest.raises(ConfigError, match="clip"):
        Part(**fields)


def test_numbers_of_other_types_are_refused():
    require_at_least("steps", (1, 2.5, np.float32(3), None), 1)
    require_whole("steps", np.int64(2), 1)
    for wrong in ("2GB", [1, "2"], 0.5, np.nan, 1j):
        with pytest.raises(ConfigError, match=r"^steps: got "):
            require_at_least("steps", wrong, 1)
    for wrong in (2.0, "2", True, 0):
        with pytest.raises(ConfigError, match=r"^steps: got "):
            require_whole("steps", wrong, 1)


def test_a_warning_points_at_the_line_outside_of_the_package():
    package = {"__name__": "jaxinterp.within", "warn": warn}
    exec("def inner(): warn('x: odd')\ndef public(): inner()", package)
    with pytest.warns(UserWarning, match="x: odd") as told:
        package["public"]()
    assert [warning.filename for warning in told] == [__file__]


def test_one_number_of_a_range_and_one_random_key():
    for right in (1, 0.5, np.float32(2), jnp.float32(1)):
        require_number("width", right, "above 0", lambda v: v > 0)
    for wrong in ("1", True, None, np.inf, np.nan, np.ones(2), 0.0, 1j):
        with pytest.raises(ConfigError, match=r"\Awidth: got [^\n]*, expected above 0\Z"):
            require_number("width", wrong, "above 0", lambda v: v > 0)
    assert random_key(None) == jax.random.key(0)
    for right in (jax.random.key(3), jax.random.PRNGKey(3)):
        assert random_key(right) is right
    for wrong in (0, "seed", np.zeros(2, np.uint32), jax.random.split(jax.random.key(0))):
        with pytest.raises(ConfigError, match=r"\Akey: got [^\n]*\Z"):
            random_key(wrong)
