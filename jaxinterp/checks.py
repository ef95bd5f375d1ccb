"""Argument checks at the public border, in one grammar: `name: got A, expected B`."""

import dataclasses
import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, SupportsFloat, SupportsIndex, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.errors import ConfigError

NEAREST, LETTERS = 6, 3
"""Most names that begin with a mistaken one, or have it in them, that an error gives; letters that one has at least."""


def require(condition: object, name: str, got: object, expected: str) -> None:
    """Raise `name: got A, expected B` unless a condition holds.

    Args:
        condition: anything with a truth value.
        name: the argument at fault, several joined by commas.
        got: what came, shown as `shown` does.
        expected: what should have come, in words.

    Raises:
        ConfigError: the condition does not hold.

    Example:
        >>> require(False, "steps", 0, "at least 1")
        Traceback (most recent call last):
        jaxinterp.errors.ConfigError: steps: got 0, expected at least 1
    """
    if not condition:
        raise ConfigError(f"{name}: got {shown(got)}, expected {expected}")


def require_at_least(name: str, value: Any, bound: int | float) -> None:
    """Raise unless a number, or every entry of a sequence of numbers, is at least `bound`; None passes.

    Raises:
        ConfigError: a value is smaller, or NaN.
    """
    values = value if isinstance(value, list | tuple) else (value,)
    numbers = all(x is None or isinstance(x, SupportsIndex | SupportsFloat) for x in values)
    require(numbers and all(x is None or x >= bound for x in values), name, value, f"at least {bound}")


def require_whole(name: str, value: Any, bound: int) -> None:
    """Raise unless a value is a whole number of at least `bound`.

    Raises:
        ConfigError: it is not.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(whole and value >= bound, name, value, f"a whole number, at least {bound}")


def require_number(
    name: str, value: Any, expected: str = "a finite number", inside: Callable[[Any], object] = lambda value: True
) -> None:
    """Raise unless a value is one finite number, of a range.

    Args:
        name: the argument's.
        value: what came.
        expected: the range, in words.
        inside: whether a number is within it.

    Raises:
        ConfigError: it is not.
    """
    number = isinstance(value, SupportsFloat) and not isinstance(value, bool) and np.ndim(value) == 0  # type: ignore[arg-type]
    require(number and math.isfinite(value) and inside(value), name, value, expected)


def random_key(key: Any) -> Any:
    """Return a random key, typed or of the older kind `jax.random.PRNGKey`; `jax.random.key(0)` for None.

    Raises:
        ConfigError: it is none.
    """
    if key is None:
        return jax.random.key(0)
    array = isinstance(key, jax.Array)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    raw = array and key.dtype == jnp.uint32 and key.ndim == 1
    require(typed or raw, "key", key if np.ndim(key) == 0 else f"an array {np.shape(key)}", "one jax.random.key(seed)")
    return key


def warn(message: str) -> None:
    """Warn of an argument, at the line outside of this package that gave it."""
    frame, level, outside = inspect.currentframe(), 0, 2
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
            outside = level + 2
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=outside)


def require_one_of(name: str, value: Any, choices: Iterable[Any], otherwise: str = "") -> None:
    """Raise unless a value is among the choices; the message gives the `nearest`, else `otherwise` or all.

    Raises:
        ConfigError: it is not.
    """
    known = list(choices)
    if value not in known:
        close = nearest(value, known)
        require(False, name, value, " or ".join(close) or otherwise or f"one of {', '.join(map(str, known))}")


def nearest(value: Any, choices: Iterable[Any]) -> list[str]:
    """Return the names that a mistaken one may mean: of nearly its letters, else those that begin with it or have it.

    Args:
        value: the mistaken name, a text of three letters or more, else nothing is near; upper and lower case are one,
            and so are hyphens and underscores.
        choices: the names that are known.

    Returns:
        A few, the likeliest first; none if no name is near.

    Example:
        >>> nearest("lrp", ["gradient", "alpha_lrp", "lrp_gamma"]), nearest("Gradeint", ["gradient", "lrp_gamma"])
        (['lrp_gamma', 'alpha_lrp'], ['gradient'])
    """
    if not isinstance(value, str) or len(value) < LETTERS:
        return []
    names: dict[str, str] = {_plain(choice): str(choice) for choice in choices}
    wanted = _plain(value)
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.7)
    holding = sorted((name for name in names if wanted in name), key=lambda name: not name.startswith(wanted))
    return [names[name] for name in close or holding[:NEAREST]]


def _plain(name: Any) -> str:
    return str(name).casefold().replace("-", "_")


def require_key(key: str, known: Iterable[str], separator: str = ".") -> None:
    """Raise unless a key such as "train.epochs" is known; the message gives those that end in it, or the nearest.

    Raises:
        ConfigError: it is not.
    """
    keys = list(known)
    bare = [one for one in keys if one.endswith(f"{separator}{key}")]
    require(key in keys or not bare, "KEY", key, " or ".join(bare))
    require_one_of("KEY", key, keys, f"a field of the run, such as train{separator}epochs")


def shown(value: Any) -> str:
    """Show a value as an override writes it: the entries of a tuple separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def counted(number: int, what: str) -> str:
    """Write a number and what it counts: 1 image, 2 images."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def require_labels(name: str, labels: Any, count: int, classes: int | None = None) -> None:
    """Raise unless labels are `count` integers, at least one, in [0, classes).

    Raises:
        ConfigError: they are not.
    """
    found = np.asarray(labels)
    require(count, name, "none", "at least one image and its label")
    fits = found.shape == (count,) and np.issubdtype(found.dtype, np.integer)
    require(fits, name, f"{found.dtype}{found.shape}", f"integers ({count},), one for each image")
    require_classes(name, found, classes)


def require_classes(name: str, values: Any, classes: int | None = None) -> None:
    """Raise unless integers, of any shape, are in [0, classes); the message gives the least or the largest.

    Raises:
        ConfigError: one is not.
    """
    found = np.asarray(values)
    low, high = (int(found.min()), int(found.max())) if found.size else (0, 0)
    wanted = "classes from 0 on" if classes is None else f"classes in [0, {classes})"
    require(low >= 0, name, low, wanted)
    require(not found.size or classes is None or high < classes, name, high, wanted)


def require_finite(name: str, values: Array | np.ndarray) -> None:
    """Raise for NaN and infinite values; traced values are not known and pass.

    Raises:
        ConfigError: a value is not finite.
    """
    if isinstance(values, jax.core.Tracer):
        return
    if isinstance(values, jax.Array) and values.is_fully_addressable:
        on_host = all(device.platform == "cpu" for device in values.devices())
        values = np.asarray(values) if on_host else values  # looked at without a program for each size
    if isinstance(values, np.ndarray) and values.size and np.isfinite([values.min(), values.max()]).all():
        return  # without a copy on the device, or a mask of the array's size
    with jax.ensure_compile_time_eval():  # known values are computed with, though a function around is being traced
        wrong = values.size - int(jnp.isfinite(values).sum())
    require(not wrong, name, f"{wrong} of {values.size} values NaN or infinite", "finite values")


def require_channels_last(name: str, shape: Sequence[int]) -> None:
    """Raise for the shape of images, (batch, height, width, channels), that can only have their channels first.

    Raises:
        ConfigError: the second axis is of 1 or 3, the last of more than colors, encoded or not, have.
    """
    first = shape[1] in (1, 3) and shape[3] > 6
    require(not first, name, f"shape {tuple(shape)}", "channels last: (batch, height, width, channels)")


class Checked:
    """Base of frozen dataclasses whose fields declare their constraints, checked when an instance is made.

    A field is annotated with its type and, by `annotated_types`, its range: `epochs: Annotated[int, Ge(1)]`. What
    depends on several fields is checked by the method `check`.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import Annotated
        >>> from annotated_types import Ge
        >>> @dataclass(frozen=True)
        ... class Train(Checked):
        ...     epochs: Annotated[int, Ge(1)] = 100
        >>> Train(epochs=0)
        Traceback (most recent call last):
        jaxinterp.errors.ConfigError: epochs: got 0, expected at least 1
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # an unknown field of a file raises

    def __post_init__(self) -> None:
        """Check every field, then `check`."""
        kind: Any = type(self)
        for name in field_adapters(kind):
            object.__setattr__(self, name, typed(kind, name, getattr(self, name), name))
        self.check()

    def check(self) -> None:
        """Raise ConfigError for fields that do not fit one another; by default all do."""


