"""evaluation.json: what targets made of a run's network, kept from ``snnkit run`` for the report.

Results belong to one network and one data set; a result is replaced by one over as many samples or more.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snnkit.analysis.compare import Agreement as Compared
from snnkit.analysis.report.content import Accuracy, Agreement
from snnkit.errors import RunFolderError
from snnkit.pipeline import Evaluation, PathLike, Samples
from snnkit.runs import Run


class Evaluated(BaseModel):
    """A target: accuracy on the first ``samples`` test samples, spikes per inference, seconds it took."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    target: str
    samples: int
    accuracy: Accuracy | None
    spikes: float
    seconds: float
    notes: tuple[str, ...] = ()


class Record(BaseModel):
    """All of it; ``network`` is the SHA-256 of the network's file, ``not_run`` maps a target to why and the remedy."""

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    network: str
    data: str
    targets: tuple[Evaluated, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    not_run: dict[str, str] = {}


def fingerprint(run: Run) -> str:
    """The SHA-256 of the run's network file."""
    return hashlib.sha256(run.network.read_bytes()).hexdigest()


def read(run: Run) -> Record | None:
    """What is recorded for the run's present network; None where nothing is, or for an earlier network."""
    if not run.evaluation.is_file():
        return None
    try:
        record = Record.model_validate_json(run.evaluation.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunFolderError(
            f"'{run.evaluation}' cannot be read: {str(error).splitlines()[0]}",
            f"remove it; 'snnkit run {run.path}' writes it again",
        ) from None
    return record if record.network == fingerprint(run) else None


def write(
    path: PathLike,
    samples: Samples,
    results: Sequence[Evaluation],
    agreements: Sequence[Compared],
    not_run: Mapping[str, str] | None = None,
) -> None:
    """Adds results to evaluation.json where ``path`` is a run directory that can be written.

    What is recorded from other targets, or over more samples, stays.
    """
    if not Path(path).is_dir() or not os.access(path, os.W_OK):
        return
    run = Run.open(path)
    before = read(run)
    if before is None or before.data != samples.name:
        before = Record(network=fingerprint(run), data=samples.name)
    targets = {one.target: one for one in before.targets}
    for result in results:
        found = _evaluated(result)
        kept = targets.get(found.target)
        targets[found.target] = found if kept is None or kept.samples <= found.samples else kept
    pairs = {(one.first, one.second): one for one in before.agreements}
    for agreement in agreements:
        if agreement.not_compared:  # says less than it seems
            continue
        pair = _agreement(agreement, results[0].trace.samples)
        known = pairs.get((pair.first, pair.second))
        pairs[pair.first, pair.second] = pair if known is None or known.samples <= pair.samples else known
    missing = {**before.not_run, **(not_run or {})}
    record = Record(
        network=before.network,
        data=before.data,
        targets=tuple(targets.values()),
        agreements=tuple(pairs.values()),
        not_run={name: why for name, why in missing.items() if name not in targets},
    )
    run.write_json(run.evaluation, record.model_dump(mode="json", by_alias=True))


def _evaluated(result: Evaluation) -> Evaluated:
    trace = result.trace
    return Evaluated(
        target=trace.target,
        samples=trace.samples,
        accuracy=None if result.accuracy is None else Accuracy.of(result.accuracy),
        spikes=trace.spikes_per_inference,
        seconds=trace.seconds,
        notes=trace.notes,
    )


def _agreement(found: Compared, samples: int) -> Agreement:
    return Agreement(
        first=found.first,
        second=found.second,
        samples=samples,
        identical=found.identical,
        spike_mismatches=sum(found.spike_mismatches.values()),
        readout_mismatches=found.readout_mismatches,
        where=_where(found),
    )


def _where(found: Compared) -> str:
    first, why = found.divergence, found.diagnosis
    if first is None:
        return ""
    place = f"timestep {first.timestep}, {first.node}, sample {first.sample}, neuron {first.neuron}"
    return place if why is None else f"{place}; likely cause: {why.cause} ({why.explanation})"
