"""The CTR tower as ONNX: value ids to click probabilities, for any runtime that reads ONNX.

The model is traced as JAX sees it, with a symbolic batch, and its operations are translated one by one; a tower needs
no code of its own here, only operations that `_RULES` knows. Weights keep the names that they have in
`params.safetensors`. Needs the package onnx (`pip install 'alt-jax[onnx]'`); onnxruntime and others run the file.

Of a `joint` run this is the CTR tower's own probability, σ(logit_c), which that run was trained on as well; not the
run's score, which also needs the text tower (`alt_jax.stablehlo` has both).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from string import ascii_lowercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from flax import traverse_util
from jax import export
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.lax import GatherScatterMode
from jaxtyping import Array, Float, Int, Shaped
from onnx import TensorProto, helper, numpy_helper

from alt_jax import __version__
from alt_jax.data.prompt import Pieces
from alt_jax.errors import InputError
from alt_jax.stablehlo import check_size
from alt_jax.tasks import Finetune, Params

NAME = "ctr.onnx"
OPSET, IR = 17, 8  # of 2022, so that runtimes of that year on read them
_INPUT, _OUTPUT, _BATCH = "ids", "probability", "batch"


def ctr_model(task: Finetune, params: Params, pieces: Pieces) -> onnx.ModelProto:
    """The CTR tower of a finished finetuning.

    Args:
      task: Of a strategy that has a CTR tower, `ctr` or `joint`.
      params: Its parameters.
      pieces: Of every value id that may be asked for.

    Returns:
      A model with the input `ids`, [batch, S] int32 value ids, and the output `probability`, [batch] float32. Ids below
      0 are empty slots; those beyond the last are taken for it.

    Raises:
      InputError: The tower has an operation that is not translated, or is too large for one file.
    """
    alone = dataclasses.replace(task, strategy="ctr")
    needed = {name: params[name] for name in ("ctr", "ctr_logit")}
    flat: dict[str, Any] = traverse_util.flatten_dict(needed, sep="/")
    check_size((flat, pieces.feature, pieces.number))
    flat |= {"value/feature_id": pieces.feature, "value/number": pieces.number}

    def score(weights: dict[str, Array], ids: Int[Array, "B S"]) -> Float[Array, " B"]:
        known = pieces._replace(feature=weights.pop("value/feature_id"), number=weights.pop("value/number"))
        return jax.nn.sigmoid(alone.logit(traverse_util.unflatten_dict(weights, sep="/"), known, ids, 0))

    tower = task.model.config.ctr.tower
    model = translate(score, flat, sum(task.model.schema.widths), f"The CTR tower {tower!r}")
    model.doc_string = (
        f"{tower}, the CTR tower of a {task.strategy} run: value ids (rows of vocabulary.parquet) to its own click "
        "probability."
    )
    return model


def translate(
    function: Callable[..., Array], weights: dict[str, Any], columns: int, origin: str = "The function"
) -> onnx.ModelProto:
    """A function of weights and int32 ids [batch, columns] as an ONNX model of the ids alone.

    Args:
      function: `function(weights, ids)`; its result's first axis is the batch.
      weights: Arrays by name.
      columns: Of the ids.
      origin: What to call the function in messages.

    Raises:
      InputError: It has an operation that is not translated.
    """
    batch = export.symbolic_shape(_BATCH)[0]
    ids = jax.ShapeDtypeStruct((batch, columns), jnp.int32)
    closed, result = jax.make_jaxpr(function, return_shape=True)(weights, ids)
    graph = _Graph(batch, origin)
    # A dict's leaves are in the order of its sorted names.
    arguments: list[_Value] = [_Weight(name, np.asarray(weights[name])) for name in sorted(weights)]
    (found,) = graph.run(closed.jaxpr, closed.consts, [*arguments, _INPUT])
    graph.nodes.append(helper.make_node("Identity", [graph.name(found)], [_OUTPUT]))
    shape = [dim if isinstance(dim, int) else _BATCH for dim in result.shape]
    made = helper.make_graph(
        graph.nodes,
        "ctr",
        [helper.make_tensor_value_info(_INPUT, TensorProto.INT32, [_BATCH, columns])],
        [helper.make_tensor_value_info(_OUTPUT, helper.np_dtype_to_tensor_dtype(result.dtype), shape)],
        graph.initializers,
    )
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="alt-jax",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclasses.dataclass(frozen=True)
class _Weight:
    """An array under a name of its own, which the file keeps."""

    name: str
    array: Shaped[np.ndarray, "..."]


# What a variable stands for: an array that is known already, a weight, or the name of a tensor.
_Value = np.ndarray | _Weight | str
_Rule = Callable[["_Graph", JaxprEqn, Sequence[_Value]], str | list[str]]
# Operations that hold a program of their own, which is translated in their place.
_CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}
)


class _Graph:
    """Nodes and constants of an ONNX graph as they come."""

    def __init__(self, batch: Any, origin: str) -> None:
        """`batch` is the symbolic number of rows, `origin` what messages call the function."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._batch, self._origin = batch, origin
        self._names: set[str] = set()

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[_Value]) -> list[_Value]:
        """Translates a program, and returns what its results are called."""
        known: dict[Any, _Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        known |= zip(jaxpr.invars, arguments, strict=True)

        def read(atom: Any) -> _Value:
            return np.asarray(atom.val, _aval(atom).dtype) if isinstance(atom, Literal) else known[atom]

        for eqn in _needed(jaxpr):
            known |= zip(eqn.outvars, self._apply(eqn, [read(atom) for atom in eqn.invars]), strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _apply(self, eqn: JaxprEqn, inputs: list[_Value]) -> Sequence[_Value]:
        name = eqn.primitive.name
        if name in _CALLS:
            inner: Any = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if isinstance(inner, ClosedJaxpr):
                return self.run(inner.jaxpr, inner.consts, inputs)
            return self.run(inner, (), inputs)
        static = all(isinstance(dim, int) for var in eqn.outvars for dim in _aval(var).shape)
        if static and all(isinstance(value, np.ndarray) for value in inputs):  # e.g. iota: computed now
            results = eqn.primitive.bind(*inputs, **eqn.params)
            return [np.asarray(x) for x in (results if eqn.primitive.multiple_results else [results])]
        if name not in _RULES:
            raise self.refusal(eqn)
        results = _RULES[name](self, eqn, inputs)
        return [results] if isinstance(results, str) else results

    def refusal(self, eqn: JaxprEqn) -> InputError:
        """What to raise for an operation that is not translated."""
        return InputError(
            f"{self._origin} uses JAX' operation {eqn.primitive.name!r} in a way that has no translation to ONNX; add "
            "one to alt_jax/onnx.py, or use score.stablehlo."
        )

    def op(self, kind: str, *inputs: _Value, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns its result's name, or names."""
        first = len(self.nodes)
        names = [f"{kind}_{first}" if outputs == 1 else f"{kind}_{first}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, [self.name(value) for value in inputs], names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value: _Value) -> str:
        """The name of a value's tensor, which becomes one if it is not yet."""
        if isinstance(value, str):
            return value
        weight = value if isinstance(value, _Weight) else _Weight(f"constant_{len(self.initializers)}", value)
        if weight.name not in self._names:
            self._names.add(weight.name)
            self.initializers.append(
                numpy_helper.from_array(np.ascontiguousarray(weight.array).reshape(weight.array.shape), weight.name)
            )
        return weight.name

    def shape(self, eqn: JaxprEqn, dims: Sequence[Any]) -> _Value:
        """A shape as a tensor; only the batch may be symbolic in it."""
        if all(isinstance(dim, int) for dim in dims):
            return _ints(dims)
        if any(not isinstance(dim, int) and dim != self._batch for dim in dims):
            raise self.refusal(eqn)
        rows = self.op("Shape", _INPUT, start=0, end=1)
        parts = [_ints([dim]) if isinstance(dim, int) else rows for dim in dims]
        made: str = self.op("Concat", *parts, axis=0)
        return made


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The operations that a program's results depend on."""
    wanted, found = set(map(id, jaxpr.outvars)), list[JaxprEqn]()
    for eqn in reversed(jaxpr.eqns):
        if any(id(var) in wanted for var in eqn.outvars):
            wanted |= set(map(id, eqn.invars))
            found.append(eqn)
    return found[::-1]


def _aval(var: Any) -> Any:
    """Shape and type of a variable."""
    return var.aval


def _ints(values: Any) -> Int[np.ndarray, " N"]:
    return np.asarray(list(values), np.int64)


def _plain(kind: str) -> _Rule:
    """An operation that ONNX has under another name."""
    return lambda graph, eqn, inputs: str(graph.op(kind, *inputs))


def _reduce(kind: str) -> _Rule:
    """A maximum or minimum over axes, which opset 17 still has as an attribute."""
    return lambda graph, eqn, inputs: str(graph.op(kind, *inputs, axes=list(eqn.params["axes"]), keepdims=0))


def _reduce_sum(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("ReduceSum", *inputs, _ints(eqn.params["axes"]), keepdims=0))


def _not_equal(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Not", graph.op("Equal", *inputs)))


def _square(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Mul", *inputs, *inputs))


def _rsqrt(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Reciprocal", graph.op("Sqrt", *inputs)))


def _integer_pow(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Pow", *inputs, np.asarray(eqn.params["y"], _aval(eqn.invars[0]).dtype)))


def _cast(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Cast", *inputs, to=helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))))


def _select(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    which, *cases = inputs
    if len(cases) != 2 or _aval(eqn.invars[0]).dtype != bool:
        raise graph.refusal(eqn)
    return str(graph.op("Where", which, cases[1], cases[0]))


def _reshape(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    dims = _aval(eqn.outvars[0]).shape
    symbolic = [dim for dim in dims if not isinstance(dim, int)]
    if len(symbolic) > 1 or eqn.params["dimensions"] is not None:
        raise graph.refusal(eqn)
    return str(graph.op("Reshape", *inputs, _ints([dim if isinstance(dim, int) else -1 for dim in dims])))


def _broadcast(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    dims, place = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    before = dict(zip(place, _aval(eqn.invars[0]).shape, strict=True))
    (value,) = inputs
    if new := [axis for axis in range(len(dims)) if axis not in before]:
        value = graph.op("Unsqueeze", value, _ints(new))
    wanted = [1 if before.get(axis, 1) == dim else dim for axis, dim in enumerate(dims)]
    if any(dim != 1 for dim in wanted):
        value = graph.op("Expand", value, graph.shape(eqn, wanted))
    return graph.name(value)


def _transpose(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Transpose", *inputs, perm=list(eqn.params["permutation"])))


def _concatenate(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Concat", *inputs, axis=eqn.params["dimension"]))


def _stack(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    axis = eqn.params["axis"]
    return str(graph.op("Concat", *(graph.op("Unsqueeze", value, _ints([axis])) for value in inputs), axis=axis))


def _squeeze(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    return str(graph.op("Squeeze", *inputs, _ints(eqn.params["dimensions"])))


def _slice(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    whole = _aval(eqn.invars[0]).shape
    if any(not isinstance(end, int) and end != dim for end, dim in zip(limit, whole, strict=True)):
        raise graph.refusal(eqn)
    ends = [end if isinstance(end, int) else np.iinfo(np.int64).max for end in limit]
    steps = eqn.params["strides"] or [1] * len(start)
    return str(graph.op("Slice", *inputs, _ints(start), _ints(ends), _ints(range(len(start))), _ints(steps)))


def _split(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> list[str]:
    sizes = eqn.params["sizes"]
    names = graph.op("Split", *inputs, _ints(sizes), outputs=len(sizes), axis=eqn.params["axis"])
    return [names] if isinstance(names, str) else list(names)


def _dot(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    """Batch axes first, then the free ones of both; as a product of matrices where a layer's kernel is one."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    ranks = [len(_aval(var).shape) for var in eqn.invars]
    if not left_batch and tuple(left_sum) == (ranks[0] - 1,) and tuple(right_sum) == (0,) and ranks[1] == 2:
        return str(graph.op("MatMul", *inputs))
    left = list(ascii_lowercase[: ranks[0]])
    right = list(ascii_lowercase[ranks[0] : ranks[0] + ranks[1]])
    for own, other in zip((*left_batch, *left_sum), (*right_batch, *right_sum), strict=True):
        right[other] = left[own]
    shared = [left[axis] for axis in left_batch]
    gone = {left[axis] for axis in left_sum}
    free = [letter for letter in left if letter not in gone and letter not in shared]
    free += [letter for letter in right if letter not in gone and letter not in shared]
    return str(graph.op("Einsum", *inputs, equation=f"{''.join(left)},{''.join(right)}->{''.join(shared + free)}"))


def _gather(graph: _Graph, eqn: JaxprEqn, inputs: Sequence[_Value]) -> str:
    """`x[:, 2:5]` (JAX gathers where the batch is symbolic), lookups, and `x[:, rows, columns]`."""
    numbers, mode, slices = eqn.params["dimension_numbers"], eqn.params["mode"], eqn.params["slice_sizes"]
    (values, indices), shape = inputs, _aval(eqn.invars[0]).shape
    axes, collapsed = numbers.start_index_map, numbers.collapsed_slice_dims
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    sizes = [shape[axis] for axis in axes]
    if (
        numbers.operand_batching_dims
        or any(slices[axis] != shape[axis] for axis in rest)
        or not all(isinstance(size, int) for size in sizes)
    ):
        raise graph.refusal(eqn)
    if isinstance(indices, np.ndarray) and indices.ndim == 1:
        ends = [int(start) + slices[axis] for start, axis in zip(indices, axes, strict=True)]
        if any(start < 0 or end > size for start, end, size in zip(indices, ends, sizes, strict=True)):
            raise graph.refusal(eqn)
        cut = graph.op("Slice", values, _ints(indices), _ints(ends), _ints(axes))
        return str(graph.op("Squeeze", cut, _ints(collapsed)) if collapsed else cut)
    if set(collapsed) != set(axes) or any(slices[axis] != 1 for axis in axes):
        raise graph.refusal(eqn)
    last = np.asarray(sizes, _aval(eqn.invars[1]).dtype) - 1
    inside: Any = None
    if mode != GatherScatterMode.PROMISE_IN_BOUNDS:
        if mode == GatherScatterMode.FILL_OR_DROP:
            fits = graph.op(
                "And", graph.op("LessOrEqual", np.zeros_like(last), indices), graph.op("LessOrEqual", indices, last)
            )
            inside = graph.op("ReduceMin", graph.op("Cast", fits, to=TensorProto.INT32), axes=[-1], keepdims=0)
        indices = graph.op("Min", graph.op("Max", indices, np.zeros_like(last)), last)
    if [*axes, *rest] != list(range(len(shape))):
        values = graph.op("Transpose", values, perm=[*axes, *rest])
    found = graph.op("GatherND", values, graph.op("Cast", indices, to=TensorProto.INT64))
    if inside is not None:
        fill, dtype = eqn.params["fill_value"], _aval(eqn.outvars[0]).dtype
        if fill is None:
            if not np.issubdtype(dtype, np.floating):  # JAX has a value for each type; no tower needs them
                raise graph.refusal(eqn)
            fill = math.nan
        if rest:
            inside = graph.op("Unsqueeze", inside, _ints(range(-len(rest), 0)))
        found = graph.op("Where", graph.op("Cast", inside, to=TensorProto.BOOL), found, np.asarray(fill, dtype))
    # ONNX has the indices' axes first, then the rest; JAX has the rest at offset_dims.
    rank, offset = len(_aval(eqn.outvars[0]).shape), numbers.offset_dims
    looked = [axis for axis in range(rank) if axis not in offset]
    order = [looked.index(a) if a in looked else len(looked) + offset.index(a) for a in range(rank)]
    return str(found if order == list(range(rank)) else graph.op("Transpose", found, perm=order))


_RULES: dict[str, _Rule] = {
    "abs": _plain("Abs"),
    "add": _plain("Add"),
    "and": _plain("And"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "convert_element_type": _cast,
    "copy": _plain("Identity"),
    "div": _plain("Div"),
    "dot_general": _dot,
    "eq": _plain("Equal"),
    "erf": _plain("Erf"),
    "exp": _plain("Exp"),
    "gather": _gather,
    "ge": _plain("GreaterOrEqual"),
    "gt": _plain("Greater"),
    "integer_pow": _integer_pow,
    "le": _plain("LessOrEqual"),
    "log": _plain("Log"),
    "logistic": _plain("Sigmoid"),
    "lt": _plain("Less"),
    "max": _plain("Max"),
    "min": _plain("Min"),
    "mul": _plain("Mul"),
    "ne": _not_equal,
    "neg": _plain("Neg"),
    "not": _plain("Not"),
    "or": _plain("Or"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce_sum,
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "sqrt": _plain("Sqrt"),
    "square": _square,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": _plain("Identity"),
    "sub": _plain("Sub"),
    "tanh": _plain("Tanh"),
    "transpose": _transpose,
}
