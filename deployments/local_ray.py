"""A private Ray on this machine: started for one command, gone with it."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.errors import LocalServiceError
from deployments.interrupts import hold_interrupts, raise_on_termination

logger = logging.getLogger(__name__)

# Unix sockets may have 107 characters; below this folder ours, the session and the socket have up to 85 (measured).
_MAX_FOLDER_CHARACTERS = 22
_NUM_START_ATTEMPTS = 2
_TOO_SLOW = "timed out during startup"
_QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@contextmanager
def local_ray(
    *,
    num_cpus: float,
    num_gpus: int | None = None,
    memory_bytes: int | None = None,
    include_dashboard: bool = False,
) -> Iterator[Path]:
    """Starts Ray with its own temporary folder and stops it again, also on an interrupt.

    Ray turns token authentication on by itself for such a start, unless `RAY_AUTH_MODE` says otherwise; its ports bind
    to all interfaces, and the token is what guards them. (Setting the variable here would be too late for a process
    that has imported Ray before: it would start servers that ask for a token and be refused itself.)

    Args:
        num_cpus: logical CPUs that Ray gives out; may exceed the machine's, they are only counted.
        num_gpus: the same for GPUs; None gives out what Ray finds.
        memory_bytes: the same for host memory; None gives out what Ray finds free, less its object store.
        include_dashboard: needed for `serve deploy`.

    Yields:
        the folder with Ray's logs.

    Raises:
        LocalServiceError: Ray does not start.
    """
    os.environ.update({name: value for name, value in _QUIET_ENVIRONMENT.items() if name not in os.environ})
    import ray

    folder = Path(tempfile.mkdtemp(prefix="heliograph-", dir=_base_folder()))
    try:
        with hold_interrupts():
            _start(folder, num_cpus, num_gpus, memory_bytes, include_dashboard)
        raise_on_termination()
        yield folder / "session_latest" / "logs"
    finally:
        with hold_interrupts(drop=True):
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def tail_of_logs(logs: Path, *, num_lines: int = 30) -> str:
    """The last lines of the newest logs of groups and ranks, for the message of a failed start."""
    files = [*logs.glob("serve/replica_*.log"), *logs.glob("worker-*.err")]
    files = [file for file in files if file.stat().st_size > 0]
    lines: list[str] = []
    for file in sorted(files, key=lambda file: file.stat().st_mtime)[-3:]:
        lines += [f"--- {file.name}", *file.read_text(errors="replace").splitlines()[-num_lines:]]
    return "\n".join(lines)


def _start(
    folder: Path, num_cpus: float, num_gpus: int | None, memory_bytes: int | None, include_dashboard: bool
) -> None:
    """Ray gives its own processes 30 s to come up, which a busy machine may exceed: then they are started once more."""
    import ray

    for attempt in range(1, _NUM_START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=max(1, int(num_cpus)),
                num_gpus=num_gpus,
                _memory=memory_bytes,
                include_dashboard=include_dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
            return
        except Exception as error:  # Ray raises anything here; whatever it is, nothing of it may stay
            if attempt == _NUM_START_ATTEMPTS or _TOO_SLOW not in str(error):
                raise LocalServiceError(f"Ray does not start on this machine: {error}") from error
            logger.warning("Ray's processes did not come up in time: they are started once more")
            ray.shutdown()


def _base_folder() -> str:
    base = tempfile.gettempdir()
    return base if len(base) <= _MAX_FOLDER_CHARACTERS else "/tmp"
