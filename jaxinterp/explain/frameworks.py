"""Networks of every framework as one kind of function, (variables, x) ↦ output, in inference and with named layers.

Flax linen and NNX, Equinox, Keras 3 on JAX, and plain functions. Functions made from the same network are equal, so
that a network wrapped twice is compiled once. Nothing here imports a framework that the network does not come from.
"""

import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from jaxinterp.checks import require, warn
from jaxinterp.explain.program import mark
from jaxinterp.explain.tracing import unjitted

INFERENCE = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}
"""Keywords by which modules are told to run as after training."""


class Network(NamedTuple):
    """A network as a function with its variables.

    Attributes:
        function: (variables, x, *given) ↦ output; hashable.
        frozen: the same with input-dependent coefficients held constant; `function` where there is no such keyword.
        variables: any pytree of arrays.
        keep: whether the function stands for the same computation for ever.
        named: whether equal functions compute the same by construction.
    """

    function: Callable[..., Any]
    frozen: Callable[..., Any]
    variables: Any
    keep: bool = True
    named: bool = True


def network(model: Any, variables: Any = None, keywords: Mapping[str, Any] | None = None) -> Network:
    """Return the function of a network of any framework, in inference.

    Args:
        model: a Flax linen module (with `variables`), an NNX module, an Equinox module (with its state as `variables`
            if it has one; of one example, as is usual), a Keras 3 model on the JAX backend, a function (variables, x) ↦
            output (with `variables`) or x ↦ output, or functions to be applied one after the other, a mapping of names
            to functions or a sequence of them.
        variables: as each of these takes them.
        keywords: further keywords of the call.

    Raises:
        ConfigError: the variables are missing or are not wanted, or this is no network.
    """
    given = dict(keywords or {})
    if isinstance(model, nn.Module):
        return _linen(model, variables, given)
    if isinstance(getattr(model, "__self__", None), nn.Module) and variables is None:
        require(False, "variables", "none with a Flax module's function", "the module's variables")
    for name, wrap in (("flax.nnx", _nnx), ("equinox", _equinox), ("keras", _keras)):
        framework = sys.modules.get(name)
        if framework is not None and (found := wrap(framework, model, variables, given)) is not None:
            return found
    stages = model if isinstance(model, Mapping) else dict(enumerate(model)) if isinstance(model, Sequence) else None
    if stages is not None:
        fits = stages and all(map(callable, stages.values()))
        require(fits, "network", type(model).__name__, "a network, or functions to be applied one after the other")
        model = Chain(tuple((str(name), unjitted(stage)) for name, stage in stages.items()), variables is not None)
    require(callable(model), "network", type(model).__name__, "a network or a function, and then its variables")
    if variables is None:
        free = Free(model, tuple(given.items()))
        return Network(free, free, None, keep=False, named=False)
    function = Function(model, tuple(given.items())) if given else model
    return Network(function, function, variables, named=False)


def name_of(function: Any) -> str:
    """Return the name of a network's class, or of a function."""
    if isinstance(function, Linen | Keras):
        return type(_value(function.module if isinstance(function, Linen) else function.model)).__name__
    if isinstance(function, Chain):
        return " > ".join(name for name, _ in function.stages)
    inner = getattr(function, "func", getattr(function, "function", None))  # partial, or one of those below
    if inner is not None:
        return name_of(inner)
    return str(getattr(function, "name", getattr(function, "__name__", type(function).__name__)))


def _wanted(call: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return those keywords that a call takes by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        taken = {name for name, p in inspect.signature(call).parameters.items() if p.kind in kinds}
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in known.items() if name in taken}


def _hashable(value: Any) -> Hashable:
    """Return a value, or where it cannot be hashed, one that is equal to itself only."""
    try:
        hash(value)
    except TypeError:
        return Only(value)
    return value  # type: ignore[no-any-return]


def _value(value: Any) -> Any:
    """Undo `_hashable`."""
    return value.value if isinstance(value, Only) else value


@dataclass(frozen=True, eq=False)
class Only:
    """Something that is equal to nothing else."""

    value: Any


@dataclass(frozen=True)
class Free:
    """A function x ↦ output, whose variables are closed over."""

    function: Callable[..., Any]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, variables: None, *arrays: Array) -> Any:
        """Call the function."""
        return unjitted(self.function)(*arrays, **dict(self.keywords))


@dataclass(frozen=True)
class Function:
    """A function (variables, x) ↦ output with further keywords."""

    function: Callable[..., Any]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, variables: Any, *arrays: Array) -> Any:
        """Return the output."""
        return unjitted(self.function)(variables, *arrays, **dict(self.keywords))


