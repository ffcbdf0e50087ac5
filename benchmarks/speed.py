"""How fast: ours against the peers on the same work, and against the machine's limits.

    python benchmarks/speed.py --peer-python PATH --peer-python rejax=PATH     all jobs, 20 minutes
    python benchmarks/speed.py tianshou-npg raw         some of them, the others' entries are kept

Every contender is a process of its own. Those of a pair alternate, their ratio is taken turn by
turn. Writes docs/performance.json (each turn), and from it docs/performance.md and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import performance
from jobs import PAIRS, overrides
from peers import SETUPS, versions
from process import ROOT, ContenderError, run

RESULTS = ROOT / "docs" / "performance.json"
TRIAL_SECONDS, RAW_SECONDS = 3.0, 2.0
Entry = dict[str, Any]


class MissingPeerError(ContenderError):
    """Its packages are not installed."""


def ours(kind: str, **spec: Any) -> Entry:
    """One of ours.py's contenders."""
    return run(sys.executable, "ours.py", kind, json.dumps(spec))


def peer(python: str, name: str, **spec: Any) -> Entry:
    """One of peers.py's contenders."""
    result = run(python, "peers.py", name, json.dumps(spec))
    if "missing" in result:
        raise MissingPeerError(f"{name} is not installed in {python}: {result['missing']}")
    return result


def measure_pair(name: str, args: argparse.Namespace) -> Entry:
    """Ours and the peer in turn; the shipped setting and the raw environment in the same turns."""
    peer_name, work = PAIRS[name]
    python = args.pythons[peer_name]
    setup, tried = fastest_setup(python, peer_name, work)
    shipped = [f"algo={work['algo']}", f"env={work['env']}"]
    contenders: dict[str, Callable[[], Entry]] = {
        "ours": partial(ours, "train", overrides=overrides(work), seconds=args.seconds),
        "peer": partial(peer, python, peer_name, work=work, setup=setup, seconds=args.seconds),
        "shipped": partial(ours, "train", overrides=shipped, seconds=args.seconds / 2),
        "raw": partial(
            ours, "raw", env_id=work["env"], num_envs=work["num_envs"], seconds=RAW_SECONDS
        ),
    }
    turns = take_turns(contenders, args.runs)
    expect_as_tried(turns, tried)
    return {"peer": peer_name, "work": work, "setup": setup, "tried": tried, "turns": turns}


def fastest_setup(python: str, name: str, work: Entry) -> tuple[Entry, list[Entry]]:
    """The peer's fastest set-up here, by a short trial of each; those that fail are left out."""
    tried = []
    for setup in SETUPS[name]:
        try:
            result = peer(python, name, work=work, setup=setup, seconds=TRIAL_SECONDS)
        except MissingPeerError:
            raise
        except ContenderError as error:
            print(f"  {setup} left out: {error}")
            continue
        print(f"  {setup}: {result['steps_per_second']:,.0f} steps/s")
        tried.append({"setup": setup, "steps_per_second": result["steps_per_second"]})
    if not tried:
        raise ContenderError(f"no set-up of {name} works")
    return max(tried, key=lambda trial: trial["steps_per_second"])["setup"], tried


def expect_as_tried(turns: list[Entry], tried: list[Entry]) -> None:
    """Refuse a comparison in which something held the peer up: threads suffer most from it."""
    trial = max(t["steps_per_second"] for t in tried)
    measured = median(turn["peer"]["steps_per_second"] for turn in turns)
    if measured < trial / 2:
        reached = f"the peer reached {trial:,.0f} steps/s in its trial and then {measured:,.0f}"
        raise ContenderError(f"{reached}: the machine was busy, repeat the job")


def take_turns(contenders: dict[str, Callable[[], Entry]], runs: int) -> list[Entry]:
    """`runs` turns, in each of which every contender runs once."""
    turns = []
    for _ in range(runs):
        turns.append({name: contender() for name, contender in contenders.items()})
        speeds = (f"{key} {value['steps_per_second']:,.0f}" for key, value in turns[-1].items())
        print("  " + ", ".join(speeds))
    return turns


def measure_raw(args: argparse.Namespace) -> Entry:
    """NPG as shipped, evaluation and logging included, against raw stepping of its environments."""
    shipped = ["algo=npg", "env=HalfCheetah-v4"]
    turns = []
    for _ in range(args.runs):
        trained = ours("train", overrides=shipped, seconds=args.seconds, min_steps=100_000)
        raw = ours(
            "raw", env_id="HalfCheetah-v4", num_envs=trained["num_envs"], seconds=RAW_SECONDS
        )
        turns.append({"shipped": trained, "raw": raw})
        print(f"  {trained['steps_per_second']:,.0f} of {raw['steps_per_second']:,.0f}")
    return {"turns": turns}


