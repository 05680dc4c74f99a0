"""Do certificates keep what they promise, and how much coverage do they cost?

Simulated: thousands of certifications per cell of (base error, scores, rows, risk), each judged by its true risk, which
is known because the generator's own posterior is known. Real: many random draws of certify rows from a file of logits.

    python benchmarks/certificates.py                          # simulated, about 10 minutes on one core
    python benchmarks/certificates.py --logits logits.npz      # arrays `logits` [n, k] and `labels` [n]

Methods, all judged alike: `certify` as shipped; `plain`, the same tests started where 1.5 ln(delta) / ln(1 - r) rows
are expected; `bonferroni` over 20 thresholds from the same tune rows; `sgr` (Geifman & El-Yaniv 2017, algorithm 2) and
`naive` (largest coverage with empirical risk <= r), which need no tune rows and get all rows, at temperature 1;
`oracle`, the largest coverage whose true risk is <= r, at the best temperature.

A violation is a certification that gave a threshold whose true risk is above r. The promise is about all
certifications: violations / runs <= delta. Violations / certificates is beside it; where certificates are rare it may
be larger, and no method that may refuse can promise otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import environment
import numpy as np
from populations import Population, Truth, draw, separation_for
from scipy import special, stats

from madewithml import calibration, certify, risk_control
from madewithml.risk_control import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DELTA = 0.05
RISKS = (0.02, 0.05, 0.10)
ROW_COUNTS = (200, 500, 2000)
BASE_ERRORS = (0.03, 0.08, 0.15)
SCORES = ("calibrated", "over-confident")
METHODS = ("certify", "plain", "bonferroni", "sgr", "naive")
NUM_POPULATION = 200_000


@dataclass
class Tally:
    """What one method did in one cell."""

    runs: int = 0
    certified: int = 0
    violations: int = 0
    coverage: float = 0.0

    def add(self, truth: Truth | None, max_risk: float) -> None:
        """Count one certification; None is a refusal."""
        self.runs += 1
        if truth is not None:
            self.certified += 1
            self.violations += truth.risk > max_risk
            self.coverage += truth.coverage

    def summary(self) -> dict[str, Any]:
        """Shares of runs, with the exact interval of the violations."""
        low, high = stats.binomtest(self.violations, self.runs).proportion_ci(0.95)
        return {
            "runs": self.runs,
            "certified_share": self.certified / self.runs,
            "violations": self.violations,
            "violation_share": self.violations / self.runs,
            "violation_interval_95": [low, high],
            "violations_per_certificate": self.violations / self.certified if self.certified else None,
            "mean_coverage": self.coverage / self.runs,
            # Chance of so many violations or more if the share were delta.
            "p_value": float(stats.binom.sf(self.violations - 1, self.runs, DELTA)),
        }


def rows_at(logits: np.ndarray, labels: np.ndarray, temperature: float) -> Rows:
    probabilities = calibration.softmax(logits, temperature=temperature)
    return Rows(probabilities.max(axis=1), probabilities.argmax(axis=1) != labels)


def plain(tune: Rows, held: Rows, max_risk: float) -> float | None:
    thresholds = risk_control.threshold_grid(tune.confidence)
    expected = risk_control.outlook(tune, thresholds).coverage * len(held)
    wanted = np.flatnonzero(expected >= 1.5 * np.log(DELTA) / np.log1p(-max_risk))
    thresholds = thresholds[wanted[0] if len(wanted) else -1 :]
    accepted, wrong = risk_control.count_accepted(held, thresholds)
    passed = risk_control.fixed_sequence(risk_control.risk_p_values(wrong, accepted, max_risk), DELTA)
    return float(thresholds[passed - 1]) if passed else None


def bonferroni(tune: Rows, held: Rows, max_risk: float) -> float | None:
    thresholds = risk_control.threshold_grid(tune.confidence, max_thresholds=19)
    accepted, wrong = risk_control.count_accepted(held, thresholds)
    good = np.flatnonzero(risk_control.risk_p_values(wrong, accepted, max_risk) <= DELTA / len(thresholds))
    return float(thresholds[good[-1]]) if len(good) else None


def naive(rows: Rows, max_risk: float) -> float | None:
    order = np.argsort(-rows.confidence)
    risk = np.cumsum(rows.wrong[order]) / np.arange(1, len(rows) + 1)
    good = np.flatnonzero(risk <= max_risk)
    return float(rows.confidence[order[good[-1]]]) if len(good) else None


def sgr(rows: Rows, max_risk: float) -> float | None:
    order = np.argsort(rows.confidence)
    confidence, wrong = rows.confidence[order], np.cumsum(rows.wrong[order][::-1])
    low, high, found = 0, len(rows) - 1, None
    steps = int(np.ceil(np.log2(len(rows))))
    for _ in range(steps):
        middle = (low + high + 1) // 2
        accepted = len(rows) - middle
        if special.bdtr(wrong[accepted - 1], accepted, max_risk) < DELTA / steps:
            found, high = float(confidence[middle]), middle
        else:
            low = middle
    return found


def certify_once(
    logits: np.ndarray, labels: np.ndarray, seed: int, tune_share: float, judge: Callable[[float, float], Truth]
) -> Iterator[tuple[str, float, Truth | None]]:
    """Every method on the same rows: its name, the risk asked for, and the truth about its threshold."""
    certification = certify.certify(
        logits, labels, levels=RISKS, max_risk=RISKS[0], tune_share=tune_share, seed=seed, guide=False
    )
    temperature = certification.temperature
    tuning = certify.split_rows(len(labels), tune_share, seed=seed)
    rows, raw = rows_at(logits, labels, temperature), rows_at(logits, labels, 1.0)
    tune, held = rows.pick(tuning), rows.pick(~tuning)
    own: dict[float, float | None] = {level.max_risk: level.threshold for level in certification.levels}
    for risk in RISKS:
        yield "certify", risk, _truth(own[risk], temperature, judge)
        yield "plain", risk, _truth(plain(tune, held, risk), temperature, judge)
        yield "bonferroni", risk, _truth(bonferroni(tune, held, risk), temperature, judge)
    for risk in RISKS:
        yield "sgr", risk, _truth(sgr(raw, risk), 1.0, judge)
        yield "naive", risk, _truth(naive(raw, risk), 1.0, judge)


def _truth(threshold: float | None, temperature: float, judge: Callable[[float, float], Truth]) -> Truth | None:
    return None if threshold is None else judge(temperature, threshold)


def simulate(num_runs: int, seed: int, tune_share: float) -> list[dict[str, Any]]:
    """The simulated table: one entry per cell."""
    cells = []
    for base_error in BASE_ERRORS:
        separation = separation_for(base_error)
        for scores in SCORES:
            rng = np.random.default_rng([seed, round(1000 * base_error), SCORES.index(scores)])
            logits, labels, error = draw(rng, NUM_POPULATION, separation, scores)
            # Two copies, because methods differ in temperature and a population is costly to re-temper.
            tempered, raw = (Population.of(logits.astype(np.float32), error.astype(np.float32)) for _ in range(2))
            raw.at(1.0)
            best = Population.of(logits, error).at(calibration.fit_temperature(logits, labels))
            oracle = {risk: best.oracle(risk) for risk in RISKS}

            def judge(
                temperature: float, threshold: float, raw: Population = raw, tempered: Population = tempered
            ) -> Truth:
                return (raw if temperature == 1.0 else tempered.at(temperature)).judge(threshold)

            for num_rows in ROW_COUNTS:
                tallies = {(method, risk): Tally() for method in METHODS for risk in RISKS}
                for run in range(num_runs):
                    logits, labels, _ = draw(rng, num_rows, separation, scores)
                    for method, risk, truth in certify_once(logits, labels, run, tune_share, judge):
                        tallies[method, risk].add(truth, risk)
                cell = {"base_error": base_error, "scores": scores, "rows": num_rows}
                cells += _cells(cell, tallies, oracle)
                print(f"done: {cell}", file=sys.stderr, flush=True)
    return cells


def split_real(
    logits: np.ndarray, labels: np.ndarray, *, num_rows: int, num_runs: int, seed: int, tune_share: float
) -> list[dict[str, Any]]:
    """The same table by random draws of `num_rows` certify rows from a file, judged on all rows and on the rest.

    With the file as the population, the risk over all of its rows is the true one, without noise. The rest of the rows
    gives the risk that a user would see; it is noisy, so it is above the target more often than the true one.
    """
    wrong = (logits.argmax(axis=1) != labels).astype(np.float64)
    rng = np.random.default_rng(seed)
    everything = Population.of(logits, wrong)
    best = Population.of(logits, wrong).at(calibration.fit_temperature(logits, labels))
    oracle = {risk: best.oracle(risk) for risk in RISKS}
    tallies = {name: {(method, risk): Tally() for method in METHODS for risk in RISKS} for name in ("all", "rest")}
    for run in range(num_runs):
        order = rng.permutation(len(labels))
        drawn, rest = order[:num_rows], order[num_rows:]
        others = Population.of(logits[rest], wrong[rest])
        for name, judged in (("all", everything), ("rest", others)):

            def judge(temperature: float, threshold: float, judged: Population = judged) -> Truth:
                return judged.at(temperature).judge(threshold)

            for method, risk, truth in certify_once(logits[drawn], labels[drawn], run, tune_share, judge):
                tallies[name][method, risk].add(truth, risk)
    cell = {"base_error": float(wrong.mean()), "rows": num_rows}
    return [
        entry
        for name in ("all", "rest")
        for entry in _cells({**cell, "scores": f"real, judged on {name}"}, tallies[name], oracle)
    ]


def _cells(
    cell: dict[str, Any], tallies: dict[tuple[str, float], Tally], oracle: dict[float, float]
) -> list[dict[str, Any]]:
    return [
        {**cell, "max_risk": risk, "oracle_coverage": oracle[risk]}
        | {method: tallies[method, risk].summary() for method in METHODS}
        for risk in RISKS
    ]


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: share of violations in %, mean coverage in %, a refusal counting as 0."""
    head = ["base error", "scores", "rows", "risk", "oracle"]
    head += ["certify", *METHODS[1:], "certified", *(f"viol. {method}" for method in METHODS), "viol./cert."]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cell in cells:
        own = cell["certify"]["violations_per_certificate"]
        values = [f"{cell['base_error']:.1%}", cell["scores"], str(cell["rows"]), f"{cell['max_risk']:.0%}"]
        values += [f"{100 * cell['oracle_coverage']:.1f}"]
        values += [f"{100 * cell[method]['mean_coverage']:.1f}" for method in METHODS]
        values += [f"{100 * cell['certify']['certified_share']:.0f}"]
        values += [f"{100 * cell[method]['violation_share']:.1f}" for method in METHODS]
        lines.append("| " + " | ".join([*values, "" if own is None else f"{100 * own:.1f}"]) + " |")
    return "\n".join(lines)


