"""Accuracy on scikit-learn's digits: distilled student, float and integer, over seeds. Exits 1 below the floor.

python benchmarks/digits.py [--seeds 0 1 2] [--set key=value] [--json]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import snnkit
from snnkit.analysis.accuracy import Accuracy
from snnkit.pipeline import quantize_run
from snnkit.runs import Run

FLOOR = 97.0  # percent, the mean of the distilled float student
MAX_DROP = 0.5  # points, the mean loss of the integer student


def main() -> int:
    """Trains and quantises one student a seed and prints the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, no verdict")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    overrides = arguments.overrides + (["train.epochs=2", "teacher.epochs=2"] if arguments.quick else [])
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    rows = []
    for seed in seeds:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            config = snnkit.load_config(
                Path(__file__).parent.parent / "examples" / "digits.yaml", [*overrides, f"train.seed={seed}"]
            )
            run = Run.create(Path(folder) / "run", config.name)
            summary = snnkit.distill(config, run, quiet=True)
            net = quantize_run(run.path).network
        test = snnkit.load_dataset("digits").test
        trace = snnkit.run(net, test.x, "reference")
        integer = Accuracy.of(snnkit.predictions(trace), test.y)
        rows.append(
            {
                "seed": seed,
                "teacher": summary.teacher.percent,
                "student": summary.student.percent,
                "integer": integer.percent,
                "firing_rates": trace.firing_rates(),
                "seconds": time.perf_counter() - start,
            }
        )
        if not arguments.json:
            print(
                f"seed {seed}: teacher {summary.teacher.percent:.2f} %, student {summary.student.percent:.2f} %, "
                f"integer {integer.percent:.2f} %, {rows[-1]['seconds']:.1f} s"
            )
    student = float(np.mean([row["student"] for row in rows]))
    integer_mean = float(np.mean([row["integer"] for row in rows]))
    passed = student >= FLOOR and student - integer_mean <= MAX_DROP
    if arguments.json:
        print(json.dumps({"rows": rows, "student": student, "integer": integer_mean, "passed": passed}))
    else:
        print(f"mean: student {student:.2f} % (floor {FLOOR}), integer {integer_mean:.2f} % (at most {MAX_DROP} less)")
    return 0 if passed or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
