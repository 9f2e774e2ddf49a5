"""``snnkit import``: what came in, and what to know about it."""

from typing import Any, get_args

from snnkit.cli.output import note, print_json, say
from snnkit.errors import UsageError, did_you_mean
from snnkit.foreign import import_to_file
from snnkit.interchange.nir_read import Choices, Encoding, Reset
from snnkit.interchange.nir_write import Dialect
from snnkit.pipeline import describe


def show(
    source: str,
    output: str,
    *,
    weights: str | None,
    input_shape: str | None,
    at_threshold: str,
    json: bool,
    **choices: Any,
) -> None:
    """Imports, writes the network, and says what it is."""
    for name, known in (("reset", Reset), ("encoding", Encoding), ("dialect", Dialect)):
        if choices[name] is not None:
            _expect(name, choices[name], get_args(known))
    _expect("at-threshold", at_threshold, ("silent", "fire"))
    chosen: Any = at_threshold
    imported = import_to_file(
        source, output, choices=Choices(**choices, at_threshold=chosen), weights=weights, input_shape=input_shape
    )
    described = describe(imported.network)
    if json:
        print_json({"file": output, "exact": imported.exact, "notes": list(imported.notes), **described})
        return
    for text in imported.notes:
        note(text)
    neurons = len(imported.network.neurons)
    exactly = ", exactly as it was exported" if imported.exact else ""
    say(
        f"{output}: {described['kind']} network of {len(described['nodes'])} nodes, {neurons} of them neurons, "
        f"{described['timesteps']} timesteps{exactly}"
    )
    integer = described["kind"] == "integer"
    say(f"next: snnkit {'inspect' if integer else 'quantize'} {output}{'' if integer else ' --data x.npy'}")


def _expect(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"--{option} '{value}' is unknown", did_you_mean(value, known))
