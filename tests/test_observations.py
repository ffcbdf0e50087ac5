"""An observation is what its space says: no shape, type, scale or offset changes what is learnt."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from probes import compose_config, make_env
from test_combinations import metrics_of
from test_networks import CNN, HEAD, cnn_policy, flat_rows, flat_space, make_baseline
from test_train_script import SMALL, run_here, train
from torch import nn

from rlopt import load
from rlopt.baselines import LinearBaseline
from rlopt.build import make_trainer, remarks_on_images
from rlopt.distributions import Categorical
from rlopt.masks import MaskedBox
from rlopt.networks import find_images
from rlopt.observations import is_image, obs_dtype
from rlopt.policies import CNNPolicy, FourierPolicy, MLPPolicy
from rlopt.recorder import Recorder, sample
from rlopt.recurrent import GRUPolicy
from rlopt.types import obs_tensor

TIMES = {"time/steps_per_second", "time/rollout_share"}

# The same numbers


BOARD = ["~tuned", "env=Board-v0", "env.num_envs=4", "rollout.num_steps=32", "total_steps=200"]
BOARD += ["eval.every=1000", "eval.final_episodes=2"]
KINDS = {
    "mlp": ["policy=mlp", "baseline=mlp"],
    "linear": ["policy=linear", "baseline=linear", "baseline.sees_step=true"],
    "fourier": ["policy=fourier", "baseline=trunk"],
    "gru": ["policy=gru", "policy.state_size=4", "baseline=mlp"],
    "network": ["policy=network", "policy.network._target_=test_networks.Net"],
}
KINDS["network"].append("policy.network.width=5")
LARGE = 2**40  # bounds that float32 does not hold
FORMS = [
    {"form": "grid", "kind": "int8"},
    {"form": "cube", "kind": "uint8"},
    {"form": "dict", "kind": "uint8"},
    {"form": "tuple", "kind": "int64"},
    {"form": "grid", "kind": "int64", "high": LARGE},
    {"form": "cube", "kind": "float64"},
]


def board_metrics(kind, form, folder):
    options = [f"env.kwargs.{key}={value}" for key, value in form.items()]
    rows = metrics_of(compose_config(*BOARD, *KINDS[kind], *options), folder)
    return [{key: x for key, x in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_give_the_same_metrics(kind, tmp_path):
    expected = board_metrics(kind, {"form": "flat", "kind": "float32"}, tmp_path / "flat")
    assert len(expected) > 1
    for i, form in enumerate(FORMS if kind == "mlp" else FORMS[2:5:2]):
        assert board_metrics(kind, form, tmp_path / str(i)) == expected, form


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(0, 2, (3, 3), np.int64), torch.float32),
        (spaces.Box(0, 2**24, (3,), np.int64), torch.float32),
        (spaces.Box(0, 2**24 + 1, (3,), np.int64), torch.float64),
        (spaces.Box(-(2**63), 0, (3,), np.int64), torch.float64),
        (spaces.Box(0, 2**32 - 1, (3,), np.uint32), torch.float64),
        (spaces.Box(0, 1, (3,), np.float64), torch.float64),
        (spaces.Box(-np.inf, np.inf, (3,), np.float32), torch.float32),
        (spaces.Box(-1, 1, (3,), np.float16), torch.float32),
        (spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]), torch.float32),
        (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (1,), np.float64)), torch.float64),
    ],
    ids=str,
)
def test_observations_are_doubles_only_where_float32_cant_hold_them(space, dtype):
    assert obs_dtype(space) == obs_dtype(flat_space(space)) == dtype
    row = np.zeros(spaces.flatdim(space), spaces.flatten_space(space).dtype)
    assert obs_tensor(row, dtype, make_policy("mlp", VECTOR), "cpu").dtype == dtype


# Scale and offset

QUICK = ["~tuned", "env=Scaled-v0", "env.num_envs=16", "rollout.num_steps=16", "gamma=0"]
QUICK += ["algo=npg", "algo.max_kl=0.2", "total_steps=2500", "eval.final_episodes=16"]
SCALED = [
    ["env.kwargs.scale=1e-9"],
    ["env.kwargs.scale=1e9", "policy=fourier"],
    ["env.kwargs.offset=1.7e9"],
    ["env.kwargs.offset=1.7e9", "policy=gru", "policy.state_size=8"],
    ["env.kwargs.offset=1.7e9", "env.kwargs.scale=1000", "env.kwargs.kind=int64"],
]


@pytest.mark.parametrize("overrides", SCALED, ids=" ".join)
def test_it_learns_whatever_the_scale_and_the_offset(overrides, tmp_path):
    """Right in 4 of 4 steps; blind it would be right in 2."""
    trainer = make_trainer(compose_config(*QUICK, *overrides), tmp_path)
    assert trainer.train().mean > 3.5
    trainer.logger.close()


PERCEPTRON = {"hidden_sizes": [4], "activation": "tanh", "orthogonal_init": True}
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
OUTPUT = {"output_gain": 1.0}


def make_policy(kind, space):
    actions, settings = spaces.Discrete(2), HEAD | OUTPUT
    if kind == "fourier":
        return FourierPolicy(space, actions, **settings, num_features=8, bandwidth=1.0)
    if kind == "gru":
        return GRUPolicy(space, actions, **settings, **PERCEPTRON, state_size=4, update_bias=0.0)
    return MLPPolicy(space, actions, **settings, **PERCEPTRON)


OFFSETS = [(1.7e9, 1.0), (0.0, 1e-9), (0.0, 1e9), (-1.7e9, 1e3)]
SHIFTED = pytest.mark.parametrize(("offset", "scale"), OFFSETS)


@SHIFTED
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "fourier", "gru"])
def test_a_policy_sees_the_same_at_every_scale_and_offset(kind, masked, offset, scale):
    policy = make_policy(kind, MaskedBox(VECTOR, 2) if masked else VECTOR)
    x = torch.randn(50, 3, dtype=torch.float64)
    mask = torch.ones(50, 2 * masked)
    mask[:10, 1:] = 0
    behind = [mask]
    if kind == "gru":
        behind += [torch.rand(50, 4), (torch.arange(50) % 10 == 0)[:, None].float()]
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    outputs = []
    for obs in (x, offset + scale * x):
        policy.load_state_dict(before)
        rows = torch.cat([obs, *behind], dim=-1)
        policy.update_statistics(rows)
        outputs.append(policy.dist_params(rows))
    assert outputs[0].dtype == torch.float32
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@SHIFTED
@pytest.mark.parametrize("kind", ["mlp", "linear", "trunk"])
def test_a_baseline_fits_the_same_at_every_scale_and_offset(kind, offset, scale):
    x = torch.randn(50, 3, dtype=torch.float64)
    step, target = torch.arange(50) % 10, x[:, 0].float() + 3
    values = []
    for obs in (x, offset + scale * x):
        torch.manual_seed(0)
        if kind == "linear":
            baseline = LinearBaseline(VECTOR, ridge=1e-3, sees_step=True)
        else:
            policy = make_policy("mlp", VECTOR)
            policy.update_statistics(obs)
            baseline = make_baseline(kind, VECTOR, policy, damping=0.1, sees_step=True)
        assert baseline(obs, step).dtype == torch.float32
        baseline.fit(obs, step, target)
        values.append(baseline(obs, step))
    torch.testing.assert_close(*values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_what_does_not_standardise_gets_torchs_default_floats(own):
    """A policy class of the user's own knows nothing of float64."""
    env = make_env("Scaled-v0")
    space, actions = env.single_observation_space, spaces.Discrete(2)
    settings = HEAD | OUTPUT | PERCEPTRON | {"normalize_obs": False}
    policy = OwnPolicy() if own else MLPPolicy(space, actions, **settings)
    recorder = Recorder(env, "cpu", sample)
    recorder.reset(0)
    obs = recorder.record(policy, quota=None, num_rows=4).obs
    assert obs.dtype == torch.float32
    assert torch.equal(policy.dist_params(obs[0]), policy.network(obs[0]))


