"""NIR's neurons and leaky integrators as nodes of the Network: one method a kind."""

from dataclasses import replace

import numpy as np

from snnkit.interchange.nir_choices import Reset
from snnkit.interchange.nir_file import Record
from snnkit.interchange.nir_layers import Layers, Value
from snnkit.interchange.nir_records import (
    CLOSE,
    NotTakenError,
    all_close,
    as_image,
    numbers,
    one_if_close,
    per_channel,
)
from snnkit.network import LIF, Edge
from snnkit.network.ir import DECAY_ONE, Array, Shape


class Neurons(Layers):
    """How neurons are added, one Euler step of dt a timestep."""

    def _threshold(self, name: str, record: Record, operand: Value) -> Value:
        """A neuron that forgets everything: v is its input."""
        if operand.decay is not None:
            raise NotTakenError("reads a leaky integrator, which only neurons and the output can")
        shape = self._shape(record, "threshold", operand)
        theta = per_channel(record, "threshold", shape)
        return self._neuron(name, operand, shape, theta, np.ones(()), np.ones(()), "zero")

    def _if(self, name: str, record: Record, operand: Value) -> Value:
        return self._fires(name, record, operand, np.zeros(()), self._input_gain(record, operand))

    def _lif(self, name: str, record: Record, operand: Value) -> Value:
        leak = self._rate(record, "tau", operand)
        return self._fires(name, record, operand, leak, leak * self._parameter(record, "r", operand))

    def _cubalif(self, name: str, record: Record, operand: Value) -> Value:
        if operand.decay is not None:
            raise NotTakenError("filters its current twice")
        leak, drain = self._rate(record, "tau_mem", operand), self._rate(record, "tau_syn", operand)
        w_in = self._parameter(record, "w_in", operand) if "w_in" in record else 1.0
        filtered = replace(operand, decay=drain, gain=drain * w_in)
        return self._fires(name, record, filtered, leak, leak * self._parameter(record, "r", operand))

    def _li(self, _name: str, record: Record, operand: Value) -> Value:
        if operand.decay is not None:
            raise NotTakenError("integrates twice")
        shape = self._shape(record, "r", operand)
        if "tau" in record:
            self._zero(record, "v_leak", operand)
            decay = self._rate(record, "tau", operand)
            gain = decay * self._parameter(record, "r", operand)
        else:
            decay, gain = np.zeros(()), self._input_gain(record, operand)
        return Value(operand.edges, shape, decay, one_if_close(gain))

    _i = _li

    def _fires(self, name: str, record: Record, operand: Value, leak: Array, gain: Array) -> Value:
        """An IF, LIF or CubaLIF with a leak of 0..1 and its input scaled by ``gain``, which goes into the threshold."""
        shape = self._shape(record, "v_threshold", operand)
        for key in ("v_leak", "v_reset"):  # v_reset may be left out
            if key in record:
                self._zero(record, key, operand)
        drain = np.ones(()) if operand.decay is None else operand.decay
        gain = one_if_close(gain * (1.0 if operand.gain is None else operand.gain))
        if not (gain > 0).all():
            raise NotTakenError("scales its input by 0 or less")
        theta = per_channel(record, "v_threshold", shape) / gain
        return self._neuron(name, replace(operand, decay=None), shape, theta, leak, drain, self.reset)

    def _neuron(
        self, name: str, operand: Value, shape: Shape, theta: Array, leak: Array, drain: Array, reset: Reset
    ) -> Value:
        v_threshold = np.asarray(theta, np.float32)
        if self.choices.at_threshold == "fire":
            v_threshold = np.nextafter(v_threshold, np.float32(-np.inf))
        if not np.isfinite(v_threshold).all():
            raise NotTakenError("has a threshold beyond float32")
        self._add(
            LIF(
                name=name,
                inputs=operand.edges,
                v_threshold=np.asarray(v_threshold),
                voltage_decay=self._on_grid(name, leak, "membrane"),
                current_decay=self._on_grid(name, drain, "current"),
                reset=reset,
            )
        )
        return Value((Edge(name),), shape)

    def _on_grid(self, name: str, decay: Array, what: str) -> Array:
        steps = np.rint(decay * DECAY_ONE)
        if not all_close(decay * DECAY_ONE, steps, absolute=DECAY_ONE * CLOSE):
            worst = float(decay.flat[np.abs(decay * DECAY_ONE - steps).argmax()])
            self.notes.append(
                f"node '{name}': the {what} decay {worst:.6g} is {np.rint(worst * DECAY_ONE):.0f}/4096 here, "
                "so some spikes may differ from the framework that wrote the file"
            )
        return np.asarray(steps, np.int32)

    def _rate(self, record: Record, key: str, operand: Value) -> Array:
        """The share that leaks in a timestep, dt / tau: 0..1."""
        assert self.dt is not None
        tau = self._parameter(record, key, operand)
        with np.errstate(divide="ignore", over="ignore"):
            rate = np.asarray(self.dt / tau)
        if not np.isfinite(tau).all() or (tau <= 0).any() or (rate > 1 + CLOSE).any():
            raise NotTakenError(f"has a {key} of {float(tau.flat[0]):.6g} s, not at least a timestep of {self.dt:g} s")
        return np.asarray(np.minimum(rate, 1.0))

    def _input_gain(self, record: Record, operand: Value) -> Array:
        """What one timestep adds of its input, r dt; an r of 1 is taken as one a timestep."""
        r = self._parameter(record, "r", operand)
        if self.choices.dialect == "r=1" or (self.choices.dialect is None and all_close(r, 1.0)):
            return r
        assert self.dt is not None
        gain: Array = r * self.dt
        if self.choices.dialect is None and not all_close(gain, 1.0):
            raise NotTakenError(
                f"has an r of {float(r.flat[0]):.6g}, neither 1 nor 1/dt = {1 / self.dt:.6g}; "
                "say which it is (--dialect)"
            )
        return gain

    def _shape(self, record: Record, key: str, operand: Value) -> Shape:
        """The operand's shape; behind nothing but late edges, that of the parameter."""
        if operand.shape is not None:
            return operand.shape
        shape = as_image(numbers(record, key).shape)
        if len(shape) not in (1, 3):
            raise NotTakenError(f"has parameters of shape {shape}, so its size is unknown")
        return shape

    def _parameter(self, record: Record, key: str, operand: Value) -> Array:
        return per_channel(record, key, self._shape(record, key, operand))

    def _zero(self, record: Record, key: str, operand: Value) -> None:
        if self._parameter(record, key, operand).any():
            raise NotTakenError(f"has a {key} other than 0")
