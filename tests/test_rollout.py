import itertools
import math

import numpy as np
import pytest
import torch
from probes import make_env, make_policy

from rlopt.recorder import Recorder, mode, run_episodes, sample
from rlopt.rollout import EpisodeRollout, StepRollout

COUNTING = ["sync", "async", "vector_entry_point"]


def step_rollout(env, num_steps, seed=0):
    return StepRollout(env, "cpu", seed, num_steps=num_steps)


def episode_rollout(env, episodes, baseline_episodes=0, max_episode_steps=1000, seed=0):
    return EpisodeRollout(
        env,
        "cpu",
        seed,
        episodes=episodes,
        baseline_episodes=baseline_episodes,
        max_episode_steps=max_episode_steps,
    )


@pytest.fixture(params=COUNTING)
def counting(request):
    """Makes counting environments on each backend, and closes them."""
    envs = []

    def make(num_envs=2, **kwargs):
        envs.append(make_env("Counting-v0", num_envs, request.param, **kwargs))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def assert_rows_are_transitions(rollout):
    """What [step, episode] in the observation must say of each row."""
    obs, valid = rollout.obs, rollout.valid
    assert torch.equal(rollout.step.float(), obs[..., 0])
    moved = (obs[1:] - obs[:-1])[valid]
    assert torch.equal(moved, torch.tensor([[1.0, 0.0]]).expand_as(moved))
    assert torch.equal(rollout.reward, torch.where(valid, obs[1:, :, 0], 0.0))


@pytest.mark.parametrize("end", ["terminated", "truncated", "both"])
def test_valid_rows_have_their_true_successor(counting, end):
    env = counting(lengths=[3, 1, 4], end=end)
    rollout = step_rollout(env, 14).collect(make_policy(env))
    assert_rows_are_transitions(rollout)
    done = rollout.terminated | rollout.truncated
    assert done[:, 0].nonzero().flatten().tolist() == [2, 4, 9, 13]
    assert torch.equal(done, rollout.terminated if end != "truncated" else rollout.truncated)
    assert torch.equal(rollout.truncated.any(), torch.tensor(end != "terminated"))


def test_the_row_after_a_done_is_invalid_and_only_resets(counting):
    env = counting(lengths=[3, 1, 4])
    rollout = step_rollout(env, 14).collect(make_policy(env))
    done = rollout.terminated | rollout.truncated
    assert rollout.valid[0].all()
    assert torch.equal(rollout.valid[1:], ~done[:-1])
    assert (rollout.reward[~rollout.valid] == 0).all()
    assert (rollout.step[1:][~rollout.valid] == 0).all()
    assert rollout.num_steps == 2 * (14 - 3)
    assert rollout.num_trajectories == 2 * 4


def test_ended_episodes_are_reported_once_and_in_order(counting):
    env = counting(lengths=[3, 1, 4])
    rollout = step_rollout(env, 14).collect(make_policy(env))
    assert rollout.episode_lengths == [3, 3, 1, 1, 4, 4, 3, 3]
    assert rollout.episode_returns == [6, 6, 1, 1, 10, 10, 6, 6]


def test_episodes_cross_from_one_rollout_into_the_next(counting):
    """Pieces of four rows are one rollout of twelve: nothing is lost or repeated at the seams."""
    policy = make_policy(counting())
    whole = step_rollout(counting(lengths=[5, 2]), 12).collect(policy)
    sampler = step_rollout(counting(lengths=[5, 2]), 4)
    pieces = [sampler.collect(policy) for _ in range(3)]
    for name in ("reward", "terminated", "truncated", "valid"):
        assert torch.equal(torch.cat([getattr(p, name) for p in pieces]), getattr(whole, name))
    for first, second in itertools.pairwise(pieces):
        assert torch.equal(first.obs[-1], second.obs[0])
        assert torch.equal(first.step[-1], second.step[0])
    assert torch.equal(torch.cat([p.obs[:-1] for p in pieces]), whole.obs[:-1])
    assert [x for p in pieces for x in p.episode_returns] == whole.episode_returns
    assert [p.num_trajectories for p in pieces] == [2, 4, 2]


