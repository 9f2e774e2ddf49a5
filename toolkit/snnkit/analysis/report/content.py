"""What a report says, as data: report.json is its dump and the page is drawn from nothing else.

Accuracies are in percent, energies in joules, rates in 0..1; counts are means per inference. A part that is not
known is None or empty, and ``missing`` says which command adds it.
"""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from snnkit.analysis.accuracy import Accuracy as Counted

Role: TypeAlias = Literal["teacher", "plain", "student", "network"]


class Part(BaseModel):
    """Frozen, and exactly these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Accuracy(Part):
    """``accuracy`` percent, with the counts behind it and Wilson's 95 % interval."""

    accuracy: float
    correct: int
    samples: int
    interval_95: tuple[float, float]

    @classmethod
    def of(cls, counted: Counted) -> "Accuracy":
        return cls.model_validate(counted.to_json())


class Result(Part):
    """A network on what runs it; ``plain`` is without distillation. Without an accuracy ``note`` says why."""

    role: Role
    network: str
    runs_on: str
    accuracy: Accuracy | None
    note: str = ""


class Agreement(Part):
    """Two targets, spike by spike, over ``samples``; ``where`` names the first divergence."""

    first: str
    second: str
    samples: int
    identical: bool
    spike_mismatches: int
    readout_mismatches: int
    where: str = ""


class Total(Part):
    """The energy of an inference by one model at one precision; ``bound`` where it is only a limit."""

    model: str
    precision: str
    joules: float
    low: float
    high: float
    bound: str | None


class Step(Part):
    """The same network stopped after ``timesteps``."""

    timesteps: int
    accuracy: Accuracy | None
    spikes: float
    effective_acs: float
    effective_macs: float
    energies: tuple[Total, ...]


class Layer(Part):
    """A node: of neurons (``rate``, ``rates`` of each timestep), of synapses (operations), or the readout.

    ``acs`` and ``macs`` are the operations at each timestep.
    """

    name: str
    kind: str
    place: str
    neurons: int = 0
    rate: float | None = None
    rates: tuple[float, ...] = ()
    acs: tuple[float, ...] = ()
    macs: tuple[float, ...] = ()
    spikes: float
    effective_acs: float
    effective_macs: float
    dense: float
    updates: float


class Priced(Part):
    """``count`` operations at ``price`` each, its unit and range in the text, and who says so."""

    name: str
    operation: str
    count: float
    joules: float
    low: float
    high: float
    price: str
    source: str


class Term(Priced):
    """A term of an energy; ``at_least`` says that the count is a lower bound."""

    at_least: bool
    caveat: str | None


class Baseline(Priced):
    """The same topology as an ANN, and between which firing rates the network would cost as much, also in words.

    A rate is None where the network costs more without any spike, or where none of its neurons fired.
    """

    break_even: str
    break_even_rates: tuple[float | None, float | None]


class Unknown(Part):
    """What happens, ``count`` times an inference where that is known, and has no published price."""

    name: str
    count: float | None


class Latency(Part):
    """Timesteps to the ``first`` answer and from one to the ``next``; ``seconds`` to the first: low, nominal, high."""

    first: int
    next: int
    seconds: tuple[float, float, float] | None
    bound: str | None
    source: str | None


class Energy(Total):
    """An energy model at one precision; ``energy_delay`` is in joule-seconds: low, nominal, high.

    ``routed_on`` names the chip on whose cores the spikes are routed.
    """

    title: str
    technology: str
    source: str
    label: str
    terms: tuple[Term, ...]
    baselines: tuple[Baseline, ...]
    leaves_out: tuple[str, ...]
    unknown: tuple[Unknown, ...]
    latency: Latency | None
    energy_delay: tuple[float, float, float] | None
    energy_delay_bound: str | None
    routed_on: str | None


class Raster(Part):
    """Spikes of a layer for one sample: every ``stride``-th of its ``neurons``, for each timestep those that fired."""

    node: str
    neurons: int
    stride: int
    spikes: int
    fired: tuple[tuple[int, ...], ...]


class Sample(Part):
    """A test sample: ``image`` is a PNG as a ``data:`` address, ``readouts`` one value a class."""

    index: int
    label: str | None
    prediction: str
    correct: bool | None
    image: str
    readouts: tuple[float, ...]
    rasters: tuple[Raster, ...]


class Curve(Part):
    """A value over the epochs of a phase of training."""

    phase: str
    name: str
    values: tuple[tuple[int, float], ...]


class Estimate(Part):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class SaliencyRow(Part):
    """A network's maps; the measures by name, see ``snnkit saliency``."""

    network: str
    width: float
    measures: dict[str, Estimate]


