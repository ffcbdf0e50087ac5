"""scripts/evaluate.py on the folder of a run."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_train_script import assert_one_error_line, content, process, run_here, summary_of, train

from rlopt.build import EVALUATION_STREAM
from rlopt.envs import derive_seed

RETURNS = re.compile(r"mean (\S+)  std (\S+)  min (\S+)  max (\S+)")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, whose name has what sweeps put into names."""
    folder = tmp_path_factory.mktemp("runs") / "algo=npg,seed=3"
    return train(folder.with_name("plain"), "algo=npg", "algo.max_kl=1e-4", "seed=3").rename(folder)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def evaluate(run, *arguments):
    code, out = run_here("evaluate.py", f"run={run}", *arguments)
    assert code is None
    return out


def statistics(run, *arguments):
    return [float(x) for x in RETURNS.search(evaluate(run, *arguments)).groups()]


def mistake(*arguments):
    code, out = run_here("evaluate.py", *arguments)
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert "\n" not in code
    assert out == ""
    return code


def test_the_evaluation_of_training_is_reproduced(finished):
    """The same seed, environments and number of episodes give what summary.json says."""
    seed = derive_seed(3, EVALUATION_STREAM)
    mean, std, low, high = statistics(finished, f"seed={seed}", "episodes=5", "num_envs=4")
    summary = summary_of(finished)
    assert mean == pytest.approx(summary["eval_return_mean"], abs=0.005)
    assert std == pytest.approx(summary["eval_return_std"], abs=0.005)
    assert low <= mean <= high


@pytest.mark.parametrize("name", ["last", "best"])
def test_the_output_says_what_was_evaluated(run, name):
    path = run / "checkpoints" / f"{name}.pt"
    torch.save(torch.load(path) | {"env_steps": 12345}, path)
    out = evaluate(run, "episodes=3", f"checkpoint={name}", "deterministic=false")
    assert out.startswith(f"CartPole-v1, {name}.pt at 12345 steps, 3 sampled episodes\n")


def test_sampled_episodes_are_not_the_deterministic_ones(finished):
    sampled = statistics(finished, "deterministic=false", "episodes=8")
    assert sampled != statistics(finished, "deterministic=true", "episodes=8")


def test_a_seed_decides_sampled_episodes(finished):
    sampled = ["deterministic=false", "episodes=8"]
    assert statistics(finished, *sampled) == statistics(finished, *sampled)
    assert statistics(finished, *sampled) != statistics(finished, *sampled, "seed=5")


def test_evaluation_leaves_the_run_as_it_is(finished):
    before = content(finished)
    evaluate(finished, "episodes=2")
    assert content(finished) == before


def test_the_checkpoint_decides_the_policy(run):
    path = run / "checkpoints" / "last.pt"
    state = torch.load(path)
    last = [key for key in state["policy"] if key.startswith("network")][-1]
    state["policy"][last] = torch.tensor([100.0, -100.0])
    torch.save(state, path)
    assert statistics(run, "episodes=4")[3] <= 11  # always pushed to the left


def test_a_video_is_written(run):
    for package in ("moviepy", "pygame"):
        pytest.importorskip(package)
    out = evaluate(run, "episodes=1", "video=true", "video_episodes=2")
    assert f"wrote {run / 'videos'}" in out
    videos = sorted((run / "videos").glob("*.mp4"))
    assert len(videos) == 2
    assert all(b"ftyp" in video.read_bytes()[:16] for video in videos)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("checkpoint=first", ["checkpoint must be one of last, best, got 'first'"]),
        ("episodes=0", ["episodes must be", "at least 1, got 0"]),
        ("episodes=abc", ["episodes must be", "'abc'"]),
        ("num_envs=0", ["num_envs must be", "at least 1, got 0"]),
        ("seed=-1", ["seed must be", "at least 0, got -1"]),
        ("backend=foo", ["backend must be one of auto", "'foo'"]),
        ("deterministic=7", ["deterministic must be true or false, got 7"]),
        ("video=7", ["video must be true or false, got 7"]),
        ("episods=3", ["episods is no setting: did you mean episodes?"]),
    ],
)
def test_a_wrong_setting_is_one_line(run, argument, parts):
    message = mistake(f"run={run}", argument)
    assert [part for part in parts if part not in message] == []


def test_a_folder_that_is_no_run_is_named(tmp_path):
    assert mistake(f"run={tmp_path}").startswith(f"error: run={tmp_path} is no run folder")
    nothing = tmp_path / "nothing"
    assert mistake(f"run={nothing}").startswith(f"error: run={nothing} is no run folder")
    assert not list(tmp_path.iterdir())


def test_a_command_without_a_run_asks_for_it():
    assert re.search(r"\brun\b", mistake())


@pytest.mark.parametrize("keep", [0, 100, 1000])
def test_a_truncated_checkpoint_is_named(run, keep):
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is not a readable checkpoint" in mistake(f"run={run}")


def test_a_missing_checkpoint_is_named(run):
    (run / "checkpoints" / "best.pt").unlink()
    assert f"{run / 'checkpoints' / 'best.pt'} does not exist" in mistake(
        f"run={run}", "checkpoint=best"
    )


class Hostile:
    """Unpickling it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(run, tmp_path):
    torch.save({"policy": Hostile(tmp_path / "made")}, run / "checkpoints" / "last.pt")
    assert "last.pt is not a readable checkpoint" in mistake(f"run={run}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("state", [{}, {"policy": {}, "env_steps": 1}])
def test_a_checkpoint_of_something_else_is_named(run, state):
    torch.save(state, run / "checkpoints" / "last.pt")
    assert "last.pt" in mistake(f"run={run}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_run_on_a_gpu_can_be_evaluated_without_one(run):
    path = run / ".hydra" / "config.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(path), {"device": "cuda"}), path)
    code, out = run_here("evaluate.py", f"run={run}", "episodes=2")
    assert RETURNS.search(out) or "device=cuda is not available here" in str(code)


def test_a_missing_video_package_says_what_to_install(run, tmp_path):
    (tmp_path / "moviepy.py").write_text("raise ImportError('hidden')")
    done = process("evaluate.py", f"run={run}", "episodes=1", "video=true", path=[tmp_path])
    assert_one_error_line(done, "video=true", "pip install", "video")


def test_no_run_folder_is_one_line_on_stderr(tmp_path):
    assert_one_error_line(process("evaluate.py", f"run={tmp_path}"), f"run={tmp_path}")
