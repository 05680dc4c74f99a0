"""Training on a labelled file: seconds, and weighted F1 on a held-out stratified fifth, over several seeds.

    python benchmarks/training.py --dataset-loc projects.csv [--seeds 5]

Every seed draws its own split and trains with the defaults of `madewithml train`; the test rows (a fifth) are never
seen by it. Seconds are of the whole `train` call, Ray's start included.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import environment

from madewithml import config, evaluate, fitting, predict, runs, train


def one_seed(dataset_loc: str, seed: int, settings: config.Settings) -> dict[str, float]:
    started = time.perf_counter()
    options = train.TrainOptions(
        dataset_loc=dataset_loc, experiment_name="benchmark", parameters=fitting.Hyperparameters(seed=seed)
    )
    result = train.train(options, settings)
    seconds = time.perf_counter() - started
    rows = runs.connect(settings).recorded_rows(result.run_id, "test")
    predictor = predict.TorchPredictor.from_checkpoint(result.checkpoint)
    overall = evaluate.evaluate(predictor, rows, run_id=result.run_id, dataset="test")["overall"]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "epoch": result.metrics["epoch"],
        "test_rows": len(rows),
        **{name: round(overall[name], 4) for name in ("f1", "accuracy", "log_loss", "ece")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-loc", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        settings = config.load(home=home)
        for seed in range(arguments.seeds):
            rows.append(one_seed(arguments.dataset_loc, seed, settings))
            print(rows[-1], flush=True)
    summary = {
        "f1_mean": round(statistics.mean(row["f1"] for row in rows), 4),
        "f1_stdev": round(statistics.stdev(row["f1"] for row in rows), 4) if len(rows) > 1 else 0.0,
        "seconds_median": statistics.median(row["seconds"] for row in rows),
        "seconds_max": max(row["seconds"] for row in rows),
    }
    print(summary)
    dataset = Path(arguments.dataset_loc).name
    command = shlex.join(
        ["python", "benchmarks/training.py", "--dataset-loc", dataset, "--seeds", str(arguments.seeds)]
    )
    print("written:", environment.write("training", command, {"summary": summary, "seeds": rows}).name, file=sys.stderr)


if __name__ == "__main__":
    main()
