"""scripts/train.py from the command line: its run folder, its record, and what it refuses."""

import contextlib
import csv
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlopt.envs import derive_seed

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
ALGOS = ["pg", "npg", "trpo", "ppo"]
SMALL = [
    "~tuned",
    "total_steps=200",
    "env.num_envs=4",
    "env.max_episode_steps=20",
    "rollout.num_steps=16",
    "eval.every=100",
    "eval.episodes=2",
    "eval.final_episodes=5",
    "checkpoint.every=64",
]
SUMMARY_KEYS = {
    "algo",
    "env",
    "seed",
    "env_steps",
    "wall_seconds",
    "train_return",
    "eval_return_mean",
    "eval_return_std",
    "eval_episodes",
    "versions",
    "git_commit",
    "status",
}
NAN_REWARD = [
    "env=probes:Faulty-v0",
    "+env.kwargs.fault=reward",
    "+env.kwargs.value=nan",
    "+env.kwargs.at=9",
    f"+env.kwargs.bad_seed={derive_seed(0, 0)}",
    "rollout.num_steps=8",
]


def run_here(script, *arguments):
    """`python scripts/<script> <arguments>` without a process of its own: its exit code, stdout."""
    out, root = io.StringIO(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [str(SCRIPTS / script), *map(str, arguments)])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = None
        except SystemExit as end:
            code = end.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return code, out.getvalue()


def process(script, *arguments, path=()):
    """The command as a user's process, with `path` first on Python's."""
    paths = os.pathsep.join(map(str, [*path, *filter(None, [os.environ.get("PYTHONPATH")])]))
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def assert_one_error_line(done, *parts):
    _, err = done.communicate(timeout=100)
    assert done.returncode not in (0, None)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def train(folder, *arguments):
    code, _ = run_here("train.py", *SMALL, f"hydra.run.dir={folder}", *arguments)
    assert code is None
    return folder


def rows_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(folder):
    """The rows of metrics.csv, less the columns that no two runs share."""
    return [
        {tag: x for tag, x in row.items() if not tag.startswith("time/")} for row in rows_of(folder)
    ]


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run of six iterations."""
    return train(tmp_path_factory.mktemp("run") / "it", "algo=npg", "env=CartPole-v1", "seed=3")


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_summary_has_its_keys_and_sane_values(run_folder):
    summary, rows = summary_of(run_folder), rows_of(run_folder)
    assert summary.keys() >= SUMMARY_KEYS
    assert [summary[key] for key in ("algo", "env", "seed")] == ["npg", "CartPole-v1", 3]
    assert summary["status"] == "finished"
    assert 200 <= summary["env_steps"] == int(rows[-1]["env_steps"]) < 200 + 4 * 16
    assert summary["train_return"] == float(rows[-1]["rollout/return_mean"])
    assert summary["eval_return_mean"] == float(rows[-1]["eval/return_mean"])
    assert summary["eval_return_std"] == float(rows[-1]["eval/return_std"])
    assert summary["eval_episodes"] == 5
    assert 0 < summary["wall_seconds"] < 100
    assert summary["versions"]["torch"] == torch.__version__
    commit = summary["git_commit"]
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_the_saved_config_is_resolved_and_says_what_was_asked_for(run_folder):
    text = (run_folder / ".hydra" / "config.yaml").read_text()
    cfg = OmegaConf.to_container(OmegaConf.load(run_folder / ".hydra" / "config.yaml"))
    assert "${" not in text
    assert "???" not in text
    assert cfg["env"]["id"] == "CartPole-v1"
    assert cfg["env"]["backend"] == "vector_entry_point"
    assert cfg["seed"] == 3
    assert "seed=3" in OmegaConf.load(run_folder / ".hydra" / "overrides.yaml")


def test_tensorboard_and_metrics_csv_have_the_same_numbers(run_folder):
    events, rows = EventAccumulator(str(run_folder)).Reload(), rows_of(run_folder)
    tags = {t for t in rows[0] if any(r[t] not in ("", "nan") for r in rows)} - {"env_steps"}
    assert {"rollout/return_mean", "eval/return_mean", "policy/kl", "policy/entropy"} < tags
    assert {"baseline/explained_variance", "time/steps_per_second"} < tags
    assert set(events.Tags()["scalars"]) == tags
    for tag in tags:
        logged = [(int(r["env_steps"]), r[tag]) for r in rows if r[tag] not in ("", "nan")]
        expected = [(step, np.float32(value)) for step, value in logged]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected


def test_tensorboard_has_the_hyperparameters_and_the_config(run_folder):
    events = EventAccumulator(str(run_folder)).Reload()
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(
        events.PluginTagToContent("hparams")
    )
    (text,) = events.Tensors("config/text_summary")
    assert "CartPole-v1" in text.tensor_proto.string_val[0].decode()


def test_steps_are_counted_without_autoreset_rows(run_folder):
    """64 rows an iteration, of which those after an episode's end are no steps."""
    rows = rows_of(run_folder)
    steps = np.diff([0, *(int(row["env_steps"]) for row in rows)])
    assert (steps <= 64).all()
    assert steps.sum() < 64 * len(rows)


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_hold_no_code(run_folder, name):
    path = run_folder / "checkpoints" / f"{name}.pt"
    state = torch.load(path, weights_only=True)
    assert {"policy", "baseline", "rule", "env_steps"} <= state.keys()
    assert 0 < state["env_steps"] <= summary_of(run_folder)["env_steps"]


