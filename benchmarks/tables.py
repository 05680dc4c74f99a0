"""The result of `serving.py` as text: one table for a terminal, the same and the details as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table
import summary

Table = tuple[list[str], list[list[str]]]


def main_table(contenders: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each contender: medians over the rounds."""
    counts = sorted({load["connections"] for row in contenders for load in row["loads"]})
    few, many = counts[0], max((count for count in counts if count <= 32), default=counts[0])
    latencies = [f"p50 / p99 ms at {count}" for count in dict.fromkeys((few, many))]
    head = ["server", "engine", *(f"req/s at {count}" for count in counts), "of limit", "of best peer", *latencies]
    rest = ["CPU ms a request", "start s", "MB", "largest MB", "errors"]
    rows = [_row(row, counts, list(dict.fromkeys((few, many)))) for row in contenders if row["loads"]]
    return [*head, *rest], rows


def detail_table(contenders: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each contender and load: median, and least to most over the rounds."""
    head = ["server", "connections", "req/s", "of limit", "of best peer", "p50 ms", "p99 ms"]
    rows = [
        [
            row["title"],
            str(load["connections"]),
            _spread(load["rate"], 0),
            _ratio(load["of_limit"]),
            _ratio(load["of_best_peer"]),
            *(_spread(load[name], digits) for name, digits in (("p50_ms", 1), ("p99_ms", 1), ("cpu_ms", 2))),
            *(_spread(load[name], 0) for name in ("total_mb", "largest_mb", "errors")),
        ]
        for row in contenders
        for load in row["loads"]
    ]
    return [*head, "CPU ms a request", "MB", "largest MB", "errors"], rows


def limit_table(limit: Mapping[str, Any]) -> Table:
    """A row for each way to feed the engine."""
    rows = [
        [str(cell["processes"]), str(cell["batch"]), cell["order"], _spread(cell["rows_per_second"], 0)]
        for cell in limit["rows_per_second"]
    ]
    return ["processes", "batch", "order", "rows/s"], rows


def terminal(table: Table) -> None:
    """Print a table."""
    head, rows = table
    console = rich.console.Console(emoji=False, highlight=False)
    # A pipe counts as 80 columns, which would leave a letter to each column.
    console.width = max(console.width, 190)
    shown = rich.table.Table(*head)
    for row in rows:
        shown.add_row(*row)
    for column in shown.columns[1:]:
        column.justify = "right"
    console.print(shown)


def markdown(table: Table) -> str:
    """A table as Markdown."""
    head, rows = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(document: Mapping[str, Any], *, picture: str) -> str:
    """The whole result as Markdown.

    Args:
        document: What `environment.write` wrote.
        picture: File name of the plot beside it.
    """
    result, where = document["result"], document["environment"]
    bare = result["limit"]["bare"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = f"{where['processor']}, {where['cores']} cores, {where['memory_gib']} GiB, Python {where['python']}"
    parts = [
        f"# Serving, {where['date']}\n",
        f"`{document['command']}`\n",
        f"{machine}; {versions}.\n",
        f"{_conditions(result)}\n",
        markdown(main_table(result["contenders"])),
        f"![Requests a second]({picture})\n",
        "## The limit\n",
        f"{result['engine']} with no server, one thread a process. One text at a time, tokenising included, takes "
        f"{_spread(bare['p50_ms'], 2)} ms at the median and {_spread(bare['p99_ms'], 2)} ms at the 99th percentile.\n",
        markdown(limit_table(result["limit"])),
        "## Details\n",
        "Median, and in brackets least to most over the rounds.\n",
        markdown(detail_table(result["contenders"])),
    ]
    return "\n".join([*parts, *_left_out(result)])


def _conditions(result: Mapping[str, Any]) -> str:
    return (
        f"{result['rounds_asked']} rounds in rotated order, {result['seconds']} s for each load after a warm-up of "
        f"{result['warm_up_s']} s; medians over the rounds. Load: {result['load_generator']}, {result['rows']} bodies "
        f"in turn, on the same cores. Every server computes in {result['processes']} processes or replicas, one thread "
        "each. `of limit`: its highest req/s over the highest rows/s of the engine in two processes with no server. "
        "`of best peer`: over the highest req/s of any server that is not ours. CPU: all processes of the server at "
        "its highest req/s; MB: proportional set sizes after that load. Start: from the command to the first correct "
        "answer."
    )


def _left_out(result: Mapping[str, Any]) -> list[str]:
    lines = [f"- {name}: {why}" for name, why in result["skipped"].items()]
    for row in result["contenders"]:
        lines += [f"- {row['title']}: failed in a round: {why.splitlines()[0]}" for why in row["failed"]]
    return ["## Left out\n", "\n".join(lines) + "\n"] if lines else []


def _row(row: Mapping[str, Any], counts: Sequence[int], latencies: Sequence[int]) -> list[str]:
    loads = {load["connections"]: load for load in row["loads"]}
    peak = summary.peak(row)
    errors = sum(load["errors"]["max"] for load in row["loads"])
    return [
        row["title"],
        row["engine"],
        *(f"{loads[count]['rate']['median']:.0f}" if count in loads else "-" for count in counts),
        _ratio(row["of_limit"]),
        _ratio(row["of_best_peer"]),
        *(_latency(loads.get(count)) for count in latencies),
        f"{peak['cpu_ms']['median']:.2f}",
        f"{row['start_s']['median']:.1f}",
        f"{peak['total_mb']['median']:.0f}",
        f"{peak['largest_mb']['median']:.0f}",
        f"{errors:.0f}",
    ]


def _latency(load: Mapping[str, Any] | None) -> str:
    return f"{load['p50_ms']['median']:.1f} / {load['p99_ms']['median']:.1f}" if load else "-"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _spread(value: Mapping[str, float], digits: int) -> str:
    median, least, most = (f"{value[name]:.{digits}f}" for name in ("median", "min", "max"))
    return median if least == most else f"{median} ({least} to {most})"
