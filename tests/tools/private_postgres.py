"""A PostgreSQL of one test run: Debian's binaries, a folder in /tmp, a Unix socket and no port."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DEBIAN = Path("/usr/lib/postgresql")
_START_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class PrivatePostgres:
    """A server that can go away and come back, with its data.

    Attributes:
        folder: of its socket, data and log.
        control: the beginning of its `pg_ctl` commands.
    """

    folder: Path
    control: list[str]

    @property
    def url(self) -> str:
        """For `state.database`."""
        return f"postgresql://heliograph@/postgres?host={self.folder}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        options = f"-c listen_addresses='' -c fsync=off -k {self.folder}"
        log = str(self.folder / "log")
        _run([*self.control, "-l", log, "-o", options, "-w", "-t", str(_START_TIMEOUT_S), "start"])

    def stop(self) -> None:
        """Ends it at once, and every connection with it."""
        subprocess.run([*self.control, "-m", "immediate", "-w", "stop"], check=False, capture_output=True, timeout=60)


@contextmanager
def private_postgres() -> Iterator[PrivatePostgres]:
    """Starts a server; nothing of it is left afterwards.

    Raises:
        FileNotFoundError: PostgreSQL's server is not installed.
    """
    binaries = _find_binaries()
    folder = Path(tempfile.mkdtemp(prefix="heliograph-pg-", dir="/tmp"))  # a socket's path must be short
    as_user = _other_user(folder)
    data = str(folder / "data")
    server = PrivatePostgres(folder, [*as_user, str(binaries / "pg_ctl"), "-D", data])
    try:
        _run([*as_user, str(binaries / "initdb"), "-D", data, "-U", "heliograph", "-A", "trust", "-N"])
        try:
            server.start()
            yield server
        finally:
            server.stop()
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
