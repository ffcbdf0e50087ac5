import numpy as np
import pytest
import torch
from gymnasium import spaces
from oracles import (
    KINDS,
    OBS_SPACE,
    flat,
    make_batch,
    make_policy,
    mean_kl,
    moved,
    problem,
)
from torch import nn

from rlopt.fisher import fisher_operator
from rlopt.linalg import dense
from rlopt.networks import mlp

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("hidden_sizes", [[], [4], [4, 4]])
@pytest.mark.parametrize("kind", KINDS)
def test_calling_the_policy_is_dist_of_dist_params(kind, hidden_sizes):
    policy = make_policy(kind, hidden_sizes=hidden_sizes)
    batch = make_batch(policy)
    assert policy.dist_params(batch.obs).shape == (16, 4)
    log_prob = policy.dist(policy.dist_params(batch.obs)).log_prob(batch.action)
    assert torch.equal(policy(batch.obs).log_prob(batch.action), log_prob)


@pytest.mark.parametrize("kind", KINDS)
def test_nudging_any_single_parameter_moves_the_kl(kind):
    policy, batch = problem(kind)
    assert ("head.log_std" in dict(policy.named_parameters())) == (kind == "box")
    theta = flat(policy)
    kls = [mean_kl(policy, moved(policy, theta + 0.1 * e), batch) for e in torch.eye(len(theta))]
    assert min(kls) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_enters_the_fisher_matrix(kind):
    policy, batch = problem(kind)
    F = dense(fisher_operator(policy, batch, "exact"), flat(policy))
    assert F.diagonal().min() > 1e-6


@pytest.mark.parametrize("normalize_obs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ratio_is_exactly_one_until_the_statistics_change(kind, normalize_obs):
    policy = make_policy(kind, normalize_obs=normalize_obs)
    policy.update_statistics(3 + 2 * torch.randn(50, 3))
    batch = make_batch(policy)
    old = policy(batch.obs).log_prob(batch.action)
    assert torch.equal((policy(batch.obs).log_prob(batch.action) - old).exp(), torch.ones(16))
    policy.update_statistics(torch.randn(50, 3))
    assert torch.equal(policy(batch.obs).log_prob(batch.action), old) != normalize_obs


def test_normaliser_is_not_a_parameter_and_lives_in_the_checkpoint():
    policy, restored = (make_policy("box", normalize_obs=True) for _ in range(2))
    assert len(flat(policy)) == len(flat(make_policy("box")))
    policy.update_statistics(3 + 2 * torch.randn(50, 3))
    restored.load_state_dict(policy.state_dict())
    obs = torch.randn(5, 3)
    assert torch.equal(restored.dist_params(obs), policy.dist_params(obs))


def box(half_range, center=0.0):
    return spaces.Box(center - half_range, center + half_range, (2,))


def twins(*action_spaces):
    """Policies with equal parameters on different action spaces."""
    policies = [make_policy("box", space) for space in action_spaces]
    for other in policies[1:]:
        other.load_state_dict(
            {**other.state_dict(), **{k: v.data for k, v in policies[0].named_parameters()}}
        )
    return policies


@pytest.mark.parametrize(("half_range", "center"), [(2.0, 0.0), (0.05, 0.0), (3.0, 7.0)])
def test_kl_and_fisher_do_not_depend_on_the_unit_of_the_action(half_range, center):
    unit, scaled = twins(box(1.0), box(half_range, center))
    batch = make_batch(unit)
    F, G = (dense(fisher_operator(p, batch, "exact"), flat(p)) for p in (unit, scaled))
    torch.testing.assert_close(G, F, rtol=1e-6, atol=1e-9)
    theta = flat(unit) + 0.1 * torch.randn_like(flat(unit))
    kls = [mean_kl(p, moved(p, theta), batch) for p in (unit, scaled)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-6)
    assert kls[0] > 1e-3


def test_gaussian_scales_with_the_range_around_its_centre():
    unit, scaled = twins(box(1.0), box(3.0, 7.0))
    obs = torch.randn(5, 3)
    torch.testing.assert_close(scaled(obs).mean, 7 + 3 * unit(obs).mean)
    torch.testing.assert_close(scaled(obs).stddev, 3 * unit(obs).stddev)


@pytest.mark.parametrize(
    ("bounds", "start"), [((-np.inf, np.inf), 0), ((0.0, np.inf), 1), ((-np.inf, 4.0), 0)]
)
def test_an_unbounded_action_keeps_its_own_unit(bounds, start):
    unit, unbounded = twins(box(1.0), spaces.Box(*bounds, (2,)))
    obs = torch.randn(5, 3)
    torch.testing.assert_close(unbounded(obs).mean, start + unit(obs).mean)
    torch.testing.assert_close(unbounded(obs).stddev, unit(obs).stddev)


def test_each_action_dimension_has_its_own_unit():
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32))
    assert make_policy("box", space).head.scale.tolist() == [1, 1]
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 10], np.float32))
    head = make_policy("box", space).head
    assert (head.center.tolist(), head.scale.tolist()) == ([0, 5], [1, 5])


