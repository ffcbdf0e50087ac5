import functools
import math
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from oracles import dense_fisher, flat
from probes import CONFIGS, compose_config, make_env
from test_train_script import SMALL, run_here, summary_of
from torch import nn
from torch.distributions import kl_divergence

from rlopt import load
from rlopt.baselines import CNNBaseline, MLPBaseline, TrunkBaseline
from rlopt.build import make_trainer, remarks_on_images
from rlopt.config import ConfigError
from rlopt.export import Greedy, export
from rlopt.fisher import fisher_operator
from rlopt.linalg import PASS_ROWS, chunk_that_fits, dense, gradient
from rlopt.masks import mask_size, unmasked
from rlopt.networks import (
    IMAGE_ROWS,
    PASS_NUMBERS,
    AsImage,
    Encoders,
    FourierFeatures,
    pass_rows,
)
from rlopt.observations import FlatBox, entries
from rlopt.policies import CNNPolicy, FourierPolicy, MLPPolicy
from rlopt.types import Batch
from rlopt.verify.audit import num_changed, tensors_of

IMAGE = spaces.Box(0, 255, (16, 16, 1), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
BOTH = spaces.Dict({"goal": VECTOR, "camera": IMAGE, "mode": spaces.Discrete(2)})
HEAD = {"distribution": "gaussian", "log_std_init": -0.5, "normalize_obs": True}
CNN = {
    "convolutions": "impala",
    "channels": [2, 3],
    "vector_sizes": [],
    "hidden_sizes": [5],
    "activation": "tanh",
    "orthogonal_init": True,
}
SMALL_CNN = ["policy=cnn", "policy.channels=[4,8,8]", "policy.hidden_sizes=[16]"]
SMALL_CNN += ["env.kwargs.shape=[36,36,1]"]
FIT = {
    "sees_step": False,
    "standardize_target": True,
    "fit": "gauss_newton",
    "optimizer": functools.partial(torch.optim.Adam, lr=0.01),
    "epochs": 1,
    "minibatch_size": 32,
    "damping": 1e-12,
    "cg_iterations": 50,
    "chunk_size": None,
}


def flat_space(space):
    return FlatBox(spaces.flatten_space(space), space)


def flat_rows(space, size):
    """Sampled observations and their rows [B, d]."""
    space.seed(0)
    samples = [space.sample() for _ in range(size)]
    rows = torch.as_tensor(np.stack([spaces.flatten(space, x) for x in samples]))
    return samples, rows.float() if rows.is_floating_point() else rows


def cnn_policy(space, actions=None, **changes):
    actions = actions or spaces.Discrete(3)
    return CNNPolicy(flat_space(space), actions, **CNN | HEAD | {"output_gain": 1.0} | changes)


# Fourier features


def test_fourier_features_are_those_of_the_paper():
    features = FourierFeatures(3, 7, bandwidth=0.5)
    P = features.directions.numpy() * 0.5 * math.sqrt(6)
    s, phi = np.random.default_rng(0).normal(size=(4, 3)), features.phase.numpy()
    y = [[math.sin(s_b @ P[:, i] / (0.5 * math.sqrt(6)) + phi[i]) for i in range(7)] for s_b in s]
    torch.testing.assert_close(features(torch.tensor(s).float()), torch.tensor(y).float())


def test_fourier_directions_are_normal_and_phases_uniform():
    features = FourierFeatures(50, 4000, bandwidth=1.0)
    P = features.directions * 10
    assert abs(float(P.mean())) < 0.01
    assert float(P.std()) == pytest.approx(1, abs=0.01)
    assert float(features.phase.std()) == pytest.approx(math.pi / 3**0.5, rel=0.02)
    assert 3 < features.phase.abs().max() <= math.pi


def test_the_unit_of_the_bandwidth_is_the_mean_distance_of_standardised_observations():
    s = torch.randn(400, 20)
    assert float(torch.pdist(s).mean()) == pytest.approx(math.sqrt(2 * 20), rel=0.02)


def test_of_fourier_features_only_the_linear_map_is_learnt():
    settings = HEAD | {"num_features": 8, "bandwidth": 1.0, "output_gain": 0.1}
    policy = FourierPolicy(VECTOR, spaces.Discrete(2), **settings)
    assert [name for name, _ in policy.named_parameters()] == ["network.1.weight", "network.1.bias"]
    assert {"network.0.directions", "network.0.phase"} < set(policy.state_dict())


# Convolutions


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("convolutions", "shape", "num_outputs", "num_parameters"),
    [
        # 84 -> 20 -> 9 -> 7, 7 * 7 * 64; (8 * 8 * 4 + 1) 32 + (4 * 4 * 32 + 1) 64 + (9 * 64 + 1) 64
        ("nature", (4, 84, 84), 3136, 8224 + 32832 + 36928),
        ("nature", (84, 84, 4), 3136, 8224 + 32832 + 36928),
        ("nature", (36, 36), 64, 2080 + 32832 + 36928),  # 36 -> 8 -> 3 -> 1
        # 72x96 -> 36x48 -> 18x24 -> 9x12, times 32; a block has five 3x3 convolutions
        ("impala", (72, 96, 3), 3456, 9728 + 41632 + 46240),
        ("impala", (1, 5, 5), 32, 9440 + 41632 + 46240),  # 5 -> 3 -> 2 -> 1
    ],
)
def test_sizes_of_the_papers_networks(convolutions, shape, num_outputs, num_parameters):
    image = spaces.Box(0, 255, shape, np.uint8)
    encoders = Encoders([image], convolutions, None, [], "relu", orthogonal_init=False)
    assert encoders.num_outputs == num_outputs
    assert count(encoders) == num_parameters
    assert encoders(torch.rand(2, math.prod(shape))).shape == (2, num_outputs)