def test_episode_rollout_gives_whole_episodes_from_fresh_resets(counting):
    env = counting(num_envs=2, lengths=[3, 5, 2])
    rollout = episode_rollout(env, 5).collect(make_policy(env))
    assert_rows_are_transitions(rollout)
    assert sorted(rollout.episode_lengths) == [2, 3, 3, 5, 5]
    assert rollout.num_trajectories == 5
    assert rollout.num_steps == sum(rollout.episode_lengths)
    assert rollout.reward.sum() == sum(rollout.episode_returns) == 6 + 15 + 6 + 15 + 3
    assert rollout.step[0].eq(0).all()


def test_each_episode_rollout_starts_from_new_episodes(counting):
    env = counting(num_envs=3, lengths=[3, 7])
    sampler = episode_rollout(env, 2)
    first, second = (sampler.collect(make_policy(env)) for _ in range(2))
    for rollout, episode, length in ((first, 0, 3), (second, 1, 7)):
        assert_rows_are_transitions(rollout)
        assert rollout.obs[:-1][rollout.valid][:, 1].unique().tolist() == [episode]
        assert rollout.episode_lengths == [length, length]
        assert not rollout.valid[:, 2].any()


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (1, 4), (4, 4), (7, 3), (8, 3)])
def test_episode_rollout_gives_exactly_m(episodes, num_envs):
    env = make_env("RandomLength-v0", num_envs)
    sampler = episode_rollout(env, episodes)
    for _ in range(3):
        rollout = sampler.collect(make_policy(env))
        assert len(rollout.episode_returns) == rollout.num_trajectories == episodes
        assert rollout.num_steps == sum(rollout.episode_lengths)


@pytest.mark.parametrize("episodes", [8, 12])
def test_short_episodes_are_not_favoured(episodes):
    """Lengths 1 and 9 by a fair coin, reward 1 a step: the mean is 5; "the first M" give less."""
    env = make_env("RandomLength-v0", 8)
    policy = make_policy(env)
    sampler = episode_rollout(env, episodes)
    returns = [x for _ in range(60) for x in sampler.collect(policy).episode_returns]
    standard_error = 4 / math.sqrt(len(returns))
    assert abs(np.mean(returns) - 5) < 3 * standard_error

    naive = []
    for seed in range(60):
        naive += step_rollout(env, 30, seed).collect(policy).episode_returns[:episodes]
    assert np.mean(naive) < 5 - 3 * standard_error


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_never_ending_environment_is_refused(num_envs):
    env = make_env("Counting-v0", num_envs, lengths=[10**9])
    with pytest.raises(ValueError, match=r"did not end within 20 steps.*max_episode_steps"):
        episode_rollout(env, 4, max_episode_steps=20).collect(make_policy(env))


@pytest.mark.parametrize("episodes", [1, 3])
def test_the_longest_allowed_episode_is_allowed_and_one_step_more_is_not(episodes):
    env = make_env("Counting-v0", 1, lengths=[6, 2])
    policy = make_policy(env)
    assert len(episode_rollout(env, episodes, max_episode_steps=6).collect(policy).episode_returns)
    env = make_env("Counting-v0", 1, lengths=[6, 2])
    with pytest.raises(ValueError, match="did not end within 5 steps"):
        episode_rollout(env, episodes, max_episode_steps=5).collect(policy)


def test_baseline_episodes_are_a_separate_set():
    env = make_env("Counting-v0", 1, lengths=[2])
    sampler = episode_rollout(env, 3, baseline_episodes=2)
    policy = make_policy(env)
    separate, rollout = sampler.collect_for_baseline(policy), sampler.collect(policy)
    assert separate.obs[:-1][separate.valid][:, 1].unique().tolist() == [0, 1]
    assert rollout.obs[:-1][rollout.valid][:, 1].unique().tolist() == [2, 3, 4]


