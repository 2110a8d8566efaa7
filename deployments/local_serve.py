"""The app on this machine's Ray: bind, wait until it answers, or say why it does not."""

import contextlib
import logging
import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.errors import LocalServiceError, SettingsError
from deployments.local_ray import tail_of_logs
from deployments.settings import AppSettings

APP_NAME = "heliograph"
_POLL_S = 0.1
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_FREE_PORT = 20_000  # Ray's workers take 10002 to 19999
_NUM_PORT_TRIES = 100
_MAX_MESSAGE_CHARACTERS = 4000


def find_port(host: str, port: int) -> int:
    """The port itself if it is free on `host`, or any free one for 0.

    For 0 it is one that the system does not give out by itself: between this choice and Serve's own listening, Ray
    starts processes that take many such ports.

    Raises:
        SettingsError: somebody listens there already.
    """
    if port:
        _try_port(host, port)
        return port
    for _ in range(_NUM_PORT_TRIES):
        chosen = random.SystemRandom().randrange(_FIRST_FREE_PORT, _first_ephemeral_port())
        with contextlib.suppress(SettingsError):
            _try_port(host, chosen)
            return chosen
    raise SettingsError(f"no free port found on {host}: choose one with --port")


def _try_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port") from error


def _first_ephemeral_port() -> int:
    """From here on the system gives ports out by itself (Linux: 32768 unless configured)."""
    try:
        first = int(_PORT_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768
    return max(first, _FIRST_FREE_PORT + 1000)


def run_app(
    settings: AppSettings, *, host: str, port: int, logs: Path, report: Callable[[str], None] = lambda _: None
) -> Any:
    """Deploys the app on the running Ray and waits until it answers over HTTP.

    Args:
        settings: the app's settings.
        host: address that the HTTP proxy binds to.
        port: its port.
        logs: Ray's log folder, for the message when the start fails.
        report: told each new state.

    Returns:
        the app's handle.

    Raises:
        PlannerError: no plan; nothing was deployed.
        LocalServiceError: the app did not come up; carries the end of its logs.
    """
    from ray import serve

    from deployments.app import build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    report("planning")
    app = build_app(settings)
    report("starting Serve")
    serve.start(http_options={"host": host, "port": port, "location": "HeadOnly"})
    target = serve.RunTarget(app, name=APP_NAME, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    deadline = time.monotonic() + max(model.start_timeout_s for model in settings.served_models)
    _wait_until_running(deadline, logs, report)
    _wait_until_answering(f"http://{host}:{port}/live", deadline)
    return serve.get_app_handle(APP_NAME)


def _wait_until_running(deadline: float, logs: Path, report: Callable[[str], None]) -> None:
    from ray import serve

    last = ""
    while time.monotonic() < deadline:
        app = serve.status().applications.get(APP_NAME)
        if app is not None:
            if app.status == "RUNNING":
                return
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise LocalServiceError(f"the app did not start: {_failure(app)}\n{tail_of_logs(logs)}")
            line = _describe(app)
            if line != last:
                report(line)
                last = line
        time.sleep(_POLL_S)
    raise LocalServiceError(f"the app did not start in time\n{tail_of_logs(logs)}")


def _describe(app: Any) -> str:
    """Which deployments are still starting, and how far they are."""
    from deployments.stages import describe_deployment, read_stages

    stages = read_stages()
    waiting = [
        f"{name.lower()} ({describe_deployment(APP_NAME, name, deployment, stages)})"
        for name, deployment in app.deployments.items()
        if deployment.status != "HEALTHY"
    ]
    return f"starting {' and '.join(waiting)}" if waiting else "starting"


def _failure(app: Any) -> str:
    messages = [deployment.message for deployment in app.deployments.values() if deployment.message]
    return "\n".join([app.message, *messages])[-_MAX_MESSAGE_CHARACTERS:]


def _wait_until_answering(url: str, deadline: float) -> None:
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise LocalServiceError(f"{url} does not answer")