class OwnPolicy(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 2)

    def dist_params(self, obs):
        return self.network(obs)

    def forward(self, obs):
        return Categorical(self.dist_params(obs))


def test_a_recurrent_rollout_keeps_the_observations_digits():
    env = make_env("Scaled-v0", offset=1.7e9)
    policy = make_policy("gru", env.single_observation_space)
    recorder = Recorder(env, "cpu", sample)
    recorder.reset(0)
    rollout = recorder.record(policy, quota=None, num_rows=4)
    assert rollout.obs.shape == (5, 2, 2 + policy.state_size)
    x = rollout.obs[..., :2] - 1.7e9
    assert x.abs().max() <= 1
    assert len(x.unique()) == 5 * 2 * 2
    assert recorder.state.dtype == torch.float32


@pytest.mark.parametrize("policy", ["mlp", "gru"])
def test_a_trained_policy_and_its_program_take_large_numbers(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("rlopt.export.has_onnx", lambda: False)
    overrides = ["env=Scaled-v0", "+env.kwargs.offset=1.7e9", f"policy={policy}"]
    overrides += ["policy.hidden_sizes=[4]", "algo=npg", "env.backend=sync"]
    run = train(tmp_path / "run", *overrides)
    code, out = run_here("export.py", f"run={run}")
    assert code is None
    assert " steps, float64 obs [B, 2]" in out
    program = torch.export.load(run / "policy.pt2").module()
    trained, actions = load(run), []
    for x in np.random.default_rng(0).uniform(-1, 1, (40, 2)):
        trained.reset()
        obs = torch.tensor(1.7e9 + x)[None]
        state = [] if policy == "mlp" else [torch.zeros(1, trained.module.state_size)]
        output = program(obs, *state)
        actions.append(trained(1.7e9 + x))
        assert actions[-1] == int(output[0])
    assert set(actions) == {0, 1}


def test_a_number_that_float32_cant_hold_at_all_is_named(tmp_path):
    cfg = compose_config(*QUICK, "env.kwargs.scale=1e39", "on_nonfinite=stop")
    trainer = make_trainer(cfg, tmp_path)
    with pytest.raises(FloatingPointError, match="gave a non-finite observation at step 0"):
        trainer.train()
    trainer.logger.close()


# Images

PIXELS = spaces.Box(0, 255, (40, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "smallest", "answer"),
    [
        (PIXELS, 36, True),
        (spaces.Box(0, 255, (3, 36, 40), np.uint8), 36, True),
        (spaces.Box(0, 255, (36, 36), np.uint8), 36, True),
        (spaces.Box(0, 10, (7, 7, 3), np.uint8), 5, True),
        (spaces.Box(0, 255, (35, 36), np.uint8), 36, False),
        (spaces.Box(0, 255, (2, 17), np.uint8), 5, False),
        (spaces.Box(0, 255, (48,), np.uint8), 5, False),
        (spaces.Box(0, 1, (84, 84, 3), np.float32), 36, True),
        (spaces.Box(-1, 1, (4, 84, 84), np.float64), 5, True),
        (spaces.Box(0, 255, (36, 36), np.int64), 5, True),
        (spaces.Box(0, 1, (16, 16, 3), np.float32), 5, False),
        (spaces.Box(0, 2, (5, 5), np.int8), 5, False),
        (spaces.Box(-np.inf, np.inf, (40, 40), np.float32), 5, False),
        (spaces.Box(0, np.inf, (40, 40), np.float32), 5, False),
        (spaces.Box(np.zeros((40, 40)), np.eye(40) + 1), 5, False),
        (spaces.Box(-np.inf, np.inf, (2, 17), np.float64), 5, False),
        (spaces.MultiBinary([40, 40]), 5, False),
    ],
    ids=str,
)
def test_images_are_bytes_or_large_matrices_of_one_finite_range(space, smallest, answer):
    assert is_image(space, smallest) is answer


def test_convolutions_take_what_is_large_enough_for_them():
    parts = [VECTOR, spaces.Box(0, 255, (5, 5, 3), np.uint8), PIXELS, PIXELS]
    assert find_images(parts, "nature", None) == [2, 3]
    assert find_images(parts, "impala", None) == [1, 2, 3]
    assert find_images(parts, "impala", [4, 4, 4, 4]) == [2, 3]  # 5 -> 3 -> 2 -> 1


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 10, np.uint8), (5, 250, np.uint8), (0, 255, np.float32), (-1, 1, np.float32)],
)
def test_pixels_are_scaled_by_the_bounds_of_their_box(low, high, kind):
    space = spaces.Box(low, high, (40, 40), kind)
    for normalize_obs in (False, True):
        policy = cnn_policy(space, normalize_obs=normalize_obs)
        _, rows = flat_rows(space, 4)
        policy.update_statistics(rows)
        x = policy._input(rows)
        torch.testing.assert_close(x, (rows.float() - low) / (high - low))
        assert 0 <= x.min() < 0.01 < 0.99 < x.max() <= 1