def test_last_is_the_end_and_best_the_best_evaluation(run_folder):
    rows = [row for row in rows_of(run_folder) if row["eval/return_mean"]]
    best = max(rows, key=lambda row: float(row["eval/return_mean"]))  # the first of equals
    states = {n: torch.load(run_folder / "checkpoints" / f"{n}.pt") for n in ("last", "best")}
    assert len(rows) >= 2
    assert states["last"]["env_steps"] == int(rows[-1]["env_steps"])
    assert states["best"]["env_steps"] == int(best["env_steps"])


@pytest.mark.parametrize("algo", ALGOS)
def test_a_seed_decides_every_number(algo, tmp_path):
    first, again, other = (
        train(tmp_path / name, f"algo={algo}", f"seed={seed}")
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    )
    assert timeless(first) == timeless(again)
    assert timeless(first) != timeless(other)


def test_a_run_ends_where_an_evaluation_reaches_the_return(tmp_path):
    folder = train(tmp_path / "run", "stop_at_return=1", "total_steps=100000")
    summary = summary_of(folder)
    assert summary["env_steps"] < 200
    assert summary["eval_episodes"] == 5
    assert summary["status"] == "finished"


def test_a_run_prints_its_tuned_file_and_its_folder(tmp_path):
    code, out = run_here("train.py", *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    assert code is None
    assert "tuned settings: none" in out
    assert f"wrote {tmp_path / 'run'}" in out


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "preset",
    [
        [],
        pytest.param(["sweep=joblib"], marks=SLOW),
        pytest.param(["sweep=submitit_local"], marks=SLOW),
    ],
)
def test_a_sweeps_jobs_have_own_folders_and_equal_the_same_job_alone(preset, tmp_path):
    arguments = [*SMALL, "algo=ppo", "env=Pendulum-v1", "env.backend=sync"]
    sweep = process(
        "train.py",
        "-m",
        *arguments,
        "seed=0,1",
        *preset,
        f"hydra.sweep.dir={tmp_path}",
        "hydra.verbose=false",
    )
    _, err = sweep.communicate(timeout=100)
    assert (sweep.returncode, err) == (0, "")
    jobs = {summary_of(f.parent)["seed"]: f.parent for f in tmp_path.rglob("summary.json")}
    assert sorted(jobs) == [0, 1]
    assert timeless(jobs[0]) != timeless(jobs[1])
    alone = train(tmp_path / "alone", *arguments, "seed=1")
    assert timeless(jobs[1]) == timeless(alone)


