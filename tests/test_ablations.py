"""Ablation presets: each switch is one difference, and the table in their README is theirs."""

from pathlib import Path

import pytest
from probes import CONFIGS, compose_config
from test_train_script import SMALL, run_here, summary_of

from rlopt.build import make_trainer
from rlopt.config import to_dict
from rlopt.logger import flat

FOLDER = CONFIGS / "experiment" / "ablation"
SWITCHES = sorted(path.name for path in FOLDER.iterdir())
BRINGS_A_PART = {"advantage"}  # whose other settings are the part's own


def presets(switch):
    return sorted(path.stem for path in (FOLDER / switch).glob("*.yaml"))


def configs_of(switch):
    names = [f"ablation/{switch}/{preset}" for preset in presets(switch)]
    return [flat(to_dict(compose_config(f"experiment={name}", "~tuned"))) for name in names]


def differences(switch):
    """Keys whose values are not the same in all presets of a switch."""
    configs = configs_of(switch)
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({config.get(key) for config in configs}) > 1]


def row(switch):
    keys = ["advantage"] if switch in BRINGS_A_PART else differences(switch)
    settings = ", ".join(f"`{preset}`" for preset in presets(switch))
    return f"| `{switch}` | {settings} | {', '.join(f'`{key}`' for key in keys)} |"


@pytest.mark.slow
def test_the_table_is_that_of_the_files():
    lines = (CONFIGS / "experiment" / "README.md").read_text().splitlines()
    start = lines.index("|---|---|---|") + 1
    rows = lines[start : lines.index("", start)]
    assert rows == [row(switch) for switch in SWITCHES]


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_setting_of_a_switch_says_what_is_compared(switch):
    """A preset sets every key that differs: none is left to a default that may change."""
    assert len(presets(switch)) >= 2
    keys = differences(switch)
    assert keys
    for preset in presets(switch):
        text = (FOLDER / switch / f"{preset}.yaml").read_text()
        assert text.startswith("# @package _global_\n# ")
        for key in ["advantage"] if switch in BRINGS_A_PART else keys:
            assert key.split(".")[-1] in text


def test_one_of_the_settings_is_what_a_run_does_without_them():
    """The other is then a change of one switch; of ppo where the switch is ppo's."""
    for switch in set(SWITCHES) - {"cg_iterations"}:
        algo = "ppo" if switch in {"kl_penalty", "learning_rate_decay"} else "npg"
        assert flat(to_dict(compose_config(f"algo={algo}", "~tuned"))) in configs_of(switch), switch


@pytest.mark.slow
def test_the_presets_build(tmp_path):
    for switch in SWITCHES:
        for preset in presets(switch):
            choice = f"experiment=ablation/{switch}/{preset}"
            cfg = compose_config(choice, "~tuned", "env.num_envs=2", "env.backend=sync")
            make_trainer(cfg, tmp_path / switch / preset).logger.close()


def test_one_command_compares_a_switch(tmp_path):
    names = [f"ablation/critic/{preset}" for preset in presets("critic")]
    code, _ = run_here(
        "train.py",
        "-m",
        *[argument for argument in SMALL if argument != "~tuned"],
        f"experiment={','.join(names)}",
        "baseline.minibatch_size=8",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir=${hydra.job.num}",
    )
    assert code is None
    assert all(summary_of(tmp_path / number)["status"] == "finished" for number in "01")
    assert (
        Path(tmp_path / "0" / ".hydra" / "config.yaml").read_text()
        != Path(tmp_path / "1" / ".hydra" / "config.yaml").read_text()
    )
