"""The goals for speed, what is reached of them here, and the plot of it in the README.

    python benchmarks/goals.py                          # measures everything: about an hour and a half on two cores
    python benchmarks/goals.py --results FOLDER         # keeps the figures there, and measures only what is missing
    python benchmarks/goals.py --results FOLDER --quick # fewer images and turns: about half an hour
    python benchmarks/goals.py --results FOLDER --plot docs/goals.svg

Prints a table in Markdown. Each figure is a ratio of things that were measured by turns in one run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# file -> the command that writes it, in full and in a hurry
MEASUREMENTS = {
    "peers.json": (["bulk.py", "peers"], ["--count", "240", "--runs", "3"], ["--count", "96", "--runs", "3"]),
    "forward.json": (
        ["forward.py"],
        [],
        ["--repeats", "5", "--images", "48", "--only", "forward", "end-to-end", "tapped"],
    ),
    "fidelity.json": (
        ["fidelity.py", "--precisions", "auto", "float32", "int8"],
        [],
        ["--images", "80", "--budget-s", "30"],
    ),
}
Figures = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    what: said in words
    goal: at least this; at most, where `most`
    reached: from the measurements; None where this machine cannot tell
    """

    what: str
    goal: float
    reached: Callable[[Figures], float | None]
    most: bool = False
    unit: str = "x"


def goals() -> list[Goal]:
    """All of them, in the order of the table."""
    shares = {
        "CLIP ViT-B/32": 0.65,
        "AudioCLIP, image": 0.75,
        "VSE++ ResNet-152": 0.85,
        "VSE++ VGG19": 0.95,
        "BiT R50x1": 0.5,
    }
    families = ("BiT R50x1", "AudioCLIP, image", "VSE++ ResNet-152", "VSE++ VGG19")
    return [
        Goal("CLIP ViT-B/32, folder of JPEGs, against the naive loop", 7, naive),
        Goal("against the best peer as shipped", 6.5, lambda figures: best_peer(figures, shipped=True)),
        Goal(
            "against the best peer, tuned by hand where that helps",
            3,
            lambda figures: best_peer(figures, shipped=False),
        ),
        Goal("share of what this machine could do at most", 0.65, bound, unit=""),
        *(
            Goal(f"forward only, share of the matrix rate: {model}", share, rate_of(model), unit="")
            for model, share in shares.items()
        ),
        Goal("int8, CLIP ViT-B/32, forward, against float32 by torch", 9, int8_speed),
        Goal("int8, CLIP ViT-B/32, least centred cosine", 0.99, int8_closeness, unit=""),
        *(Goal(f"{model}, files to rows, against the naive loop", 6, end_to_end(model)) for model in families),
        Goal("custom model tapped early, against running it whole", 2, tapped),
        Goal("peak memory of a run with ViT-B/32", 1200, peak, most=True, unit=" MB"),
    ]


def naive(figures: Figures) -> float | None:
    return ours(figures).get("x naive, loop")


def best_peer(figures: Figures, shipped: bool) -> float | None:
    """Our rate to that of the fastest other library: as it comes, or in bfloat16 too where there is such here."""
    others = [
        row["images/s, loop"]
        for row in figures["peers.json"]
        if "x naive, loop" in row and row is not ours(figures) and row["what"] != "naive loop"
        if not (shipped and "bfloat16" in row["what"])
    ]
    return ours(figures)["images/s, loop"] / max(others) if others else None


def bound(figures: Figures) -> float | None:
    """The share, in the precision that we chose; the last is bfloat16's where there is one."""
    found = [row["images/s, loop"] for row in figures["peers.json"] if row["what"].endswith("share of that")]
    return found[-1] if found else None


def ours(figures: Figures) -> dict[str, Any]:
    return figures["peers.json"][0]


def peak(figures: Figures) -> float | None:
    return ours(figures).get("peak MB")


def rate_of(model: str) -> Callable[[Figures], float | None]:
    return lambda figures: found(figures, "forward", model).get("share of the products' rate")


def end_to_end(model: str) -> Callable[[Figures], float | None]:
    return lambda figures: found(figures, "end-to-end", model).get("ratio")


