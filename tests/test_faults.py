"""The short form of the fault suite; `make test-faults` runs the whole."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the fault suite forks")
def test_no_fault_loses_a_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--short"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "SIGKILL at each write, sync and rename" in done.stdout
