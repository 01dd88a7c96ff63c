"""Quote `bench/results.json` in the README, between `<!-- bench -->` and `<!-- /bench -->`.

`python -m bench` calls it at its end; `python -m bench.report` alone writes the last figures.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
JOBS, ARRIVALS = 0, -1  # in place of a number of events
HEAD = "| | ours | theirs | ratio | target | holds |\n|---|---:|---:|---:|---:|---|"


def block(results: dict[str, Any]) -> str:
    """The text between the marks: a table per machine and log."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in results["lines"]:
        runs.setdefault((line["machine"], line["events"]), []).append(line)
    tables = []
    for (machine, events), lines in runs.items():
        rows = "\n".join(_row(line) for line in lines)
        tables.append(f"{what(events)}; {machine}:\n\n{HEAD}\n{rows}")
    return "\n\n".join(tables)


def what(events: int) -> str:
    """What is measured on."""
    return {JOBS: "Background jobs", ARRIVALS: "Events as they arrive"}.get(
        events, f"{events:,} events"
    )


def _row(line: dict[str, Any]) -> str:
    cells = (
        line["name"],
        _figure(line["ours"], line["unit"]),
        _figure(line["theirs"], line["unit"]),
        f"{line['ratio']:.3g}",
        line["target"],
        "yes" if line["holds"] else "no",
    )
    return f"| {' | '.join(cells)} |"


def _figure(value: float, unit: str) -> str:
    decimals = {"s": 2, "ms": 1}.get(unit, 0)
    number = f"{value:,.{decimals}f}"
    return f"{number} {unit}".strip()


def filled(readme: str, results: dict[str, Any]) -> str:
    """`readme` with the block of `results`.

    Raises:
        ValueError: the marks are missing, or not in this order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{block(results)}\n{END}{after}"


def write() -> None:
    """Fill the README's block from the results."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(filled(README.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    write()