def tapped(figures: Figures) -> float | None:
    return max((row["ratio"] for row in part(figures, "tapped")), default=None)


def int8_speed(figures: Figures) -> float | None:
    by = {row["precision"]: row.get("images/s") for row in figures["fidelity.json"] if row["model"] == "CLIP ViT-B/32"}
    return by["int8"] / by["float32"] if by.get("int8") and by.get("float32") else None


def int8_closeness(figures: Figures) -> float | None:
    for row in figures["fidelity.json"]:
        if row["model"] == "CLIP ViT-B/32" and row["precision"] == "int8":
            return row.get("least centred cosine")
    return None


def part(figures: Figures, name: str) -> list[dict[str, Any]]:
    whole: Any = figures["forward.json"]
    return whole.get(name, [])


def found(figures: Figures, name: str, model: str) -> dict[str, Any]:
    return next((row for row in part(figures, name) if row["model"] == model), {})


# ------------------------------------------------------------------ the table and the plot


def shown(value: float, unit: str) -> str:
    return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}" if value < 1 else f"{value:.1f}{unit}"


def table(lines: Sequence[tuple[Goal, float | None]]) -> str:
    rows = ["| what | goal | reached |", "|---|---|---|"]
    for goal, reached in lines:
        mark = "" if reached is None else " ✓" if met(goal, reached) else ""
        rows.append(
            f"| {goal.what} | {'under ' if goal.most else ''}{shown(goal.goal, goal.unit)} | "
            f"{'not measured here' if reached is None else shown(reached, goal.unit)}{mark} |"
        )
    return "\n".join(rows)


def met(goal: Goal, reached: float) -> bool:
    return reached <= goal.goal if goal.most else reached >= goal.goal


def plot(lines: Sequence[tuple[Goal, float | None]], caption: str) -> str:
    """An SVG of bars: how much of each goal is reached; the line is the goal."""
    bars = [(goal, reached) for goal, reached in lines if reached is not None]
    step, left, full, top = 26, 430, 330, 34
    parts = []
    for number, (goal, reached) in enumerate(bars):
        share = goal.goal / reached if goal.most else reached / goal.goal
        y, width = top + number * step, min(share, 1.25) * full
        colour = "#2a7f62" if met(goal, reached) else "#c98a2b"
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(goal.what)}</text>'
            f'<rect x="{left}" y="{y}" width="{width:.0f}" height="18" fill="{colour}"/>'
            f'<text x="{left + width + 6:.0f}" y="{y + 13}">{escape(shown(reached, goal.unit))}</text>'
        )
    height, edge = top + len(bars) * step + 10, left + full
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="920" height="{height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{left}" y="16" font-size="11" fill="#555">{escape(caption)}</text>'
        f"{''.join(parts)}"
        f'<line x1="{edge}" y1="{top - 10}" x2="{edge}" y2="{height - 8}" stroke="#333" stroke-dasharray="4 3"/>'
        f'<text x="{edge}" y="{top - 6}" text-anchor="middle" font-size="11">goal</text></svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where figures are kept, and taken from")
    parser.add_argument("--quick", action="store_true", help="fewer images and turns")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write the plot there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = options.results or Path(temporary)
        results.mkdir(parents=True, exist_ok=True)
        for name, (command, full, quick) in MEASUREMENTS.items():
            if not (results / name).exists():
                arguments = [*command, *(quick if options.quick else full), "--json", str(results / name)]
                print(f"$ python benchmarks/{' '.join(arguments)}", file=sys.stderr, flush=True)
                subprocess.run([sys.executable, str(HERE / arguments[0]), *arguments[1:]], check=True)
        stored = {name: json.loads((results / name).read_text("utf-8")) for name in MEASUREMENTS}
    figures = {name: one["results"] for name, one in stored.items()}
    lines = [(goal, goal.reached(figures)) for goal in goals()]
    print(table(lines))
    if options.plot:
        about = stored["peers.json"]
        options.plot.write_text(plot(lines, f"{about['cpu']}, {about['cores']} cores, {about['date']}"), "utf-8")


if __name__ == "__main__":
    main()
