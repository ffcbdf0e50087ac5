"""Every rule runs on every kind of environment from the command line, with no tuned file."""

import csv
import json
import math
import warnings

import pytest
from test_train_script import ALGOS, process

from rlopt.envs import make_single_env

ENVS = {  # and the steps of two or three updates
    "FrozenLake-v1": 4096,
    "Taxi-v4": 4096,
    "Blackjack-v1": 4096,
    "CarRacing-v3": 512,
    "ALE/Pong-v5": 512,
    "BipedalWalker-v3": 4096,
    "HalfCheetah-v4": 4096,
    "Humanoid-v5": 4096,
}
IMAGES = {"CarRacing-v3", "ALE/Pong-v5"}
FEW_FRAMES = ["env.num_envs=4", "rollout.num_steps=64", "env.max_episode_steps=200"]


def skip_without_package(env_id):
    try:
        with warnings.catch_warnings(action="ignore"):  # as an error, Box2D's ends the process
            make_single_env(env_id, max_episode_steps=None, kwargs={}, wrappers=[]).close()
    except Exception as error:
        if env_id == "HalfCheetah-v4":  # EnvPool stands in
            pytest.importorskip("envpool")
        else:
            pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("algo", [*ALGOS, "ppo_clip"])
@pytest.mark.parametrize("env_id", ENVS)
def test_some_updates_from_the_command_line(env_id, algo, tmp_path):
    skip_without_package(env_id)
    sizes = [f"total_steps={ENVS[env_id]}", "eval.final_episodes=4"]
    sizes += FEW_FRAMES if env_id in IMAGES else []
    run = f"hydra.run.dir={tmp_path / 'run'}"
    out, err = process(
        "train.py", f"algo={algo}", f"env={env_id}", "~tuned", *sizes, run
    ).communicate()
    assert err == "", out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert math.isfinite(summary["eval_return_mean"])
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 2
    assert all(float(row["policy/kl"]) > 0 for row in rows)
