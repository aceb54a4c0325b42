"""The figures as one JSON file, and as one HTML page that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import orjson
from matplotlib.figure import Figure

matplotlib.use("svg")

PERCENTILES = (("p50_s", "P50"), ("p90_s", "P90"), ("p99_s", "P99"))


def save_json(results: Mapping[str, Any], path: Path) -> None:
    """Write all figures; latencies of single requests are not among them."""
    path.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def save_html(results: Mapping[str, Any], path: Path) -> None:
    """Write the page: summary, tables and plots of whatever was measured."""
    plots = {
        title: svg
        for title, draw in (("Latency over HTTP", _latencies), ("Time by part", _parts))
        if (svg := draw(results))
    }
    source = files("apex_dagster.bench").joinpath("report.html.jinja").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(source)
    path.write_text(template.render(results=results, plots=plots), "utf-8")


def _latencies(results: Mapping[str, Any]) -> str | None:
    """Bars of P50, P90 and P99 for each load."""
    loads = results.get("http", {})
    if not loads:
        return None
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    for position, (field, label) in enumerate(PERCENTILES):
        places = [index + (position - 1) * 0.27 for index in range(len(loads))]
        axes.bar(places, [load["median"][field] for load in loads.values()], 0.27, label=label)
    axes.set_xticks(range(len(loads)), [name.replace("_", " ") for name in loads])
    axes.set_ylabel("seconds")
    axes.legend()
    return _svg(figure)


def _parts(results: Mapping[str, Any]) -> str | None:
    """Milliseconds a document by part, saga beside raw writes, for each size of batch."""
    rows: Sequence[tuple[str, Mapping[str, float]]] = [
        (f"{name}, {documents} a batch", side["ms_by_part"])
        for documents, report in results.get("writes", {}).items()
        for name, side in report["sides"].items()
    ]
    if not rows:
        return None
    figure = Figure(figsize=(8, 3.6))
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for name, parts in rows:
        left = 0.0
        for part, milliseconds in parts.items():
            label = None if part in colours else part  # once in the legend
            colour = colours.setdefault(part, f"C{len(colours)}")
            axes.barh(name, milliseconds, left=left, color=colour, label=label)
            left += milliseconds
    axes.set_xlabel("milliseconds a document; parts that overlap are added up")
    axes.legend(fontsize=6, ncols=3)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    figure.tight_layout()
    output = io.StringIO()
    figure.savefig(output, format="svg")
    # Without the XML prolog, which HTML does not take.
    return "<svg" + output.getvalue().partition("<svg")[2]