def verdict(cells: list[dict[str, Any]]) -> str:
    """The claim, checked: no cell has more violations than delta allows for; 0.1 % per cell, as there are many."""
    judged = [cell for cell in cells if "rest" not in cell["scores"]]
    broken = [cell for cell in judged if cell["certify"]["p_value"] < 0.001]
    worst = max(cell["certify"]["violation_share"] for cell in judged)
    means = {m: np.mean([cell[m]["mean_coverage"] for cell in judged]) for m in METHODS}
    means["oracle"] = np.mean([cell["oracle_coverage"] for cell in judged])
    coverage = ", ".join(f"{name} {100 * mean:.1f} %" for name, mean in means.items())
    return (
        f"{len(broken)} of {len(judged)} cells have more violations than delta = {DELTA:.0%} explains; "
        f"the largest share is {worst:.1%}. Mean coverage over all cells: {coverage}."
    )


def write(report: dict[str, Any], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    place = report["environment"]
    facts = f"{place['processor']}, {place['cores']} cores (one used), Python {place['python']}, "
    facts += ", ".join(f"{library} {place['libraries'][library]}" for library in ("numpy", "scipy"))
    text = f"# Certificates, {place['date']}\n\n`{report['command']}` in {report['seconds']:.0f} s; {facts}\n\n"
    text += f"{report['verdict']}\n\nAll figures in %: coverage (a refusal counts as 0), share of runs with a "
    text += "certificate, share of runs with a violation, violations per certificate of `certify`.\n\n"
    (folder / f"{name}.md").write_text(text + report["table"] + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Do certificates hold, and at which coverage?")
    parser.add_argument("--runs", type=int, default=2000, help="certifications per cell (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tune-share", type=float, default=certify.DEFAULT_TUNE_SHARE)
    parser.add_argument("--logits", type=Path, help=".npz with logits [n, k] and labels [n], in place of simulation")
    parser.add_argument("--rows", type=int, help="certify rows drawn from --logits (default: half of them)")
    parser.add_argument("--output-dir", type=Path, default=environment.RESULTS)
    options = parser.parse_args()
    started, name = time.perf_counter(), "certificates"
    command = f"python benchmarks/certificates.py --runs {options.runs} --seed {options.seed}"
    if options.tune_share != certify.DEFAULT_TUNE_SHARE:
        command += f" --tune-share {options.tune_share}"
    if options.logits:
        arrays = np.load(options.logits, allow_pickle=False)
        num_rows = options.rows or len(arrays["labels"]) // 2
        cells = split_real(
            arrays["logits"].astype(np.float64),
            arrays["labels"],
            num_rows=num_rows,
            num_runs=options.runs,
            seed=options.seed,
            tune_share=options.tune_share,
        )
        name, command = "certificates-real", f"{command} --logits {options.logits.name} --rows {num_rows}"
    else:
        cells = simulate(options.runs, options.seed, options.tune_share)
    report = {
        "command": command,
        "environment": environment.describe(),
        "seconds": time.perf_counter() - started,
        "delta": DELTA,
        "tune_share": options.tune_share,
        "verdict": verdict(cells),
        "cells": cells,
        "table": table(cells),
    }
    write(report, options.output_dir, f"{name}-{report['environment']['date']}")
    print(report["table"], report["verdict"], sep="\n\n")
    return 1 if report["verdict"][0] != "0" else 0


if __name__ == "__main__":
    sys.exit(main())