@dataclass(frozen=True)
class Chain:
    """Functions that are applied one after the other; the output of each is a layer of its name."""

    stages: tuple[tuple[str, Callable[..., Any]], ...]
    parametric: bool

    def __call__(self, *arguments: Any) -> Any:
        """Return the output."""
        variables, (x, *given) = (arguments[:1], arguments[1:]) if self.parametric else ((), arguments)
        for name, stage in self.stages:
            x = mark(name, stage(*variables, x, *given))
        return x


@dataclass(frozen=True)
class Linen:
    """A Flax linen module; `Program` marks its submodules."""

    module: Any
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, variables: Any, *arrays: Array) -> Any:
        """Return the output."""
        return _value(self.module).apply(variables, *arrays, **dict(self.keywords))


def _linen(module: nn.Module, variables: Any, keywords: dict[str, Any]) -> Network:
    require(variables is not None, "variables", f"none with the Flax module {type(module).__name__}", "its variables")
    require(isinstance(variables, Mapping), "variables", type(variables).__name__, "a mapping, as of module.init")
    wanted = _wanted(type(module).__call__, INFERENCE)
    fields = {field.name for field in dataclasses.fields(module)} & INFERENCE.keys()
    fixed: dict[str, Any] = {name: INFERENCE[name] for name in fields if getattr(module, name) is not None}
    if fixed:  # what the constructor was given is not to be given in the call, see `nn.merge_param`
        module = module.clone(**fixed)
    keywords = {name: value for name, value in wanted.items() if name not in fixed} | keywords
    held = keywords | _wanted(type(module).__call__, {"frozen": True})
    same = _hashable(module)
    function, frozen = (Linen(same, tuple(sorted(words.items()))) for words in (keywords, held))
    return Network(function, frozen, variables, named=same is module)


@dataclass(frozen=True)
class NNX:
    """A Flax NNX module without its state."""

    graph: Any
    keywords: tuple[tuple[str, Any], ...]
    name: str

    def __call__(self, state: Any, *arrays: Array) -> Any:
        """Return the output."""
        from flax import nnx

        model = nnx.merge(_value(self.graph), state)
        for path, module in list(nnx.iter_modules(model)):
            if path and callable(module):
                object.__setattr__(module, "__class__", _marking(_kind(module), "/".join(map(str, path)), mark))
        return model(*arrays, **dict(self.keywords))


def _kind(module: Any) -> Any:
    return type(module)


@cache
def _marking(kind: Hashable, path: str, marked: Callable[[str, Any], Any]) -> Any:
    """Return a subclass whose calls mark their output."""
    base: Any = kind

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return marked(path, base.__call__(self, *args, **kwargs))

    return type(base)(base.__name__, (base,), {"__call__": call, "__module__": base.__module__})


def _nnx(nnx: Any, model: Any, variables: Any, keywords: dict[str, Any]) -> Network | None:
    if not isinstance(model, nnx.Module):
        return None
    require(variables is None, "variables", type(variables).__name__, "none with an NNX module, which holds its own")
    training = {"deterministic": False, "use_running_average": False}
    modules = [
        type(module).__name__
        for _, module in nnx.iter_modules(model)
        if any(getattr(module, name, None) is value for name, value in training.items())
    ]
    if modules:
        named = ", ".join(dict.fromkeys(modules))
        warn(f"network: {named} is in training mode; explained in inference, as after .eval()")
    model = nnx.merge(*nnx.split(model))  # whose mode can be changed; the variables are shared still
    model.eval()
    graph, shared = nnx.split(model)
    state = jax.tree.map(lambda leaf: leaf, shared)  # as it is now
    keywords = _wanted(type(model).__call__, INFERENCE) | keywords
    held = keywords | _wanted(type(model).__call__, {"frozen": True})
    function, frozen = (
        NNX(_hashable(graph), tuple(sorted(words.items())), type(model).__name__) for words in (keywords, held)
    )
    return Network(function, frozen, state)


@dataclass(frozen=True)
class Equinox:
    """An Equinox module without its arrays, in inference; it reads one example, and is mapped over the batch."""

    leaves: tuple[Any, ...]
    structure: Any
    stateful: bool
    name: str

    def __call__(self, variables: Any, *arrays: Array) -> Any:
        """Return the output."""
        import equinox

        parts, state = variables
        model = equinox.combine(parts, jax.tree.unflatten(self.structure, map(_value, self.leaves)))
        call = _marked_modules(equinox, model, ())

        def one(*example: Array) -> Any:
            return call(*example, state)[0] if self.stateful else call(*example)

        return jax.vmap(one)(*arrays)


