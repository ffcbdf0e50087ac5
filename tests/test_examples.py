"""The examples and the README's Python do what they say."""

import re
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from test_train_script import SMALL, run_here, summary_of, train

ROOT = Path(__file__).resolve().parent.parent
OWN = ["own_environment", "own_policy", "own_update_rule"]


def source(name):
    return (ROOT / "examples" / f"{name}.py").read_text()


def run_example(name, iterations):
    """Run it as a script with another number of iterations; its variables."""
    code, count = re.subn(r" iterations=\d+", f" iterations={iterations}", source(name))
    assert count == 1
    gym.registry.pop("Cart-v0", None)
    variables = {"__name__": "__main__"}
    exec(compile(code, name, "exec"), variables)
    return variables


def readme_blocks():
    section = (ROOT / "README.md").read_text().split("### From Python\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_readme_quotes_the_training_example():
    assert readme_blocks()[1] == source("training").split('"""\n\n', 1)[1]


def test_the_readmes_loaded_policy_steps_an_environment(tmp_path):
    run = train(tmp_path / "run", "env=CartPole-v1")
    variables = {}
    exec(readme_blocks()[0].replace("<run folder>", str(run)), variables)
    assert variables["action"] in variables["env"].action_space
    assert variables["reward"] == 1.0


def test_the_training_example_learns(capsys):
    variables = run_example("training", 12)
    first = float(capsys.readouterr().out.split()[1])
    assert first < 30
    assert variables["result"].mean > 150


@pytest.mark.parametrize("name", OWN)
def test_an_example_runs_as_a_script(name, capsys):
    run_example(name, 2)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("name", OWN)
def test_the_command_of_an_example_trains_what_it_defines(name, tmp_path):
    for module in OWN:
        sys.modules.pop(module, None)
    gym.registry.pop("Cart-v0", None)
    docstring = source(name).split('"""')[1].replace("\\\n", " ")
    (command,) = re.findall(r"PYTHONPATH=examples python scripts/train.py (.*)", docstring)
    code, _ = run_here("train.py", *SMALL, *command.split(), f"hydra.run.dir={tmp_path / 'run'}")
    assert code is None
    assert summary_of(tmp_path / "run")["status"] == "finished"
    assert name in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
