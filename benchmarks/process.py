"""Run a script of this folder in a process of its own and read the line of json it prints."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300  # seconds; a contender measures for some seconds and takes some to start


class ContenderError(Exception):
    """A process ended without a result."""


def run(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """The result of `python benchmarks/<script> <arguments>`, with this checkout's own rlopt.

    Raises:
        ContenderError: it failed or took too long.
    """
    command = [python, str(ROOT / "benchmarks" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise ContenderError(f"{script}: no result within {TIMEOUT} s") from error
    except subprocess.CalledProcessError as error:
        raise ContenderError(f"{script}: {error.stderr.strip()[-2000:]}") from error
    return json.loads(result.stdout.strip().splitlines()[-1])
