"""The planner as a Ray actor: asked by the app builder before anything is bound. The only module here that needs Ray.

The actor is named after a hash of the planner's code, so that a redeploy with other code never talks to an old one.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import ray

from planner.checkpoint import read_checkpoint
from planner.cluster import Cluster, cluster_from_ray_nodes, cluster_from_yaml, merge_clusters
from planner.errors import ClusterError, PlannerError
from planner.plan import Plan, PlanRequest
from planner.search import plan_group

NAMESPACE = "heliograph"
START_TIMEOUT_S = 60.0
PLAN_TIMEOUT_S = 60.0


class PlannerActor:
    """Plans for the cluster that it runs in. Stateless."""

    def plan(self, checkpoint: str, request_json: str, cluster_file: str | None = None) -> str:
        """Plans one group; returns the JSON of the `Plan`.

        Args:
            checkpoint: folder or URL, as the actor's node sees it.
            request_json: JSON of a `PlanRequest`.
            cluster_file: a `ray up` file whose node types may still be started, beside the live nodes.

        Raises:
            PlannerError: as `read_checkpoint` and `plan_group` do.
        """
        request = PlanRequest.model_validate_json(request_json)
        read = read_checkpoint(checkpoint, variant=request.variant)
        return plan_group(read, _live_cluster(cluster_file), request).model_dump_json()

    def ping(self) -> str:
        """Answers as soon as the actor stands, with the hash of its code."""
        return code_hash()


def get_planner_actor(*, timeout_s: float = START_TIMEOUT_S) -> Any:
    """The planner actor of this code, started if there is none. It needs no GPU and no CPU, and is not detached.

    Raises:
        PlannerError: it did not stand within `timeout_s`.
    """
    remote = ray.remote(PlannerActor).options(
        name=f"planner-{code_hash()}", namespace=NAMESPACE, get_if_exists=True, num_cpus=0, num_gpus=0, max_restarts=0
    )
    actor = remote.remote()
    try:
        ray.get(actor.ping.remote(), timeout=timeout_s)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
        raise PlannerError(f"the planner actor did not start within {timeout_s:g} s: {error}") from error
    return actor


def ask_planner(
    checkpoint: str, request: PlanRequest, *, cluster_file: str | None = None, timeout_s: float = PLAN_TIMEOUT_S
) -> Plan:
    """Asks the planner actor for a plan.

    Raises:
        PlannerError: the planner's own typed errors arrive as themselves; also when no answer came within `timeout_s`.
    """
    actor = get_planner_actor(timeout_s=timeout_s)
    try:
        answer = ray.get(actor.plan.remote(checkpoint, request.model_dump_json(), cluster_file), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise PlannerError(f"the planner did not answer within {timeout_s:g} s for {checkpoint}") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PlannerError):
            raise error.cause from None
        raise PlannerError(f"the planner failed on {checkpoint}: {error}") from error
    except ray.exceptions.RayActorError as error:
        raise PlannerError(f"the planner actor died while it planned {checkpoint}: {error}") from error
    return Plan.model_validate_json(answer)


@cache
def code_hash() -> str:
    """Hash of the planner's sources and tables, 12 hex digits."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _live_cluster(cluster_file: str | None) -> Cluster:
    live: Cluster | None = None
    try:
        live = cluster_from_ray_nodes(ray.nodes())
    except ClusterError:
        if cluster_file is None:
            raise
    if cluster_file is None:
        assert live is not None
        return live
    possible = cluster_from_yaml(cluster_file)
    return possible if live is None else merge_clusters(live, possible)