def _marked_modules(equinox: Any, node: Any, path: tuple[str, ...]) -> Any:
    """Return an Equinox module of which every module within marks the outputs of its calls."""

    def inner(other: Any) -> bool:
        return other is not node and isinstance(other, equinox.Module)

    children, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=inner)
    new = []
    for keys, child in children:
        names = (str(getattr(k, "name", getattr(k, "idx", getattr(k, "key", k)))) for k in keys)
        new.append(_marked_modules(equinox, child, (*path, *names)) if inner(child) else child)
    node = jax.tree_util.tree_unflatten(structure, new)
    if path and callable(node):
        object.__setattr__(node, "__class__", _marking(_kind(node), "/".join(path), _mark_example))
    return node


def _mark_example(name: str, value: Any, nested: int = 3) -> Any:
    """Mark an array under `vmap`, nested a few times: the batch that it is then part of, with the batch first."""
    if isinstance(value, tuple) and value:  # with the module's state behind it
        return (_mark_example(name, value[0], nested), *value[1:])
    if not isinstance(value, jax.Array) or not nested:
        return mark(name, value)

    @custom_vmap
    def marked(x: Array) -> Array:
        return mark(name, x)  # type: ignore[no-any-return]

    @marked.def_vmap
    def rule(size: int, batched: Any, x: Array) -> tuple[Array, bool]:
        return _mark_example(name, x, nested - 1), True

    return marked(value)


def _equinox(equinox: Any, model: Any, variables: Any, keywords: dict[str, Any]) -> Network | None:
    if not isinstance(model, equinox.Module):
        return None
    require(not keywords, "keywords", list(keywords), "none with an Equinox module: give a function")
    state = inspect.signature(type(model).__call__).parameters.get("state")
    stateful, got = variables is not None, "none" if variables is None else type(variables).__name__
    require(stateful or state is None or state.default is not state.empty, "variables", got, "the state")
    require(state is not None or not stateful, "variables", got, "none: it has no state")
    parts, rest = equinox.partition(equinox.nn.inference_mode(model), equinox.is_array)
    leaves, structure = jax.tree.flatten(rest)
    function = Equinox(tuple(map(_hashable, leaves)), structure, stateful, type(model).__name__)
    return Network(function, function, (parts, variables))


@dataclass(frozen=True)
class Keras:
    """A Keras 3 model on the JAX backend, as its configuration was when it was wrapped."""

    model: Any
    configuration: Hashable
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, variables: Any, *arrays: Array) -> Any:
        """Return the output."""
        with _keras_calls, _marked_calls(self.model):
            return self.model.stateless_call(*variables, *arrays, training=False, **dict(self.keywords))[0]


_keras_calls = threading.RLock()  # one thread at a time has its marks in the layers, which are shared


@contextmanager
def _marked_calls(model: Any) -> Iterator[None]:
    """Let the layers of a Keras model mark their outputs."""

    def walk(layer: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for inner in getattr(layer, "layers", ()):
            yield (*path, inner.name), inner
            yield from walk(inner, (*path, inner.name))

    with ExitStack() as restored:
        patched = set[int]()
        for path, layer in walk(model, ()):
            if id(layer) in patched:  # shared; its first name is enough
                continue
            patched.add(id(layer))
            call, name = layer.call, "/".join(path)

            def marked(*args: Any, call: Any = call, name: str = name, **kwargs: Any) -> Any:
                return mark(name, call(*args, **kwargs))

            object.__setattr__(layer, "call", marked)
            restored.callback(object.__delattr__, layer, "call")
        yield


def _keras(keras: Any, model: Any, variables: Any, keywords: dict[str, Any]) -> Network | None:
    if not isinstance(model, keras.Layer):
        return None
    require(variables is None, "variables", type(variables).__name__, "none with a Keras model, which holds its own")
    backend = keras.config.backend()
    require(backend == "jax", "network", f"a Keras model on {backend}", "one with KERAS_BACKEND=jax")
    require(model.built, "network", f"the Keras model {model.name}, not built", "one that has been called")
    values = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
    try:
        configuration: Any = model.to_json()
    except (NotImplementedError, TypeError, ValueError):  # of layers that cannot tell it
        configuration = Only(model)
    function = Keras(model, configuration, tuple(sorted(keywords.items())))
    return Network(function, function, values, named=isinstance(configuration, str))
