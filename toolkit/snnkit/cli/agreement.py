"""Where two targets part: the share of equal spikes per layer, both membranes at the first difference, the cause."""

from snnkit.analysis.compare import Agreement
from snnkit.cli.output import number, print_table, say


def print_details(agreement: Agreement) -> None:
    """A row a layer, then the diagnosis."""
    rows = [
        [name, _percent(agreement.share(name)), number(agreement.spike_mismatches[name]), number(count)]
        for name, count in agreement.compared.items()
    ]
    columns = ["neurons", "same spikes", "different", "of neuron-steps"]
    print_table(f"{agreement.first} and {agreement.second}, spike by spike", columns, rows)
    if agreement.diagnosis is not None:
        for line in agreement.diagnosis.lines():
            say(line)


def _percent(share: float) -> str:
    """Never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{min(99.9999, 100 * share):.4f} %"
