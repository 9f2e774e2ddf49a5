"""Neuromorphic chips as data: what a core holds, which numbers it takes, how its cores are laid out.

A chip is a YAML file; those in the folder ``chips`` beside this module are found by name, a user's by its path. Every
number carries its source. A limit that nobody has published is left out of the file and is then not checked.
"""

import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from snnkit.analysis.definitions import load_definition, shipped

Source = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Limit(_Strict):
    """The most of something, and who says so; ``note`` says what the source leaves open."""

    value: Annotated[int, Field(ge=0)]
    source: Source
    note: str | None = None


class Span(_Strict):
    """The lowest and the highest value of a field, both included."""

    low: int
    high: int
    source: Source

    @model_validator(mode="after")
    def _ordered(self) -> "Span":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class WeightBits(_Strict):
    """The widths that a synapse's weight can have; with both signs in one layer the lowest bit is lost."""

    values: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, strict=False)]
    mixed_sign_loses_lowest_bit: bool
    source: Source


class Resets(_Strict):
    """What a neuron can do after a spike."""

    values: Annotated[tuple[Literal["zero", "subtract"], ...], Field(min_length=1, strict=False)]
    source: Source


class Mesh(_Strict):
    """How cores are laid out: tiles of cores in rows and columns, one router a tile."""

    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=1)]
    cores_per_tile: Annotated[int, Field(ge=1)]
    source: Source


class SynapseFormat(_Strict):
    """How the weights behind one input axon are packed into words.

    A list of n synapses is cut into blocks of ``block_synapses``; each takes ``n (weight + delay + index bits) +
    block_header_bits``, rounded up to whole words. The index, which of the core's neurons, is as wide as needed, one
    of ``index_bits``, and is left out where a list names every neuron in order. ``convolution``: weights are shared
    between the input axons that see the same part of the kernel (``patterns``: at a border others than inside), or a
    core holds the ``kernel`` once. An axon of a population is one for all channels of a pixel; it takes
    ``population_slots`` output axons. Shared lists can be moved by less than ``shared_offset`` neurons.
    """

    word_bits: Annotated[int, Field(ge=1)]
    block_synapses: Annotated[int, Field(ge=1)]
    block_header_bits: Annotated[int, Field(ge=0)]
    index_bits: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, strict=False)]
    convolution: Literal["patterns", "kernel"]
    population_slots: Annotated[int, Field(ge=1)]
    shared_offset: Annotated[int, Field(ge=1)] | None = None
    source: Source


class StepTime(_Strict):
    """The shortest time of a step: the barrier, and ``update_ns`` for each neuron of the fullest core."""

    barrier_ns: Annotated[float, Field(ge=0)]
    update_ns: Annotated[float, Field(ge=0)]
    source: Source


class Chip(_Strict):
    """One chip file. ``approximate``: some numbers are estimates; their notes say which."""

    name: Source
    title: Source
    source: Source
    approximate: bool
    mesh: Mesh
    cores: Limit
    neurons_per_core: Limit
    input_axons: Limit | None = None
    output_axons: Limit | None = None
    memory_words: Limit
    words_per_neuron: Limit | None = None
    words_per_axon: Limit | None = None
    synapse_format: SynapseFormat
    weight_bits: WeightBits
    weight_exponent: Span
    threshold_bits: Limit
    bias_bits: Limit
    bias_exponent: Span
    decay_bits: Limit
    delay: Limit
    compartment_configurations: Limit | None = None
    threshold_configurations: Limit | None = None
    synapse_configurations: Limit | None = None
    accumulator_bits: Limit
    state_bits: Limit
    graded_spike_bits: Limit | None = None
    resets: Resets
    step: StepTime | None = None

    @model_validator(mode="after")
    def _layout(self) -> "Chip":
        places = self.mesh.rows * self.mesh.columns * self.mesh.cores_per_tile
        if places < self.cores.value:
            raise ValueError(f"the mesh has {places} places for {self.cores.value} cores")
        if max(self.synapse_format.index_bits) < (self.neurons_per_core.value - 1).bit_length():
            raise ValueError(f"index_bits cannot name {self.neurons_per_core.value} neurons")
        return self


def list_chips() -> list[str]:
    """The names of the chips that come with snnkit."""
    return shipped("chips")


def load_chip(name_or_path: str | os.PathLike[str]) -> Chip:
    """The chip of that name, or in the YAML file at that path; see :func:`load_definition`."""
    return load_definition(Chip, "chips", "chip", name_or_path)
