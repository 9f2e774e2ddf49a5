"""The commands. Each calls one public function and prints what it returned."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from snnkit.cli.output import note, print_json, print_table, say

app = typer.Typer(
    name="snnkit",
    help="Distil, quantise, export and validate spiking networks before they go to neuromorphic hardware.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

Net = Annotated[str, typer.Argument(metavar="NET", help="a network file or a run directory")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="a run directory")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="NAME|x.npy[,y.npy]", help="a data set, or your own arrays")
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-O",
        metavar="[TARGET.]KEY=VALUE",
        help="an option of the targets, or of the one named (see: snnkit list)",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", help="the first N samples only")]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a command, with the options that all of them have."""

    @functools.wraps(function)
    def with_common_options(*, verbose: bool, **values: Any) -> Any:  # noqa: ARG001 - read where errors are reported
        return function(**values)

    hint = Annotated[bool, typer.Option("--verbose", "-v", help="a traceback with every error")]
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    common = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    signature = inspect.Signature([*keyword_only, common])
    with_common_options.__signature__ = signature  # type: ignore[attr-defined]
    with_common_options.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    app.command(function.__name__.rstrip("_").replace("_", "-"))(with_common_options)
    return function


def _version(wanted: bool) -> None:
    if wanted:
        from snnkit import __version__

        say(f"snnkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and leave")
    ] = False,
) -> None:
    pass


@command
def quickstart(
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="the run directory; a fresh one if left out")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the run that is there")] = False,
    seed: Annotated[int, typer.Option("--seed", help="seed of all training")] = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """The whole way on real data, on the CPU, in about a minute."""
    from snnkit.cli.summary import print_quickstart
    from snnkit.quickstart import quickstart as go

    result = go(output, force=force, seed=seed, quiet=quiet)
    if json:
        print_json(result.to_json())
    else:
        print_quickstart(result)
    if not result.identical:
        raise typer.Exit(1)


@command
def distill(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="a YAML file")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="the run directory; a fresh one if left out")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. train.epochs=5")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="short for --set train.seed=")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the output folder, exactly")] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite the run that is there")] = False,
    stop_after: Annotated[
        int | None, typer.Option("--stop-after", metavar="EPOCHS", help="stop after so many epochs; --resume goes on")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", metavar="SECONDS", help="stop where another epoch would not fit; see --resume"),
    ] = None,
    shard_mb: Annotated[
        int | None, typer.Option("--shard-mb", metavar="N", help="write checkpoints in pieces of less than N MiB")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="checkpoints of less than half the size; a resumed run is not bit-exact")
    ] = False,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", metavar="EPOCHS", help="and wherever the run stops; default 1")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved configuration and leave")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Trains or loads the teacher and distils the spiking student.

    On several GPUs: torchrun --nproc-per-node N -m snnkit distill CONFIG -o RUN --device cuda
    """
    from snnkit.config import load_config

    overrides = [*(set_ or []), *([] if seed is None else [f"train.seed={seed}"])]
    resolved = load_config(config, overrides)
    if dry_run:
        say(resolved.to_yaml().rstrip())
        return
    import contextlib

    from snnkit.errors import SnnkitError, UsageError
    from snnkit.runs import Run
    from snnkit.training import parallel
    from snnkit.training.checkpoint import Storage
    from snnkit.training.trainer import distill as train

    storage = Storage(shard_mb, compact, checkpoint_every)
    if parallel.size() > 1 and output is None:
        raise UsageError("several processes need one run directory", "name it with -o")
    run = Run.create(output, resolved.name, resume=resume, force=force) if parallel.is_first() else Run(output or "")
    limits: Any = {"stop_after": stop_after, "time_limit": time_limit}
    try:
        summary = train(resolved, run, resume=resume, **limits, storage=storage, device=device, quiet=quiet)
    except SnnkitError:
        with contextlib.suppress(OSError):  # where nothing was written, nothing is left
            run.path.rmdir()
        raise
    if not parallel.is_first():
        return
    if json:
        print_json({"run": str(run.path), **summary.to_json()})
        return
    from snnkit.cli.summary import accuracy_cells

    rows = [[name, *accuracy_cells(accuracy)] for name, accuracy in summary.accuracies().items()]
    print_table(f"{run.path}: test accuracy", ["network", "accuracy", "95 % interval", "correct"], rows)
    say(
        f"next: snnkit quantize {run.path}"
        if summary.finished
        else f"next: snnkit distill {run.config} -o {run.path} --resume"
    )


@command
def saliency(
    run: RunFolder,
    undistilled: Annotated[
        str | None, typer.Option("--undistilled", metavar="RUN2", help="the same student without distillation")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="the first N test images")] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="seed of noise, random orders and random weights")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = "cpu",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Does the student look where its teacher looks? Figures and a picture."""
    from snnkit.training.saliency import saliency as measure

    result = measure(run, undistilled=undistilled, samples=samples, seed=seed, device=device, quiet=quiet)
    if json:
        print_json(result.to_json())
    else:
        from snnkit.cli.summary import print_saliency

        print_saliency(result)