def test_log_prob_is_that_of_the_sampled_action_not_of_its_clipped_copy():
    policy = make_policy("box", log_std_init=0.5)
    batch = make_batch(policy, size=100)
    outside = (batch.action.abs() > 1).any(-1)
    assert outside.sum() > 20
    with torch.no_grad():
        mean, log_std = policy.dist_params(batch.obs).chunk(2, dim=-1)
        z = (batch.action - mean) / log_std.exp()
        density = (-(z**2) / 2 - log_std).sum(-1) - torch.log(torch.tensor(2 * torch.pi))
        torch.testing.assert_close(policy(batch.obs).log_prob(batch.action), density)
        clipped = policy(batch.obs).log_prob(batch.action.clamp(-1, 1))
    assert torch.equal(clipped != density, outside) or not torch.allclose(clipped, density)


def test_greedy_actions_are_the_most_likely_ones():
    obs = torch.randn(10, 3)
    discrete, continuous = make_policy("discrete"), make_policy("box")
    assert torch.equal(discrete(obs).mode, discrete.dist_params(obs).argmax(-1))
    assert torch.equal(continuous(obs).mode, continuous.dist_params(obs)[:, :2])


def test_initial_std_is_the_setting_in_half_ranges():
    policy = make_policy("box", box(2.0), log_std_init=-1.0)
    assert policy(torch.randn(1, 3)).stddev[0, 0].item() == pytest.approx(2 * np.exp(-1))


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Text(3)}),
    ],
    ids=repr,
)
def test_unsupported_action_spaces_are_refused_by_name(action_space):
    with pytest.raises(ValueError, match=r"^(Text|Sequence)\(.* is not supported; Discrete, "):
        make_policy("box", action_space)


@pytest.mark.parametrize(
    "obs_space",
    [spaces.Discrete(4), spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Dict({"a": OBS_SPACE})],
    ids=["discrete", "image", "dict"],
)
def test_unsupported_observation_spaces_are_refused_by_name(obs_space):
    policy = make_policy("discrete")
    with pytest.raises(ValueError, match="flat Box observations, got") as error:
        type(policy)(
            obs_space,
            spaces.Discrete(2),
            hidden_sizes=[],
            activation="tanh",
            distribution="gaussian",
            log_std_init=0.0,
            output_gain=1.0,
            orthogonal_init=True,
            normalize_obs=False,
        )
    assert str(obs_space) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_sizes", [0]),
        ("hidden_sizes", [8.5]),
        ("activation", "sigmoidal"),
        ("output_gain", 0.0),
        ("log_std_init", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        make_policy("box", **{name: value})


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_last_layer_is_orthogonal_with_its_own_gain_and_no_activation(gain):
    network = mlp([6, 8, 3], "tanh", gain, orthogonal_init=True)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Tanh, nn.Linear]
    first, last = network[0].weight, network[-1].weight
    torch.testing.assert_close(last @ last.T, gain**2 * torch.eye(3))
    torch.testing.assert_close(first.T @ first, 2 * torch.eye(6))
    assert not network[0].bias.any()


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_without_orthogonal_init_weights_are_uniform_as_torch_draws_them(gain):
    network = mlp([100, 64, 64], "tanh", gain, orthogonal_init=False)
    for layer, bound in ((network[0], 0.1), (network[-1], gain / 8)):  # 1 / sqrt(fan in)
        weight = layer.weight.detach()
        assert bound * 0.99 < weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any()


def test_a_small_gain_starts_near_uniform():
    policy = make_policy("discrete", output_gain=0.01)
    torch.testing.assert_close(
        policy(torch.randn(9, 3)).probs, torch.full((9, 4), 0.25), atol=0.01, rtol=0
    )
