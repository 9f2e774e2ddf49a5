"""Raw samples, checked against what a network takes and encoded: the way in for every target."""

import numpy as np

from snnkit.errors import DataError
from snnkit.network.ir import Array, Network


def encode_inputs(net: Network, inputs: Array) -> Array:
    """Raw inputs as what enters the network at each timestep, float32.

    Direct encoding takes float [B, *shape] in 0..1 and gives [B, *shape], the same at every timestep; events
    take integers [T, B, *shape] and keep that shape. Raises :class:`DataError` for anything else.
    """
    check_inputs(net, inputs)
    return net.input.encode(inputs)


def nonzero_inputs(net: Network, inputs: Array) -> Array:
    """Where the encoded inputs are not zero, bool of the same shape, without encoding them; raises as it does."""
    check_inputs(net, inputs)
    if net.input.encoding == "events":
        return np.asarray(inputs != 0)
    largest = _largest_that_is_zero(net)
    limit = inputs.dtype.type(largest)
    if float(limit) > largest:  # a narrower type had to round
        limit = np.nextafter(limit, inputs.dtype.type(-1))
    return np.asarray(inputs > limit)


def _largest_that_is_zero(net: Network) -> float:
    """The largest float64 in 0..1 that a direct input encodes as zero, found by halving; -1 if there is none.

    Encoding never falls as its argument grows, and the bits of floats from 0 are ordered as the floats are.
    """
    low, high = -1, int(np.float64(1).view(np.int64))

    def value(bits: int) -> float:
        return float(np.int64(bits).view(np.float64)) if bits >= 0 else -1.0

    while low < high:
        middle = (low + high + 1) // 2
        if net.input.encode(np.array([value(middle)]))[0] == 0:
            low = middle
        else:
            high = middle - 1
    return value(low)


def check_inputs(net: Network, inputs: Array) -> None:
    """Raises :class:`DataError` where raw inputs are not what a network takes; see :func:`encode_inputs`."""
    entry = net.input
    shape = " x ".join(map(str, entry.shape))
    if entry.encoding == "direct":
        if inputs.ndim != 1 + len(entry.shape) or inputs.shape[1:] != entry.shape:
            raise DataError(
                f"inputs have shape {inputs.shape}; the network takes [samples, {shape}]", "reshape the data"
            )
        if inputs.dtype.kind != "f":
            raise DataError(
                f"inputs are {inputs.dtype}; the network takes floats in 0..1",
                "for 8-bit images: x.astype('float32') / 255",
            )
        if inputs.size and not (inputs.min() >= 0 and inputs.max() <= 1):
            raise DataError("inputs hold values outside 0..1", "scale the data to 0..1, without mean or std")
    else:
        expected = (net.timesteps, *entry.shape)
        if inputs.ndim != 2 + len(entry.shape) or (inputs.shape[0], *inputs.shape[2:]) != expected:
            raise DataError(
                f"inputs have shape {inputs.shape}; the network takes [{net.timesteps}, samples, {shape}]",
                "bin the events into one frame a timestep",
            )
        if inputs.dtype.kind not in "iub":
            raise DataError(f"inputs are {inputs.dtype}; the network takes integer events", "cast the frames to uint8")
        if inputs.size and not (inputs.min() >= 0 and inputs.max() < 2 ** max(1, entry.bits)):
            raise DataError(
                f"events hold values outside 0..{2 ** max(1, entry.bits) - 1}", "binarise them, or use more input bits"
            )
