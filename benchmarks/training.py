"""Training on a labelled file: seconds, and weighted F1 on a held-out stratified fifth, for five seeds.

    python benchmarks/training.py --dataset-loc projects.csv [--logits-fp logits.npz]

Seed i trains on the other four of five stratified parts and is scored on part i, so every row is scored once, by a
model that has not seen it. Nothing is set aside for calibration or test within the four parts (`--calibration-size 0
--test-size 0`); everything else is the default of `madewithml train`. Seconds are of the whole call, Ray's start
included. `--logits-fp` keeps logits and labels for `benchmarks/certificates.py --logits`.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import tempfile
import time
from pathlib import Path

import environment
import numpy as np
import pandas as pd
import sklearn.model_selection

from madewithml import calibration, config, data, fitting, metrics, predict, train

FIELDS = ("title", "description")


def one_seed(seed: int, fit_on: data.LabelledText, score_on: data.LabelledText) -> tuple[dict[str, float], np.ndarray]:
    """Train on one part, score on the other; returns the figures and the logits [n, k]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        pd.DataFrame([{**row, "tag": tag} for row, tag in zip(fit_on.rows, fit_on.labels, strict=True)]).to_csv(
            path, index=False
        )
        options = train.TrainOptions(
            dataset_loc=str(path),
            experiment_name="benchmark",
            shares=data.shares(validation=data.DEFAULT_SHARES["validation"], calibration=0, test=0),
            parameters=fitting.Hyperparameters(seed=seed),
        )
        started = time.perf_counter()
        result = train.train(options, config.load(home=str(Path(folder) / "home")))
        seconds = time.perf_counter() - started
        predictor = predict.TorchPredictor.from_checkpoint(result.checkpoint)
        logits = predictor.text_logits(score_on.texts)
        predicted = [predictor.classes[i] for i in logits.argmax(axis=1)]
        figures = metrics.classification_metrics(
            score_on.labels, predicted, calibration.softmax(logits), predictor.classes
        )["overall"]
    kept = {name: round(figures[name], 4) for name in ("f1", "accuracy", "log_loss", "ece")}
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "epoch": result.metrics["epoch"],
        "rows": len(score_on),
        **kept,
    }, logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-loc", required=True)
    parser.add_argument("--logits-fp", type=Path)
    arguments = parser.parse_args()
    rows = data.read_labelled(arguments.dataset_loc, text_fields=FIELDS, label_field="tag")
    folds = sklearn.model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
    results, logits = [], np.zeros((len(rows), len(set(rows.labels))), dtype=np.float32)
    for seed, (fit_on, score_on) in enumerate(folds.split(rows.texts, rows.labels)):
        figures, logits[score_on] = one_seed(seed, rows.take(fit_on), rows.take(score_on))
        results.append(figures)
        print(figures, flush=True)
    summary = {
        "f1_mean": round(statistics.mean(row["f1"] for row in results), 4),
        "f1_stdev": round(statistics.stdev(row["f1"] for row in results), 4),
        "seconds_median": statistics.median(row["seconds"] for row in results),
        "seconds_max": max(row["seconds"] for row in results),
    }
    print(summary)
    command = shlex.join(["python", "benchmarks/training.py", "--dataset-loc", Path(arguments.dataset_loc).name])
    print("written:", environment.write("training", command, {"summary": summary, "seeds": results}).name)
    if arguments.logits_fp:
        index = {label: i for i, label in enumerate(sorted(set(rows.labels)))}
        np.savez(arguments.logits_fp, logits=logits, labels=np.array([index[label] for label in rows.labels]))


if __name__ == "__main__":
    main()
