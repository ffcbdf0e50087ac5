"""Which runs are seeds of one setting, and what to call it: by what differs and by nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rlopt.report.runs import Run

ALGO = "algo._target_"
ENV = "env.id"  # environments are panels, not settings
# Settings that leave the training as it is, and whole sections of them.
WITHOUT_CONSEQUENCE = {
    "seed",
    "device",
    "num_threads",
    "chunk_size",
    "baseline.chunk_size",
    "diagnostics",
    "on_nonfinite",
    "resume",
    "resume_force",
}
SECTIONS_WITHOUT = ("checkpoint.", "eval.", "sweep.", "log.")
MANY_KEYS = 3  # more than these in a label, and only what is unusual is named


@dataclass(frozen=True)
class Group:
    """Runs of one environment that differ in their seed only.

    Attributes:
        env: id of the environment.
        label: what sets it apart from the other groups, the same in every environment.
        settings: the values of the keys that differ between groups.
        runs: one of each seed.
    """

    env: str
    label: str
    settings: dict[str, Any]
    runs: list[Run]


def group(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Groups in order of environment and label, and remarks on runs that were left out."""
    keys = distinguishing(runs)
    common = {k: Counter(str(run.config.get(k)) for run in runs).most_common(1)[0][0] for k in keys}
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.env, label(run, keys, common)), []).append(run)
    groups, repeated = [], 0
    for (env, name), members in sorted(found.items()):
        once = _once_each(members)
        repeated += len(members) - len(once)
        groups.append(Group(env, name, {k: members[0].config.get(k) for k in keys}, once))
    remark = f"left out, {repeated} runs repeat the settings and the seed of another"
    return groups, [remark] if repeated else []


def _once_each(runs: Sequence[Run]) -> list[Run]:
    """The run of each seed that went farthest; the same seed twice is one observation."""
    best: dict[Any, Run] = {}
    for run in runs:
        other = best.get(run.seed)
        if other is None or _progress(run) > _progress(other):
            best[run.seed] = run
    return list(best.values())


def _progress(run: Run) -> tuple[bool, int]:
    return run.status == "finished", len(run.steps)


def distinguishing(runs: Sequence[Run]) -> list[str]:
    """The keys that tell the settings of each environment apart, as few as do.

    Those that differ and that a command line named; then further ones in the order of the config,
    each only if it tells runs apart that the ones before it do not: where settings differ because
    the algorithm does, the algorithm says it all.
    """
    by_env: dict[str, list[Run]] = {}
    for run in runs:
        by_env.setdefault(run.env, []).append(run)
    varying = [
        key
        for key in sorted(dict.fromkeys(k for run in runs for k in run.config), key=_importance)
        if key not in {ENV, *WITHOUT_CONSEQUENCE} and not key.startswith(SECTIONS_WITHOUT)
        if any(len({_value(run, key) for run in members}) > 1 for members in by_env.values())
    ]
    named = {key for run in runs for key in run.overridden}
    keys = [key for key in varying if key in named or key.removesuffix("._target_") in named]
    for key in varying:
        if _num_classes(runs, [*keys, key]) > _num_classes(runs, keys):
            keys.append(key)
    return sorted(keys, key=varying.index)


def _importance(key: str) -> int:
    return 0 if key == ALGO else 1 if key.endswith("._target_") else 2


def _num_classes(runs: Sequence[Run], keys: Sequence[str]) -> int:
    return len({(run.env, *(_value(run, key) for key in keys)) for run in runs})


def _value(run: Run, key: str) -> str:
    return str(run.config.get(key))


def label(run: Run, keys: Collection[str], common: dict[str, str]) -> str:
    """What a legend says of a run: npg, trpo algo.max_kl=0.01.

    Args:
        run: the run.
        keys: the ones that differ.
        common: the most frequent value of each; of many keys only others than these are named.
    """
    shown = [key for key in keys if key in run.config]
    if len(keys) > MANY_KEYS:
        shown = [key for key in shown if key == ALGO or _value(run, key) != common[key]]
    words = [_word(key, run.config[key]) for key in shown]
    return " ".join(words) or (_algo(run) if not keys else "common setting")


def _word(key: str, value: Any) -> str:
    if key == ALGO:
        return str(value).rpartition(".")[2].lower()
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={text.rpartition('.')[2]}"
    return f"{key}={text}"


def _algo(run: Run) -> str:
    return _word(ALGO, run.config.get(ALGO, "runs"))


def swept(groups: Sequence[Group]) -> list[str]:
    """The keys with several numbers among groups of the same environment and algorithm."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))

    def numbers(key: str) -> list[int]:
        values: dict[tuple[str, Any], set[float]] = {}
        for group in groups:
            value = group.settings[key]
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault((group.env, group.settings.get(ALGO)), set()).add(value)
        return [len(distinct) for distinct in values.values()]

    return [key for key in keys if max(numbers(key), default=0) > 1]
