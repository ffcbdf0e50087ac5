"""rlopt.load: the policy of a run folder as a function from observations to actions."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from omegaconf import OmegaConf
from test_train_script import train

from rlopt import load
from rlopt.build import EVALUATION_STREAM
from rlopt.envs import derive_seed, make_vector_env
from rlopt.evaluate import evaluate
from rlopt.trained import TrainedPolicy, alike, batch_shape, flatten, single_spaces

DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2, 2)), "b": spaces.Discrete(3)})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs with discrete and continuous actions."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "CartPole-v1", "env=CartPole-v1", "seed=3")
    train(folder / "Pendulum-v1", "env=Pendulum-v1", "policy.log_std_init=1")
    return folder


def returns_by_hand(policy, episodes, seed):
    """Returns of single environments, as a user's loop finds them."""
    returns = []
    for i in range(episodes):
        env = policy.make_env()
        obs, _ = env.reset(seed=seed + i)
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            done, total = terminated or truncated, total + float(reward)
        returns.append(total)
    return returns


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_users_loop_has_the_returns_of_the_evaluation(runs, env_id):
    policy = load(runs / env_id)
    env = make_vector_env(env_id, num_envs=3, backend="sync", max_episode_steps=20)
    result = evaluate(
        policy.module, env, episodes=3, seed=7, deterministic=True, device=policy.device
    )
    by_hand = sorted(returns_by_hand(policy, 3, seed=7))
    assert by_hand == pytest.approx(sorted(result.returns), rel=1e-5)  # there by time of ending


def test_the_policy_is_that_of_the_named_checkpoint(runs, tmp_path):
    run = shutil.copytree(runs / "CartPole-v1", tmp_path / "run")
    state = torch.load(run / "checkpoints" / "last.pt")
    last = [key for key in state["policy"] if key.startswith("network")][-1]
    for name, bias in (("last", [9.0, -9.0]), ("best", [-9.0, 9.0])):
        state["policy"][last] = torch.tensor(bias)
        torch.save(state, run / "checkpoints" / f"{name}.pt")
    obs = np.zeros(4, np.float32)
    assert (load(run)(obs), load(str(run), checkpoint="best")(obs)) == (0, 1)


def test_a_batch_gives_the_actions_of_its_rows(runs):
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        policy = load(runs / env_id)
        obs = np.stack([policy.observation_space.sample() for _ in range(5)]).clip(-3, 3)
        actions = policy(obs)
        assert actions.shape == (5, *policy.action_space.shape)
        for row, action in zip(obs, actions, strict=True):
            assert policy(row) in policy.action_space
            np.testing.assert_allclose(policy(row), action, rtol=1e-5)


def test_sampled_actions_vary_follow_torchs_seed_and_stay_within_the_bounds(runs):
    policy = load(runs / "Pendulum-v1")
    obs = np.zeros((500, 3), np.float32)
    torch.manual_seed(0)
    first = policy(obs, deterministic=False)
    torch.manual_seed(0)
    again = policy(obs, deterministic=False)
    assert np.array_equal(first, again)
    assert {-2.0, 2.0} < set(first.flatten().tolist())  # std e is far beyond the bounds
    assert abs(first).max() == 2.0
    assert np.ptp(policy(obs)) == 0


@pytest.mark.parametrize("obs", [np.zeros(3), np.zeros((2, 5)), np.zeros((1, 1, 4)), 1.0, "no"])
def test_an_observation_of_another_shape_is_refused(runs, obs):
    with pytest.raises(ValueError, match=r"^obs .* does not fit Box\(.*\(4,\), float32\), nor"):
        load(runs / "CartPole-v1")(obs)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"^run={tmp_path} is no run folder: "):
        load(tmp_path)


def test_a_damaged_checkpoint_and_an_unknown_name_are_named(runs, tmp_path):
    run = shutil.copytree(runs / "CartPole-v1", tmp_path / "run")
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"^{path} is not a readable checkpoint: "):
        load(run)
    with pytest.raises(ValueError, match=r"^checkpoint must be one of last, best, got 'first'$"):
        load(run, checkpoint="first")


def test_the_checkpoint_of_another_policy_is_refused(runs, tmp_path):
    run = shutil.copytree(runs / "CartPole-v1", tmp_path / "run")
    path = run / ".hydra" / "config.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(path), {"policy": {"hidden_sizes": [3]}}), path)
    with pytest.raises(ValueError, match=r"^last\.pt does not fit the run's policy: "):
        load(run)


