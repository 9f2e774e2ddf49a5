"""Golden networks: small ones made by hand, each with one trait that an exporter or target may not know."""

import dataclasses

import numpy as np

from snnkit.network import (
    LIF,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Network,
    Node,
    Readout,
    fold_batchnorm,
    verify,
)

HALF = 2048


def _int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-60, 90, shape).astype(np.int8)


def _lif(name: str, *sources: str, threshold: object = 400, leak: int = HALF, filtered: int = 4096) -> LIF:
    return LIF(
        name=name,
        inputs=tuple(Edge(source) for source in sources),
        v_threshold=np.array(threshold, np.int32),
        voltage_decay=np.array(leak, np.int32),
        current_decay=np.array(filtered, np.int32),
    )


def _convolutional(**changes: object) -> Network:
    """Two convolutions of leaky neurons and a membrane readout; ``changes`` replace nodes or fields of the network."""
    rng = np.random.default_rng(7)
    nodes: list[Node] = [
        Input(name="x", shape=(1, 6, 6), bits=4, scale=1 / 15),
        Conv2d(
            name="conv1",
            inputs=(Edge("x"),),
            weight=_int8(rng, 3, 1, 3, 3),
            bias=np.array([30, -20, 5], np.int32),
            weight_exponent=1,
            padding=(1, 1),
        ),
        _lif("lif1", "conv1", threshold=1500),
        Conv2d(
            name="conv2",
            inputs=(Edge("lif1"),),
            weight=_int8(rng, 3, 3, 3, 3),
            weight_exponent=1,
            padding=(1, 1),
        ),
        _lif("lif2", "conv2"),
        Flatten(name="flat", inputs=(Edge("lif2"),)),
        Affine(
            name="head",
            inputs=(Edge("flat"),),
            weight=_int8(rng, 4, 108),
            bias=np.array([1, -2, 3, 0], np.int32),
            weight_exponent=1,
        ),
        Readout(name="out", inputs=(Edge("head"),)),
    ]
    new = [changes.get(node.name, node) for node in nodes]
    flat = [node for entry in new for node in (entry if isinstance(entry, list) else [entry])]
    return Network(nodes=tuple(flat), timesteps=5)  # type: ignore[arg-type]


def _dense() -> Network:
    rng = np.random.default_rng(3)
    return Network(
        timesteps=5,
        nodes=(
            Input(name="x", shape=(12,), bits=4, scale=1 / 15),
            Affine(name="fc", inputs=(Edge("x"),), weight=_int8(rng, 10, 12), weight_exponent=1),
            _lif("lif", "fc", threshold=1500, leak=0),
            Affine(name="head", inputs=(Edge("lif"),), weight=_int8(rng, 4, 10), weight_exponent=1),
            Readout(name="out", inputs=(Edge("head"),)),
        ),
    )


def _floats() -> Network:
    """Numbers of few bits: float32 is exact, whatever the order of additions."""
    rng = np.random.default_rng(5)

    def eighths(*shape: int) -> np.ndarray:
        return (rng.integers(-4, 7, shape) / 8).astype(np.float32)

    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    lif = {
        "v_threshold": np.array(0.99, np.float32),
        "voltage_decay": np.array(HALF, np.int32),
    }
    return Network(
        timesteps=4,
        nodes=(
            Input(name="x", shape=(1, 6, 6), encoding="events"),
            Conv2d(name="conv", inputs=(Edge("x"),), weight=eighths(3, 1, 3, 3), bias=eighths(3), padding=(1, 1)),
            BatchNorm2d(
                name="norm",
                inputs=(Edge("conv"),),
                weight=2 * one,
                bias=one / 4,
                running_mean=zero,
                running_var=3 * one / 4,
                eps=0.25,
            ),
            LIF(name="lif1", inputs=(Edge("norm"),), **lif),
            Conv2d(name="conv2", inputs=(Edge("lif1"),), weight=eighths(3, 3, 1, 1)),
            LIF(name="lif2", inputs=(Edge("conv2"), Edge("lif1")), reset="subtract", **lif),
            AvgPool2d(name="pool", inputs=(Edge("lif2"),), kernel_size=(2, 2), stride=(2, 2)),
            Flatten(name="flat", inputs=(Edge("pool"),)),
            Affine(name="head", inputs=(Edge("flat"),), weight=eighths(4, 27), bias=eighths(4)),
            Readout(name="out", inputs=(Edge("head"),)),
        ),
    )


def _golden() -> dict[str, Network]:
    rng = np.random.default_rng(11)
    lif2 = _lif("lif2", "conv2", "skip")
    identity = Conv2d(
        name="skip", inputs=(Edge("lif1"),), weight=np.full((3, 1, 1, 1), 100, np.int8), weight_exponent=1, groups=3
    )
    one_by_one = Conv2d(name="skip", inputs=(Edge("lif1"),), weight=_int8(rng, 3, 3, 1, 1), weight_exponent=1)
    late = dataclasses.replace(one_by_one, inputs=(Edge("lif1", delay=2),))
    back = Conv2d(name="skip", inputs=(Edge("lif2", delay=1),), weight=-_int8(rng, 3, 3, 1, 1), weight_exponent=1)
    later = dataclasses.replace(back, inputs=(Edge("lif2", delay=2),))
    plain = _convolutional()
    counted = [_lif("lif_out", "head", threshold=3000), Readout(name="out", mode="count", inputs=(Edge("lif_out"),))]
    return {
        "leaky convolutions": plain,
        "dense without leak": _dense(),
        "filtered currents": _convolutional(
            conv1=dataclasses.replace(plain["conv1"], bias=None),
            lif1=_lif("lif1", "conv1", threshold=1500, filtered=1000),
        ),
        "residual, identity": _convolutional(lif2=[identity, lif2]),
        "residual, 1x1": _convolutional(lif2=[one_by_one, lif2]),
        "delayed edge": _convolutional(lif2=[late, lif2]),
        "recurrent edge": _convolutional(lif2=[back, lif2]),
        "recurrent edge, two late": _convolutional(lif2=[later, lif2]),
        "counted spikes": _convolutional(out=counted),
        "reset by subtraction": _convolutional(lif2=dataclasses.replace(_lif("lif2", "conv2"), reset="subtract")),
        "threshold a channel": _convolutional(lif2=_lif("lif2", "conv2", threshold=[200, 400, 900])),
        "events": _convolutional(
            x=Input(name="x", shape=(1, 6, 6), encoding="events", bits=1), lif1=_lif("lif1", "conv1", threshold=200)
        ),
        "stem on the host": dataclasses.replace(plain, stem="host"),
        "float": _floats(),
        "float, folded": fold_batchnorm(_floats()),
    }


GOLDEN = _golden()
for _net in GOLDEN.values():
    verify(_net)
