"""What the decision costs on the serving path: microseconds a row, logits to finished answers.

    python benchmarks/decision.py

Four classes, a certified policy with candidate sets, batches of 1, 4, 16 and 64 rows. Medians of many repetitions.
"""

from __future__ import annotations

import statistics
import time

import environment
import numpy as np

from madewithml import decision

CLASSES = ["computer-vision", "mlops", "natural-language-processing", "other"]
REPETITIONS = 3000


def microseconds_a_row(policy: decision.DecisionPolicy, rows: int) -> dict[str, float]:
    logits = np.random.default_rng(0).normal(0, 3, size=(rows, len(CLASSES))).astype(np.float32)
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        policy.answers(policy.decide(logits, CLASSES), CLASSES)
        times.append((time.perf_counter() - started) * 1e6 / rows)
    quantiles = statistics.quantiles(times, n=100)
    return {
        "rows": rows,
        "median": round(quantiles[49], 2),
        "p5": round(quantiles[4], 2),
        "p95": round(quantiles[94], 2),
    }


def main() -> None:
    policy = decision.DecisionPolicy(
        threshold=0.93, temperature=1.4, source="certificate", candidate_quantile=0.8, candidate_coverage=0.9
    )
    rows = [microseconds_a_row(policy, size) for size in (1, 4, 16, 64)]
    for row in rows:
        print(row)
    print("written:", environment.write("decision", "python benchmarks/decision.py", {"microseconds_a_row": rows}).name)


if __name__ == "__main__":
    main()
