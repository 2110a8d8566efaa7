"""A PostgreSQL of one test run: Debian's binaries, a folder in /tmp, a Unix socket and no port."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DEBIAN = Path("/usr/lib/postgresql")
_START_TIMEOUT_S = 60


@contextmanager
def private_postgres() -> Iterator[str]:
    """Starts a server; yields its URL; nothing of it is left afterwards.

    Raises:
        FileNotFoundError: PostgreSQL's server is not installed.
    """
    binaries = _find_binaries()
    folder = Path(tempfile.mkdtemp(prefix="heliograph-pg-", dir="/tmp"))  # a socket's path must be short
    as_user = _other_user(folder)
    data, log = folder / "data", folder / "log"
    control = [*as_user, str(binaries / "pg_ctl"), "-D", str(data)]
    try:
        initdb = [*as_user, str(binaries / "initdb"), "-D", str(data), "-U", "heliograph", "-A", "trust", "-N"]
        _run(initdb)
        options = f"-c listen_addresses='' -c fsync=off -k {folder}"
        try:
            _run([*control, "-l", str(log), "-o", options, "-w", "-t", str(_START_TIMEOUT_S), "start"])
            yield f"postgresql://heliograph@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "-w", "stop"], check=False, capture_output=True, timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_binaries() -> Path:
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else sorted(_DEBIAN.glob("*/bin"))
    if not found:
        raise FileNotFoundError("these tests need PostgreSQL's server: apt-get install postgresql")
    return found[-1]


def _other_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: then it runs as the user of Debian's package."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=2 * _START_TIMEOUT_S, cwd="/")
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stdout}\n{done.stderr}")
