"""What a reader must know before believing the numbers, in plain sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from rlopt.report.groups import Group
from rlopt.report.runs import Run
from rlopt.report.stats import CONFIDENCE, smallest_p
from rlopt.report.summary import SHOWN, Pair, Summary

FEW_SEEDS = 10  # below them percentile intervals are too narrow: docs/experiments.md has figures
NAMED = 6  # groups in a sentence


def remarks(summary: Summary) -> list[str]:
    """The sentences, the gravest first."""
    return [
        *_too_few_seeds(summary.pairs),
        *_losses(summary.groups),
        *_rough_intervals(summary),
        *_many_pairs(summary.pairs),
        *_not_everywhere(summary),
        *_different_lengths(summary),
    ]


def _too_few_seeds(pairs: list[Pair]) -> Iterator[str]:
    counts = Counter((pair.env, pair.sizes) for pair in pairs if not pair.enough)
    for env, sizes in counts:
        seeds = " and ".join(map(str, sizes[:2])) if len(sizes) == 2 else "so few"
        yield (
            f"Too few seeds to claim a difference on {env}: with {seeds} seeds even complete "
            f"separation has p = {smallest_p(*sizes):.2g} in an exact rank test. Four seeds "
            "of each are the fewest that can show one."
        )


def _losses(groups: list[Group]) -> Iterator[str]:
    """Runs without a final evaluation, by the reason."""

    def silent(run: Run) -> bool:
        return run.status == "finished" and math.isnan(run.final)

    for what, consequence, lost in (
        (
            "runs failed",
            "the numbers of these groups are of their other runs, and too good",
            lambda run: run.status == "failed",
        ),
        (
            "runs are not finished",
            "they have no final evaluation, and the figures show them as thin lines",
            lambda run: run.status == "unfinished",
        ),
        ("runs have no evaluation in metrics.csv", "they are in no statistic", silent),
    ):
        counts = {f"{g.label} on {g.env}": sum(map(lost, g.runs)) for g in groups}
        names = [f"{name} ({count})" for name, count in counts.items() if count]
        more = f" and {len(names) - NAMED} more groups" if len(names) > NAMED else ""
        if names:
            yield (
                f"{sum(counts.values())} {what}, {', '.join(names[:NAMED])}{more}: {consequence}."
            )


def _rough_intervals(summary: Summary) -> Iterator[str]:
    sizes = [len(summary.finals(group.env, group.label)) for group in summary.groups]
    if sizes and min(sizes) < FEW_SEEDS:
        few = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        yield (
            f"The groups have {few} finished seeds. Bootstrap intervals of fewer than {FEW_SEEDS} "
            "are too narrow; one seed has none."
        )


def _many_pairs(pairs: list[Pair]) -> Iterator[str]:
    enough = sum(pair.enough for pair in pairs)
    if enough > 1:
        yield (
            f"{enough} pairs are compared at {CONFIDENCE:.0%} each: {enough * (1 - CONFIDENCE):.1f}"
            " of them are expected to look different by chance where none is."
        )


def _not_everywhere(summary: Summary) -> Iterator[str]:
    missing = [label for label in summary.shown if label not in summary.complete]
    if len(summary.envs) > 1 and missing:
        yield f"Not in every environment, so in no figure over all: {', '.join(missing)}."
    hidden = len(summary.labels) - SHOWN
    if hidden > 0:
        yield (
            f"Figures colour and compare the {SHOWN} groups with the best score; {hidden} others "
            "are in the table."
        )


def _different_lengths(summary: Summary) -> Iterator[str]:
    for env in summary.envs:
        runs = [run for g in summary.of_env(env) for run in g.runs if run.status == "finished"]
        ends = [run.steps[-1] for run in runs if len(run.steps)]
        if ends and max(ends) > 1.1 * min(ends):
            yield (
                f"Runs on {env} are of different lengths, {min(ends):,.0f} to {max(ends):,.0f} "
                "steps: final evaluations are at their own ends; areas are over the steps that "
                "all of them have."
            )