def test_without_baseline_episodes_there_is_no_separate_set():
    env = make_env("Counting-v0")
    policy = make_policy(env)
    assert episode_rollout(env, 3).collect_for_baseline(policy) is None
    assert step_rollout(env, 3).collect_for_baseline(policy) is None


@pytest.mark.parametrize("sampler", [step_rollout, episode_rollout])
def test_the_environment_gets_clipped_actions_and_the_rollout_keeps_the_sampled(sampler):
    env = make_env("Echo-v0", 3)
    policy = make_policy(env, log_std_init=1.0)
    rollout = sampler(env, 8).collect(policy)
    low, high = torch.as_tensor(env.single_action_space.low), torch.as_tensor([1.0, 0.5])
    clipped = torch.minimum(torch.maximum(rollout.action, low), high)
    assert torch.equal(rollout.obs[1:][rollout.valid], clipped[rollout.valid])
    assert (rollout.action != clipped)[rollout.valid].float().mean() > 0.3


def test_sampled_actions_have_the_policys_distribution():
    env = make_env("Echo-v0", 4)
    policy = make_policy(env, log_std_init=1.0)
    rollout = step_rollout(env, 500).collect(policy)
    with torch.no_grad():
        base = policy(rollout.obs[:-1])
        z = ((rollout.action - base.mean) / base.stddev).flatten()
    assert abs(z.mean()) < 0.06
    assert abs(z.std() - 1) < 0.05


def pendulum(obs, action):
    """Gymnasium's Pendulum-v1, one step."""
    cos, sin, speed = obs.unbind(-1)
    torque = action[..., 0].clamp(-2, 2)
    speed = (speed + (15 * sin + 3 * torque) * 0.05).clamp(-8, 8)
    angle = torch.atan2(sin, cos) + speed * 0.05
    return torch.stack([angle.cos(), angle.sin(), speed], dim=-1)


def cart_pole(obs, action):
    """Gymnasium's CartPole-v1, one step."""
    x, v, angle, w = obs.unbind(-1)
    pull = (20.0 * action - 10 + 0.05 * w**2 * angle.sin()) / 1.1
    dw = (9.8 * angle.sin() - angle.cos() * pull) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
    dv = pull - 0.05 * dw * angle.cos() / 1.1
    return torch.stack([x + 0.02 * v, v + 0.02 * dv, angle + 0.02 * w, w + 0.02 * dw], dim=-1)


@pytest.mark.parametrize(
    ("env_id", "dynamics", "backend"),
    [
        ("CartPole-v1", cart_pole, "sync"),
        ("CartPole-v1", cart_pole, "vector_entry_point"),
        ("CartPole-v1", cart_pole, "envpool"),
        ("Pendulum-v1", pendulum, "sync"),
        ("Pendulum-v1", pendulum, "envpool"),
    ],
)
@pytest.mark.parametrize("sampler", [step_rollout, episode_rollout])
def test_successors_obey_the_dynamics_on_every_backend(env_id, dynamics, backend, sampler):
    if backend == "envpool":
        pytest.importorskip("envpool")
    env = make_env(env_id, 3, backend, max_episode_steps=15)
    policy = make_policy(env, log_std_init=0.5)
    collect = sampler(env, 20).collect
    for _ in range(2):
        rollout = collect(policy)
        valid = rollout.valid
        predicted = dynamics(rollout.obs[:-1], rollout.action)
        error = (rollout.obs[1:] - predicted).abs().amax(-1)
        # EnvPool's pendulum turns by its speed from before the clip to 8, Gymnasium's from after.
        clipped = (rollout.obs[1:].abs() == 8).any(-1)
        assert error[valid & ~clipped].max() < 1e-3
        assert (~valid).any()
        reset_rows = torch.zeros_like(valid)
        reset_rows[1:] = (rollout.terminated | rollout.truncated)[:-1]
        assert error[reset_rows].min() > 1e-2
    env.close()


