import copy
import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlopt import checkpoint
from rlopt.baselines import LinearBaseline, MLPBaseline, ZeroBaseline, explained_variance
from rlopt.linalg import flatten

SPACE = spaces.Box(-np.inf, np.inf, (3,))
FITS = ["gauss_newton", "optimizer"]


def linear(**settings):
    return LinearBaseline(SPACE, **({"ridge": 1e-10, "sees_step": True} | settings))


def perceptron(**settings):
    defaults = {
        "hidden_sizes": [32],
        "activation": "tanh",
        "orthogonal_init": True,
        "sees_step": False,
        "standardize_target": True,
        "fit": "gauss_newton",
        "optimizer": functools.partial(torch.optim.Adam, lr=0.01),
        "epochs": 10,
        "minibatch_size": 32,
        "damping": 1e-3,
        "cg_iterations": 20,
        "chunk_size": None,
    }
    return MLPBaseline(SPACE, **(defaults | settings))


MAKERS = {"linear": linear} | {fit: functools.partial(perceptron, fit=fit) for fit in FITS}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.fixture(params=MAKERS)
def make_short(request):
    """As `make`, with a fit so short that rounding does not grow."""
    settings = {} if request.param == "linear" else {"epochs": 1, "cg_iterations": 5}
    return functools.partial(MAKERS[request.param], **settings)


@torch.no_grad()
def explained_by(baseline, obs, step, target):
    return explained_variance(baseline(obs, step), target)


def data(size=400):
    """Observations, steps and a smooth function of the observations."""
    obs = torch.randn(size, 3)
    return obs, torch.randint(0, 100, (size,)), obs[:, 0].sin() + 0.5 * obs[:, 1] * obs[:, 2].tanh()


def test_zero_is_zero_and_learns_nothing():
    obs, step, target = data(12)
    baseline = ZeroBaseline(SPACE)
    assert baseline.fit(obs, step, target) == {}
    assert torch.equal(baseline(obs.view(4, 3, 3), step.view(4, 3)), torch.zeros(4, 3))


def test_linear_recovers_a_function_in_its_class(float64):
    obs, step, _ = data()
    t = step / 50
    target = 3 + obs @ torch.tensor([1.0, -2.0, 0.5]) + obs[:, 0] ** 2 + t - t**2 + t**3
    baseline = linear()
    loss = baseline.fit(obs, step, target)["baseline/loss"]
    torch.testing.assert_close(baseline(obs, step), target, rtol=1e-6, atol=1e-6)
    assert loss < 1e-12


def test_linear_ridge_shrinks_towards_the_origin_of_standardized_targets():
    obs, step, target = data()
    small, large = linear(ridge=1e-6), linear(ridge=1e6)
    for baseline in (small, large):
        baseline.fit(obs, step, target)
    assert explained_variance(small(obs, step), target) > 0.3
    torch.testing.assert_close(large(obs, step), target.mean().expand(400), atol=1e-3, rtol=0)


def test_linear_ridge_is_that_of_a_mean_over_samples(float64):
    """(Phi^T Phi / B + ridge I) w = Phi^T y / B: twenty copies of the data change nothing."""
    obs, step, target = data(40)
    once, often = linear(ridge=0.5), linear(ridge=0.5)
    once.fit(obs, step, target)
    often.fit(*(x.repeat_interleave(20, 0) for x in (obs, step, target)))
    torch.testing.assert_close(often.weight, once.weight)
    x = torch.cat([obs, step[:, None]], dim=1)
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    phi = torch.cat([x, x**2, x[:, -1:] ** 3, torch.ones(40, 1)], dim=1)
    y = target - target.mean()  # the scale of the targets goes through
    expected = torch.linalg.solve(phi.T @ phi / 40 + 0.5 * torch.eye(10), phi.T @ y / 40)
    expected[-1] += target.mean()
    torch.testing.assert_close(once.weight, expected)


@pytest.mark.parametrize("fit", FITS)
def test_perceptron_fits_a_smooth_function(fit):
    obs, step, target = data()
    baseline = perceptron(fit=fit)
    for _ in range(3):
        loss = baseline.fit(obs, step, target)["baseline/loss"]
    explained = explained_by(baseline, obs, step, target)
    assert explained > 0.95
    assert math.isclose(loss, 1 - explained, abs_tol=0.02)