@pytest.mark.parametrize("shape", [(5, 7, 2), (2, 5, 7), (5, 7)])
def test_rows_become_images_of_channels_height_and_width(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    (image,), row = flat_rows(space, 1)
    as_image = AsImage(space)
    channels_first = image if shape[0] == 2 else np.atleast_3d(image).transpose(2, 0, 1)
    assert np.array_equal(as_image(row)[0].numpy(), channels_first)
    assert as_image.size == channels_first.shape


def test_impala_adds_each_residual_to_what_it_is_of():
    encoder = Encoders([IMAGE], "impala", [2], [], "relu", orthogonal_init=True).images[0]
    as_image, conv, pool, first, second, relu, flatten = encoder
    rows = torch.rand(3, 256)
    x = pool(conv(as_image(rows)))
    for residual in (first, second):
        x = x + residual[3](torch.relu(residual[1](torch.relu(x))))
    torch.testing.assert_close(encoder(rows), flatten(relu(x)))
    assert x.shape == (3, 2, 8, 8)


def test_an_encoder_sees_its_own_entry_alone():
    """Rows are camera, goal, mode in the order of the keys; outputs the camera's, then the rest."""
    encoders = Encoders(entries(flat_space(BOTH)), "impala", [2], [4], "tanh", True)
    x = torch.rand(1, 256 + 3 + 2)
    before = encoders(x)
    image, vector = slice(0, 128), slice(128, 132)
    for columns, changed in ((slice(0, 256), image), ([256], vector), ([260], vector)):
        other = x.clone()
        other[:, columns] = torch.rand_like(other[:, columns])
        differs = (encoders(other) != before)[0]
        assert differs[changed].any()
        assert not differs[: changed.start].any()
        assert not differs[changed.stop :].any()


# Observations


def test_entries_are_the_leaves_of_what_was_flattened_and_a_mask_is_last():
    env = make_env("Spot-v0", mask=True)
    space = env.single_observation_space
    assert (mask_size(space), space.shape) == (2, (256 + 1 + 2,))
    assert [entry.shape for entry in entries(space)] == [(16, 16, 1), (1,), (2,)]
    assert [entry.shape for entry in entries(unmasked(space))] == [(16, 16, 1), (1,)]
    assert entries(make_env("CartPole-v1").single_observation_space)[0].shape == (4,)
    env.close()


@pytest.mark.parametrize("space", [IMAGE, BOTH], ids=["image", "both"])
def test_pixels_are_scaled_and_the_rest_is_standardised(space):
    policy = cnn_policy(space)
    _, rows = flat_rows(space, 40)
    for dtype in (rows.dtype, torch.float32):
        policy.update_statistics(rows.to(dtype))
    x = policy._input(rows)
    torch.testing.assert_close(x[:, :256], rows[:, :256].float() / 255)
    if space is BOTH:
        expected = (rows[:, 256:] - rows[:, 256:].mean(0)) / rows[:, 256:].std(0, unbiased=False)
        torch.testing.assert_close(x[:, 256:], expected.float(), atol=1e-5, rtol=1e-5)
        assert policy.normalizer.running.mean.shape == (5,)
    else:
        assert policy.normalizer.running is None
    assert sum(x.numel() for x in policy.normalizer.state_dict().values()) < 25


def make_baseline(kind, space, policy=None, **changes):
    settings = FIT | {"hidden_sizes": [4], "activation": "tanh", "orthogonal_init": True} | changes
    if kind == "trunk":
        return TrunkBaseline(space, policy=policy, **settings)
    if kind == "mlp":
        return MLPBaseline(space, **settings)
    return CNNBaseline(space, **CNN | settings)


@pytest.mark.parametrize("normalize_obs", [False, True])
def test_rows_of_bytes_and_of_floats_are_the_same(normalize_obs):
    space = spaces.Tuple([IMAGE, spaces.Box(0, 255, (4,), np.uint8)])
    _, rows = flat_rows(space, 20)
    step, target = torch.arange(20), torch.randn(20)
    mlp = {"hidden_sizes": [3], "activation": "tanh", "orthogonal_init": True, "output_gain": 1.0}
    head, actions = HEAD | {"normalize_obs": normalize_obs}, spaces.Discrete(3)
    assert rows.dtype == torch.uint8
    results = []
    for x in (rows, rows.float()):
        torch.manual_seed(1)
        policies = [
            CNNPolicy(flat_space(space), actions, **CNN | head | {"output_gain": 1.0}),
            MLPPolicy(flat_space(space), actions, **mlp | head),
        ]
        baselines = [make_baseline(kind, flat_space(space), sees_step=True) for kind in ("cnn",)]
        baselines += [make_baseline("trunk", flat_space(space), policies[0])]
        for policy in policies:
            policy.update_statistics(x)
        for baseline in baselines:
            baseline.fit(x, step, target)
        results.append([p.dist_params(x) for p in policies] + [b(x, step) for b in baselines])
        results[-1].append(policies[0].features(x))
    for one, other in zip(*results, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_many_images_are_passed_in_parts():
    policy = cnn_policy(IMAGE)
    _, rows = flat_rows(IMAGE, 2 * IMAGE_ROWS + 3)
    alone = torch.cat([policy.dist_params(row[None]) for row in rows])
    torch.testing.assert_close(policy.dist_params(rows), alone)
    by_time = policy.features(rows[:6].view(2, 3, -1))
    torch.testing.assert_close(by_time.view(6, -1), policy.features(rows[:6]))


def test_long_vectors_are_passed_in_parts():
    """As many numbers at a time, whatever shape they have; short ones as many as anything else."""
    assert pass_rows(1) == pass_rows(PASS_NUMBERS // PASS_ROWS) == PASS_ROWS
    assert pass_rows(2 * PASS_NUMBERS // PASS_ROWS) == PASS_ROWS // 2
    assert pass_rows(PASS_NUMBERS) == IMAGE_ROWS  # at least


# Second order


def images_batch(policy, space, size=6):
    _, rows = flat_rows(space, size)
    rows = rows.double()
    with torch.no_grad():
        action = policy(rows).sample()
    return Batch(rows, action, torch.randn(size))


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=str)
def test_fisher_products_go_through_convolutions(actions, float64):
    policy = cnn_policy(BOTH, actions, channels=[1], hidden_sizes=[3])
    batch = images_batch(policy, BOTH)
    theta, parameters = flat(policy), list(policy.parameters())
    F = fisher_operator(policy, batch, "exact")
    old = policy.dist(policy.dist_params(batch.obs).detach())
    kl = kl_divergence(old, policy(batch.obs)).mean()
    grads = torch.autograd.grad(kl, parameters, create_graph=True)
    slope = torch.cat([g.reshape(-1) for g in grads])
    for v in torch.randn(3, len(theta)):
        torch.testing.assert_close(F(v), gradient(slope.dot(v), parameters), rtol=1e-8, atol=1e-10)
    if isinstance(actions, spaces.Discrete):
        torch.testing.assert_close(dense(F, theta), dense_fisher(policy, batch))


def test_a_batch_in_chunks_has_the_same_fisher_matrix(float64):
    policy = cnn_policy(BOTH)
    batch = images_batch(policy, BOTH, size=7)
    v = torch.randn_like(flat(policy))
    whole = fisher_operator(policy, batch, "exact")(v)
    for size in (3, 7):
        parts = Batch(batch.obs, batch.action, batch.advantage, chunk_size=size)
        torch.testing.assert_close(fisher_operator(policy, parts, "exact")(v), whole)


def test_a_chunk_is_what_fits_into_memory():
    """A product and a tanh of 10^6 numbers keep 8 MB of a row, J v four times that."""
    scale = torch.ones((), requires_grad=True)
    assert chunk_that_fits(lambda rows: (scale * torch.rand(rows, 10**6)).tanh()) == 67
    assert chunk_that_fits(lambda rows: (scale * torch.rand(rows, 100)).tanh()) is None


# The shared trunk


@pytest.mark.parametrize("fit", ["gauss_newton", "optimizer"])
def test_a_fit_of_the_trunk_leaves_the_policy_bitwise(fit):
    policy = cnn_policy(BOTH)
    _, rows = flat_rows(BOTH, 64)
    baseline = make_baseline("trunk", flat_space(BOTH), policy, fit=fit, epochs=3, damping=1e-3)
    before, step = tensors_of(policy), torch.zeros(64, dtype=torch.int64)
    target = torch.randn(64)
    first, last = (baseline.fit(rows, step, target)["baseline/loss"] for _ in range(2))
    assert num_changed(before, tensors_of(policy)) == 0
    assert all(p.grad is None for p in policy.parameters())
    assert {id(p) for p in policy.parameters()}.isdisjoint(map(id, baseline.parameters()))
    assert not baseline(rows, step).isnan().any()
    assert last < first


def test_a_linear_trunk_is_least_squares_on_the_policys_features(float64):
    policy = cnn_policy(BOTH, activation="tanh", hidden_sizes=[6])
    _, rows = flat_rows(BOTH, 50)
    target, step = 3 + 5 * torch.randn(50), torch.zeros(50, dtype=torch.int64)
    baseline = make_baseline("trunk", flat_space(BOTH), policy, hidden_sizes=[])
    baseline.fit(rows.double(), step, target)
    with torch.no_grad():
        X = torch.cat([policy.features(rows.double()), torch.ones(50, 1)], dim=1)
    expected = X @ torch.linalg.lstsq(X, target[:, None]).solution.squeeze()
    torch.testing.assert_close(baseline(rows.double(), step), expected, atol=1e-6, rtol=1e-6)


def test_features_are_what_the_last_layer_sees():
    policy = cnn_policy(BOTH)
    _, rows = flat_rows(BOTH, 9)
    features = policy.features(rows)
    assert features.shape == (9, policy.num_features)
    torch.testing.assert_close(policy.network[-1](features), policy.dist_params(rows))


# A trained policy


@pytest.mark.parametrize("kind", ["cnn", "fourier"])
def test_the_program_is_the_policy(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("rlopt.export.has_onnx", lambda: False)
    monkeypatch.setattr("rlopt.export.BATCHES", (1, 7))
    settings = HEAD | {"num_features": 8, "bandwidth": 1.0, "output_gain": 1.0}
    actions = spaces.Box(-1, 1, (2,))
    fourier = FourierPolicy(VECTOR, actions, **settings)
    policy = fourier if kind == "fourier" else cnn_policy(BOTH, actions)
    size = policy.normalizer(torch.zeros(1, 3 if kind == "fourier" else 261)).shape[1]
    policy.update_statistics(3 + 2 * torch.randn(50, size))
    (difference,) = export(Greedy(policy, actions), torch.zeros(1, size), tmp_path).values()
    assert difference <= 1e-6
    program = torch.export.load(tmp_path / "policy.pt2").module()
    rows = torch.rand(3 * IMAGE_ROWS, size)
    torch.testing.assert_close(program(rows), policy(rows).mode.clamp(-1, 1))


def test_a_loaded_policy_takes_images_as_the_environment_gives_them(tmp_path):
    overrides = [*SMALL_CNN, "env=Spot-v0", "algo=npg", "total_steps=32", "rollout.num_steps=8"]
    trainer = trainer_of(tmp_path, *overrides, "env.kwargs.mask=true", "eval.final_episodes=1")
    trainer.train()
    cfg = compose_config(*TWO, *overrides, "env.kwargs.mask=true")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    policy = load(tmp_path)
    obs, _ = gym.make("Spot-v0", shape=(36, 36, 1), mask=True).reset(seed=3)
    row = torch.tensor(spaces.flatten(policy.observation_space, obs)).float()
    masked = torch.cat([row[2:], row[:2]])  # the key of the mask is the first
    assert policy(obs) == int(trainer.policy(masked[None]).mode)


# Networks of one's own


class Net(nn.Module):
    def __init__(self, observation_space, num_outputs, *, width):
        super().__init__()
        (size,) = observation_space.shape
        self.first, self.last = nn.Linear(size, width), nn.Linear(width, num_outputs)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class Narrow(Net):
    def __init__(self, observation_space, num_outputs, *, width):
        super().__init__(observation_space, num_outputs - 1, width=width)


NETWORK = ["policy=network", "policy.network._target_=test_networks.Net", "policy.network.width=9"]


TWO = ["~tuned", "env.num_envs=2", "env.backend=sync"]


def trainer_of(tmp_path, *overrides):
    trainer = make_trainer(compose_config(*TWO, *overrides), tmp_path)
    trainer.logger.close()
    return trainer


def test_the_documentations_network_trains_by_its_command(tmp_path, monkeypatch):
    text = (CONFIGS.parent / "docs" / "spaces.md").read_text()
    code = re.search(r"```python\n(# my_networks\.py\n.*?)```", text, re.DOTALL)[1]
    (command,) = re.findall(r"PYTHONPATH=\. python scripts/train\.py (.*)", text)
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    code, _ = run_here("train.py", *SMALL, *command.split(), f"hydra.run.dir={tmp_path / 'run'}")
    assert code is None
    assert summary_of(tmp_path / "run")["status"] == "finished"
    code, _ = run_here("train.py", *SMALL, *command.replace(" +", " ").split())
    assert code.startswith("error: policy.network.width is set here for the first time: write +")


def test_any_module_is_a_network(tmp_path):
    policy = trainer_of(tmp_path, "env=CartPole-v1", *NETWORK).policy
    assert isinstance(policy.network, Net)
    assert [p.shape for p in policy.network.first.parameters()] == [(9, 4), (9,)]
    own = policy.network(policy.normalizer(torch.ones(2, 4)))
    torch.testing.assert_close(policy.dist_params(torch.ones(2, 4)), own)


BAD = [
    (["policy=network"], r"policy\.network\._target_=my_module\.Net: there is no such class"),
    ([*NETWORK, "policy.network.width=0.5"], r"policy: "),
    ([*NETWORK, "policy.network.depth=1"], r"policy\.network\.depth is no setting of Net: "),
    (
        [*NETWORK, "policy.network._target_=test_networks.Narrow"],
        r"policy\.network must map \[1, 4\] to \[1, 2\], got \[1, 1\]$",
    ),
    (
        ["policy=network", "policy.network._target_=builtins.print"],
        r"policy\.network must be an nn\.Module, got an object of NoneType$",
    ),
    ([*NETWORK, "baseline=trunk"], r"baseline=trunk needs a policy\.network that is an nn\.Seq"),
    (["policy=cnn"], r"policy\.convolutions need an image, .* \(4,\)\): use policy=mlp"),
    (["baseline=cnn"], r"baseline\.convolutions need an image, .*: use policy=mlp baseline=mlp$"),
    (
        ["env=Spot-v0", "policy=cnn"],
        r"policy\.convolutions must be impala for an image of 16x16: nature needs 36x36 at least$",
    ),
    (["env=Spot-v0", "policy=cnn", "policy.convolutions=vgg"], r"policy\.convolutions must be one"),
    (
        ["env=Spot-v0", "policy=cnn", "env.kwargs.shape=[40,40,3]", "policy.channels=[8]"],
        r"policy\.channels must be 3 numbers for nature, got \[8\]$",
    ),
    (
        ["env=Spot-v0", "env.kwargs.shape=[80,80,3]", "baseline=linear"],
        r"baseline=linear solves for all features at once, 38404 are too many: use baseline=mlp",
    ),
    (["policy=fourier", "policy.bandwidth=0"], r"policy\.bandwidth must be greater than 0, got 0"),
    (["policy=fourier", "policy.num_features=0"], r"policy\.num_features must be a whole number"),
    (["baseline=trunk", "baseline.policy=1"], r"baseline\.policy is no setting of TrunkBaseline"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda x: str(x)[:60])
def test_a_mistake_is_one_line(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        trainer_of(tmp_path, *overrides)
    assert "\n" not in str(raised.value)


def test_a_policy_that_takes_an_image_for_a_vector_is_remarked_on(tmp_path):
    def remarks(folder, *overrides):
        trainer = trainer_of(tmp_path / folder, *overrides)
        return remarks_on_images(trainer.policy, trainer.baseline)

    (line,) = remarks("image", "env=Spot-v0", "env.kwargs.shape=[36,40,1]")
    assert line.startswith(
        "an image of 36x40x1 is a vector to this policy: policy=cnn baseline=cnn"
    )
    assert remarks("grid", "env=Spot-v0", "env.kwargs.shape=[7,7,3]") == []
    assert remarks("vector", "env=CartPole-v1") == []


# Whole runs

QUICK = ["env=Spot-v0", "env.num_envs=16", "rollout.num_steps=16", "gamma=0"]
QUICK += ["eval.final_episodes=16"]
RULES = {
    "npg": ["algo=npg", "algo.max_kl=0.2", "baseline=trunk"],
    "ppo": ["algo=ppo", "algo.optimizer.lr=0.01", "algo.epochs=4", "baseline=cnn"],
}
RULES["ppo"] += ["baseline.channels=[4,8,8]", "baseline.hidden_sizes=[16]"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_cnn_learns_to_see(rule, tmp_path):
    """Where the spot is: 4 of 4; an image without sides would be worth 2."""
    trainer = trainer_of(tmp_path, *QUICK, *SMALL_CNN, *RULES[rule], "total_steps=1500")
    assert trainer.train().mean > 3


def test_one_encoder_a_key_learns_from_both(tmp_path):
    """The image without the number is worth 2 of 4, as is the number without the image."""
    signs = ["env.kwargs.signs=true", "policy.vector_sizes=[8]", "total_steps=1500"]
    assert trainer_of(tmp_path, *QUICK, *SMALL_CNN, *RULES["npg"], *signs).train().mean > 3
