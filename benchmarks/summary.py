"""Rounds to figures: medians and ranges, and each contender's rate against the limit and against the best peer.

Ratios are taken within a round, where machine and hour are the same, and then their median.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from contenders import Contender
from limit import PROCESSES

FIGURES = ("rate", "p50_ms", "p99_ms", "errors", "cpu_ms", "total_mb", "largest_mb")
Rounds = Sequence[Mapping[str, Any]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values)}


def contenders(measured: Sequence[Contender], rounds: Rounds) -> list[dict[str, Any]]:
    """What each contender did, the highest rate first.

    Args:
        measured: The contenders.
        rounds: Of each round: the limit under `limit`, and what `measurement.measure` gave for each name.
    """
    found = [_contender(contender, rounds) for contender in measured]
    peers = [row for row in found if row["loads"] and not row["ours"]]
    for row in found:
        # `None` for the connections stands for those with the highest rate, each contender's own.
        for entry, connections in [(load, load["connections"]) for load in row["loads"]] + [(row, None)]:
            entry["of_limit"] = _ratio(rounds, row["name"], connections)
            rival = _best(peers, connections)
            entry["of_best_peer"] = _ratio(rounds, row["name"], connections, rival) if rival else None
    return sorted(found, key=_peak, reverse=True)


def limit(rounds: Rounds) -> dict[str, Any]:
    """The limit over the rounds."""
    limits = [found["limit"] for found in rounds]
    cells = [
        {**cell, "rows_per_second": spread([found["rows_per_second"][i]["rows_per_second"] for found in limits])}
        for i, cell in enumerate(limits[0]["rows_per_second"])
    ]
    return {
        "rows_per_second": cells,
        "best": {count: spread([found["best"][count] for found in limits]) for count in PROCESSES},
        "bare": {key: spread([found["bare"][key] for found in limits]) for key in ("p50_ms", "p99_ms")},
    }


def peak(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a contender's loads, the one with the highest rate."""
    return max(row["loads"], key=lambda load: load["rate"]["median"])


def _peak(row: Mapping[str, Any]) -> float:
    return peak(row)["rate"]["median"] if row["loads"] else 0.0


def _contender(contender: Contender, rounds: Rounds) -> dict[str, Any]:
    results = [found[contender.name] for found in rounds]
    good = [result for result in results if "failed" not in result]
    counts = [load["connections"] for load in good[0]["loads"]] if good else []
    loads = [{"connections": count, **_load(good, i)} for i, count in enumerate(counts)]
    return {
        "name": contender.name,
        "title": contender.title,
        "ours": contender.ours,
        "engine": good[0]["engine"] if good else None,
        "start_s": spread([result["start_s"] for result in good]) if good else None,
        "agreement": min((result["agreement"] for result in good), default=None),
        "failed": [result["failed"] for result in results if "failed" in result],
        "loads": loads,
    }


def _load(results: Sequence[Mapping[str, Any]], index: int) -> dict[str, Any]:
    return {name: spread([result["loads"][index][name] for result in results]) for name in FIGURES}


def _best(peers: Sequence[Mapping[str, Any]], connections: int | None) -> str | None:
    """Name of the peer with the highest rate."""
    rates = {
        row["name"]: max(load["rate"]["median"] for load in row["loads"] if connections in (None, load["connections"]))
        for row in peers
        if any(connections in (None, load["connections"]) for load in row["loads"])
    }
    return max(rates, key=lambda name: rates[name], default=None)


def _ratio(rounds: Rounds, name: str, connections: int | None, rival: str | None = None) -> float | None:
    """Median over the rounds of a rate over the rival's rate, or over the limit of two processes."""
    ratios = []
    for found in rounds:
        above = _rate(found, name, connections)
        below = _rate(found, rival, connections) if rival else found["limit"]["best"][max(PROCESSES)]
        if above is not None and below:
            ratios.append(above / below)
    return round(statistics.median(ratios), 3) if ratios else None


def _rate(found: Mapping[str, Any], name: str, connections: int | None) -> float | None:
    loads = found[name].get("loads", [])
    return max((load["rate"] for load in loads if connections in (None, load["connections"])), default=None)
