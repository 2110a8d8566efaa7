"""No open door by accident: listening beyond loopback needs a key, or somebody who says that it is meant."""

import ipaddress

from deployments.errors import SettingsError
from deployments.settings import AppSettings


def check_exposure(settings: AppSettings, host: str) -> None:
    """Refuses to listen where others can reach it without a key.

    Raises:
        SettingsError: `host` is not loopback, there is no key, and `allow_open_port` is not set.
    """
    if is_loopback(host) or settings.has_keys or settings.allow_open_port:
        return
    raise SettingsError(
        f"HTTP would listen on {host} without an API key: set http_options.host (or --host) to 127.0.0.1, make a key "
        "with `heliograph key NAME` and put it under api_keys, or set allow_open_port: true"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def running_http_host() -> str | None:
    """The address that a Serve that runs already listens on; None if none runs: then nothing is known yet."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else str(client.http_config.host)