@command
def quantize(
    run: Annotated[str, typer.Argument(metavar="RUN|FILE", help="a run directory, or the file of a float network")],
    weight_bits: Annotated[int, typer.Option("--weight-bits", metavar="N", help="2 to 8")] = 8,
    input_bits: Annotated[
        int | None, typer.Option("--input-bits", metavar="N", help="1 to 8; default 6, or 8 with --stem host")
    ] = None,
    per_channel: Annotated[
        bool, typer.Option("--per-channel", help="a scale and threshold per channel; not for Lava")
    ] = False,
    stem: Annotated[
        str, typer.Option("--stem", metavar="chip|host", help="where the first layer is computed")
    ] = "chip",
    calibrate: Annotated[
        int | None, typer.Option("--calibrate", metavar="N", help="use N validation samples; default at most 1,000")
    ] = None,
    data: Data = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="of a FILE: what to write")
    ] = None,
    finetune: Annotated[
        int, typer.Option("--finetune", metavar="EPOCHS", help="train the integer network itself; default not")
    ] = 0,
    finetune_samples: Annotated[
        int | None,
        typer.Option("--finetune-samples", metavar="N", help="N random training samples an epoch; default all"),
    ] = None,
    lr: Annotated[float, typer.Option("--lr", help="its learning rate, a share of the largest weight")] = 1e-3,
    seed: Annotated[int, typer.Option("--seed", help="of its order and augmentation")] = 0,
    device: Annotated[str, typer.Option("--device", help="where to fine-tune: cpu, cuda, cuda:1, ...")] = "cpu",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Turns the trained student of a run into an integer network and says what it costs.

    A network file, as 'snnkit import' writes it, is calibrated on --data.
    """
    from snnkit.errors import UsageError
    from snnkit.pipeline import quantize_run

    chosen: dict[str, Any] = {"weight_bits": weight_bits, "input_bits": input_bits}
    chosen |= {"per_channel": per_channel, "stem": stem, "calibrate": calibrate}  # checked there
    if Path(run).is_file():
        from snnkit.foreign import quantize_file

        if finetune:
            raise UsageError("--finetune needs a run, whose data, losses and teacher it uses", "leave it out")
        result = quantize_file(run, data, output, **chosen)
        run = str(result.path)
    elif data is not None or output is not None:
        raise UsageError(f"--data and --output belong to a network file, and '{run}' is none", "leave them out")
    else:
        finetuning = None
        if finetune:
            from snnkit.training.finetune import Finetuning

            finetuning = Finetuning(finetune, finetune_samples, lr, seed, device, quiet)
        result = quantize_run(run, **chosen, finetuning=finetuning)
    if json:
        print_json({"file": str(result.path), **result.to_json()})
    else:
        from snnkit.cli.quantization import print_quantization

        print_quantization(run, result)


@command
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="FILE.nir, or module:function that returns a module")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="the network file to write")],
    reset: Annotated[
        str | None, typer.Option("--reset", metavar="zero|subtract", help="how neurons reset, if the file does not say")
    ] = None,
    dt: Annotated[
        float | None, typer.Option("--dt", metavar="SECONDS", help="a timestep, if the file does not say; often 1e-4")
    ] = None,
    timesteps: Annotated[int | None, typer.Option("--timesteps", metavar="T", help="how many timesteps to run")] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding", metavar="direct|events", help="the same input at each timestep (default), or events"
        ),
    ] = None,
    dialect: Annotated[
        str | None, typer.Option("--dialect", metavar="r=1|r=1/dt", help="what an IF's r means; default by its value")
    ] = None,
    at_threshold: Annotated[
        str,
        typer.Option("--at-threshold", metavar="silent|fire", help="v equal to the threshold; SpikingJelly's fire"),
    ] = "silent",
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE", help="a module's state dict: .safetensors or .pt")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", metavar="C,H,W|N", help="what a module takes")
    ] = None,
    json: Json = False,
) -> None:
    """Takes a network made elsewhere: a NIR file, or a SpikingJelly module."""
    from snnkit.cli.import_ import show

    choices: dict[str, Any] = {"reset": reset, "dt": dt, "timesteps": timesteps, "encoding": encoding}
    own: dict[str, Any] = {"weights": weights, "input_shape": input_shape, "at_threshold": at_threshold}
    show(source, output, **own, dialect=dialect, json=json, **choices)


@command
def export(
    net: Net,
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="a format; several are allowed (see: snnkit list exporters)")
    ],
    option: Options = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="the folder to write to")] = None,
    json: Json = False,
) -> None:
    """Writes the network for other tools: ONNX, Lava, NIR."""
    from snnkit.pipeline import export_all

    written = export_all(net, target, output, option or ())
    notes = []
    if "nir" in written:
        from snnkit.fidelity import nir_notes
        from snnkit.pipeline import load

        notes = nir_notes(load(net))
    if json:
        files = {name: [str(path) for path in paths] for name, paths in written.items()}
        print_json({"exports": files, "notes": notes})
        return
    for text in notes:
        note(f"nir: {text}")
    for name, paths in written.items():
        for path in paths:
            say(f"{name}: {path} ({path.stat().st_size / 1024:.0f} KiB)")


@command
def run(
    net: Net,
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="where to run; several are compared (see: snnkit list targets)")
    ] = ["reference"],  # noqa: B006
    option: Options = None,
    data: Data = None,
    samples: Samples = None,
    save: Annotated[
        str | None, typer.Option("--save", metavar="FILE.npz", help="write predictions and readouts")
    ] = None,
    save_trace: Annotated[
        str | None, typer.Option("--save-trace", metavar="FILE.npz", help="write every spike, for --against")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE.npz", help="compare with a recorded trace")
    ] = None,
    json: Json = False,
) -> None:
    """Runs a network: accuracy, spikes, comparison of targets.

    Several targets, and a recorded trace, are compared spike by spike; exit code 1 says that they differ. What the test
    split of a run directory showed is kept for its report.
    """
    from snnkit.errors import UsageError
    from snnkit.pipeline import evaluate, load, load_samples, save_predictions
    from snnkit.records import write as record

    if (save or save_trace) and len(set(target)) > 1:
        raise UsageError(f"--save{'' if save else '-trace'} takes what one target did", "give one --target")
    network = load(net)
    chosen = load_samples(network, data, count=samples)
    rasters = save_trace is not None
    results, agreements = evaluate(network, chosen, target, option or (), against=against, rasters=rasters)
    if data is None and against is None:
        record(net, chosen, results, agreements)
    if save:
        save_predictions(results[0], save)
    if save_trace:
        from snnkit.network.trace_file import save_trace as write_trace

        write_trace(results[0].trace, save_trace, chosen.x if against is None else None)
    if json:
        found = [agreement.to_json() for agreement in agreements]
        print_json({"data": chosen.name, "targets": [result.to_json() for result in results], "compared": found})
    else:
        from snnkit.cli.summary import print_agreement, print_evaluations

        print_evaluations(chosen.name, results, network)
        for agreement in agreements:
            print_agreement(agreement)
        if save:
            say(f"predictions: {save}")
        if save_trace:
            say(f"trace: {save_trace}")
    if not all(agreement.identical for agreement in agreements):
        raise typer.Exit(1)


@command
def energy(
    net: Net,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="an energy model by name or a YAML file; default all")
    ] = None,
    timesteps: Annotated[
        bool, typer.Option("--timesteps", help="accuracy, spikes and energy of the same network with fewer timesteps")
    ] = False,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="HZ", help="also the power at so many inferences a second")
    ] = None,
    chip: Annotated[
        str | None, typer.Option("--chip", "-c", help="price the spikes between the cores of this chip, too")
    ] = None,
    cross_check: Annotated[
        str | None, typer.Option("--cross-check", metavar="sanafe", help="the figures of another simulator beside ours")
    ] = None,
    data: Data = None,
    samples: Samples = None,
    json: Json = False,
) -> None:
    """Counts operations and models the energy of an inference."""
    from snnkit.cli.energy import energy_command

    energy_command(
        net,
        model,
        timesteps=timesteps,
        chip=chip,
        rate=rate,
        data=data,
        samples=samples,
        cross_check=cross_check,
        json=json,
    )


@command
def check(
    net: Net,
    chip: Annotated[
        list[str], typer.Option("--chip", "-c", help="a chip by name or a YAML file; several (see: snnkit list chips)")
    ],
    chips: Annotated[int, typer.Option("--chips", metavar="N", min=1, help="a board of N chips")] = 1,
    data: Data = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", help="count the spikes between cores of N test samples")
    ] = None,
    json: Json = False,
) -> None:
    """Does the network fit a chip? All that is in the way, and what to change.

    Exit code 1 says that it does not fit.
    """
    from snnkit.pipeline import check as map_on
    from snnkit.pipeline import load, load_samples, write_mapping

    network = load(net)
    chosen = None if data is None and samples is None else load_samples(network, data, count=samples)
    mappings = map_on(network, chip, chosen, count=chips)
    content = write_mapping(net, mappings)
    if json:
        print_json(content)
    else:
        from snnkit.cli.check import print_mapping

        for mapping in mappings:
            print_mapping(net, mapping)
    if not all(mapping.fits for mapping in mappings):
        raise typer.Exit(1)


@command
def report(
    run: RunFolder,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="an energy model by name or a YAML file; default all")
    ] = None,
    chip: Annotated[
        list[str] | None, typer.Option("--chip", "-c", help="a chip by name or a YAML file; default all")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="run the first N test samples; default what a minute allows"),
    ] = None,
    json: Json = False,
) -> None:
    """Writes report.html, one self-contained page about a run, and report.json."""
    from snnkit.cli.report import show
    from snnkit.reporting import report as write

    show(write(run, samples=samples, models=model, chips=chip), json=json)


@command
def validate(
    net: Net,
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="where it must run; several, and --against, must agree")
    ] = ["reference"],  # noqa: B006
    chip: Annotated[
        list[str] | None, typer.Option("--chip", "-c", help="a chip that it must fit, by name or a YAML file")
    ] = None,
    chips: Annotated[int, typer.Option("--chips", metavar="N", min=1, help="a board of N chips")] = 1,
    min_accuracy: Annotated[
        float | None, typer.Option("--min-accuracy", metavar="PERCENT", help="the least accuracy on every target")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", metavar="POINTS", help="the most below the float student")
    ] = None,
    max_energy: Annotated[
        str | None, typer.Option("--max-energy", metavar="ENERGY", help="the most an inference may cost, e.g. 1uJ")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="energy models that judge; default those of Loihi 1")
    ] = None,
    option: Options = None,
    data: Data = None,
    samples: Samples = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE.npz", help="a recorded trace that must agree")
    ] = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="FILE.xml", help="write the gates for a CI")] = None,
    json: Json = False,
) -> None:
    """Validates a network before it goes to hardware: exit code 0 if it passes all gates, 1 if not.

    Check, run, compare, energy: the gates are that the targets take it and agree spike by spike, that it fits the
    chips, and whatever limits are given. Of an energy model the upper end counts.
    """
    from snnkit.validation import Limits, parse_energy
    from snnkit.validation import validate as judge

    limits = Limits(min_accuracy, max_drop, None if max_energy is None else parse_energy(max_energy))
    more: Any = {"data": data, "samples": samples, "against": against, "assignments": option or ()}
    result = judge(net, target, limits=limits, chips=chip or (), chip_count=chips, models=model or (), **more)
    if junit:
        result.write_junit(junit)
    if json:
        print_json(result.to_json())
    else:
        from snnkit.cli.validate import print_validation

        print_validation(result)
    if not result.passed:
        raise typer.Exit(1)


@command
def inspect_(
    net: Annotated[str, typer.Argument(metavar="FILE", help="a network file, a run directory, .onnx, .net or .nir")],
    json: Json = False,
) -> None:
    """Shows what a file holds: the nodes of a network and where it came from, or an exported graph."""
    from snnkit.pipeline import describe_file

    description = describe_file(net)
    if json:
        print_json(description)
        return
    columns = ["node", "kind", "reads", "output", "parameters"]
    rows = [[str(node[column]) for column in columns] for node in description["nodes"]]
    print_table(
        f"{net}: {description['kind']} network, {description['timesteps']} timesteps", columns, rows, text=range(5)
    )
    for key, value in description["metadata"].items():
        say(f"{key}: {value}")


@command
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="exporters, targets, energy-models, chips, models or datasets")
    ],
    json: Json = False,
) -> None:
    """Lists what there is of a kind, with what is missing."""
    from snnkit.inventory import inventory

    rows = inventory(kind)
    if json:
        print_json({kind: [{"name": name, "note": note} for name, note in rows]})
        return
    print_table(kind, ["name", "note"], rows, text=range(2))


@command
def doctor(
    remove_lava: Annotated[
        bool, typer.Option("--remove-lava", help="remove the Lava environment that uv has made")
    ] = False,
    json: Json = False,
) -> None:
    """Checks this machine; each failed line comes with its fix."""
    from snnkit.doctor import examine

    checks = examine(remove_lava=remove_lava)
    if json:
        import dataclasses

        print_json({"checks": [dataclasses.asdict(check) for check in checks]})
    else:
        rows = [[check.name, "ok" if check.ok else "no", check.detail, check.fix] for check in checks]
        print_table("doctor", ["what", "", "found", "what to do"], rows, text=range(4))
    if not all(check.ok or check.optional for check in checks):
        raise typer.Exit(1)
