"""What quantisation costs in accuracy: float student against integer students on the same test samples.

python benchmarks/quantize.py RUN [RUN ...] [--weight-bits N ...] [--per-channel] [--input-bits N] [--epochs N]
    [--samples N] [--quick] [--json]

Runs of 'snnkit distill', ideally of one network with several seeds; they are only read. Drops are paired, in points,
with 95 % intervals. Exits 1 where the mean drop over the runs is above its goal.
"""

import argparse
import json
import statistics
import sys
from typing import Any

from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.paired import Paired
from snnkit.config import load_config
from snnkit.errors import SnnkitError
from snnkit.quantization import Quantizer, answers
from snnkit.runs import Run
from snnkit.training.data import load_configured
from snnkit.training.evaluation import predict
from snnkit.training.finetune import Finetuning, finetune
from snnkit.training.lower import lower_run
from snnkit.training.trainer import load_student

GOALS = {"8 bits": 0.5, "8 bits, fine-tuned": 0.3, "4 bits": None, "4 bits, fine-tuned": 1.5}


def measure(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run: accuracies and paired drops by what was done."""
    run = Run.open(path)
    net, student = lower_run(run), load_student(run)
    data = load_configured(load_config(run.config).data, net.timesteps)
    test = data.test.first(200) if arguments.quick else data.test
    calibration = (data.validation if len(data.validation) else data.train).first(100 if arguments.quick else 1000)
    quantizer = Quantizer(net, calibration.x, calibration.y)
    before = predict(student, test)
    rows: dict[str, Any] = {}
    for bits in arguments.weight_bits:
        integer, notes = quantizer.integer(
            weight_bits=bits, input_bits=arguments.input_bits, per_channel=arguments.per_channel
        )
        settings = Finetuning(
            1 if arguments.quick else arguments.epochs, 256 if arguments.quick else arguments.samples, arguments.lr
        )
        trained, records = finetune(run, data, quantizer.folded, integer, student, settings)
        trained, _ = quantizer.contained(trained)
        for name, net in ((f"{bits} bits", integer), (f"{bits} bits, fine-tuned", trained)):
            after = answers(net, test.x)
            rows[name] = {
                "accuracy": Accuracy.of(after, test.y).to_json(),
                **Paired.of(before, after, test.y).to_json(),
            }
            rows[name]["notes"] = list(notes)
        rows[f"{bits} bits, fine-tuned"]["seconds"] = sum(record["seconds"] for record in records)
        if not arguments.json:
            for name in (f"{bits} bits", f"{bits} bits, fine-tuned"):
                _print(path, name, rows[name])
    return {"run": path, "float": Accuracy.of(before, test.y).to_json(), "integer": rows}


def _print(path: str, name: str, row: dict[str, Any]) -> None:
    low, high = row["interval_95"]
    print(
        f"{path}: {name}: {row['accuracy']['accuracy']:.2f} %, drop {row['drop']:.2f} ({low:.2f} to {high:.2f}), "
        f"changed {row['changed_percent']:.2f} %",
        flush=True,
    )


def main() -> int:
    """Measures every run and the means over them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--quick", action="store_true", help="few samples, no verdict")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--weight-bits", type=int, nargs="+", choices=[8, 4], default=[8, 4])
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--input-bits", type=int, help="of a direct input; default 6")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning")
    parser.add_argument("--samples", type=int, help="training samples an epoch; default all")
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    try:
        results = [measure(path, arguments) for path in arguments.runs]
    except SnnkitError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2
    goals = {name: goal for name, goal in GOALS.items() if name in results[0]["integer"]}
    means = {name: statistics.mean(result["integer"][name]["drop"] for result in results) for name in goals}
    passed = all(goal is None or means[name] <= goal for name, goal in goals.items())
    if arguments.json:
        print(json.dumps({"runs": results, "mean_drop": means, "goals": goals, "passed": passed}))
    else:
        average = statistics.mean(result["float"]["accuracy"] for result in results)
        print(f"mean of {len(results)} runs: float {average:.2f} %")
        for name, goal in goals.items():
            print(f"  {name}: drop {means[name]:.2f} points" + ("" if goal is None else f" (goal: at most {goal})"))
    return 0 if passed or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
