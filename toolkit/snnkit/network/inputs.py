"""Raw samples, checked against what a network takes and encoded: the way in for every target."""

from snnkit.errors import DataError
from snnkit.network.ir import Array, Network


def encode_inputs(net: Network, inputs: Array) -> Array:
    """Raw inputs as what enters the network at each timestep, float32.

    Direct encoding takes float [B, *shape] in 0..1 and gives [B, *shape], the same at every timestep; events
    take integers [T, B, *shape] and keep that shape. Raises :class:`DataError` for anything else.
    """
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
    return entry.encode(inputs)
