"""From a trained torch student to the float Network: traced with torch.fx, one pass over the graph.

The graph is executed on a probe while every value remembers which nodes produced it and how it holds time. Time is
not part of the Network, so expanding, folding it into the batch and unrolled loops disappear; layers become nodes,
additions become several inputs of a node, and an average or sum over time at the end becomes the readout.
"""

import copy
import dataclasses
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from spikingjelly.activation_based import base, neuron
from torch import Tensor, fx, nn

from snnkit.config import load_config
from snnkit.errors import UnsupportedError
from snnkit.network import LIF, Affine, Edge, Flatten, Input, Network, Node, Readout, verify
from snnkit.runs import Run, environment
from snnkit.training import checkpoint as checkpoints
from snnkit.training.devices import torch_defaults
from snnkit.training.layers import ALTERNATIVES, IDENTITIES, MAKERS, RESHAPES, NotConvertibleError, convert
from snnkit.training.neurons import SpikingNeuron, is_neuron, reset_neurons
from snnkit.training.trainer import load_student

# static: the same at every timestep [N, ...]; axis [T, N, ...]; folded [T * N, ...]; step: some timesteps, summed if
# several, [N, ...]; summed: over all timesteps
Time: TypeAlias = Literal["static", "axis", "folded", "step", "summed"]
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
RESHAPINGS = {torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze, torch.unflatten, torch.Tensor.expand} | {
    *("flatten", "unflatten", "view", "reshape", "unsqueeze", "squeeze", "expand", "repeat", "contiguous", "clone")
}
REDUCTIONS = {torch.mean, torch.sum, "mean", "sum"}
SCALINGS = {operator.truediv, operator.itruediv, operator.mul, operator.imul, torch.div, torch.mul, "div", "mul"}
HINT = "replace these parts of the model"


