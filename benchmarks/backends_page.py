"""The list that `env.backend=auto` reads and its page, from the rows of docs/backends.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backend_compare import ALPHA, POWER, SEEN, TOLERANCE

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "rlopt" / "backends.json"
PAGE = ROOT / "docs" / "backends.md"
BEGIN, END = "<!-- made by benchmarks/backends.py -->", "<!-- end -->"
Row = dict[str, Any]


def write(rows: list[Row]) -> None:
    """Write both."""
    LIST.write_text(dumped(runtime_list(rows)))
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


def runtime_list(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """`{backend: {id: {registration, compared: [{versions, agrees, finding}]}}}`."""
    result: dict[str, dict[str, Any]] = {"vector_entry_point": {}, "envpool": {}}
    for row in rows:
        entry = result[row["backend"]].setdefault(
            row["id"], {"registration": row["registration"], "compared": []}
        )
        entry["compared"].append({name: row[name] for name in ("versions", "agrees", "finding")})
    return result


def dumped(result: dict[str, dict[str, Any]]) -> str:
    """JSON with a line for each registration and comparison."""
    blocks = []
    for backend, ids in result.items():
        entries = []
        for env_id, entry in ids.items():
            lines = ",\n    ".join(json.dumps(row) for row in entry["compared"])
            about = json.dumps(entry["registration"])
            entries.append(
                f'  {json.dumps(env_id)}: {{"registration": {about},\n'
                f'   "compared": [\n    {lines}]}}'
            )
        blocks.append(f" {json.dumps(backend)}: {{\n" + ",\n".join(entries) + "\n }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def table(rows: list[Row]) -> str:
    """The table in Markdown, what agrees first."""
    lines = ["| id | implementation | versions | agrees | found |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (not row["agrees"], row["backend"], row["id"])):
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        name = "EnvPool" if row["backend"] == "envpool" else "own vector version"
        verdict = "yes" if row["agrees"] else "no"
        lines.append(f"| {row['id']} | {name} | {versions} | {verdict} | {row['finding']} |")
    levels = f"A test fails one environment in {1 / ALPHA:,.0f} that agrees; "
    levels += f"it sees {SEEN:.0%} in {POWER:.0%} of the cases, at the least. "
    levels += f"Pairs may differ by {TOLERANCE:g} of 1 + |x|."
    return f"{levels}\n\n" + "\n".join(lines)


def finding(row: Row) -> str:
    """A line on what was found."""
    if row["method"] == "none":
        return f"not compared ({row['reason']})"
    kinds = {"pairs": finding_of_pairs, "table": finding_of_table, "episodes": finding_of_episodes}
    return kinds[row["method"]](row)


def finding_of_pairs(figures: Row) -> str:
    """A line on the pairs: the larger differences of all ways to play, and the resets."""
    plays = [part for part in figures.values() if isinstance(part, dict) and "steps" in part]
    most = {k: max(play[k] for play in plays) for k in ("obs_error", "reward_error")}
    sums = {
        k: sum(play[k] for play in plays)
        for k in ("steps", "terminated", "truncated", "other_ends")
    }
    ends = f"{sums['terminated']:,} terminations and {sums['truncated']:,} truncations the same"
    return (
        f"largest difference of observations {most['obs_error']:.0e}, of rewards "
        f"{most['reward_error']:.0e}, in {sums['steps']:,} steps; "
        + (f"{sums['other_ends']:,} ends differ" if sums["other_ends"] else ends)
        + finding_of_resets(figures.get("resets"))
    )


def finding_of_resets(found: Row | None) -> str:
    """The end of a line, on resets."""
    if found is None:
        return ""
    verdict = "" if found["agrees"] else ", which differs"
    distance = f"Kolmogorov-Smirnov distance at most {found['ks_distance']:.3f}{verdict}"
    return f"; {found['resets']:,} resets, each column at a {distance}"


def finding_of_table(figures: Row) -> str:
    """A line on a table of transitions."""
    found = figures["table"]
    return (
        f"{found['pairs']} states and actions, each visited {found['fewest_visits']:,} times or "
        f"more ({found['visits_needed']:,} needed); smallest p-value {found['chi_squared_p']:.1g} "
        "against Gymnasium's table"
    )


def finding_of_episodes(figures: Row) -> str:
    """A line on whole episodes."""
    parts = []
    for name, play in figures["episodes"]["plays"].items():
        verdict = "" if play["agrees"] else f", which differs (p = {play['ks_p']:.0e})"
        parts.append(
            f"{name}: mean return {play['mean_return_other']:.1f} against "
            f"{play['mean_return']:.1f} in {play['episodes']:,} episodes, returns, lengths and "
            f"last observations at a Kolmogorov-Smirnov distance of {play['ks_distance']:.3f} or "
            f"less{verdict}"
        )
    return "; ".join(parts) + finding_of_resets(figures["resets"])