def test_observations_of_any_space_are_those_that_training_saw():
    """Alone and in batches, nested ones too: the rows of Gymnasium's own flattening."""
    for space in (DICT, spaces.Tuple([spaces.Discrete(2), DICT]), spaces.Discrete(4)):
        batch = [space.sample() for _ in range(3)]
        expected = np.stack([spaces.flatten(space, obs) for obs in batch])
        assert batch_shape(space, batch[0]) == ()
        np.testing.assert_array_equal(flatten(space, batch[0], None), expected[:1])
        stacked = stack(space, batch)
        assert batch_shape(space, stacked) == (3,)
        np.testing.assert_array_equal(flatten(space, stacked, 3), expected)


def stack(space, batch):
    if isinstance(space, spaces.Dict):
        return {key: stack(part, [obs[key] for obs in batch]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack(part, [obs[i] for obs in batch]) for i, part in enumerate(space))
    return np.stack(batch)


def test_the_evaluation_that_the_run_recorded_is_found_again(runs):
    policy = load(runs / "CartPole-v1")
    env = make_vector_env("CartPole-v1", num_envs=4, max_episode_steps=20)
    seed = derive_seed(3, EVALUATION_STREAM)
    result = evaluate(policy.module, env, episodes=5, seed=seed, deterministic=True, device="cpu")
    summary = OmegaConf.load(runs / "CartPole-v1" / "summary.json")
    assert result.mean == pytest.approx(summary.eval_return_mean)
    assert policy.env_steps == summary.env_steps


LIMIT = "{_target_: gymnasium.wrappers.RescaleAction, min_action: -3, max_action: 3}"


@pytest.mark.parametrize(
    ("arguments", "observations", "actions"),
    [
        (
            ["env=FrozenLake-v1", "+env.kwargs.map_name=8x8"],
            spaces.Discrete(64),
            spaces.Discrete(4),
        ),
        (["env=probes:RandomLength-v0"], None, None),
        (["env=Pendulum-v1", f"env.wrappers=[{LIMIT}]"], None, spaces.Box(-3, 3, (1,))),
    ],
    ids=["kwargs", "module", "wrapper"],
)
def test_make_env_is_the_environment_of_the_run(arguments, observations, actions, tmp_path):
    policy = load(train(tmp_path / "run", *arguments, "total_steps=64", "eval.final_episodes=1"))
    env = policy.make_env()
    assert observations in (None, env.observation_space)
    assert actions in (None, env.action_space)
    assert (policy.observation_space, policy.action_space) == (
        env.observation_space,
        env.action_space,
    )
    assert env.spec.max_episode_steps == 20
    obs, _ = env.reset(seed=0)
    assert policy(obs) in env.action_space
    env.step(policy(obs))


ACTIONS = [
    spaces.Discrete(3, start=-1),
    spaces.Discrete(3, dtype=np.int32),
    spaces.MultiDiscrete([2, 3], dtype=np.int32, start=[1, -2]),
    spaces.MultiBinary([2, 2]),
    spaces.Box(-1, 1, (2,), np.float64),
    spaces.Box(-1, 1, (2, 2), np.float16),
    spaces.Box(-1, 1, ()),
    spaces.Tuple([spaces.Discrete(2, start=4), spaces.Box(-1, 1, (2,), np.float64)]),
    spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]), b=spaces.Discrete(3)),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_actions_are_in_the_space_alone_and_in_batches(space):
    module = oracles.make_policy(None, space, output_gain=3.0)
    obs_space = spaces.Box(-1, 1, (3,))
    policy = TrainedPolicy(module, obs_space, space, "any", 0, "cpu", 0, make_env=None)
    for deterministic in (True, False):
        assert policy(obs_space.sample(), deterministic=deterministic) in space
        batch = np.stack([obs_space.sample() for _ in range(4)])
        assert policy(batch, deterministic=deterministic) in batch_space(space, 4)


def test_spaces_are_those_of_one_environment_where_the_vector_version_has_others():
    """EnvPool's actions of HalfCheetah-v5 are float64, Gymnasium's float32."""
    ours = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
    theirs = spaces.Box(-1, 1, (3,), np.float64), spaces.Box(-1, 1, (2,), np.float64)
    other = spaces.Box(-1, 1, (4,)), ours[1]

    def made(pair):
        names = ("observation_space", "action_space")
        return SimpleNamespace(**dict(zip(names, pair, strict=True)), close=lambda: None)

    assert single_spaces(lambda: made(ours)) == ours
    assert single_spaces(lambda: 1 / 0) is None
    assert alike(ours, theirs)
    assert not alike(other, theirs)
    assert not alike(None, theirs)


def test_importing_rlopt_starts_nothing():
    code = "import sys, rlopt; print(sorted({'torch', 'numpy', 'gymnasium'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
