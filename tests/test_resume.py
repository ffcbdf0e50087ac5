"""A run that was killed and resumed is the run that was never killed: rows, parameters, points."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train_script import SCRIPTS, process, rows_of, run_here, summary_of, timeless

from rlopt import checkpoint

SLOW = pytest.mark.slow
ALGOS = ["pg", "npg", "trpo", "ppo"]
ROLLOUTS = {
    "steps": ["rollout.num_steps=16"],
    "episodes": ["rollout.episodes=6", "rollout.baseline_episodes=2"],
}
SETTINGS = [
    "~tuned",
    "env.num_envs=4",
    "env.max_episode_steps=30",
    "policy.hidden_sizes=[8]",
    "baseline.hidden_sizes=[8]",
    "eval.every=700",
    "eval.episodes=2",
    "eval.final_episodes=5",
    "checkpoint.every=300",
]


def settings(algo, rollout, *more):
    return [f"algo={algo}", f"rollout={rollout}", *SETTINGS, *ROLLOUTS[rollout], *more]


def train(folder, *arguments):
    code, _ = run_here("train.py", *arguments, f"hydra.run.dir={folder}")
    assert code is None
    return folder


def resume(folder, *arguments):
    return run_here("train.py", f"resume={folder}", *arguments)


def checkpoint_of(folder, name="last"):
    return checkpoint.load(folder / "checkpoints" / f"{name}.pt")


def assert_same(a, b):
    """Bitwise equality of nested states."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b or (a != a and b != b)


def known(state):
    """A checkpoint without the environments' state: the next rows are its proof."""
    state["rollout"].pop("recorder", None)
    return state


def assert_same_run(folder, other):
    """Rows, their columns' order, both checkpoints, and TensorBoard's points."""
    assert timeless(folder) == timeless(other)
    assert list(rows_of(folder)[0]) == list(rows_of(other)[0])
    for name in ("last", "best"):
        ours, theirs = checkpoint_of(folder, name), checkpoint_of(other, name)
        assert_same(known(ours), known(theirs))
    steps = [int(row["env_steps"]) for row in rows_of(folder)]
    points = EventAccumulator(str(folder)).Reload()
    assert [point.step for point in points.Scalars("policy/kl")] == steps
    assert len(points.Tensors("config/text_summary")) == 1
    assert summary_of(folder)["status"] == "finished"


def wait_for_rows(folder, started, number):
    deadline = time.monotonic() + 60
    path = folder / "metrics.csv"
    while time.monotonic() < deadline and started.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > number:
            return
        time.sleep(0.005)
    assert started.poll() is None, started.communicate()
    raise AssertionError("no rows in a minute")