def test_gauss_newton_on_a_linear_net_is_least_squares(float64):
    obs, step, target = data()
    baseline = perceptron(hidden_sizes=[], epochs=1, damping=1e-12)
    baseline.fit(obs, step, target)
    X = torch.cat([obs, torch.ones(400, 1)], dim=1)
    expected = X @ torch.linalg.lstsq(X, target[:, None]).solution.squeeze()
    torch.testing.assert_close(baseline(obs, step), expected, atol=1e-8, rtol=1e-8)


def test_gauss_newton_step_is_the_damped_dense_solution(float64):
    """d = (J^T J / B + damping I)^-1 J^T (y - v) / B by a Jacobian row by row."""
    obs, step, target = data(60)
    baseline = perceptron(hidden_sizes=[4], epochs=1, damping=0.3, cg_iterations=100)
    baseline.fit(obs, step, target)  # so that the statistics of the next fit are known
    before = copy.deepcopy(baseline)
    target = before(obs, step).detach() + 0.01 * torch.randn(60)
    y = (target - target.mean()) / target.std(unbiased=False)
    before._rescale(target.mean(), target.std(unbiased=False))
    before.normalizer.update(obs)
    parameters = list(before.network.parameters())
    v = before._standardized(obs)
    J = torch.stack([flatten(torch.autograd.grad(x, parameters, retain_graph=True)) for x in v])
    A = J.T @ J / 60 + 0.3 * torch.eye(J.shape[1])
    d = torch.linalg.solve(A, J.T @ (y - v.detach()) / 60)
    baseline.fit(obs, step, target)
    moved = flatten(baseline.network.parameters()) - flatten(parameters)
    torch.testing.assert_close(moved.detach(), d, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 60, 1000])
def test_gauss_newton_in_chunks_takes_the_same_step(rows, float64):
    obs, step, target = data(60)
    whole = perceptron(epochs=1, cg_iterations=5)  # more of them amplify rounding
    chunked = copy.deepcopy(whole)
    chunked.chunk_size = rows
    for baseline in (whole, chunked):
        baseline.fit(obs, step, target)
    torch.testing.assert_close(chunked(obs, step), whole(obs, step), atol=1e-8, rtol=1e-6)


def test_gauss_newton_never_raises_the_loss(float64):
    obs, step, target = data(100)
    baseline = perceptron(epochs=1, damping=1e-9, cg_iterations=100)
    losses = [baseline.fit(obs, step, target)["baseline/loss"] for _ in range(15)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_targets_units_do_not_matter(make_short, scale, float64):
    """targets * scale + 5 give values * scale + 5, from the first fit on."""
    obs, step, target = data()
    values = []
    for a, b in ((1.0, 0.0), (scale, 5.0)):
        torch.manual_seed(1)
        baseline = make_short()
        for _ in range(2):
            baseline.fit(obs, step, a * target + b)
        values.append((baseline(obs, step).detach() - b) / a)
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)


def test_observations_units_do_not_matter(make_short, float64):
    obs, step, target = data()
    values = []
    for a, b in ((1.0, 0.0), (1000.0, 5.0)):
        torch.manual_seed(1)
        baseline = make_short()
        baseline.fit(a * obs + b, step, target)
        values.append(baseline(a * obs + b, step).detach())
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_first_fit_copes_with_any_size_of_target(make, scale):
    obs, step, target = data()
    baseline = make()
    baseline.fit(obs, step, scale * target + 3 * scale)
    assert explained_by(baseline, obs, step, scale * target) > 0.5


def test_rescale_changes_no_value(float64):
    obs, step, target = data()
    baseline = perceptron()
    baseline.fit(obs, step, target)
    value = baseline(obs, step)
    baseline._rescale(torch.tensor(-40.0), torch.tensor(300.0))
    assert (baseline.target_mean, baseline.target_std) == (-40.0, 300.0)
    torch.testing.assert_close(baseline(obs, step), value)


def test_seeing_the_step_matters(make):
    """A time limit makes the value depend on the time that is left, whatever the observation."""
    obs, step, _ = data()
    target = (100.0 - step) ** 1.5
    explained = {}
    for sees_step in (False, True):
        baseline = make(sees_step=sees_step)
        for _ in range(3):
            baseline.fit(obs, step, target)
        explained[sees_step] = explained_by(baseline, obs, step, target)
    assert explained[True] > 0.95
    assert explained[False] < 0.7


