import math

import pytest
import torch

from rlopt.advantages import gae, reward_to_go, standardize, td

pytestmark = pytest.mark.usefixtures("float64")
GAMMA = 0.9


def random_rollout(seed, T=12, N=6):
    """Random ends of every kind; a row after an end is invalid, and so is a column's tail."""
    g = torch.Generator().manual_seed(seed)
    terminated = torch.rand(T, N, generator=g) < 0.2
    truncated = torch.rand(T, N, generator=g) < 0.2
    valid = torch.ones(T, N, dtype=torch.bool)
    for t in range(1, T):
        valid[t] = ~(valid[t - 1] & (terminated | truncated)[t - 1])
    for n in range(N // 2):  # as in a rollout of whole episodes: nothing after the last one counts
        ends = (valid & (terminated | truncated))[:, n].nonzero()
        valid[int(ends[-1]) + 1 if len(ends) else 0 :, n] = False
    reward = torch.randn(T, N, generator=g) * valid
    return reward, torch.randn(T + 1, N, generator=g), terminated, truncated, valid


def brute_return(rollout, t, n, num_steps):
    """The n-step return of one transition by its definition, and how many steps it took."""
    reward, value, terminated, truncated, _ = rollout
    total = 0.0
    for i in range(num_steps):
        total += GAMMA**i * reward[t + i, n]
        if terminated[t + i, n]:
            return total, i + 1
        if truncated[t + i, n] or t + i + 1 == len(reward) or i + 1 == num_steps:
            return total + GAMMA ** (i + 1) * value[t + i + 1, n], i + 1
    raise AssertionError


def brute_gae(rollout, t, n, lambda_):
    """(1 - lambda) sum_k lambda^(k-1) G^(k), with the remaining weight on the last."""
    T = len(rollout[0])
    last, length = brute_return(rollout, t, n, T + 1)
    shorter = sum(
        (1 - lambda_) * lambda_ ** (k - 1) * brute_return(rollout, t, n, k)[0]
        for k in range(1, length)
    )
    return shorter + lambda_ ** (length - 1) * last


def assert_equals_brute_force(estimate, rollout, brute):
    value, valid = rollout[1], rollout[4]
    for t, n in valid.nonzero().tolist():
        assert math.isclose(estimate[t, n], brute(t, n) - value[t, n], abs_tol=1e-12), (t, n)
    assert (estimate[~valid] == 0).all()


@pytest.fixture(params=range(5))
def rollout(request):
    return random_rollout(request.param)


def test_random_rollouts_hold_every_kind_of_row():
    _, _, terminated, truncated, valid = random_rollout(0)
    for kind in (terminated & ~truncated, truncated & ~terminated, terminated & truncated):
        assert (kind & valid).any()
    assert (~valid).any()
    assert not (terminated | truncated)[-1].all()


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_gae_equals_weighted_n_step_returns(rollout, lambda_):
    estimate = gae(*rollout, gamma=GAMMA, lambda_=lambda_)
    assert_equals_brute_force(estimate, rollout, lambda t, n: brute_gae(rollout, t, n, lambda_))


def test_reward_to_go_equals_double_loop(rollout):
    estimate = reward_to_go(*rollout, gamma=GAMMA, bootstrap=True)
    assert_equals_brute_force(estimate, rollout, lambda t, n: brute_return(rollout, t, n, 99)[0])


@pytest.mark.parametrize("num_steps", [1, 2, 5, 12, 100])
def test_td_equals_double_loop(rollout, num_steps):
    estimate = td(*rollout, gamma=GAMMA, num_steps=num_steps)
    assert_equals_brute_force(
        estimate, rollout, lambda t, n: brute_return(rollout, t, n, num_steps)[0]
    )


def test_gae_lambda_0_is_one_step_td(rollout):
    one_step = td(*rollout, gamma=GAMMA, num_steps=1)
    torch.testing.assert_close(gae(*rollout, gamma=GAMMA, lambda_=0.0), one_step)


def test_gae_lambda_1_and_long_td_are_reward_to_go(rollout):
    to_go = reward_to_go(*rollout, gamma=GAMMA, bootstrap=True)
    torch.testing.assert_close(gae(*rollout, gamma=GAMMA, lambda_=1.0), to_go)
    torch.testing.assert_close(td(*rollout, gamma=GAMMA, num_steps=12), to_go)


ESTIMATORS = {
    "gae": lambda *rollout: gae(*rollout, gamma=0.5, lambda_=0.5),
    "reward_to_go": lambda *rollout: reward_to_go(*rollout, gamma=0.5, bootstrap=True),
    "td": lambda *rollout: td(*rollout, gamma=0.5, num_steps=2),
}


def column(*values):
    return torch.tensor(values)[:, None]


def by_hand(last_terminated, last_truncated):
    """Three steps with rewards 1, 2, 3 and values 1/2, 1, 3/2, 2."""
    terminated, truncated = torch.zeros(2, 3, 1, dtype=torch.bool)
    terminated[-1], truncated[-1] = last_terminated, last_truncated
    valid = torch.ones(3, 1, dtype=torch.bool)
    return column(1.0, 2.0, 3.0), column(0.5, 1.0, 1.5, 2.0), terminated, truncated, valid


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gae", [1.53125, 2.125, 1.5]),
        ("reward_to_go", [2.25, 2.5, 1.5]),
        ("td", [1.875, 2.5, 1.5]),
    ],
)
def test_terminated_does_not_bootstrap_truncated_too_or_not(name, expected, truncated):
    estimate = ESTIMATORS[name](*by_hand(True, truncated))
    torch.testing.assert_close(estimate, column(*expected))


