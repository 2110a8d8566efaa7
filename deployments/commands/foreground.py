"""The app in the foreground: reads a Serve config, starts, says where it listens, waits, stops."""

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from deployments.commands.progress import ProgressDisplay
from deployments.config_check import IMPORT_PATH, read_config
from deployments.errors import LocalServiceError, SettingsError
from deployments.exposure import check_exposure, is_loopback
from deployments.local_ray import local_ray, tail_of_logs
from deployments.local_serve import APP_NAME, find_port, run_app
from deployments.settings import AppSettings, explain_validation

_SPARE_CPUS = 2  # for coordinators, ingress replicas and the planner; they are counted, not reserved
_WATCH_PERIOD_S = 2.0


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What is served, and where."""

    settings: AppSettings
    host: str
    port: int

    @classmethod
    def read(cls, source: str | Path, *, host: str | None, port: int | None) -> "ServeConfig":
        """Reads a Serve config, or takes a checkpoint's folder or URL with default settings.

        Raises:
            SettingsError: it cannot be used; names the key.
        """
        is_checkpoint = "://" in str(source) or Path(source).is_dir()
        arguments, http = ({"checkpoint": str(source)}, {}) if is_checkpoint else _read_serve_config(Path(source))
        try:
            settings = AppSettings.model_validate(arguments)
        except ValidationError as error:
            raise SettingsError(f"{source}: {explain_validation(error)}") from error
        chosen_port = port if port is not None else int(http.get("port", 8000))
        return cls(settings, host or str(http.get("host", "127.0.0.1")), chosen_port)


def serve_in_foreground(config: ServeConfig) -> None:
    """Runs until interrupted.

    Raises:
        KeyboardInterrupt: as it came; everything is stopped by then.
        SettingsError: it would listen beyond loopback without a key.
        LocalServiceError: the app did not start, or died.
    """
    check_exposure(config.settings, config.host)
    port = find_port(config.host, config.port)
    console = Console(stderr=True)
    with local_ray(num_cpus=num_cpus_for(config.settings)) as logs:
        with ProgressDisplay() as display:
            run_app(config.settings, host=config.host, port=port, logs=logs, report=display.say)
        if not is_loopback(config.host) and not config.settings.has_keys:
            console.print(f"[yellow]listening on {config.host}: whoever reaches this port can use it[/]")
        names = ", ".join(model.served_name for model in config.settings.served_models)
        console.print(f"{names} on http://{config.host}:{port} (Ctrl-C stops it)", highlight=False)
        _watch(logs)


def _watch(logs: Path) -> None:
    """Returns never; raises when the app is beyond help."""
    from ray import serve

    pause = threading.Event()
    while not pause.wait(_WATCH_PERIOD_S):
        app = serve.status().applications.get(APP_NAME)
        if app is None or app.status in ("DEPLOY_FAILED", "NOT_STARTED"):
            raise LocalServiceError(f"the app is gone\n{tail_of_logs(logs)}")


def num_cpus_for(settings: AppSettings) -> int:
    """Enough logical CPUs for what is asked for, and at least this machine's."""
    from planner.cluster import cluster_of_this_machine
    from planner.degrees import resolve_degrees

    usable = cluster_of_this_machine().node_types[0].num_cpus
    asked = sum(
        model.max_groups * resolve_degrees(model.plan).num_ranks * (model.plan.cpus_per_rank or 1.0)
        for model in settings.served_models
    )
    return math.ceil(max(usable, asked)) + _SPARE_CPUS


def _read_serve_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the one application that is ours, and the HTTP options."""
    document = read_config(path)
    apps = document.get("applications")
    ours = [app for app in apps or [] if isinstance(app, dict) and app.get("import_path") == IMPORT_PATH]
    if len(ours) != 1:
        raise SettingsError(f"{path}: exactly one application must have `import_path: {IMPORT_PATH}`")
    arguments, http = ours[0].get("args") or {}, document.get("http_options") or {}
    if not isinstance(arguments, dict) or not isinstance(http, dict):
        raise SettingsError(f"{path}: args and http_options must be mappings")
    return arguments, http
