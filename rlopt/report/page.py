"""Tables as markdown and csv, and the page that holds everything."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from rlopt.report.remarks import remarks
from rlopt.report.summary import Pair, Summary

HEADER = [
    "group", "seeds", "failed", "unfinished", "steps", "mean", "IQM", "95% interval",
    "reached", "steps to", "seconds to", "area", "steps/s", "wall s",
]  # fmt: skip
CAPTIONS = {
    "curves_steps": "Learning curves against environment steps. Lines: interquartile mean over the "
    "finished seeds; bands: its pointwise 95% interval; thin lines: runs that are not finished, or "
    "that share no range.",
    "curves_seconds": "The same against seconds of training, without evaluations.",
    "improvement": "Probability that a run of the first group ends above one of the second, with "
    "95% intervals. 1/2 is no difference.",
    "profiles": "Performance profiles: the share of runs above each score, the mean over "
    "environments, with pointwise 95% bands. Higher is better.",
}
SENSITIVITY = "Final evaluations against {}. Dots: runs; circles: interquartile mean and interval."
STYLE = """
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a; background: #fff;
       max-width: 1180px; margin: 2.5em auto; padding: 0 1.5em; }
h1 { font-size: 1.7em; margin-bottom: .1em; } h2 { font-size: 1.25em; margin-top: 2em; }
h3 { font-size: 1em; margin: 1.6em 0 .4em; }
.lead { color: #555; margin-top: 0; } code { font-size: .85em; overflow-wrap: anywhere; }
.beware { border-left: 4px solid #D55E00; background: #fdf5ef; padding: .6em 1.2em; }
.beware ul { margin: .3em 0; padding-left: 1.2em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font: 13.5px/1.4 Arial, Helvetica, sans-serif; }
thead { border-top: 2px solid #1a1a1a; border-bottom: 1px solid #1a1a1a; }
tbody { border-bottom: 2px solid #1a1a1a; }
th, td { padding: .28em .7em; text-align: right; white-space: nowrap; font-weight: normal;
         font-variant-numeric: tabular-nums; }
th { font-weight: bold; } th:first-child, td:first-child { text-align: left; padding-left: .2em; }
figure { margin: 1em 0 2em; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .92em; color: #444; margin-top: .4em; }
dt { font-weight: bold; } dd { margin: 0 0 .5em 1.2em; }
"""
TERMS = {
    "mean, IQM": "of the last evaluations of the finished seeds; the interquartile mean leaves out "
    "the lowest and the highest quarter (floor(n/4) runs at each end).",
    "95% interval": "percentile bootstrap over seeds.",
    "reached, steps to, seconds to": "how many seeds have an evaluation of at least the threshold, "
    "and the median over all seeds of when (∞: fewer than half); seconds of training.",
    "area": "mean height of the evaluation curve over the steps that all finished runs of the "
    "environment have; interquartile mean over seeds.",
    "steps/s, wall s": "medians; environment steps in a second of training, and seconds from start "
    "to end with evaluations.",
    "score": "(return - untrained policy) / (best run - untrained policy), for each environment.",
}


# Tables


def number(x: float) -> str:
    """Four digits, a dash where there is none."""
    if math.isnan(x):
        return "-"
    if math.isinf(x):
        return "∞"
    return f"{x:,.0f}" if abs(x) >= 1000 or x == int(x) else f"{x:.4g}"


def interval(low: float, high: float) -> str:
    """[low, high]."""
    return "-" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A group's row, in the order of HEADER."""
    return [
        row["group"],
        *(str(row[key]) for key in ("seeds", "failed", "unfinished")),
        *(number(row[key]) for key in ("steps", "final_mean", "iqm")),
        interval(row["iqm_low"], row["iqm_high"]),
        f"{row['reached']}/{row['seeds']}",
        *(number(row[key]) for key in ("steps_to_threshold", "seconds_to_threshold", "area")),
        *(number(row[key]) for key in ("steps_per_second", "wall_seconds")),
    ]


def tables(summary: Summary) -> list[tuple[str, list[list[str]]]]:
    """Titles and cells, header first: one for each environment, all of them, and the pairs."""
    found = []
    for env in summary.envs:
        scale = summary.scales[env]
        title = f"{env} (threshold {number(scale.threshold)}: {scale.source})"
        found.append((title, [HEADER, *(cells(row) for row in summary.rows(env))]))
    if len(summary.envs) > 1 and summary.complete:
        body = [
            [
                row["group"],
                str(row["runs"]),
                number(row["iqm"]),
                interval(row["iqm_low"], row["iqm_high"]),
            ]
            for row in summary.aggregate()
        ]
        title = "All environments (scores: 0 the untrained policy, 1 the best run)"
        found.append((title, [["group", "runs", "IQM", "95% interval"], *body]))
    last = summary.pairs[-1].env if summary.pairs else None  # over all, where there are several
    body = [pair_cells(pair) for pair in summary.pairs if pair.env == last]
    if body:
        header = ["pair", "probability", "95% interval", "verdict"]
        found.append((f"Probability of improvement, {last}", [header, *body]))
    return found


def pair_cells(pair: Pair) -> list[str]:
    """A pair's row."""
    value, low, high = pair.estimate
    name = f"{pair.first} > {pair.second}"
    return [name, f"{value:.2f}", interval(low, high), verdict(pair)]


def verdict(pair: Pair) -> str:
    """What may be claimed."""
    if not pair.enough:
        return "too few seeds"
    return "a difference" if pair.claimed else "none shown"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, so that it reads as plain text too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """The same, to be scrolled where it is wide."""
    header, *body = ([html.escape(cell) for cell in row] for row in rows)
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    text = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{text}\n</tbody></table></div>\n"
    )


# Files


def write(
    folder: Path, summary: Summary, figures: Mapping[str, Figure], lead: str, left_out: list[str]
) -> None:
    """All files of the report.

    Args:
        folder: made where it is missing.
        summary: the numbers.
        figures: by name of file.
        lead: one sentence on what there is.
        left_out: sentences on run folders that did not enter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beware = [*remarks(summary), *left_out]
    pictures = {name: render(figure, "svg") for name, figure in figures.items()}
    for name, figure in figures.items():
        (folder / f"{name}.svg").write_bytes(pictures[name])
        (folder / f"{name}.png").write_bytes(render(figure, "png"))
    write_csv(folder / "groups.csv", group_rows(summary))
    write_csv(folder / "runs.csv", run_rows(summary))
    write_csv(folder / "pairs.csv", pair_rows(summary))
    (folder / "report.md").write_text(markdown(summary, lead, beware), encoding="utf-8")
    (folder / "report.html").write_text(page(summary, pictures, lead, beware), encoding="utf-8")


def render(figure: Figure, kind: str) -> bytes:
    """A figure as a file's content, the same bytes for the same figure."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "rlopt"}):
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    return file.getvalue()


def group_rows(summary: Summary) -> list[dict[str, Any]]:
    """groups.csv: the tables' numbers in full."""
    return [{"env": env} | row for env in summary.envs for row in summary.rows(env)]


def run_rows(summary: Summary) -> list[dict[str, Any]]:
    """runs.csv: what the statistics are over."""
    return [
        {
            "env": group.env,
            "group": group.label,
            "seed": run.seed,
            "status": run.status,
            "final": run.final,
            "steps": run.steps[-1] if len(run.steps) else 0,
            "training_seconds": run.seconds[-1] if len(run.steps) else 0,
            "folder": run.folder,
        }
        for group in summary.groups
        for run in group.runs
    ]


def pair_rows(summary: Summary) -> list[dict[str, Any]]:
    """pairs.csv: the probability that a run of `first` ends above one of `second`."""
    return [
        {"env": pair.env, "first": pair.first, "second": pair.second}
        | dict(zip(("probability", "low", "high"), map(float, pair.estimate), strict=True))
        | {"verdict": verdict(pair)}
        for pair in summary.pairs
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a header; nothing where there are no rows."""
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown(summary: Summary, lead: str, beware: Sequence[str]) -> str:
    """report.md: the remarks and the tables."""
    parts = [lead + "\n", *(f"- {line}\n" for line in beware)]
    for title, rows in tables(summary):
        parts += [f"\n**{title}**\n\n", markdown_table(rows)]
    return "".join(parts).replace("\n- ", "\n\n- ", 1)


def page(summary: Summary, pictures: Mapping[str, bytes], lead: str, beware: Sequence[str]) -> str:
    """report.html: one file that needs no other."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in beware)
    box = f'<div class="beware"><strong>Before you believe it</strong><ul>{items}</ul></div>'
    results = [f"<h3>{html.escape(t)}</h3>\n{html_table(rows)}" for t, rows in tables(summary)]
    terms = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in TERMS.items())
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>rlopt report</title>',
            f"<style>{STYLE}</style>",
            f"<h1>{html.escape(', '.join(summary.envs))}</h1>",
            f'<p class="lead">{html.escape(lead)}</p>',
            box if beware else "",
            "<h2>Results</h2>",
            *results,
            "<h2>Figures</h2>",
            *(figure_html(name, svg) for name, svg in pictures.items()),
            f"<h2>Terms</h2><dl>{terms}</dl>",
            "</html>\n",
        ]
    )


def figure_html(name: str, svg: bytes) -> str:
    """A figure inside the page, with its caption."""
    key = name.removeprefix("sensitivity_")
    caption = html.escape(CAPTIONS.get(name) or SENSITIVITY.format(key))
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return (
        f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
