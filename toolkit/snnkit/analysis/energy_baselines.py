"""The same topology as an ANN, one dense pass, as something that a spiking network has to be cheaper than."""

import math

from snnkit.analysis.counts import OpCounts
from snnkit.analysis.energy_models import Memory, Price, load_model
from snnkit.analysis.energy_terms import Term

ANN_MODEL = "horowitz2014-45nm"  # an ANN does not run on a spiking chip, so its baselines are always priced here
ANN_MEMORY_MODEL = "horowitz2014-45nm-memory"
INT8_MULTIPLICATION, INT8_ADDITION = 0.2, 0.03  # pJ, Horowitz (2014); together they are the model's int8 graded_mac


def ann_baselines(counts: OpCounts, *, memory: bool = False) -> tuple[Term, ...]:
    """One pass of the same topology as an ANN, dense: at fp32, int8, and the ceil(log2(T+1)) bits of T spikes.

    Priced by Horowitz's constants: the arithmetic alone or, with ``memory``, a weight and an activation fetched for
    each multiply-accumulate, without any reuse, as a synaptic event fetches its weight.
    """
    arithmetic = load_model(ANN_MODEL).precisions
    stored = load_model(ANN_MEMORY_MODEL)
    few = math.ceil(math.log2(counts.timesteps + 1))
    widths = {"fp32": 32, "int8": 8, f"int{few}": few}
    baselines = []
    for precision, bits in widths.items():
        price = arithmetic[precision].graded_mac if precision in arithmetic else _low_bit_mac(bits)
        assert price is not None
        name, count = f"the same ANN, {precision}, by {ANN_MODEL}", float(counts.ann_macs)
        if memory:
            level = stored.level(counts.parameters * bits / 8)
            price = _with_fetches(price, level, 2 * bits / stored.access_bits)
            name = f"the same ANN, {precision}, by {ANN_MEMORY_MODEL}"
        baselines.append(Term(name=name, operation="graded_mac", count=count, price=price))
    return tuple(baselines)


def _low_bit_mac(bits: int) -> Price:
    """A multiply-accumulate of ``bits``: an array multiplier grows with the square, an adder with the width."""
    value = INT8_MULTIPLICATION * (bits / 8) ** 2 + INT8_ADDITION * bits / 8
    return Price(
        value=value,
        unit="pJ",
        source=f"Horowitz, ISSCC 2014, int8, multiplication scaled by ({bits}/8)^2 and addition by {bits}/8",
        caveat="an extrapolation; accumulators are wider",
    )


def _with_fetches(price: Price, level: Memory, accesses: float) -> Price:
    """One operation together with its accesses to memory, in pJ."""
    ends = [
        1e12 * (operation + accesses * access)
        for operation, access in zip(
            (price.joules, price.lower, price.upper),
            (level.access.joules, level.access.lower, level.access.upper),
            strict=True,
        )
    ]
    return Price(
        value=ends[0],
        low=ends[1] if ends[1] != ends[0] else None,
        high=ends[2] if ends[2] != ends[0] else None,
        unit="pJ",
        source=f"{price.source}; {accesses:g} accesses to {level.name}: {level.access.source}",
        caveat=price.caveat,
    )
