"""Compare other implementations of environments with Gymnasium's; write docs/backends.*.

    python benchmarks/backends.py                         every id: 26 minutes, and BipedalWalker
    python benchmarks/backends.py --id Acrobot-v1         one id
    python benchmarks/backends.py --render                list and page, from docs/backends.json

Figures lie in docs/backends.json, a row for each id, backend and set of versions. The list that
`env.backend=auto` reads (rlopt/backends.json) and the page (docs/backends.md) are made from it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
import warnings
from pathlib import Path
from typing import Any

import backends_page
import gymnasium as gym
from backend_compare import Figures, episodes, make_other, paired, resets
from backend_states import can_set
from backend_table import MOST_STEPS, table

from rlopt.backends import registration

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "backends.json"
SEED = 0
STEPS, SHORT_STEPS = 5000, 1000  # of each way to play; with a time limit of SHORT
SHORT = 7  # a time limit that play reaches
PACKAGES = {"mujoco": ["mujoco"], "box2d": ["box2d"]}  # that an entry point's package needs
# Settings of a vector version's constructor, beside the registered ones.
SETTINGS = {"CartPole-v0": ["sutton_barto_reward"], "CartPole-v1": ["sutton_barto_reward"]}


def main() -> None:
    """Compare what is asked for, and write the figures, the list and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--id", action="append", help="an id; default: all that both have")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    gym.logger.min_level = gym.logger.ERROR
    warnings.filterwarnings("ignore")
    for env_id, backend in [] if options.render else candidates(options.id):
        row = compare(env_id, backend)
        write([old for old in recorded() if key(old) != key(row)] + [row])
        print(backend, env_id, row["agrees"], f"{row['seconds']:.0f} s", flush=True)
    write(recorded())


def recorded() -> list[Figures]:
    """The rows of docs/backends.json."""
    return json.loads(FIGURES.read_text())


def write(rows: list[Figures]) -> None:
    """Write figures, list and page, whatever the order of measurement."""
    rows = sorted(({**row, "finding": backends_page.finding(row)} for row in rows), key=key)
    FIGURES.write_text(json.dumps(rows, indent=1) + "\n")
    backends_page.write(rows)


def key(row: Figures) -> tuple[str, str, str]:
    """A row's backend, id and versions."""
    return row["backend"], row["id"], json.dumps(row["versions"], sort_keys=True)


def candidates(chosen: list[str] | None) -> list[tuple[str, str]]:
    """Ids of Gymnasium's own that have a second implementation, and its backend."""
    import envpool

    theirs = set(envpool.list_all_envs())
    ids = [i for i in chosen or gym.registry if isinstance(gym.spec(i).entry_point, str)]
    pairs = [(i, "vector_entry_point") for i in ids if gym.spec(i).vector_entry_point]
    return pairs + [(i, "envpool") for i in ids if i in theirs]


def compare(env_id: str, backend: str) -> Figures:
    """One row of the figures."""
    start = time.perf_counter()
    spec = gym.spec(env_id)
    row = {"id": env_id, "backend": backend, "registration": registration(spec)}
    row["versions"] = versions(spec, backend)
    found = measure(env_id, backend)
    return {**row, **found, "seconds": round(time.perf_counter() - start, 1)}


def versions(spec: gym.envs.registration.EnvSpec, backend: str) -> dict[str, str]:
    """Versions of the packages that both implementations rest on."""
    folder = str(spec.entry_point).split(".")[2:3]
    names = ["gymnasium", *(["envpool"] if backend == "envpool" else [])]
    names += PACKAGES.get(folder[0], []) if folder else []
    return {name: importlib.metadata.version(name) for name in names}


def measure(env_id: str, backend: str) -> Figures:
    """Figures of the tests that suit the environment, whether it agrees, and a line on it."""
    try:
        single, other = gym.make(env_id), make_other(env_id, backend, 1)
    except Exception as error:  # whatever a constructor raises
        return not_compared(f"can't be made: {str(error).splitlines()[0][:80]}")
    apart = spaces_apart(single, other)
    kind = single.unwrapped
    other.close()
    single.close()
    if apart:
        return not_compared(apart)
    if can_set(kind):
        return by_pairs(env_id, backend)
    if hasattr(kind, "P"):
        return by_table(env_id, backend)
    if str(gym.spec(env_id).entry_point).startswith("gymnasium.envs.box2d"):
        return by_episodes(env_id, backend)
    return not_compared("no test for it")


def spaces_apart(single: gym.Env, other: Any) -> str | None:
    """A line on spaces of another kind or shape."""
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(single, name), getattr(other, f"single_{name}")
        if type(ours) is not type(theirs) or ours.shape != theirs.shape or ours.shape is None:
            return f"its {name} is {theirs}, Gymnasium's {ours}"
    if len(single.observation_space.shape) == 3:
        return "images are not compared"
    return None


def not_compared(why: str) -> Figures:
    """The row of an id that was left out."""
    return {"method": "none", "agrees": False, "reason": why}


def by_pairs(env_id: str, backend: str) -> Figures:
    """The same state and action in both; with a short limit; with each setting; resets."""
    plays = {"play": paired(env_id, backend, STEPS, SEED)}
    plays["short limit"] = paired(env_id, backend, SHORT_STEPS, SEED, max_episode_steps=SHORT)
    if backend == "vector_entry_point":
        for name in SETTINGS.get(env_id, []):
            plays[name] = paired(env_id, backend, SHORT_STEPS, SEED, **{name: True})
    figures: Figures = {"method": "pairs", **plays}
    sound = all(play["agrees"] for play in plays.values())
    if sound:  # else the verdict is known
        figures["resets"] = resets(env_id, backend, None, SEED)
        sound = figures["resets"]["agrees"]
    return {**figures, "agrees": sound}


def by_table(env_id: str, backend: str) -> Figures:
    """Transitions beside Gymnasium's table."""
    found = table(env_id, backend, MOST_STEPS, SEED)
    return {"method": "table", "table": found, "agrees": found["agrees"]}


def by_episodes(env_id: str, backend: str) -> Figures:
    """Whole episodes, and resets."""
    figures: Figures = {"method": "episodes", "resets": resets(env_id, backend, None, SEED)}
    figures["episodes"] = episodes(env_id, backend, None, SEED)
    agrees = figures["resets"]["agrees"] and figures["episodes"]["agrees"]
    return {**figures, "agrees": agrees}


if __name__ == "__main__":
    main()
