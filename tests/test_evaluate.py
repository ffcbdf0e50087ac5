import copy

import numpy as np
import pytest
import torch
from probes import make_env, make_policy

from rlopt.evaluate import Evaluation, evaluate


def run(policy, env, episodes=6, seed=0, deterministic=True):
    return evaluate(
        policy, env, episodes=episodes, seed=seed, deterministic=deterministic, device="cpu"
    )


@pytest.fixture
def env():
    return make_env("CartPole-v1", 4, "vector_entry_point")


@pytest.fixture
def policy(env):
    policy = make_policy(env)
    policy.update_statistics(torch.randn(100, 4))
    return policy


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("backend", ["sync", "vector_entry_point", "envpool"])
def test_a_seed_determines_the_result(policy, backend, deterministic):
    if backend == "envpool":
        pytest.importorskip("envpool")
    env = make_env("CartPole-v1", 4, backend)
    first = run(policy, env, deterministic=deterministic)
    torch.manual_seed(99)
    assert run(policy, env, deterministic=deterministic) == first
    assert run(policy, env, seed=1, deterministic=deterministic) != first
    env.close()


def test_a_new_environment_gives_the_same_result(policy, env):
    assert run(policy, make_env("CartPole-v1", 4, "vector_entry_point")) == run(policy, env)


@pytest.mark.parametrize("deterministic", [False, True])
def test_evaluation_leaves_policy_and_random_state_untouched(policy, env, deterministic):
    before, random_state = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    run(policy, env, deterministic=deterministic)
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert policy.training
    assert all(p.grad is None for p in policy.parameters())


def test_deterministic_takes_the_mode_and_sampled_does_not():
    """Ends are a matter of the action alone here: reward = action."""
    env = make_env("RewardIsAction-v0", 4)
    policy = make_policy(env, hidden_sizes=[], output_gain=0.01)
    with torch.no_grad():
        policy.network[-1].bias.copy_(torch.tensor([0.0, 0.1]))
    assert run(policy, env, 40).returns == [1.0] * 40
    assert set(run(policy, env, 40, deterministic=False).returns) == {-1.0, 1.0}


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (1, 4), (3, 4), (7, 4), (8, 4), (9, 2)])
def test_the_number_of_episodes_is_exact(episodes, num_envs):
    env = make_env("RandomLength-v0", num_envs)
    result = run(make_policy(env), env, episodes)
    assert len(result.returns) == len(result.lengths) == episodes
    assert result.returns == result.lengths


def test_evaluations_are_not_biased_to_short_episodes():
    env = make_env("RandomLength-v0", 16)
    result = run(make_policy(env), env, 400, deterministic=False)
    assert abs(result.mean - 5) < 3 * 4 / 20


def test_mean_and_std_are_those_of_the_returns():
    result = Evaluation([1.0, 2.0, 6.0], [1, 2, 6])
    assert result.mean == 3.0
    assert np.isclose(result.std, np.sqrt(14 / 3))


def test_the_std_of_equal_returns_is_0():
    assert np.std([0.955] * 100) > 0
    assert Evaluation([0.955] * 100, [1] * 100).std == 0.0


def test_a_second_evaluation_starts_afresh():
    """Episodes of 1, 4, 1, ... steps: the first call leaves one unfinished."""
    env = make_env("Counting-v0", 2, lengths=[1, 4])
    policy = make_policy(env)
    assert sorted(run(policy, env, 3).lengths) == [1, 1, 4]
    again = run(policy, env, 2)
    assert len(again.returns) == 2
    assert all(r == n * (n + 1) / 2 for r, n in zip(again.returns, again.lengths, strict=True))