@torch_defaults()
def lower(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    timesteps: int,
    encoding: Literal["direct", "events"] = "direct",
    input_has_time: bool | None = None,
    metadata: dict[str, Any] | None = None,
) -> Network:
    """The float network of a student whose input is [N, *input_shape], or [T, N, *input_shape] if ``input_has_time``.

    By default a direct input has no time axis and events have one. The student returns logits (or output spikes) per
    timestep, or their mean or sum over time; a model of SpikingJelly neurons in single-step mode may also run its
    timesteps in its own loop, or compute one timestep per call. Raises :class:`UnsupportedError` with everything that
    stands in the way.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    reset_neurons(model)
    has_time = encoding == "events" if input_has_time is None else input_has_time
    try:
        graph = _Tracer(axes=1 + has_time + len(input_shape)).trace(model)
    except Exception as error:  # tracing runs the user's code
        reason = f"it cannot be traced: {str(error).strip() or type(error).__name__}"
        raise UnsupportedError(
            "the model cannot be lowered", [reason], "avoid control flow that depends on data"
        ) from error
    lowering = _Lowering(fx.GraphModule(model, graph), timesteps, tuple(input_shape), encoding, has_time=has_time)
    net = Network(nodes=lowering.network_nodes(), timesteps=timesteps, metadata=metadata or {})
    verify(net)
    return net


def lower_run(run: Run) -> Network:
    """The float network of a run's student after its last epoch, with the run's facts as metadata."""
    student = load_student(run)
    config, header = load_config(run.config), checkpoints.read(run.last).header
    tests = [record for record in run.read_metrics() if record["phase"] == "test"]
    metadata = {
        "name": config.name,
        "dataset": config.data.name,
        "data": config.data.model_dump(mode="json", exclude={"name", "download", "augment"}, exclude_defaults=True),
        "classes": header["classes"],
        "student": config.student.model,
        "teacher": config.teacher.model,
        "seed": config.train.seed,
        "epochs": header["epoch"],
        "accuracy": {who: tests[-1][who] for who in ("teacher", "student", "best")} if tests else {},
        "versions": environment()["versions"],
    }
    shape = header["input_shape"]  # of events, time stands in front of (C, H, W)
    return lower(
        student,
        shape[-3:],
        timesteps=config.student.timesteps,
        encoding="events" if len(shape) == 4 else "direct",
        metadata=metadata,
    )


class _Tracer(fx.Tracer):
    """Layers that become nodes and SpikingJelly's layers are leaves; its containers are looked into.

    ``axes`` of the input are known, so that a model may tell images from events by ``x.dim()``.
    """

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes

    def create_proxy(self, kind: str, target: Any, args: Any, *rest: Any, **options: Any) -> Any:
        if (kind, target) == ("call_method", "dim") and args[0].node.op == "placeholder":
            return self.axes
        return super().create_proxy(kind, target, args, *rest, **options)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in MAKERS or is_neuron(m) or (isinstance(m, base.StepModule) and not isinstance(m, nn.Sequential)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Value:
    """A tensor of the probe; the sum of ``sources``, each ``size`` a sample. No sources: it stems from an obstacle."""

    tensor: Tensor
    sources: tuple[str, ...]
    size: tuple[int, ...]
    time: Time
    steps: frozenset[int] = frozenset()


class _StopError(Exception):
    """The probe cannot go on; the reasons are recorded."""


class _Lowering(fx.Interpreter):
    """Executes the traced graph on a probe, building nodes and collecting reasons."""

    def __init__(
        self, module: fx.GraphModule, timesteps: int, input_shape: tuple[int, ...], encoding: Any, *, has_time: bool
    ) -> None:
        super().__init__(module)
        self.timesteps = timesteps
        self.samples = 3 if timesteps != 3 else 5  # differs from T, so that shapes tell time from samples
        self.all_steps = frozenset(range(timesteps))
        entry = Input(name="input", shape=input_shape, encoding=encoding)
        self.nodes: dict[str, Node] = {entry.name: entry}
        self.reasons: list[str] = []
        self.made: dict[tuple[str, tuple[str, ...]], str] = {}  # (module, sources) -> node: calls of later timesteps
        self.calls: dict[str, int] = {}  # of neurons in single-step mode
        self.called: set[str] = set()  # neurons in multi-step mode
        self.where = ""
        self.extra_traceback = False  # an error of the probe becomes a reason
        lead = (timesteps, self.samples) if has_time else (self.samples,)
        time: Time = "axis" if has_time else "static" if encoding == "direct" else "step"
        steps = frozenset({0}) if time == "step" else frozenset()
        self.probe = _Value(torch.zeros(*lead, *input_shape), (entry.name,), input_shape, time, steps)

    def network_nodes(self) -> tuple[Node, ...]:
        """Runs the probe; the nodes that lead to the answer, in order."""
        try:
            with torch.no_grad():
                answer = self.run(self.probe)
            self._readout(answer)
        except _StopError:
            pass
        if self.reasons:
            raise UnsupportedError("the model cannot be lowered", list(dict.fromkeys(self.reasons)), HINT)
        needed: set[str] = set()
        for node in reversed(self.nodes.values()):
            if isinstance(node, Readout) or node.name in needed:
                needed |= {node.name, *(edge.source for edge in node.inputs)}
        return tuple(node for node in self.nodes.values() if node.name in needed)

    # fx.Interpreter's hooks, one for each kind of graph node

    def run_node(self, n: fx.Node) -> Any:
        self.where = str(n.target) if n.op == "call_module" else n.name
        try:
            return super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise self._stop(f"cannot be run: {' '.join(str(error).split())}") from None

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.module.get_submodule(target)
        if len(args) != 1 or kwargs or not isinstance(args[0], _Value):
            raise self._stop(f"({type(module).__name__}) is called with something else than one traced tensor")
        value = args[0]
        if type(module) in IDENTITIES:
            return value
        if type(module) in RESHAPES:
            return self._rearranged(value, module(value.tensor))
        time, steps = value.time, value.steps
        if is_neuron(module):
            out = value.tensor
            time, steps = self._fire(target, module, value)
        else:
            out = module(value.tensor)
            self._expect_unreduced(value)
        size = tuple(out.shape[value.tensor.dim() - len(value.size) :])
        try:
            maker = convert(module, value.size)
        except NotConvertibleError as error:
            self._reason(f"({type(module).__name__}): {error}")
            return _Value(out, (), size, time, steps)
        if not value.sources:
            return _Value(out, (), size, time, steps)
        if (key := (target, value.sources)) not in self.made:
            self.made[key] = self._add(maker, target, value.sources)
        return _Value(out, (self.made[key],), size, time, steps)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(target, args, kwargs, target)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(target, args, kwargs, lambda first, *rest, **named: getattr(first, target)(*rest, **named))

    def _call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], function: Any) -> Any:
        values = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, _Value)]
        result = function(*_unwrapped(args), **_unwrapped(kwargs))
        if not values or not isinstance(result, Tensor | tuple | list) or isinstance(result, torch.Size):
            return result  # shapes and numbers
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if not isinstance(result, Tensor):
            raise self._stop(f"calls {name}(), which returns several tensors")
        value = values[0]
        if target in ADDITIONS and len(args) == 2 and not kwargs:
            return self._sum(args[0], args[1], result)
        if target in RESHAPINGS and len(values) == 1:
            return self._rearranged(value, result)
        if target in REDUCTIONS and value.time == "axis" and _reduced_axis(args, kwargs) in (0, -value.tensor.dim()):
            return dataclasses.replace(value, tensor=result, time="summed")
        if target in SCALINGS and args[0] is value and self._is_positive_factor(value, args[1:]):
            return dataclasses.replace(value, tensor=result)
        if target is operator.getitem and value.time == "axis" and isinstance(args[1], int):
            step = frozenset({args[1] % self.timesteps})
            return dataclasses.replace(value, tensor=result, time="step", steps=step)
        if target in (torch.stack, torch.cat) and self._is_whole_sequence(values, result):
            return dataclasses.replace(value, tensor=result, time="axis", steps=frozenset())
        alternative = ALTERNATIVES.get(name, "")
        self._reason(f"calls {name}(), which has no equivalent here" + (f"; {alternative}" if alternative else ""))
        lead = value.tensor.dim() - len(value.size)
        return _Value(result, (), tuple(result.shape[lead:]), value.time, value.steps)

    # the meaning of operations

    def _fire(self, path: str, module: nn.Module, value: _Value) -> tuple[Time, frozenset[int]]:
        """How a neuron's output holds time: a multi-step neuron needs the axis, a single-step one counts its calls."""
        if isinstance(module, SpikingNeuron) or getattr(module, "step_mode", "s") == "m":
            if value.time != "axis":
                self._reason("is a multi-step neuron, but its input is not [T, N, ...]")
            if isinstance(module, neuron.BaseNode) and path in self.called:
                self._reason("keeps its state and is called twice; give each place a neuron of its own")
            self.called.add(path)
            return "axis", frozenset()
        step = self.calls.get(path, 0)
        self.calls[path] = step + 1
        if value.time not in ("static", "step") or (value.time == "step" and value.steps != {step}):
            self._reason(f"is a single-step neuron, but call {step + 1} does not get timestep {step}")
        if any(place == path and sources != value.sources for place, sources in self.made):
            self._reason("keeps its state and is called on different inputs; give each place a neuron of its own")
        return "step", frozenset({step})

    def _sum(self, a: Any, b: Any, result: Tensor) -> _Value:
        """A sum of two branches at the same time, or of one value over several timesteps."""
        if not isinstance(a, _Value) or not isinstance(b, _Value):
            value, other = (a, b) if isinstance(a, _Value) else (b, a)
            if torch.as_tensor(other).any() or result.shape != value.tensor.shape:  # 0 starts an accumulation
                self._reason("adds a constant, which has no equivalent here; use a layer's bias")
            return dataclasses.replace(value, tensor=result)
        if a.time == b.time == "step" and a.sources == b.sources and not a.steps & b.steps:
            steps = a.steps | b.steps
            return dataclasses.replace(
                a, tensor=result, steps=steps, time="summed" if steps == self.all_steps else "step"
            )
        self._expect_unreduced(a)
        self._expect_unreduced(b)
        if a.size != b.size or set(a.sources) & set(b.sources):
            self._reason("adds a value to itself or to one of another shape")
        times = {a.time, b.time} - {"static"}
        if len(times) > 1 or (a.steps and b.steps and a.steps != b.steps):
            self._reason("adds values of different timesteps")
        sources = a.sources + b.sources if a.sources and b.sources else ()
        return _Value(result, sources, a.size, times.pop() if times else "static", a.steps | b.steps)

    def _rearranged(self, value: _Value, result: Tensor) -> _Value:
        """The value in another layout of time, or flattened; the order of elements is kept by all reshapings."""
        flat = (math.prod(value.size),)
        for size in (value.size, flat):
            layouts: dict[tuple[int, ...], Time] = {
                (self.samples, *size): value.time,
                (1, self.samples, *size): value.time,
            }
            if value.time in ("static", "axis", "folded"):
                layouts[self.timesteps, self.samples, *size] = "axis"
                if self.timesteps > 1 or value.time != "static":
                    layouts[self.timesteps * self.samples, *size] = "folded"
            if value.time in ("axis", "folded") and self.timesteps > 1:
                del layouts[self.samples, *size], layouts[1, self.samples, *size]
            if (time := layouts.get(tuple(result.shape))) is not None:
                sources = value.sources
                if size != value.size and sources:
                    if (key := ("flatten", sources)) not in self.made:
                        self.made[key] = self._add(Flatten, self.where, sources)
                    sources = (self.made[key],)
                return _Value(result, sources, size, time, value.steps)
        self._reason(
            f"makes {tuple(result.shape)} of {tuple(value.tensor.shape)} (T={self.timesteps}, N={self.samples}); "
            "time must come first or be folded into the batch, and samples stay whole or become flat"
        )
        return _Value(result, (), tuple(result.shape[value.tensor.dim() - len(value.size) :]), value.time, value.steps)

    def _is_whole_sequence(self, values: Sequence[_Value], result: Tensor) -> bool:
        """Whether the values are the timesteps 0 .. T-1 of one thing, put together in order along a leading axis."""
        first = values[0]
        return (
            [value.steps for value in values] == [frozenset({step}) for step in range(self.timesteps)]
            and all(value.sources == first.sources for value in values)
            and tuple(result.shape) == (self.timesteps, self.samples, *first.size)
        )

    def _is_positive_factor(self, value: _Value, factors: tuple[Any, ...]) -> bool:
        """Whether a sum over time is only scaled, which leaves the order of the classes as it is."""
        reduced = value.time == "summed" or len(value.steps) > 1
        return reduced and len(factors) == 1 and isinstance(factors[0], int | float) and factors[0] > 0

    def _expect_unreduced(self, value: _Value) -> None:
        if value.time == "summed" or len(value.steps) > 1:
            self._reason("comes after the sum or mean over time; only the readout may")

    def _readout(self, answer: Any) -> None:
        self.where = "output"
        if not isinstance(answer, _Value):
            raise self._stop("the model must return one tensor, the logits")
        if not answer.sources:
            return
        counts = set(self.calls.values())
        one_step_a_call = counts == {1} and answer.steps == {0}
        whole = answer.time in ("axis", "summed") or answer.steps == self.all_steps or one_step_a_call
        if not whole or not (one_step_a_call or counts <= {self.timesteps}):
            self._reason(f"the model does not return all {self.timesteps} timesteps, or their sum or mean")
        if not self.calls and not self.called:
            self._reason("the model has no spiking neurons")
        if self.reasons:
            return
        nodes = [self.nodes[source] for source in answer.sources]
        if all(isinstance(node, LIF) for node in nodes):
            self._add(lambda **place: Readout(**place, mode="count"), "readout", answer.sources)
        elif all(isinstance(node, Affine) for node in nodes):
            self._add(Readout, "readout", answer.sources)
        else:
            self._reason("the logits must come from Linear layers, or be the spikes of flat neurons")

    def _add(self, maker: Any, name: str, sources: tuple[str, ...]) -> str:
        unique, number = name, 1
        while unique in self.nodes:
            number += 1
            unique = f"{name}_{number}"
        self.nodes[unique] = maker(name=unique, inputs=tuple(Edge(source) for source in sources))
        return unique

    def _reason(self, text: str) -> None:
        self.reasons.append(f"'{self.where}' {text}")

    def _stop(self, text: str) -> _StopError:
        self._reason(text)
        return _StopError()


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple | list):
        return [leaf for item in tree for leaf in _leaves(item)]
    return [tree]


def _unwrapped(tree: Any) -> Any:
    """The probe's tensors in place of the values, for execution."""
    return fx.node.map_aggregate(tree, lambda leaf: leaf.tensor if isinstance(leaf, _Value) else leaf)


def _reduced_axis(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The one axis that mean or sum reduces; None for anything else."""
    axis = args[1] if len(args) == 2 else kwargs.get("dim", kwargs.get("axis"))
    if kwargs.get("keepdim"):
        return None
    return axis[0] if isinstance(axis, tuple | list) and len(axis) == 1 else axis