@pytest.mark.parametrize("truncated", [False, True], ids=["end of the rollout", "truncated"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gae", [1.59375, 2.375, 2.5]),
        ("reward_to_go", [2.5, 3.0, 2.5]),
        ("td", [1.875, 3.0, 2.5]),
    ],
)
def test_a_cut_bootstraps_from_the_successor(name, expected, truncated):
    estimate = ESTIMATORS[name](*by_hand(False, truncated))
    torch.testing.assert_close(estimate, column(*expected))


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_crosses_an_episodes_end(name, end):
    """Two stitched episodes: spikes of value and reward in the second leave the first alone."""
    done = torch.zeros(7, 1, dtype=torch.bool)
    done[2] = True
    flags = {"terminated": torch.zeros_like(done), "truncated": torch.zeros_like(done), end: done}
    valid = torch.ones_like(done)
    valid[3] = False
    reward, value = torch.randn(7, 1) * valid, torch.randn(8, 1)
    spiked_reward, spiked_value = reward.clone(), value.clone()
    spiked_reward[4:] += 1e6
    spiked_value[4:] += 1e6
    ends = (flags["terminated"], flags["truncated"], valid)
    estimate = ESTIMATORS[name](reward, value, *ends)
    spiked = ESTIMATORS[name](spiked_reward, spiked_value, *ends)
    assert torch.equal(estimate[:4], spiked[:4])
    assert not torch.equal(estimate[4:], spiked[4:])


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("truncated", [False, True], ids=["terminated", "truncated"])
def test_last_value_of_an_episode_counts_iff_truncated(name, truncated):
    rollout = by_hand(not truncated, truncated)
    value = rollout[1].clone()
    value[-1] += 1.0
    moved = ESTIMATORS[name](rollout[0], value, *rollout[2:]) - ESTIMATORS[name](*rollout)
    assert moved[-1] == 0.5 * truncated


@pytest.mark.parametrize("lambda_", [-0.1, 1.1])
def test_gae_refuses_a_lambda_outside_0_1(lambda_):
    with pytest.raises(ValueError, match="lambda_"):
        gae(*by_hand(True, False), gamma=GAMMA, lambda_=lambda_)


@pytest.mark.parametrize("num_steps", [0, 1.5])
def test_td_refuses_less_than_one_step(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        td(*by_hand(True, False), gamma=GAMMA, num_steps=num_steps)


def test_standardize_gives_mean_0_and_std_1_over_valid_rows():
    valid = torch.rand(30, 4) < 0.7
    x = standardize(5 + 10 * torch.randn(30, 4), valid)
    torch.testing.assert_close(x[valid].mean(), torch.tensor(0.0))
    torch.testing.assert_close(x[valid].std(unbiased=False), torch.tensor(1.0))
    assert (x[~valid] == 0).all()


def test_standardize_ignores_the_numbers_of_invalid_rows():
    valid = torch.rand(30, 4) < 0.7
    x = torch.randn(30, 4)
    noisy = torch.where(valid, x, 1e9)
    assert torch.equal(standardize(x, valid), standardize(noisy, valid))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_standardize_is_free_of_units(scale):
    x, valid = torch.randn(20, 2), torch.ones(20, 2, dtype=torch.bool)
    torch.testing.assert_close(standardize(scale * x, valid), standardize(x, valid))


@pytest.mark.parametrize("x", [[3.0], [0.0, 0.0], [0.1] * 7, [1e8 / 3] * 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standardize_of_equal_numbers_is_zero(x, dtype):
    x = torch.tensor(x, dtype=dtype)[:, None]
    assert (standardize(x, torch.ones_like(x, dtype=torch.bool)) == 0).all()


def test_reward_to_go_without_bootstrap_ends_at_the_time_limit():
    """The lecture's horizon: a truncation is worth 0 beyond, as a termination is."""
    reward, value = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0], [8.0]])
    none, last = torch.tensor([[False], [False]]), torch.tensor([[False], [True]])
    arguments = (reward, value, none, last, ~none)
    to_go = reward_to_go(*arguments, gamma=1.0, bootstrap=False)
    assert to_go.flatten().tolist() == [3.0, 2.0]
    assert reward_to_go(*arguments, gamma=1.0, bootstrap=True).flatten().tolist() == [11.0, 10.0]
