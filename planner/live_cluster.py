"""The live Ray cluster's nodes, asked over HTTP: importing Ray would take longer than planning.

Ray's dashboard answers `GET /api/v0/nodes` (the state API) on every cluster that can run Serve. Which one is asked:
`RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS`, both as Ray's own commands understand them, else the cluster that
`ray start` began on this machine.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from planner.errors import ClusterError

DASHBOARD_PORT = 8265
TIMEOUT_S = 3.0
MAX_NODES = 10_000
MAX_ANSWER_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class LiveNodes:
    """What could be found out about a running cluster.

    Attributes:
        nodes: as `ray.nodes()` would return them; None if no cluster answers.
        note: why a cluster that seems to be there was not asked; None if there is nothing to say.
    """

    nodes: tuple[Mapping[str, Any], ...] | None
    note: str | None = None


def find_live_nodes(environment: Mapping[str, str] | None = None) -> LiveNodes:
    """Asks the cluster that the environment names, else the one of this machine.

    Raises:
        ClusterError: a cluster is named and does not answer; nothing else is planned for instead.
    """
    variables = os.environ if environment is None else environment
    stated = variables.get("RAY_API_SERVER_ADDRESS") or variables.get("RAY_ADDRESS") or ""
    if stated and stated not in {"auto", "local"}:
        return LiveNodes(_ask(_dashboard_url(stated), variables))
    if stated == "local":
        return LiveNodes(None)
    started = _read(Path(variables.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster")
    if not started:
        return LiveNodes(None)
    try:
        return LiveNodes(_ask(_dashboard_url(started), variables))
    except ClusterError as error:
        return LiveNodes(None, f"a Ray cluster was started on this machine and is not planned for: {error}")


def _dashboard_url(address: str) -> str:
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    host = address.removeprefix("ray://").rpartition(":")[0] or address
    return f"http://{host}:{DASHBOARD_PORT}"


def _ask(dashboard: str, variables: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    url = f"{dashboard}/api/v0/nodes?limit={MAX_NODES}"
    try:
        try:
            raw = _get(url, token=None)
        except urllib.error.HTTPError as error:
            if error.code not in {401, 403}:
                raise
            raw = _get(url, token=_find_token(variables))
        rows = json.loads(raw)["data"]["result"]["result"]
        return tuple(_node_of_row(row) for row in rows)
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"the Ray cluster's dashboard at {dashboard} does not say which nodes there are ({error}); start it, unset "
            f"RAY_ADDRESS and RAY_API_SERVER_ADDRESS, or describe the cluster with --gpus or --cluster"
        ) from error


def _get(url: str, *, token: str | None) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        raw: bytes = answer.read(MAX_ANSWER_BYTES + 1)
    if len(raw) > MAX_ANSWER_BYTES:
        raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes came back")
    return raw


def _node_of_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"Alive": row["state"] == "ALIVE", "Resources": row["resources_total"], "Labels": row.get("labels") or {}}


def _find_token(variables: Mapping[str, str]) -> str | None:
    """Ray's token, where Ray's own clients look for it; sent only to a dashboard that asks for one."""
    if token := variables.get("RAY_AUTH_TOKEN"):
        return token.strip()
    home = Path(variables.get("HOME", "~")).expanduser()
    return _read(Path(variables.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token"))


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
