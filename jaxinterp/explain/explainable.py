"""The one idea as a type: a network seen from outside, of any framework, as everything that explains takes it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeCollectionNotFound
from jaxtyping import Array, Float, Num

from jaxinterp.checks import require, require_one_of
from jaxinterp.errors import ConfigError, JaxInterpError
from jaxinterp.explain import frameworks
from jaxinterp.explain.batches import as_array, cut, padded
from jaxinterp.explain.freeze import Freezing, Held, held_operations
from jaxinterp.explain.freeze import freeze as frozen_program
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import (
    INPUT,
    Model,
    Program,
    UnreadableError,
    called,
    layers_marked,
    mark_input,
    trace,
    value_of,
)
from jaxinterp.explain.tracing import unjitted

LONGEST = 300  # characters of a network's own error that are passed on
Images = Num[Array | np.ndarray, "batch ..."]
Encode = Callable[[Any, Array], Array]
Kind = Literal["logits", "frozen"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("variables",),
    meta_fields=(
        "network",
        "held",
        "encoding",
        "output",
        "bias",
        "layer",
        "levels",
        "pooled",
        "probability",
        "constant",
        "notice",
        "keep",
        "named",
        "freezing",
    ),
)
@dataclass(frozen=True, repr=False)
class Explainable:
    """A network with its variables, made by `explainable`; equal networks are compiled once.

    A pytree of its variables, so that it can be an argument of `jax.jit`, `jax.grad` and `jax.vmap`.

    Attributes:
        variables: the network's variables, a pytree of arrays.
        network: (variables, input, *given) ↦ output, in inference.
        held: as `network`, with every input-dependent coefficient held constant.
        encoding: (variables, x) ↦ the input that the network reads; None where it reads x itself.
        output: what the network returns ↦ logits (batch, classes); None where it returns them.
        bias: what contributions at `layer` and at `levels` leave out of the logits, in closed form: one number, or
            variables ↦ (classes,); None where it depends on the example, or is not known.
        layer: the layer that is explained unless another is asked for.
        levels: further layers at which it can be decomposed exactly, from the input up.
        pooled: the layer whose maps are pooled into logits, for Grad-CAM; None where there is none.
        probability: how the logits were trained, each class on its own or one of all.
        constant: the part of a logit outside of the contributions, in words, where `bias` is no number.
        notice: called with x before it is explained, to warn of what is unusual in it.
        keep: whether `network` stands for the same computation for ever, so that it is traced once.
        named: whether equal functions compute the same by construction.
        freezing: how coefficients are held in the traced program, of a network without a frozen version of its own;
            None where it is taken as it is.
    """

    variables: Any
    network: Callable[..., Any]
    held: Callable[..., Any]
    encoding: Encode | None = None
    output: Callable[[Any], Array] | None = None
    bias: float | Callable[[Any], Array] | None = None
    layer: str = INPUT
    levels: tuple[str, ...] = ()
    pooled: str | None = None
    probability: Literal["sigmoid", "softmax"] = "softmax"
    constant: str = "a part that depends on the image"
    notice: Callable[[Any], None] | None = None
    keep: bool = True
    named: bool = False
    freezing: Freezing | None = None

    def __repr__(self) -> str:
        """Name the network, and count its parameters."""
        inner = self.variables
        parameters = inner["params"] if isinstance(inner, Mapping) and "params" in inner else inner
        count = sum(getattr(leaf, "size", 1) for leaf in jax.tree.leaves(parameters))
        return f"Explainable({frameworks.name_of(self.network)}, {count:,} parameters, explained at {self.layer!r})"

    @property
    def apply(self) -> Callable[..., Any]:
        """(variables, x, *given) ↦ logits: a pure function; hashable, and equal for equal networks."""
        return Whole(self.network, self.encoding, self.output)

    def logits(self, x: Images) -> Float[Array, "batch classes"]:
        """Return the logits of a batch."""
        return self._run("logits", x)

    def frozen(self, x: Images) -> Float[Array, "batch classes"]:
        """Return the logits of a batch with every input-dependent coefficient held constant: the same values."""
        return self._run("frozen", x)

    def encode(self, x: Images) -> Array:
        """Return the input that the network reads."""
        return self.activation(x, INPUT)

    @on_automatic_axes
    def activation(self, x: Images, layer: str) -> Array:
        """Return the output of a layer, (batch, ...)."""
        x = _examples(x)
        (whole,) = self.fitted("logits", x)
        model = self.program("logits", whole)
        require_layers(model, [layer])
        return cut(value_of(model, layer, whole), len(x))

    def layers(self, x: Images) -> dict[str, tuple[int, ...]]:
        """Return name → shape of the outputs of all layers that can be explained, in the order of their calls."""
        return dict(self.program("logits", as_array(x)).program.layers)

    def at(self, layer: str) -> "Explainable":
        """Return the network explained from a layer on: layers and names are those of `layers`."""
        return replace(self, layer=layer, levels=(), bias=self.bias if layer in (self.layer, *self.levels) else None)

    def neurons(self, layer: str, select: Callable[[Array], Array] | None = None) -> "Explainable":
        """Return the network up to a layer, whose activations take the place of the logits.

        Every method then explains neurons: targets are their places among the features. Layers behind this one are
        gone. Equal arguments give equal networks, which are compiled once.

        Args:
            layer: name of a layer of `layers`.
            select: activation ↦ (batch, k); by default an output (batch, features) itself, and of one with positions,
                such as (batch, H, W, features), each feature's sum over them.

        Returns:
            The network x ↦ (batch, features), explained at the same layer if that is before this one.

        Example:
            >>> net = explainable({"square": lambda x: x**2, "sum": lambda x: x.sum(1, keepdims=True)})
            >>> net.neurons("square").logits(jnp.array([[1.0, 3.0]])).tolist()
            [[1.0, 9.0]]
        """
        network = Neurons(self.network, layer, select)
        held = network if self.held == self.network else Neurons(self.held, layer, select)
        none: dict[str, Any] = {"output": None, "bias": None, "levels": (), "pooled": None}
        return replace(self, network=network, held=held, named=self.named and select is None, **none)

    def program(self, kind: Kind, x: Array, *given: Array, examples: int | None = None) -> Model:
        """Trace the network for inputs of these shapes, once; return (x, *given) ↦ logits.

        Args:
            kind: with coefficients held constant, or without.
            x: a batch, of a padded size.
            *given: further arrays of the examples.
            examples: how many of them came, to say so if they cannot be read; all by default.

        Raises:
            ConfigError: `x` cannot be read, or what comes out is no array (batch, classes).
        """
        function = Whole(self.held, self.encoding, self.output) if kind == "frozen" else self.apply
        x = _examples(x)
        try:
            model = trace(function, self.variables, x, *given, keep=self.keep, named=self.named)
        except UnreadableError as error:
            came, *rest = (array[:examples] for array in (x, *given))
            cause = error.__cause__.__cause__ if isinstance(error.__cause__, PartError) else error.__cause__
            raise ConfigError(self._unreadable(function, came, rest, error.__cause__)) from cause
        out, hint = model.program.output, "logits (batch, classes); output= takes them from what it returns"
        require(hasattr(out, "shape"), "network", f"a {type(out).__name__} for an output", hint)
        shape = ("batch", *out.shape[1:]) if out.shape[:1] == (len(x),) else out.shape
        got = f"an output of shape ({', '.join(map(str, shape))})"
        if len(shape) == 1:
            one = "output=lambda out: out[:, None] for one logit"
            hint = f"logits (batch, classes); {one if shape[0] == 'batch' else 'x[None] for a single example'}"
        require(len(shape) == 2 and shape[0] == "batch" and shape[1], "network", got, hint)
        if not jnp.issubdtype(out.dtype, jnp.floating):
            real = jnp.issubdtype(x.dtype, jnp.floating)
            name, got = ("network", f"an output of {out.dtype}") if real else ("x", f"{x.dtype}{x.shape}")
            require(False, name, got, "floating logits" if real else "a floating array (batch, ...)")
        return model if kind == "logits" or self.rewriting is None else frozen_program(model, self.rewriting)

    @property
    def rewriting(self) -> Freezing | None:
        """How the traced network is frozen; None of one that is frozen in its own way, or taken as it is."""
        return self.freezing if self.is_own else None

    @property
    def is_own(self) -> bool:
        """Whether the network has no frozen version beside it."""
        return self.held is self.network or bool(self.held == self.network)

    def held_operations(self, x: Images) -> tuple[Held, ...]:
        """Return what is held constant by freezing the traced network: (module, operation, times) for each.

        Empty of a network that is piecewise affine, and of one that is frozen in its own way.
        """
        (whole,) = self.fitted("logits", _examples(x))
        model = self.program("logits", whole)
        return () if self.rewriting is None else held_operations(model, self.rewriting)

    def fitted(self, kind: Kind, x: Array, *given: Array) -> tuple[Array, ...]:
        """Pad a batch to one of a few sizes; one that the network reads in its own size only stays as it is.

        Raises:
            ConfigError: the network cannot read it.
        """
        arrays = tuple(map(padded, (x, *given)))
        try:
            self.program(kind, *arrays, examples=len(x))
        except ConfigError:
            if len(arrays[0]) == len(x):
                raise
            self.program(kind, x, *given)
            return x, *given
        return arrays

    def log_odds(self, logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
        """Return log p/(1 − p) of every class: the logits of sigmoids, or derived from the softmax."""
        if self.probability == "sigmoid":
            return logits
        others = np.where(np.eye(logits.shape[1], dtype=bool), -np.inf, logits[:, None])
        return logits - np.logaddexp.reduce(others, axis=-1)

    def probabilities(self, logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
        """Return p of every class in float64, sigmoids or the softmax, as the logits were trained."""
        from scipy.special import expit

        return np.asarray(expit(self.log_odds(logits).astype(float)))

    def bias_at(self, layer: str) -> Array | None:
        """Return the bias in closed form, a number or (classes,), of contributions at a layer; None where unknown."""
        if self.bias is None or layer not in (self.layer, *self.levels):
            return None
        return as_array(self.bias(self.variables) if callable(self.bias) else np.asarray(self.bias, float))

    @on_automatic_axes
    def _run(self, kind: Kind, x: Images) -> Array:
        x = _examples(x)
        (whole,) = self.fitted(kind, x)
        return cut(called(self.program(kind, whole), whole), len(x))

    def _unreadable(self, function: Any, x: Array, given: Sequence[Array], error: BaseException | None) -> str:
        """Say in one line why a network cannot be traced; a batch axis that is missing is found by trying."""
        got = f"x: got {x.dtype}{x.shape}"
        try:
            trace(function, self.variables, x[None], *given, keep=False, named=True)
        except UnreadableError:
            if isinstance(error, PartError):
                return f"{error.part}: got {_reason(error.__cause__)}, expected {error.wanted}"
            if isinstance(error, ScopeCollectionNotFound):
                keys = list(self.variables) if isinstance(self.variables, Mapping) else type(self.variables).__name__
                missing = re.search(r'collection "(\w+)"', str(error))
                wanted = f"the collection {missing[1]!r} too" if missing else "another collection"
                return f"variables: got {keys}, expected {wanted}: all that init returns"
            reason = _reason(error)
            if isinstance(error, TypeError) and "positional argument" in reason:
                reason += "; variables go into explainable(network, variables)"
            return f"{got}, expected an input that the network can read: {reason}"
        return f"{got}, expected a batch, {(1, *x.shape)}: x[None]"


@dataclass(frozen=True)
class Whole:
    """(variables, x, *given) ↦ logits, with the input after any encoding as its first layer."""

    network: Callable[..., Any]
    encoding: Encode | None
    output: Callable[[Any], Array] | None

    def __call__(self, variables: Any, x: Array, *given: Array) -> Any:
        """Encode, run the network, take the logits out."""
        read = x
        if self.encoding is not None:
            with _blamed("encoding", f"a function (variables, x) of x, {x.dtype}{x.shape}"):
                read = self.encoding(variables, x)
        out = self.network(variables, mark_input(read), *given)
        if self.output is None:
            return out
        with _blamed("output", f"a function of the network's output, a {type(out).__name__}"):
            return self.output(out)


class PartError(Exception):
    """A function given beside the network raised an error, the cause of this one."""

    def __init__(self, part: str, wanted: str) -> None:
        super().__init__(part)
        self.part, self.wanted = part, wanted


@contextmanager
def _blamed(part: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except JaxInterpError:  # says in its own line what is wrong
        raise
    except Exception as error:
        raise PartError(part, wanted) from error


def _reason(error: BaseException | None) -> str:
    """Return kind and text of an error in one line, without links."""
    reason = re.sub(r" \(https?://\S+\)", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {reason if len(reason) <= LONGEST else f'{reason[:LONGEST]} ...'}"


@dataclass(frozen=True)
class Neurons:
    """(variables, x, *given) ↦ the activations of a layer of a network as (batch, features)."""

    network: Callable[..., Any]
    layer: str
    select: Callable[[Array], Array] | None

    def __call__(self, variables: Any, x: Array, *given: Array) -> Array:
        """Run the network up to the layer, and select."""
        value = x if self.layer == INPUT else self._value(variables, x, *given)
        return self.select(value) if self.select else value.sum(tuple(range(1, value.ndim - 1)))

    def _value(self, variables: Any, *arrays: Array) -> Array:
        whole = unjitted(self.network)

        def called(*args: Any) -> Any:  # a new function, which no earlier trace stands for
            return whole(*args)

        with layers_marked():
            closed, output = jax.make_jaxpr(called, return_shape=True)(variables, *arrays)
        model = Model(Program(closed.jaxpr, output, len(arrays[0])), tuple(closed.consts), variables)
        require_layers(model, [self.layer])
        return model.up_to(self.layer, *arrays)


def _examples(x: Any) -> Array:
    """Return a batch as an array.

    Raises:
        ConfigError: it is no array, or has no example.
    """
    fits = hasattr(x, "shape") and hasattr(x, "dtype")
    got = f"{x.dtype}{x.shape}" if fits else f"a {type(x).__name__}"
    require(fits and x.ndim >= 1 and len(x) > 0, "x", got, "an array (batch, ...) of at least one example")
    return as_array(x)


def require_layers(model: Model, layers: Sequence[str]) -> None:
    """Raise for no layer, one twice, and a layer that a network does not have or that is called more than once."""
    known = model.program.layers
    named = all(isinstance(layer, str) for layer in layers)
    different = named and layers and len(set(layers)) == len(layers)
    require(different, "layer", f"the layers {list(layers)}", "different names, at least one")
    otherwise = f"one of {', '.join(known)}" if len(known) > 1 else "a layer of a Flax, NNX, Equinox or Keras module, "
    otherwise += "" if len(known) > 1 else "or of a mapping of names to functions: {'features': ..., 'head': ...}"
    for layer in layers:
        once = layer not in model.program.repeated
        require(once, "layer", f"{layer!r}, called more than once", "a layer that is called once")
        require_one_of("layer", layer, known, otherwise)


def explainable(
    network: Any,
    variables: Any = None,
    *,
    frozen: Callable[..., Any] | None = None,
    encoding: Encode | None = None,
    output: Callable[[Any], Array] | None = None,
    keywords: Mapping[str, Any] | None = None,
    freeze: bool | Freezing | None = None,
    **fields: Any,
) -> Explainable:
    """Wrap a network of any framework for everything that explains.

    Args:
        network: one of
            - a Flax linen module, with its `variables`;
            - a Flax NNX module, an Equinox module (of one example; with its state as `variables` if it has one), or a
              Keras 3 model on the JAX backend;
            - a function (variables, x) ↦ logits, with its `variables`, traced once for as long as it is the same
              function; or x ↦ logits, traced in every call, as what it closes over may have changed;
            - functions to be applied one after the other, such as {"features": ..., "head": ...}, each of them called
              as a single one would be; the output of each is a layer of that name;
            - an `Explainable`, returned as it is, with the fields that are given.
            Modules run in inference: statistics of BatchNorm as stored, no dropout. Their submodules are layers, by
            path. A module that knows how it is to be explained says so by a method `__explainable__(variables)`.
        variables: the network's variables, any pytree of arrays.
        frozen: as a function `network`, with every input-dependent coefficient held constant; by default the module's
            own call with `frozen=True` where it takes that, else the network's trace, rewritten as `freeze` says.
        encoding: (variables, x) ↦ the input that the network reads, which is then what is explained.
        output: what the network returns ↦ logits, where it returns more, such as `lambda out: out["logits"]`.
        keywords: further keywords of the network's call; a module's own `__explainable__` is then not asked.
        freeze: how a network without a frozen version is frozen, see `Freezing`: smooth activations as a held factor
            of their input, softmaxes, norms and one factor of each product held; True, the default, for the usual
            choices; False to take the network as it is, which is right if it is piecewise affine. Given with a network
            that has a frozen version, it replaces that one.
        **fields: fields of `Explainable`: `layer`, `levels`, `bias`, `pooled`, `probability`, `constant`.

    Raises:
        ConfigError: the variables are missing or are not wanted, or this is no network.

    Example:
        >>> import flax.linen as nn
        >>> module, x = nn.Dense(3), jnp.ones((2, 4))
        >>> net = explainable(module, module.init(jax.random.key(0), x))
        >>> net.logits(x).shape
        (2, 3)
    """
    got = f"the class {network.__name__}" if isinstance(network, type) else ""
    require(not got, "network", got, "an instance of it")
    require(isinstance(keywords, Mapping | None), "keywords", f"a {type(keywords).__name__}", "a mapping, name: value")
    for name in fields:
        require_one_of("fields", name, FIELDS)
    require(frozen is None or freeze is None, "freeze", freeze, "none beside frozen=, which says how")
    if "bias" in fields:
        bias = fields["bias"]
        fits = bias is None or callable(bias) or isinstance(bias, int | float | np.floating)
        require(fits, "bias", f"a {type(bias).__name__}", "one number, or a function of the variables to (classes,)")
    if "levels" in fields:
        require(not isinstance(fields["levels"], str), "levels", repr(fields["levels"]), "names of layers")
        fields["levels"] = tuple(fields["levels"])
    if "probability" in fields:
        require_one_of("probability", fields["probability"], ("sigmoid", "softmax"))
    if isinstance(network, Explainable):
        require(variables is None, "variables", type(variables).__name__, "none with an Explainable, which holds them")
        given: dict[str, Any] = {"held": frozen, "encoding": encoding, "output": output}
        given = {name: value for name, value in given.items() if value is not None}
        if "layer" in fields:  # with its own bias and levels
            network = network.at(fields.pop("layer"))
        if freeze is not None:
            given["held"], fields["freezing"] = network.network, _freezing(freeze)
        if given and "bias" not in fields:
            fields["bias"] = None  # it was that of another function
        return replace(network, **given, **fields)
    own = getattr(network, "__explainable__", None)
    if own is not None and keywords is None:
        trusted = replace(own(variables), freezing=None)
        return explainable(trusted, frozen=frozen, encoding=encoding, output=output, freeze=freeze, **fields)
    found = frameworks.network(network, variables, keywords)
    held = (found.frozen if frozen is None else frozen) if freeze is None else found.function
    fields["freezing"] = _freezing(True if freeze is None else freeze)
    whole = (found.variables, found.function, held, encoding, output)
    return Explainable(*whole, keep=found.keep, named=found.named and frozen is None, **fields)


def _freezing(freeze: Any) -> Freezing | None:
    """Return how to freeze a network."""
    require(isinstance(freeze, bool | Freezing), "freeze", type(freeze).__name__, "True, False or a Freezing")
    if isinstance(freeze, Freezing):
        return freeze
    return Freezing() if freeze else None


FIELDS = ("bias", "constant", "layer", "levels", "notice", "pooled", "probability")
"""Fields that are given to `explainable`."""


class Once:
    """A function that may compute something else in another call: traced once in this one."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, variables: Any, *arrays: Array) -> Any:
        """Call the function."""
        return self.function(variables, *arrays)


def with_batch(net: Any, x: Any) -> tuple[Explainable, Array]:
    """Return the network, wrapped if it needs no variables, and the examples as an array.

    Raises:
        ConfigError: the arguments came in another order, or are no network and no array.
    """
    swapped = hasattr(net, "shape") and not hasattr(x, "shape")
    require(not swapped, "net, x", "an array first", "the network first, then x")
    fits = hasattr(x, "shape") or isinstance(x, list | tuple | float | int)
    wanted = "an array (batch, ...); variables go into explainable(network, variables)"
    require(fits, "x", f"a {type(x).__name__}", wanted)
    net = explainable(net)
    if not net.keep:
        free = Once(net.network)
        net = replace(net, network=free, held=free if net.held == net.network else Once(net.held), keep=True)
    return net, _examples(as_array(x))