def test_ctrl_c_leaves_a_summary_that_says_so(tmp_path):
    folder = tmp_path / "run"
    started = process("train.py", *SMALL, "total_steps=1000000000", f"hydra.run.dir={folder}")
    deadline = time.monotonic() + 60
    while not (folder / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode != 0
    assert summary_of(folder)["status"] == "interrupted"
    assert summary_of(folder)["env_steps"] > 0
    assert "Traceback" not in err


def test_a_run_that_fails_leaves_a_summary_that_says_so(tmp_path):
    code, _ = run_here("train.py", *SMALL, *NAN_REWARD, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == ("error: environment 0 gave a non-finite reward at step 9 of its episode")
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "failed"
    assert summary["env_steps"] == 4 * 8
    assert summary["eval_return_mean"] is None


def test_an_endless_episode_is_one_line_that_says_what_to_set(tmp_path):
    arguments = [argument for argument in SMALL if not argument.startswith("rollout.")]
    arguments += ["rollout=episodes", "rollout.max_episode_steps=3"]
    code, _ = run_here("train.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert isinstance(code, str)
    assert code.startswith("error: an episode did not end within 3 steps: set ")


@pytest.mark.parametrize("folder", ["/dev/null/run", "/proc/run"])
def test_a_folder_that_cant_be_made_is_one_line(folder):
    code, _ = run_here("train.py", *SMALL, f"hydra.run.dir={folder}")
    assert code.startswith("error: [Errno ")
    assert folder in code or "/dev/null" in code
    assert "\n" not in code


def test_settings_without_effect_are_said_to_be(tmp_path):
    arguments = ["algo.solver=dense", "algo.cg_iterations=3", "policy.hidden_sizes=[4]"]
    code, out = run_here("train.py", *SMALL, *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert code is None
    assert "note: algo.cg_iterations is without effect: algo.solver=dense\n" in out


def test_the_commit_says_where_files_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(command, check=True, capture_output=True)

    script = runpy.run_path(str(SCRIPTS / "train.py"))["git_commit"]
    monkeypatch.setitem(script.__globals__, "ROOT", tmp_path)
    assert script() is None
    (tmp_path / "rlopt").mkdir()
    (tmp_path / "rlopt" / "a.py").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert len(script()) == 40
    (tmp_path / "outputs.txt").touch()
    assert len(script()) == 40
    (tmp_path / "rlopt" / "a.py").write_text("changed")
    assert script().endswith("-dirty")


@pytest.mark.parametrize("name", ["summary.json", "mine.txt", ".hydden"])
def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("precious")
    before = content(tmp_path)
    code, _ = run_here("train.py", *SMALL, f"hydra.run.dir={tmp_path}")
    assert code == f"error: hydra.run.dir={tmp_path} is not empty: name a folder that is"
    assert content(tmp_path) == before


HYDRA_MISTAKES = [
    ("algo.max_k=1", "algo.max_k is no setting: did you mean algo.max_kl?"),
    ("polcy=mlp", "polcy is no setting: did you mean policy?"),
    ("total_step=1", "total_step is no setting: did you mean total_steps?"),
    ("env.nums_envs=1", "env.nums_envs is no setting: did you mean env.num_envs?"),
    ("algo=trpo algo.backtrack_trys=3", "did you mean algo.backtrack_tries?"),
    ("env.kwargs.foo=1", "write +env.kwargs.foo="),
    ("algo=npgg", "algo=npgg: there is no such file; did you mean algo=npg?"),
    ("policy=rnn", "policy=rnn: there is no such file; did you mean policy=cnn?"),
    ("policy=lstm", "policy=lstm: ", "there are cnn, fourier, gru, linear, mlp, network"),
    ("experiment=no_such", "experiment=no_such", "lecture/npg"),
    ("gamma=abc", "gamma=abc must be a number"),
    ("seed=1.5", "seed=1.5 must be a whole number"),
    ("total_steps=many", "total_steps=many must be a whole number"),
    ("eval.every=abc", "eval.every=abc must be a whole number"),
    ("eval=3", "eval=3"),
    ("algo.max_kl", "algo.max_kl"),
    ("gamma=2", "gamma must be between 0 and 1, got 2"),
    ("env=CartPoel-v1", "env=CartPoel-v1", "CartPole-v1"),
    ("env=null", "env"),
    ("~algo", "algo"),
    ("baseline=zero baseline.fit=gauss_newton", "baseline.fit is no setting: baseline has none"),
    ("baseline.dampin=1", "did you mean baseline.damping?"),
    ("advantage.lambda=0.9", "did you mean advantage.lambda_?"),
    ("polcy.hidden_sizes=[3]", "polcy.hidden_sizes is no setting"),
    ("algo.optimizer.lr=0.1", "algo.optimizer.lr is no setting"),
    ("algo=pg algo.optimizer.learning_rate=0.1", "algo.optimizer.learning_rate is no setting"),
    ("checkpoint.evry=3", "did you mean checkpoint.every?"),
    ("sweep.resum=true", "did you mean sweep.resume?"),
    ("policy.recurrent=true", "policy.recurrent is no setting: there are policy.hidden_sizes"),
    ("algo=[npg,pg]", "algo"),
    ("gamma=", "gamma"),
    ("env.kwargs=3", "env.kwargs=3"),
]


@pytest.mark.parametrize("case", HYDRA_MISTAKES, ids=[case[0] for case in HYDRA_MISTAKES])
def test_a_mistake_on_the_command_line_is_one_line(case, tmp_path):
    overrides, *parts = case
    folder = tmp_path / "run"
    code, out = run_here("train.py", *SMALL, f"hydra.run.dir={folder}", *overrides.split())
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert "\n" not in code
    assert out == ""
    assert [part for part in parts if part not in code] == []
    assert not folder.exists() or not list(folder.iterdir())


PROCESS_MISTAKES = [  # few: each starts a process
    (["env=toys:Many-v0"], ["Many-v0", "Text"]),
    (["algo.max_kl=-1"], ["algo.max_kl must be greater than 0, got -1"]),
    (["env=LunarLander-v3", "env.backend=sync"], ["pip install", "box2d"]),
]
TOYS = """
import gymnasium
from gymnasium import spaces

class Many(gymnasium.Env):
    observation_space, action_space = spaces.Discrete(2), spaces.Text(3)

gymnasium.register("Many-v0", Many)
"""


@pytest.mark.parametrize(
    ("arguments", "parts"), PROCESS_MISTAKES, ids=[" ".join(a) for a, _ in PROCESS_MISTAKES]
)
def test_a_mistake_is_one_line_on_stderr_and_leaves_no_run(arguments, parts, tmp_path):
    (tmp_path / "toys.py").write_text(TOYS)
    (tmp_path / "Box2D.py").write_text("raise ImportError('hidden')")
    folder = tmp_path / "run"
    done = process("train.py", *arguments, f"hydra.run.dir={folder}", path=[tmp_path])
    assert_one_error_line(done, *parts)
    assert not folder.exists() or not list(folder.iterdir())
