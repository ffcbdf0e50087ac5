"""No network, no code from files: what can be checked of that."""

import ast
import socket
from pathlib import Path

import pytest
import yaml
from test_train_script import SMALL, run_here

from rlopt.report import runs

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "rlopt").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
CODE_FROM_DATA = {"eval", "exec", "compile", "__import__"}
PICKLES_OR_NETWORK = {
    "pickle", "cloudpickle", "dill", "marshal", "shelve", "socket", "ssl", "http",
    "urllib", "requests", "ftplib", "smtplib", "xmlrpc",
}  # fmt: skip


def nodes(path, kind):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kind)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_code_is_made_from_data_and_nothing_reaches_the_network(path):
    calls = nodes(path, ast.Call)
    assert not {c.func.id for c in calls if isinstance(c.func, ast.Name)} & CODE_FROM_DATA
    modules = {a.name.split(".")[0] for n in nodes(path, ast.Import) for a in n.names}
    modules |= {(n.module or "").split(".")[0] for n in nodes(path, ast.ImportFrom)}
    assert not modules & PICKLES_OR_NETWORK
    names = [(ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords})
             for call in calls]  # fmt: skip
    for name, keywords in names:
        assert name not in {"joblib.load", "yaml.full_load", "yaml.unsafe_load"}
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        assert name != "yaml.load" or path.name == "runs.py"  # by its LOADER, below
        assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("shell", "False") == "False"


@pytest.mark.parametrize("backend", ["sync", "async", "vector_entry_point", "envpool"])
def test_a_run_opens_no_socket_and_writes_its_folder_alone(backend, tmp_path, monkeypatch):
    if backend == "envpool":
        pytest.importorskip("envpool")

    class NoNetwork(socket.socket):
        def __init__(self, family=-1, *args, **kwargs):
            assert family == socket.AF_UNIX, "a socket that can leave this machine"
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", NoNetwork)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _ = run_here("train.py", *SMALL, f"env.backend={backend}", "hydra.run.dir=run")
    assert code is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()} == {
        "", "checkpoints", "events", "metrics", "summary",
    }  # fmt: skip


def test_the_report_reads_yaml_by_a_loader_that_makes_plain_data():
    assert runs.LOADER in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None))