def kill_at_random(folder, rng, *arguments, rows):
    """Start the command and kill -9 it after `rows` rows and a random moment."""
    started = process("train.py", *arguments)
    wait_for_rows(folder, started, rows)
    time.sleep(rng.uniform(0, 0.1))
    started.kill()
    started.communicate(timeout=60)
    assert started.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("algo", "rollout"), [("npg", "steps"), pytest.param("ppo", "episodes", marks=SLOW)]
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(algo, rollout, tmp_path):
    arguments = settings(algo, rollout, "total_steps=5000")
    whole = train(tmp_path / "whole", *arguments)
    folder, rng = tmp_path / "killed", random.Random(f"{algo} {rollout}")
    rows = rng.randrange(5, len(rows_of(whole)) // 2)
    kill_at_random(folder, rng, *arguments, f"hydra.run.dir={folder}", rows=rows)
    assert resume(folder)[0] is None
    assert summary_of(folder)["resumed_at"] > 0
    assert_same_run(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("algo", ALGOS)
def test_three_kills_leave_no_trace(algo, rollout, env, tmp_path):
    arguments = settings(algo, rollout, f"env={env}", "total_steps=20000")
    whole = train(tmp_path / "whole", *arguments)
    folder, rng = tmp_path / "killed", random.Random(f"{algo} {rollout} {env}")
    last = len(rows_of(whole)) - 10
    command = [*arguments, f"hydra.run.dir={folder}"]
    for part in range(3):
        rows = rng.randrange(last * part // 3, last * (part + 1) // 3)
        kill_at_random(folder, rng, *command, rows=rows)
        command = [f"resume={folder}"]
    assert resume(folder)[0] is None
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    ("algo", "rollout"),
    [("trpo", "steps"), pytest.param("ppo", "episodes", marks=pytest.mark.slow)],
)
def test_a_longer_run_is_the_run_that_was_that_long_at_once(algo, rollout, tmp_path):
    """`total_steps` may change: learners, counters, random streams and environments go on."""
    arguments = settings(algo, rollout, "checkpoint.every=300", "eval.every=1000000")
    whole = train(tmp_path / "whole", *arguments, "total_steps=1200")
    folder = train(tmp_path / "parts", *arguments, "total_steps=500")
    assert resume(folder, "total_steps=1200")[0] is None
    ours, theirs = checkpoint_of(folder), checkpoint_of(whole)
    del ours["best_return"], theirs["best_return"]  # of the evaluation at 500 too
    assert_same(known(ours), known(theirs))
    rows = [[r["policy/kl"], r["baseline/loss"]] for r in rows_of(folder)]
    assert rows == [[r["policy/kl"], r["baseline/loss"]] for r in rows_of(whole)]
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").total_steps == 1200


def test_where_the_state_is_unknown_the_rollout_starts_anew_and_says_so(tmp_path):
    arguments = settings("npg", "steps", "env.backend=async")
    folder = train(tmp_path / "run", *arguments, "total_steps=400")
    code, out = resume(folder, "total_steps=800")
    assert code is None
    assert "resume starts new episodes: the state of" in out
    assert summary_of(folder)["resume"] == "starts new episodes"
    steps = [int(row["env_steps"]) for row in rows_of(folder)]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 800


@pytest.mark.parametrize("backend", [pytest.param("async", marks=SLOW), "envpool"])
def test_whole_episodes_are_exact_on_a_backend_of_unknown_state(backend, tmp_path):
    if backend == "envpool":
        pytest.importorskip("envpool")
    arguments = settings("pg", "episodes", f"env.backend={backend}", "eval.every=1000000")
    whole = train(tmp_path / "whole", *arguments, "total_steps=700")
    folder = train(tmp_path / "parts", *arguments, "total_steps=300")
    assert resume(folder, "total_steps=700")[0] is None
    assert summary_of(folder)["resume"] == "exact"
    assert_same(checkpoint_of(folder)["policy"], checkpoint_of(whole)["policy"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of some fifteen iterations and three checkpoints."""
    return train(
        tmp_path_factory.mktemp("run") / "it", *settings("npg", "steps"), *["total_steps=900"]
    )


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_finished_run_has_nothing_left_but_its_evaluation(folder):
    rows, summary = rows_of(folder), summary_of(folder)
    assert resume(folder)[0] is None
    assert rows_of(folder) == rows
    again = summary_of(folder)
    for key in ("env_steps", "eval_return_mean", "eval_episodes", "status"):
        assert again[key] == summary[key]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["gamma=0.5"], ["gamma=0.5 (was 0.99)"]),
        (["algo.max_kl=0.5", "seed=3"], ["algo.max_kl=0.5 (was ", "seed=3 (was 0)"]),
        (["algo=pg"], ["algo._target_=rlopt.algos.pg.PG"]),
        (["env=Pendulum-v1"], ["env.id=Pendulum-v1 (was CartPole-v1)"]),
        (["+env.kwargs.size=3"], ["env.kwargs.size=3 (was nothing)"]),
        (["tuned=npg/Pendulum-v1"], ["tuned=npg/Pendulum-v1 can't be changed"]),
    ],
)
def test_other_settings_are_listed_in_one_line(overrides, named, folder):
    before = (folder / ".hydra" / "config.yaml").read_bytes()
    code, _ = resume(folder, *overrides)
    assert code.startswith("error: ")
    assert "\n" not in code
    assert [part for part in named if part not in code] == []
    assert "resume_force=true" in code or "can't be changed" in code
    assert (folder / ".hydra" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "overrides",
    [["gamma=0.5", "resume_force=true"], ["algo=npg", "env=CartPole-v1"], ["eval.every=200"]],
)
def test_allowed_settings_take_effect(overrides, folder):
    code, _ = resume(folder, "total_steps=1200", *overrides)
    assert code is None
    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert cfg.total_steps == 1200
    assert cfg.gamma == (0.5 if "gamma=0.5" in overrides else 0.99)
    assert cfg.eval.every == (200 if "eval.every=200" in overrides else 700)
    assert cfg.resume is None
    assert not cfg.resume_force


@pytest.mark.parametrize("name", ["none", "it"])
def test_what_is_no_run_folder_is_named(name, tmp_path):
    (tmp_path / "it").mkdir()
    code, _ = resume(tmp_path / name)
    assert code == f"error: resume={tmp_path / name} is no run folder: it has no .hydra/config.yaml"


def test_one_run_at_a_time_goes_on(folder, monkeypatch):
    code, _ = resume(folder, "-m", "seed=0,1")
    assert code == f"error: resume={folder} continues one run: leave out -m"
    monkeypatch.setattr("rlopt.distributed.world_size", lambda: 2)
    code, _ = resume(folder)
    assert code == f"error: resume={folder}: a run of several processes can't be resumed"


def test_a_checkpoint_of_another_network_is_one_line(folder):
    before = (folder / "metrics.csv").read_bytes()
    code, _ = resume(folder, "policy.hidden_sizes=[5]", "resume_force=true")
    assert code.startswith("error: resume: the checkpoint does not fit the config")
    assert "\n" not in code
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(folder, tmp_path):
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    whole = timeless(folder)
    assert resume(folder)[0] is None
    assert timeless(folder) == whole


def damage(path, how, rng):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[rng.randrange(len(data)) :]
    elif how == "missing":
        return path.unlink()
    else:
        for _ in range(20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(how, folder):
    whole = timeless(folder)
    before = checkpoint_of(folder, "previous")["env_steps"]
    damage(folder / "checkpoints" / "last.pt", how, random.Random(how))
    code, out = resume(folder)
    assert code is None
    assert "last.pt" in out
    assert "the checkpoint before it is taken" in out
    assert f"resumed at {before} environment steps" in out
    assert timeless(folder) == whole


def test_two_damaged_checkpoints_are_one_line_and_change_nothing(folder):
    before = (folder / "metrics.csv").read_bytes()
    for name in ("last", "previous"):
        damage(folder / "checkpoints" / f"{name}.pt", "truncated", random.Random(name))
    code, _ = resume(folder)
    assert code.startswith("error: resume=")
    assert "last.pt" in code
    assert "previous.pt" in code
    assert "\n" not in code
    assert (folder / "metrics.csv").read_bytes() == before


@contextlib.contextmanager
def file_size_limit(size):
    """No file of this process may grow beyond `size`, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint(folder):
    path = folder / "checkpoints" / "last.pt"
    whole, files = path.read_bytes(), sorted(path.parent.iterdir())
    assert (folder / "metrics.csv").stat().st_size < len(whole) - 1000
    with file_size_limit(len(whole) - 1000):
        code, _ = resume(folder, "total_steps=5000", "checkpoint.every=1")
    assert code.startswith("error: ")
    assert "can't be written: File too large" in code
    assert "\n" not in code
    assert path.read_bytes() == whole
    assert sorted(path.parent.iterdir()) == files
    assert summary_of(folder)["status"] == "failed"
    assert "File too large" in summary_of(folder)["error"]
    assert resume(folder, "total_steps=1500")[0] is None


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=SLOW), signal.SIGTERM],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_ends_the_run_after_a_checkpoint(number, tmp_path):
    arguments = settings("trpo", "steps", "checkpoint.every=100000000")
    folder = tmp_path / "run"
    started = process("train.py", *arguments, "total_steps=100000000", f"hydra.run.dir={folder}")
    wait_for_rows(folder, started, 3)
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 128 + number
    assert "Traceback" not in err
    summary, rows = summary_of(folder), rows_of(folder)
    assert summary["status"] == "interrupted"
    assert summary["env_steps"] == int(rows[-1]["env_steps"]) == checkpoint_of(folder)["env_steps"]
    if number == signal.SIGTERM:
        total = f"total_steps={summary['env_steps'] + 100}"
        assert resume(folder, total)[0] is None
        whole = train(tmp_path / "whole", *arguments, total)
        assert_same_run(folder, whole)


AT_A_MOMENT = """
import os, pathlib, runpy, sys
import rlopt.build
from rlopt import checkpoint
from rlopt.algos import trpo
from rlopt.recorder import Recorder
from rlopt.rollout import StepRollout

owner, name, calls, number = eval(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
original, seen = getattr(owner, name), []

def interrupted(*args, **kwargs):
    seen.append(None)
    if len(seen) == calls:
        os.kill(os.getpid(), number)
    return original(*args, **kwargs)

setattr(owner, name, interrupted)
sys.argv[:] = sys.argv[5:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MOMENTS = {
    "rollout": ("Recorder", "_act", 70),
    "update": ("trpo.TRPO", "step", 5),
    "evaluation": ("rlopt.build", "evaluate", 1),
    "checkpoint": ("checkpoint", "save", 2),
}
MOMENT_SETTINGS = settings("trpo", "steps", "total_steps=1500")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that the moments below belong to, never ended."""
    return train(tmp_path_factory.mktemp("moments") / "whole", *MOMENT_SETTINGS)


def at_the_moment(number, moment, folder):
    """The command with a signal to itself at a call of one of its functions."""
    probe = [sys.executable, "-c", AT_A_MOMENT, *map(str, moment), str(int(number))]
    command = [str(SCRIPTS / "train.py"), *MOMENT_SETTINGS, f"hydra.run.dir={folder}"]
    return subprocess.run([*probe, *command], capture_output=True, text=True, timeout=100)


@SLOW
@pytest.mark.parametrize("moment", ["update", "rollout", "evaluation", "checkpoint"])
def test_sigterm_at_any_moment_leaves_a_run_that_goes_on_exactly(moment, whole, tmp_path):
    folder = tmp_path / "run"
    done = at_the_moment(signal.SIGTERM, MOMENTS[moment], folder)
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert summary_of(folder)["status"] == "interrupted"
    assert summary_of(folder)["env_steps"] == checkpoint_of(folder)["env_steps"] < 1500
    assert resume(folder)[0] is None
    assert_same_run(folder, whole)


@SLOW
@pytest.mark.parametrize("calls", [7, 8, 9, 10])
def test_kill_between_the_renames_of_a_checkpoint_leaves_one_that_is_whole(calls, whole, tmp_path):
    """Four neighbouring renames: of metrics.csv, of a new checkpoint, and of the one before."""
    folder = tmp_path / "run"
    done = at_the_moment(signal.SIGKILL, ("pathlib.Path", "replace", calls), folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "summary.json").exists()
    assert resume(folder)[0] is None
    assert_same_run(folder, whole)


SLOW_STEP = """
import time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(0.5)
        return super().step(action)

gymnasium.register("Slow-v0", Slow)
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(tmp_path):
    (tmp_path / "toys.py").write_text(SLOW_STEP)
    folder = tmp_path / "run"
    arguments = [*settings("pg", "steps"), "env=toys:Slow-v0", f"hydra.run.dir={folder}"]
    started = process("train.py", *arguments, path=[tmp_path])
    while not (folder / ".hydra" / "config.yaml").exists():
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    time.sleep(1.0)  # within the first iteration, which takes half a minute
    for _ in range(2):
        started.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    _, err = started.communicate(timeout=10)
    assert started.returncode == 143
    assert "Traceback" not in err
    assert summary_of(folder)["status"] == "interrupted"
    assert not (folder / "metrics.csv").exists()


def memory_of(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_is_flat_over_two_thousand_iterations(tmp_path):
    """Less than 2% from iteration 200 to 2,000, with an evaluation and a checkpoint every tenth."""
    more = ["total_steps=128000", "eval.every=640", "checkpoint.every=640"]
    folder = tmp_path / "run"
    arguments = [*settings("npg", "steps"), *more, f"hydra.run.dir={folder}"]
    started = process("train.py", *arguments)
    sizes = {}
    for rows in (200, 1900):
        wait_for_rows(folder, started, rows)
        sizes[rows] = memory_of(started.pid)
    started.communicate(timeout=600)
    assert started.returncode == 0
    assert sizes[1900] < 1.02 * sizes[200]
    assert np.isfinite(float(rows_of(folder)[-1]["policy/kl"]))
