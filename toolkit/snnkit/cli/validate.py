"""What ``snnkit validate`` prints: a table of gates, why those fail, and the verdict."""

from typing import TYPE_CHECKING

from snnkit.cli.output import print_table, say

if TYPE_CHECKING:
    from snnkit.validation import Validation


def print_validation(result: "Validation") -> None:
    """A row a gate, the details of those that fail, and the verdict last."""
    rows = [[gate.name, "pass" if gate.passed else "FAIL", gate.found, gate.wanted] for gate in result.gates]
    title = f"{result.network}: {result.samples} samples of {result.data}; simulated and modelled, not measured"
    print_table(title, ["gate", "", "found", "wanted"], rows, text=range(4))
    for gate in result.gates:
        if not gate.passed:
            say(f"{gate.name}:")
            for line in gate.details:
                say(f"  {line.strip()}")
    failed = sum(not gate.passed for gate in result.gates)
    say(f"verdict: {'pass' if result.passed else f'FAIL, {failed} of {len(result.gates)} gates'}")
