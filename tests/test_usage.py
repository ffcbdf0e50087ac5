"""--help tells every setting with its default and its meaning; no colours but on a terminal."""

import re

import pytest
from probes import CONFIGS
from test_train_script import SCRIPTS, process, run_here

from usage import WHOLE_PRESETS

SCREEN = 75  # lines, for a group of five choices
WITHOUT_COMMENT = {"_target_", "_partial_"}


def help_of(script, *groups):
    code, out = run_here(script, "--help", *groups)
    assert code is None
    return out


def keys_without_meaning(text):
    """Keys of yaml lines that neither say what they are nor hold keys that do."""
    rows = re.findall(r"^ *(\w+):(?: +([^#\n]*?))?( *#.*)?$", text, re.MULTILINE)
    return {key for key, value, comment in rows if value and not comment} - WITHOUT_COMMENT


def groups_of(out):
    return re.search(r"--help <group> +one of (.*), alone", out)[1].split(", ")


def test_help_of_train_has_every_choice_with_the_text_of_its_file():
    out = help_of("train.py")
    for group in groups_of(out):
        for path in (CONFIGS / group).rglob("*.yaml"):
            choice = path.relative_to(CONFIGS / group).with_suffix("")
            assert f"{group}={choice}" in out
            if group not in WHOLE_PRESETS:
                text = "".join(f"  {line}\n" for line in path.read_text().splitlines())
                assert text in out
    assert {"algo", "policy", "advantage", "baseline", "rollout", "env"} <= set(groups_of(out))
    assert out.count("(the default)") == 5
    base = (CONFIGS / "base.yaml").read_text()
    assert base.split("- _self_\n\n")[1] in out


@pytest.mark.parametrize(
    "script", ["train.py", "evaluate.py", "compare.py", "verify.py", "report.py"]
)
def test_help_tells_what_each_setting_means(script):
    out = help_of(script)
    assert keys_without_meaning(out) == set()
    assert "defaults:" not in out
    assert "hydra:" not in out.replace("${hydra:", "")
    assert "-sc install=bash" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("script", ["train.py", "compare.py", "verify.py"])
def test_a_group_alone_fits_a_screen(script):
    whole = help_of(script)
    for group in groups_of(whole):
        out = help_of(script, group)
        assert out.strip() in whole
        assert out.startswith(f"--- {group}")
        assert len(out.splitlines()) <= SCREEN


def test_help_of_verify_is_that_of_the_settings_of_train():
    assert help_of("verify.py", "algo") == help_of("train.py", "algo")


WARNS = """
import gymnasium, numpy as np
from gymnasium import spaces

class Warns(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(1, 3.0), {}

gymnasium.register("Warns-v0", Warns)
"""


def test_what_is_written_into_a_file_has_no_colours(tmp_path):
    """Gymnasium's warnings do where nobody sees to it."""
    (tmp_path / "warns.py").write_text(WARNS)
    run = f"hydra.run.dir={tmp_path / 'run'}"
    out, err = process("train.py", "env=warns:Warns-v0", run, path=[tmp_path]).communicate()
    assert "WARN: " in err
    assert "\x1b" not in out + err


def test_completion_knows_groups_choices_and_keys():
    """What the shell asks after `eval "$(python scripts/train.py -sc install=bash)"`."""
    answers = {"algo=": "algo=trpo", "algo=trpo algo.backtrack_t": "algo.backtrack_tries="}
    for words, answer in answers.items():
        line = f"python {SCRIPTS / 'train.py'} {words}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COMP_LINE", line)
            patch.setenv("COMP_POINT", str(len(line)))
            code, out = run_here("train.py", "-sc", "query=bash")
        assert code is None
        assert answer in out.split()