@pytest.mark.parametrize("sampler", [step_rollout, episode_rollout])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_seed_determines_the_rollout(env_id, sampler):
    def collect(env_seed, torch_seed=0):
        env = make_env(env_id, 3, max_episode_steps=10)
        torch.manual_seed(0)
        policy = make_policy(env)
        torch.manual_seed(torch_seed)
        rollouts = sampler(env, 6, seed=env_seed)
        return [rollouts.collect(policy) for _ in range(2)]

    first, again, other_env, other_actions = collect(1), collect(1), collect(2), collect(1, 1)
    for a, b, c in zip(first, again, other_env, strict=True):
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.action, b.action)
        assert torch.equal(a.reward, b.reward)
        assert not torch.equal(a.obs[0], c.obs[0])
    assert torch.equal(first[0].obs[0], other_actions[0].obs[0])
    assert not torch.equal(first[0].action[0], other_actions[0].action[0])


def test_native_vector_environments_may_reuse_their_buffers():
    env = make_env("Counting-v0", 2, "vector_entry_point", reuse_buffers=True)
    rollout = step_rollout(env, 10).collect(make_policy(env))
    assert_rows_are_transitions(rollout)
    assert rollout.episode_returns == [6] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("fault", ["reward", "observation"])
@pytest.mark.parametrize("sampler", [step_rollout, episode_rollout])
@pytest.mark.filterwarnings("ignore:.*WARN. The obs:UserWarning")
@pytest.mark.filterwarnings("ignore:.*WARN. The reward:UserWarning")
def test_a_non_finite_number_names_environment_and_step(sampler, fault, continuous, value):
    kwargs = {"fault": fault, "value": value, "at": 4, "bad_seed": 12, "continuous": continuous}
    env = make_env("Faulty-v0", 3, **kwargs)
    # The fifth action, index 4, gives the reward of step 4 and the observation of step 5.
    step = {"reward": 4, "observation": 5}[fault]
    with pytest.raises(FloatingPointError, match=f"environment 2 .*{fault} at step {step}"):
        sampler(env, 10, seed=10).collect(make_policy(env))


def test_a_rollout_is_never_empty():
    env = make_env("Counting-v0", 1, lengths=[1])
    sampler = step_rollout(env, 1)
    policy = make_policy(env)
    assert [sampler.collect(policy).num_steps for _ in range(4)] == [1, 1, 1, 1]


def test_double_precision_reaches_the_rollout(float64):
    env = make_env("Pendulum-v1", 2)
    rollout = step_rollout(env, 3).collect(make_policy(env))
    assert rollout.obs.dtype == rollout.reward.dtype == rollout.action.dtype == torch.float64
    assert rollout.step.dtype == torch.int64
    assert rollout.valid.dtype == rollout.terminated.dtype == rollout.truncated.dtype == torch.bool


def test_shapes():
    env = make_env("Echo-v0", 3)
    rollout = step_rollout(env, 5).collect(make_policy(env))
    assert rollout.obs.shape == (6, 3, 2)
    assert rollout.action.shape == (5, 3, 2)
    assert rollout.step.shape == (6, 3)
    for name in ("reward", "terminated", "truncated", "valid"):
        assert getattr(rollout, name).shape == (5, 3)


def test_mode_repeats_itself_and_sample_does_not():
    env = make_env("Echo-v0", 1)
    policy = make_policy(env, normalize_obs=False)
    rollouts = {}
    for choose in (mode, sample):
        recorder = Recorder(env, "cpu", choose)
        recorder.reset(0)
        rollouts[choose] = run_episodes(recorder, policy, 2, 10)
        assert rollouts[choose].valid[:4].all()
    a, b = rollouts[mode].action, rollouts[sample].action
    assert torch.equal(a[:4], a[5:9])
    assert not torch.equal(b[:4], b[5:9])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("episodes", 0), ("baseline_episodes", -1), ("max_episode_steps", 0)],
)
def test_episode_rollout_names_a_wrong_setting(setting, value):
    with pytest.raises(ValueError, match=f"^{setting} .*{value}"):
        episode_rollout(None, **({"episodes": 1} | {setting: value}))


def test_step_rollout_names_a_wrong_setting():
    with pytest.raises(ValueError, match=r"num_steps .*2\.5"):
        step_rollout(None, 2.5)