def test_bytes_are_scaled_as_before_bit_for_bit():
    _, rows = flat_rows(PIXELS, 4)
    assert torch.equal(cnn_policy(PIXELS)._input(rows), rows * torch.tensor(1 / 255))


def test_a_pixel_that_never_changes_is_no_division_by_0():
    high = np.full((40, 40), 255, np.uint8)
    high[0] = 0
    x = cnn_policy(spaces.Box(np.zeros_like(high), high, dtype=np.uint8))._input(
        torch.ones(1, 1600)
    )
    assert torch.isfinite(x).all()


@SHIFTED
def test_a_vector_beside_an_image_keeps_its_digits(offset, scale):
    space = spaces.Dict(camera=PIXELS, clock=VECTOR)
    policy = cnn_policy(space)
    x = torch.randn(20, 3, dtype=torch.float64)
    pixels = torch.randint(256, (20, 4800))
    inputs = []
    for vector in (x, offset + scale * x):
        policy = cnn_policy(space)
        rows = torch.cat([pixels, vector], dim=-1)
        policy.update_statistics(rows)
        inputs.append(policy._input(rows))
        assert policy(rows).logits.dtype == torch.float32
    torch.testing.assert_close(*inputs, atol=1e-5, rtol=1e-5)


def test_a_small_grid_beside_an_image_joins_the_vector():
    space = spaces.Dict(camera=PIXELS, board=spaces.Box(0, 2, (3, 3), np.int64))
    settings = CNN | HEAD | OUTPUT | {"convolutions": "nature", "channels": [2, 2, 2]}
    policy = CNNPolicy(flat_space(space), spaces.Discrete(2), **settings)
    assert policy.network[0].is_image == [True, False]
    assert policy.normalizer.running.mean.shape == (9,)
    assert policy.seen == "as images: camera (40x40x3 uint8); as a vector: board (3x3 int64)"