def measure_phases(args: argparse.Namespace) -> Entry:
    """Where our time goes in each pair's work."""
    profiles = {}
    for name, (_, work) in PAIRS.items():
        spec = {"overrides": overrides(work), "seconds": args.seconds / 2}
        profiles[name] = run(sys.executable, "phases.py", "profile", json.dumps(spec))
        print(f"  {name}: {profiles[name]['milliseconds']['iteration']:.0f} ms")
    return {"profiles": profiles}


def measure_audits(args: argparse.Namespace) -> Entry:
    """What the audit of each update adds to an iteration of CartPole-v1 as shipped."""
    audits = []
    for algo in ("pg", "npg", "trpo", "ppo"):
        spec = {"algo": algo, "env_id": "CartPole-v1", "seconds": args.seconds}
        audits.append(run(sys.executable, "phases.py", "audit", json.dumps(spec)))
        print(f"  {algo}: {median(audits[-1]['ratios']):.3f}")
    return {"audits": audits}


def measure_fisher(args: argparse.Namespace) -> Entry:
    """A Fisher product against double backprop and against its matrix products."""
    return run(sys.executable, "fisher_product.py")


def measure_startup(args: argparse.Namespace) -> Entry:
    """From the start of the process to the first update and to a solved CartPole, five seeds."""
    runs = []
    for seed in range(5):
        runs.append(run(sys.executable, "startup.py", str(seed)))
        print(f"  {runs[-1]}")
    return {"runs": runs}


def measure_ranks(args: argparse.Namespace) -> Entry:
    """Two processes of torchrun against one, on batches of 64k transitions."""
    contenders = {
        name: partial(run, sys.executable, "ranks.py", processes)
        for name, processes in (("one", "1"), ("two", "2"))
    }
    return {"turns": take_turns(contenders, args.runs)}


JOBS: dict[str, Callable[[argparse.Namespace], Entry]] = {
    **{name: partial(measure_pair, name) for name in PAIRS},
    "raw": measure_raw,
    "phases": measure_phases,
    "audits": measure_audits,
    "fisher": measure_fisher,
    "startup": measure_startup,
    "ranks": measure_ranks,
}


def machine() -> Entry:
    """What the figures of a job depend on."""
    packages = versions(["torch", "gymnasium", "envpool", "mujoco"])
    python = {"Python": platform.python_version()}
    return {"cores": os.cpu_count(), "versions": python | packages}


def parse_arguments() -> argparse.Namespace:
    """The command line, with one interpreter for each peer in `pythons`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("jobs", nargs="*", metavar="job", help=f"of {', '.join(JOBS)}; or all")
    parser.add_argument("--runs", type=int, default=3, help="turns of each pair")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured in each run")
    parser.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help=f"interpreter of all peers, or of one of {', '.join(SETUPS)}; may be repeated",
    )
    parser.add_argument("--render", action="store_true", help="only remake .md and .png")
    args = parser.parse_args()
    unknown = set(args.jobs) - set(JOBS)
    if unknown:
        parser.error(f"no such job: {', '.join(unknown)}; there are {', '.join(JOBS)}")
    args.pythons = dict.fromkeys(SETUPS, sys.executable)
    for value in sorted(args.peer_python, key=lambda value: "=" in value):
        name, _, path = value.rpartition("=")
        path = str(Path(path).expanduser())
        args.pythons |= {name: path} if name else dict.fromkeys(SETUPS, path)
    return args


def main() -> None:
    """Run the jobs, one after the other; each one's entry is written when it is done."""
    args = parse_arguments()
    sys.stdout.reconfigure(line_buffering=True)  # to follow it in a file
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [] if args.render else args.jobs or JOBS:
        print(name)
        start = time.perf_counter()
        try:
            entry = JOBS[name](args)
        except ContenderError as error:
            print(f"  left out: {error}")
            continue
        print(f"  {time.perf_counter() - start:.0f} s")
        results[name] = {"machine": machine(), **entry}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    performance.write(results, ROOT / "docs")
    print((ROOT / "docs" / "performance.md").read_text())
    print("wrote docs/performance.json, docs/performance.md and docs/performance.png")


if __name__ == "__main__":
    main()
