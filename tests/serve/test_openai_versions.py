"""The service with the oldest and the newest client that it is made for, each in a folder of its own."""

import os
import subprocess
import sys

import pytest

from tests.serve.processes import ROOT

INSTALL_TIMEOUT_S = 120


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("wanted", "version"), [(("openai==2.54.0", "distro>=1.7,<2"), "2.54.0"), (("openai>=3,<4",), "3.")]
)
def test_client_does_everything(app, tmp_path, wanted, version):
    install(wanted, tmp_path / "site")
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/serve/openai_client_checks.py"), app.url],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().startswith(version)


def install(requirements, folder):
    """The client alone: what it needs besides is installed here already."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *requirements]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode != 0:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
