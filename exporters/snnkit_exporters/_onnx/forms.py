"""Whole graphs: all timesteps in a row, one timestep with its states outside, or a loop of any length."""

from collections.abc import Callable
from typing import Literal, TypeAlias

from onnx import GraphProto, ValueInfoProto

from snnkit.network.ir import Edge
from snnkit_exporters._onnx.graph import BOOL, FLOAT, INT64, Dims, Graph
from snnkit_exporters._onnx.plan import Plan, State
from snnkit_exporters._onnx.timestep import Timestep

Form: TypeAlias = Literal["unrolled", "step", "scan"]


def unrolled(plan: Plan, *, trace: bool) -> GraphProto:
    """``input`` direct [batch, *shape] or events [timesteps, batch, *shape] to ``readout`` [batch, classes]."""
    net, graph = plan.net, Graph()
    assert plan.timesteps is not None
    inputs = [graph.declare("input", FLOAT, _input_dims(plan, plan.timesteps))]
    step = Timestep(plan, graph)
    _direct_input(step)
    past: list[dict[str, str]] = []
    spikes: dict[str, list[str]] = {node.name: [] for node in net.neurons}

    def arriving(edge: Edge) -> str:
        if edge.delay < len(past):
            return past[-1 - edge.delay][edge.source]
        return _zeros(plan, graph, State(f"{edge.source}.zeros", plan.signal, plan.shapes[edge.source]))

    for t in range(plan.timesteps):
        if net.input.encoding == "events":
            index = graph.constant(f"t_{t}", t, INT64)
            frame = graph.emit("Gather", ["input", index], f"{net.input.name}.frame.{t}", FLOAT, axis=0)
            step.values[net.input.name] = graph.cast(frame, plan.signal)
        past.append(step.values)
        step.run(arriving, f".{t}")
        step.values = dict(step.values)
        for name, found in step.spikes.items():
            spikes[name].append(found)
    outputs = [_readout(plan, graph, step.state["readout.sum"])]
    if trace:
        axis = graph.constant("axis", [0], INT64)
        for name, each in spikes.items():
            rows = [graph.emit("Unsqueeze", [found, axis], f"{found}:row") for found in each]
            graph.emit("Concat", rows, f"{name}.spikes", axis=0)
            outputs.append(graph.declare(f"{name}.spikes", BOOL, [plan.timesteps, "batch", *plan.shapes[name]]))
    return graph.finish("snnkit", inputs, outputs)


def step(plan: Plan, *, trace: bool) -> GraphProto:
    """``input`` [batch, *shape] and every state to ``readout``, the sum so far, and every state's next value."""
    graph = Graph()
    inputs = [graph.declare("input", FLOAT, ["batch", *plan.net.input.shape])]
    inputs += _state_inputs(plan, graph)
    outputs = _one_timestep(plan, graph, {}, "input", ".now")
    outputs[0] = _readout(plan, graph, outputs[0].name)
    return graph.finish("snnkit", inputs, outputs + (_trace(plan, graph, ".spikes", ".now") if trace else []))


def scan(plan: Plan, *, trace: bool) -> GraphProto:
    """Direct ``input`` [batch, *shape] and ``timesteps`` [1], or events [timesteps, batch, *shape], to ``readout``."""
    net, graph = plan.net, Graph()
    inputs = [graph.declare("input", FLOAT, _input_dims(plan, "timesteps"))]
    direct = net.input.encoding == "direct"
    outside = Timestep(plan, graph)
    _direct_input(outside)
    if direct:
        inputs.append(graph.declare("timesteps", INT64, [1]))
        sequence = graph.emit("ConstantOfShape", ["timesteps"], "ticks", FLOAT)
    else:
        sequence = "input"
    initial = [_zeros(plan, graph, state) for state in plan.states()]
    body = Graph(graph)
    body_inputs = _state_inputs(plan, body)
    body_inputs.append(body.declare("frame", FLOAT, [] if direct else ["batch", *net.input.shape]))
    outputs = _one_timestep(plan, body, outside.values, None if direct else "frame", ".each")
    if trace:
        outputs += _trace(plan, body, ".raster", ".each")
    loop = body.finish("timestep", body_inputs, outputs)
    results = [f"{state.name}.last" for state in plan.states()]
    traced = [f"{node.name}.spikes" for node in net.neurons] if trace else []
    graph.scan([*initial, sequence], [*results, *traced], loop)
    found = [_readout(plan, graph, results[0])]
    found += [
        graph.declare(f"{n.name}.spikes", BOOL, ["timesteps", "batch", *plan.shapes[n.name]])
        for n in net.neurons
        if trace
    ]
    return graph.finish("snnkit", inputs, found)


def _input_dims(plan: Plan, timesteps: int | str) -> Dims:
    events = plan.net.input.encoding == "events"
    return [*([timesteps] if events else []), "batch", *plan.net.input.shape]


def _direct_input(step: Timestep) -> None:
    """A direct input and what depends on nothing else, outside all timesteps."""
    entry = step.plan.net.input
    if entry.encoding == "direct":
        step.values[entry.name] = step.graph.cast("input", step.plan.signal)
        step.static()


def _one_timestep(
    plan: Plan, graph: Graph, values: dict[str, str], frame: str | None, suffix: str
) -> list[ValueInfoProto]:
    """Emits a timestep whose states are inputs; returns its outputs: the sum of the readout, then every other state."""
    states = plan.states()
    one = Timestep(plan, graph, dict(values), {state.name: state.name for state in states})
    entry = plan.net.input.name
    if frame is not None:
        one.values[entry] = graph.cast(frame, plan.signal)
    one.run(lambda edge: f"{edge.source}.late{edge.delay}", suffix)
    outputs = []
    for state in states:
        name, _, word = state.name.rpartition(".")
        if word.startswith("late"):
            late = int(word.removeprefix("late"))
            value = one.values[name] if late == 1 else f"{name}.late{late - 1}"
        else:
            value = one.state[state.name]
        graph.emit("Identity", [value], state.following)
        outputs.append(graph.declare(state.following, state.type, ["batch", *state.shape]))
    return outputs


def _state_inputs(plan: Plan, graph: Graph) -> list[ValueInfoProto]:
    return [graph.declare(state.name, state.type, ["batch", *state.shape]) for state in plan.states()]


def _trace(plan: Plan, graph: Graph, word: str, suffix: str) -> list[ValueInfoProto]:
    """The spikes of one timestep as outputs."""
    found = []
    for node in plan.net.neurons:
        name = f"{node.name}{word}"
        graph.emit("Identity", [f"{node.name}.spikes{suffix}"], name)
        found.append(graph.declare(name, BOOL, ["batch", *plan.shapes[node.name]]))
    return found


def _readout(plan: Plan, graph: Graph, total: str) -> ValueInfoProto:
    graph.emit("Identity", [total], "readout")
    return graph.declare("readout", graph.types[total], ["batch", *plan.shapes[plan.net.readout.name]])


def _zeros(plan: Plan, graph: Graph, state: State) -> str:
    """Zeros for every sample of the batch that arrives."""
    axis = 0 if plan.net.input.encoding == "direct" else 1
    batch = graph.emit("Shape", ["input"], "batch_size", INT64, start=axis, end=axis + 1)
    dims = graph.constant(f"{state.name}.dims", state.shape, INT64)
    shape = graph.emit("Concat", [batch, dims], f"{state.name}.shape", axis=0)
    return graph.zeros(shape, f"{state.name}.initial", state.type)


FORMS: dict[Form, Callable[..., GraphProto]] = {"unrolled": unrolled, "step": step, "scan": scan}
