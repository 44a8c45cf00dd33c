"""The plots of docs/benchmarks.md, by matplotlib (in the optional group bench of pyproject.toml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COLOURS = ("#9aa5b1", "#1768ac", "#5aa9e6", "#c98b2b", "#8a6fb0", "#2e8b57", "#b23a48", "#444444")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("plots need matplotlib: pip install matplotlib, into vmcoal's .venv") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    pyplot.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "vmcoal"}
    )
    return pyplot


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def policy(
    misses: Mapping[tuple[str, str, int], int],
    traces: Sequence[str],
    policies: Mapping[str, str],
    percents: Sequence[int],
    path: Path,
) -> None:
    """Draw bars of misses as shares of FIFO's: a panel for each size of the cache, a group for each trace."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(len(percents), 1, figsize=(8.5, 2.1 * len(percents)), sharex=True)
    shown = [name for name in policies if name != "fifo"]
    for panel, percent in zip(panels, percents, strict=True):
        for at, name in enumerate(shown):
            heights = [misses[trace, name, percent] / misses[trace, "fifo", percent] for trace in traces]
            places = [index + (at - len(shown) / 2 + 0.5) * 0.15 for index in range(len(traces))]
            panel.bar(places, heights, 0.14, color=_COLOURS[at + 1], label=policies[name])
        panel.axhline(1, color=_COLOURS[0], linewidth=1)
        panel.set_title(f"cache {percent} % of the pages", loc="left")
        panel.set_ylabel("misses, FIFO = 1")
        panel.set_xticks(range(len(traces)), [trace.replace("-", "\n") for trace in traces])
    panels[0].legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.6), frameon=False)
    _save(pyplot, figure, path)


def curves(
    panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]], ylabel: str, path: Path, *, columns: int
) -> None:
    """Draw a panel for each (title, {line: [(percent local, speed as a share of local memory)]})."""
    pyplot = _pyplot()
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(3.3 * columns, 2.7 * rows), sharey=True, squeeze=False)
    lines = list(dict.fromkeys(line for _, each in panels for line in each))
    for at, panel in enumerate(grid.flat):
        if at >= len(panels):
            panel.axis("off")
            continue
        title, each = panels[at]
        for number, line in enumerate(lines):
            if line not in each:
                continue
            points = sorted(each[line], reverse=True)
            style = "--" if "swap" in line else "-"
            panel.plot(
                [str(int(percent)) for percent, _ in points],
                [max(share, 1e-9) for _, share in points],
                style,
                marker="o",
                markersize=3,
                color=_COLOURS[(number + 1) % len(_COLOURS)],
                label=line,
            )
        panel.set_yscale("log")
        panel.grid(axis="y", color="#e5e5e5")
        panel.set_title(title, loc="left")
        panel.set_xlabel("% of the working set local")
        if at % columns == 0:
            panel.set_ylabel(ylabel)
    shown = {
        label: handle for panel in grid.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    _save(pyplot, figure, path)
