"""What the measurements of real programs have in common: links, shares of local memory, and how a figure is printed."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

PERCENT = (100, 50, 25, 10)
"""Of the working set that may be local."""

LINKS = {
    "loopback": 0.0,
    "lan": 0.1e-3,
    "5g-urllc": 1e-3,
    "wifi-6e": 2e-3,
    "5g": 14e-3,
    "wifi": 20e-3,
}
"""One-way latencies in seconds: table 1 of the Coalescent Computing paper (APSys 2021), but for the LAN's, which is not
in it."""

Figures = dict[str, tuple[float, str]]
"""Values and units by name."""

Panel = tuple[str, dict[str, list[tuple[float, float]]]]
"""A title, and for each line the shares that are local and the speeds."""


def show(name: str, value: float, unit: str, floor: float, conditions: str) -> dict[str, object]:
    """Print a figure beside its floor as one JSON object, and return it."""
    figure: dict[str, object] = {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "floor": round(floor, 1),
        "ratio": float(f"{value / floor:.3g}"),
        "conditions": f"{conditions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(figure), flush=True)  # noqa: T201
    return figure


def panels(figures: Iterable[dict[str, object]], programs: Sequence[str]) -> list[Panel]:
    """Sort figures named ``PROGRAM.WHERE@PERCENT%`` into what `plots.curves` draws: a panel for each program."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for figure in figures:
        name, _, percent = str(figure["name"]).partition("@")
        program, _, where = name.rpartition(".")
        if program in programs:
            found[program][where].append((float(percent.rstrip("%")), float(str(figure["ratio"]))))
    return [(program, found[program]) for program in programs if program in found]


def rows(figures: Iterable[dict[str, object]], programs: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table of the same: a row for each program and place."""
    lines = [
        "| program | where | " + " | ".join(f"{percent} %" for percent in PERCENT) + " |",
        "|---|---|" + "---|" * 4,
    ]
    for program, each in panels(figures, programs):
        for where, points in each.items():
            shares = dict(points)
            cells = [f"{shares[percent]:.2g}" if percent in shares else "" for percent in PERCENT]
            lines.append(f"| {program} | {where} | " + " | ".join(cells) + " |")
    return lines