class Look(gym.Env):
    """One step of a picture, beside what `extra` says."""

    def __init__(self, extra=True, kind="uint8", high=255):
        image = spaces.Box(0, high, (40, 40, 3), np.dtype(kind).type)
        parts = {"camera": image, "at": spaces.Tuple([VECTOR, spaces.Discrete(2)])}
        self.observation_space = spaces.Dict(parts) if extra else image
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, True, False, {}


gym.register("Look-v0", Look)
LOOK = ["env=Look-v0", "policy=cnn", "policy.channels=[2,2,2]", "policy.hidden_sizes=[2]"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["baseline=cnn", "baseline.channels=[2,2,2]", "baseline.hidden_sizes=[2]"],
            "policy=cnn and baseline=cnn take as images: camera (40x40x3 uint8); "
            "as a vector: at.0 (3 float64), at.1 (2 int64)",
        ),
        (
            ["env.kwargs.extra=false", "env.kwargs.kind=float32", "env.kwargs.high=1"],
            "policy=cnn takes as images: the observation (40x40x3 float32)",
        ),
    ],
)
def test_a_line_says_what_convolutions_see(overrides, line, tmp_path):
    trainer = make_trainer(compose_config(*LOOK, *overrides), tmp_path)
    trainer.logger.close()
    assert remarks_on_images(trainer.policy, trainer.baseline) == [line]


def test_the_line_is_in_the_log(tmp_path):
    code, out = run_here("train.py", *SMALL, *LOOK, f"hydra.run.dir={tmp_path / 'run'}")
    assert code is None
    assert "note: policy=cnn takes as images: camera (40x40x3 uint8); as a vector: at.0" in out


class OwnBaseline(torch.nn.Module):
    """A baseline as a user writes it: a linear map in torch's default float type."""

    def __init__(self, observation_space):
        super().__init__()
        self.linear = torch.nn.Linear(observation_space.shape[0], 1)

    def forward(self, obs, step):
        return self.linear(obs).squeeze(-1)

    def fit(self, obs, step, target):
        return {"loss": float((self(obs, step) - target).square().mean().detach())}


def test_a_baseline_of_ones_own_gets_the_default_float_type(tmp_path):
    cfg = compose_config("~tuned", "env=Scaled-v0", "env.num_envs=2", "rollout.num_steps=8")
    cfg.baseline = {"_target_": f"{__name__}.OwnBaseline"}
    trainer = make_trainer(cfg, tmp_path)
    trainer.iterate()
    assert trainer.rollout.recorder.obs_dtype == torch.float64
    trainer.logger.close()