def typed(kind: Any, field: str, value: Any, name: str) -> Any:
    """Return a value of a dataclass's field as its type: 1 is 1.0 where a float is wanted, as a file has it.

    Raises:
        ConfigError: it is of another type, or out of range; the line begins with `name`.
    """
    from pydantic import ValidationError

    try:
        return field_adapters(kind)[field].validate_python(value, strict=True)
    except ValidationError as error:
        return require(False, name, value, expected(error))


@functools.cache
def field_adapters(kind: Any) -> dict[str, Any]:
    """Return a pydantic validator for every field of a dataclass, by its name."""
    from pydantic import TypeAdapter

    hints = get_type_hints(kind, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(kind)}


def expected(error: Any) -> str:
    """Say in words what a `pydantic.ValidationError` expected, for `name: got A, expected B`."""
    words = {
        "greater_than_equal": "at least {ge}",
        "greater_than": "more than {gt}",
        "less_than_equal": "at most {le}",
        "less_than": "less than {lt}",
        "literal_error": "one of {expected}",
        "int_type": "an integer",
        "int_parsing": "an integer",
        "int_parsing_size": "an integer",
        "int_from_float": "an integer",
        "float_type": "a number",
        "float_parsing": "a number",
        "bool_type": "True or False",
        "bool_parsing": "True or False",
        "string_type": "a text",
        "tuple_type": "a tuple",
        "none_required": "None",
        "too_short": "{min_length} entries",
        "too_long": "{max_length} entries",
        "missing": "a value",
        "unexpected_keyword_argument": "no such field",
    }
    parts = dict.fromkeys(
        words[e["type"]].format(**e.get("ctx", {})) if e["type"] in words else e["msg"].removeprefix("Input should be ")
        for e in error.errors()
    )
    return " or ".join(parts)