def test_blind_baseline_ignores_the_step(make):
    obs, step, target = data()
    baseline = make(sees_step=False)
    baseline.fit(obs, step, target)
    assert torch.equal(baseline(obs, step), baseline(obs, step + 50))


@pytest.mark.parametrize("constant", [0.0, 1.0, -250.0])
def test_constant_targets_are_learnt_without_nan(make, constant):
    obs, step, _ = data(100)
    baseline = make()
    for _ in range(3):
        metrics = baseline.fit(obs, step, torch.full((100,), constant))
    assert math.isfinite(metrics["baseline/loss"])
    error = (baseline(obs, step) - constant).abs().max()
    assert error < 0.2 * max(1.0, abs(constant))


def test_constant_observations_give_no_nan(make):
    baseline = make()
    step, target = torch.zeros(20, dtype=torch.int64), torch.randn(20)
    baseline.fit(torch.ones(20, 3), step, target)
    value = baseline(torch.ones(20, 3), step)
    torch.testing.assert_close(value, target.mean().expand(20), atol=0.1, rtol=0)


def test_one_sample_gives_no_nan(make):
    baseline = make()
    obs, step, target = data(1)
    baseline.fit(obs, step, target)
    assert baseline(obs, step).isfinite().all()


def test_values_keep_leading_shape_and_dtype(make):
    obs, step, target = data(60)
    baseline = make()
    baseline.fit(obs, step, target)
    value = baseline(obs.view(12, 5, 3), step.view(12, 5))
    assert (value.shape, value.dtype) == ((12, 5), torch.float32)
    torch.testing.assert_close(value.flatten(), baseline(obs, step))


def test_checkpoint_goes_on_exactly(make, tmp_path):
    """Statistics and the optimiser's moments are in state_dict; no pickled code is."""
    obs, step, target = data()
    baseline, other = make(), make()
    baseline.fit(obs, step, target)
    checkpoint.save(tmp_path / "baseline.pt", baseline.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "baseline.pt"))
    for b in (baseline, other):
        torch.manual_seed(1)
        b.fit(obs, step, 2 * target + 1)
    assert torch.equal(baseline(obs, step), other(obs, step))


def test_optimizer_state_is_saved():
    obs, step, target = data(50)
    baseline = perceptron(fit="optimizer")
    fresh = baseline.state_dict()["_extra_state"]["state"]
    baseline.fit(obs, step, target)
    assert not fresh
    assert len(baseline.state_dict()["_extra_state"]["state"]) == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fit", "adam"),
        ("activation", "sine"),
        ("hidden_sizes", [0]),
        ("epochs", 0),
        ("minibatch_size", 0),
        ("damping", -1.0),
        ("cg_iterations", 2.5),
        ("sees_step", "yes"),
    ],
)
def test_perceptron_names_a_wrong_setting(setting, value):
    with pytest.raises(ValueError, match=setting):
        perceptron(**{setting: value})


@pytest.mark.parametrize(("setting", "value"), [("ridge", 0.0), ("sees_step", 1)])
def test_linear_names_a_wrong_setting(setting, value):
    with pytest.raises(ValueError, match=setting):
        linear(**{setting: value})


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(target + 7, target) == 1.0
    assert explained_variance(torch.zeros(4), target) == 0.0
    assert explained_variance(-target, target) == -3.0
    assert math.isnan(explained_variance(target, torch.ones(4)))


@pytest.mark.parametrize("fit", FITS)
def test_without_standardised_targets_the_network_learns_them_as_they_are(fit):
    """It fits targets of unit scale as well, and those of a large scale far worse."""
    obs, step, target = data()
    explained = {}
    for standardize in (True, False):
        for scale in (1.0, 1e4):
            torch.manual_seed(0)
            baseline = perceptron(fit=fit, standardize_target=standardize, epochs=3)
            baseline.fit(obs, step, scale * target)
            explained[standardize, scale] = explained_by(baseline, obs, step, scale * target)
            if not standardize:
                assert (baseline.target_mean, baseline.target_std) == (0, 1)
    assert explained[True, 1e4] == pytest.approx(explained[True, 1.0], abs=0.01)
    assert explained[False, 1.0] > 0.3
    assert explained[False, 1e4] != pytest.approx(explained[False, 1.0], abs=0.05)