class Saliency(Part):
    """``picture`` is a PNG as a ``data:`` address."""

    samples: int
    rows: tuple[SaliencyRow, ...]
    picture: str | None


class Facts(Part):
    """What the network is."""

    dataset: str
    teacher: str | None
    student: str | None
    kind: str
    timesteps: int
    weight_bits: int | None
    input_bits: int
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    neurons: int
    parameters: int
    footprint_bytes: float
    ann_macs: int
    firing_rate: float
    samples: int


class Extent(Part):
    """Lowest and highest value of a sum, a current or a membrane: the ``worst`` case, and on calibration samples."""

    limit: int
    worst: tuple[int, int]
    observed: tuple[int, int] | None


class QuantizedNode(Part):
    """A layer of neurons before and after; scale and threshold as lowest and highest of its channels.

    ``overflows``: updates on the calibration samples whose current wrapped or whose membrane saturated.
    """

    name: str
    weight_bits: int
    scale: tuple[float, float]
    v_threshold: tuple[int, int]
    rate_float: float
    rate_integer: float
    overflows: int
    sum: Extent
    u: Extent
    v: Extent


class Paired(Part):
    """The integer network against the student, the same samples: points lost with their interval, and predictions."""

    samples: int
    drop: float
    interval_95: tuple[float, float]
    lost: int
    gained: int
    changed: int


class Quantization(Part):
    """What 'snnkit quantize' saw on its calibration samples, and ``test`` and ``paired`` on the test split."""

    weight_bits: int
    input_bits: int
    per_channel: bool
    stem: str
    calibration_samples: int
    test: Accuracy | None
    paired: Paired | None
    notes: tuple[str, ...]
    nodes: tuple[QuantizedNode, ...]


class Core(Part):
    """A core that is used, by the layer with index ``layer``; ``use`` is the share of its fullest resource."""

    core: int
    chip: int
    row: int
    column: int
    layer: int
    use: float


class ChipLayer(Part):
    """A layer on its cores; the figures are those of the fullest one, and ``fullest`` its most used resource."""

    name: str
    kind: str
    first_core: int
    cores: int
    neurons: int
    axons_in: int
    axons_out: int
    memory_words: int
    fullest: str
    use: float


class Violation(Part):
    """A limit of the chip that is not kept, who says so and what to change."""

    layer: str
    what: str
    value: float
    limit: float
    source: str
    remedy: str


class Chip(Part):
    """Whether the network fits a chip and how it lies on its cores, ``rows`` x ``columns`` tiles of ``per_tile``.

    ``between_cores`` are spikes of an inference. Steps are those of a pipelined chip.
    """

    name: str
    title: str
    approximate: bool
    fits: bool
    chips: int
    available: int
    rows: int
    columns: int
    per_tile: int
    cores: tuple[Core, ...]
    layers: tuple[ChipLayer, ...]
    violations: tuple[Violation, ...]
    warnings: tuple[str, ...]
    unchecked: tuple[str, ...]
    first_steps: int
    next_steps: int
    first_seconds: float | None
    throughput: float | None
    between_cores: float | None
    samples: int


class Fit(Part):
    """Whether it fits one chip, and how many reasons there are why not."""

    chip: str
    title: str
    fits: bool
    reasons: int
    cores: int


class Verdict(Part):
    """The answer: one sentence and the numbers in it; ``energies`` are the lowest and the highest total."""

    sentence: str
    accuracy: Accuracy | None
    drop_points: float | None
    drop_interval: tuple[float, float] | None
    float_accuracy: Accuracy | None
    spikes: float
    energies: tuple[Total, ...]
    identical: bool | None
    targets: tuple[str, ...]
    chips: tuple[Fit, ...]


class Missing(Part):
    """A section that this run has nothing for, and the command that adds it."""

    section: str
    why: str
    command: str


class Reproduce(Part):
    """Commands in order, what they ran with, and the whole configuration."""

    commands: tuple[str, ...]
    seed: int | None
    threads: int | None
    python: str
    platform: str
    processors: int | None
    versions: dict[str, str | None]
    config: str


class Report(Part):
    """Everything."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    run: str
    created: str
    snnkit: str
    facts: Facts
    verdict: Verdict
    results: tuple[Result, ...]
    agreements: tuple[Agreement, ...]
    timesteps: tuple[Step, ...]
    layers: tuple[Layer, ...]
    energies: tuple[Energy, ...]
    samples: tuple[Sample, ...]
    curves: tuple[Curve, ...]
    quantization: Quantization | None
    chips: tuple[Chip, ...]
    saliency: Saliency | None
    missing: tuple[Missing, ...]
    reproduce: Reproduce

    def to_json(self) -> dict[str, Any]:
        """As report.json holds it."""
        return self.model_dump(mode="json", by_alias=True)
