"""scripts/export.py: what it writes gives the actions of the run's own policy."""

import numpy as np
import oracles
import pytest
import torch
from gymnasium import spaces
from probes import make_env, make_policy
from test_train_script import run_here, train

from rlopt import checkpoint
from rlopt.action_spaces import env_action
from rlopt.export import Greedy, export

RUNS = {"Discrete": "CartPole-v1", "Box": "Pendulum-v1"}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """The folder of a finished run, whose name has what sweeps put into names."""
    folder = tmp_path_factory.mktemp(request.param) / "env=it,seed=0"
    settings = ["algo=npg", "policy.hidden_sizes=[8]", f"env={RUNS[request.param]}"]
    return train(folder.with_name("plain"), *settings).rename(folder)


def observations(size, dimension):
    """Far from what was seen, too, where the normaliser and the bounds clip."""
    return torch.randn(size, dimension) * torch.logspace(-2, 2, size)[:, None]


def actions_of_the_checkpoint(run, name, obs):
    """By numpy: the normaliser, a hidden layer, and the action."""
    saved = checkpoint.load(run / "checkpoints" / f"{name}.pt")["policy"]
    state = {key: x.numpy() for key, x in saved.items()}
    x = (obs.numpy() - state["normalizer.mean"]) / np.sqrt(state["normalizer.var"])
    for layer in (0, 2):
        x = x.clip(-10, 10) if layer == 0 else np.tanh(x)
        x = x @ state[f"network.{layer}.weight"].T + state[f"network.{layer}.bias"]
    return (2 * x).clip(-2, 2) if x.shape[1] == 1 else x.argmax(-1)


def assert_same_actions(program, run, name, tolerance):
    for size in (1, 2, 4097):
        obs = observations(size, 4 if "Discrete" in str(run) else 3)
        expected = actions_of_the_checkpoint(run, name, obs)
        np.testing.assert_allclose(program(obs), expected, rtol=0, atol=tolerance)
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("name", ["last", "best"])
def test_the_program_is_the_policy_with_its_normaliser(run, name, monkeypatch):
    monkeypatch.setattr("rlopt.export.ONNX", ("no_such_module",))
    code, out = run_here("export.py", f"run={run}", f"checkpoint={name}")
    assert code is None
    missing, wrote = out.splitlines()
    assert missing == "no ONNX file is written; it needs: pip install -e '.[onnx]'"
    assert wrote.startswith(f"wrote {run / 'policy.pt2'}: {name}.pt at ")
    program = torch.export.load(run / "policy.pt2").module()
    assert_same_actions(lambda obs: program(obs).numpy(), run, name, 2e-6)


@pytest.mark.parametrize(
    "run", ["Box", pytest.param("Discrete", marks=pytest.mark.slow)], indirect=True
)
def test_the_onnx_model_is_the_policy_too(run):
    onnxruntime = pytest.importorskip("onnxruntime")
    code, out = run_here("export.py", f"run={run}")
    assert code is None
    assert out.startswith(f"wrote {run / 'policy.pt2'} and {run / 'policy.onnx'}: last.pt at ")
    assert out.count("\n") == 1
    session = onnxruntime.InferenceSession(run / "policy.onnx")
    assert_same_actions(
        lambda obs: session.run(["action"], {"obs": obs.numpy()})[0], run, "last", 1e-5
    )


def test_a_program_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rlopt.export.has_onnx", lambda: False)
    env = make_env("Pendulum-v1")
    greedy = Greedy(make_policy(env), env.single_action_space)
    assert export(greedy, torch.zeros(1, 3), tmp_path) == {tmp_path / "policy.pt2": 0.0}
    monkeypatch.setattr("rlopt.export.read_torch", lambda path: lambda obs: greedy(obs) + 1e-4)
    with pytest.raises(ValueError, match=r"policy\.pt2 is wrong: actions differ by"):
        export(greedy, torch.zeros(1, 3), tmp_path)


SPACES = [
    spaces.Discrete(3, start=5),
    spaces.MultiDiscrete([2, 3], start=[1, 4]),
    spaces.MultiBinary(4),
    spaces.Box(-1, 2, (2, 2)),
    spaces.Box(0, np.inf, (3,)),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_greedy_actions_are_what_an_environment_takes(space):
    policy = oracles.make_policy(None, space, output_gain=3.0)
    obs = torch.randn(20, 3)
    expected = env_action(space, policy(obs).mode.detach().numpy())
    assert np.array_equal(Greedy(policy, space)(obs).detach().numpy(), expected)


def test_greedy_actions_of_a_dict_are_columns():
    space = spaces.Dict(a=spaces.Discrete(3, start=2), b=spaces.Box(-1, 1, (2,)))
    policy = oracles.make_policy(None, space, output_gain=3.0)
    obs = torch.randn(20, 3)
    expected = env_action(space, policy(obs).mode.detach().numpy())
    action = Greedy(policy, space)(obs).detach().numpy()
    assert np.array_equal(action[:, 0], expected["a"])
    assert np.array_equal(action[:, 1:], expected["b"])


class Branches(torch.nn.Module):
    def forward(self, obs):
        return obs if obs.sum() > 0 else -obs


def test_a_policy_that_cant_be_traced_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^torch\.export can't trace the policy"):
        export(Greedy(Branches(), spaces.Discrete(2)), torch.zeros(1, 3), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run", ["Box"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nowhere"], "error: run=nowhere is no run folder"),
        (["checkpoint=first"], "error: checkpoint must be one of last, best, got 'first'"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, message):
    code, out = run_here("export.py", f"run={run}", *arguments)
    assert code.startswith(message)
    assert out == ""
