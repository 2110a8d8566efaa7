"""The planner as a Ray actor: asked by the app builder before anything is bound. The only module here that needs Ray.

The actor is named after a hash of the planner's code, so that a redeploy with other code never talks to an old one.
"""

import gc
import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ray

from planner.checkpoint import read_checkpoint
from planner.cluster import Cluster, cluster_from_ray_nodes, cluster_from_yaml, merge_clusters
from planner.errors import ClusterError, PlannerError, PlanRequestError
from planner.measurements import Measurement
from planner.plan import Plan, PlanRequest
from planner.profiles import configured_folder, keep_measurement, read_measurements
from planner.search import plan_group

NAMESPACE = "heliograph"
# The head node is the one that stays, and the one that has the cluster's description.
_ON_HEAD = {"node:__internal_head__": 0.001}
_BOOTSTRAP_FILE = Path.home() / "ray_bootstrap_config.yaml"
START_TIMEOUT_S = 60.0
PLAN_TIMEOUT_S = 60.0


class PlannerActor:
    """Plans for the cluster that it runs in. It keeps no state but the profiles' files.

    Args:
        process: `own` if nothing else runs in this process.
    """

    def __init__(self, process: Literal["own", "shared"] = "shared") -> None:
        if process == "own":
            leave_imports_out_of_collections()

    def plan(
        self, checkpoint: str, request_json: str, cluster_file: str | None = None, profiles: str | None = None
    ) -> str:
        """Plans one group; returns the JSON of the `Plan`.

        Args:
            checkpoint: folder or URL, as the actor's node sees it.
            request_json: JSON of a `PlanRequest`.
            cluster_file: a `ray up` file whose node types may still be started, beside the live nodes; without it the
                one that `ray up` leaves on the head node, if there is one.
            profiles: folder or URL of the calibration profiles, else `HELIOGRAPH_PROFILES` of the actor's node.

        Raises:
            PlannerError: as `read_checkpoint` and `plan_group` do.
        """
        request = PlanRequest.model_validate_json(request_json)
        _refuse_what_groups_do_not_run(request)
        read = read_checkpoint(checkpoint, variant=request.variant)
        measurements = read_measurements(configured_folder(profiles), checkpoint_fingerprint=read.fingerprint)
        return plan_group(read, _live_cluster(cluster_file), request, measurements=measurements).model_dump_json()

    def report_measurement(self, measurement_json: str, profiles: str | None = None) -> str | None:
        """Keeps what a group measured, for later plans; returns the merged record's JSON, None if none are kept.

        Args:
            measurement_json: JSON of a `Measurement`.
            profiles: as for `plan`.

        Raises:
            ProfileError: it cannot be written.
        """
        folder = configured_folder(profiles)
        if folder is None:
            return None
        return keep_measurement(folder, Measurement.model_validate_json(measurement_json)).model_dump_json()

    def ping(self) -> str:
        """Answers as soon as the actor stands, with the hash of its code."""
        return code_hash()


def get_planner_actor(*, timeout_s: float = START_TIMEOUT_S) -> Any:
    """The planner actor of this code, started if there is none. It needs no GPU and no CPU, and is not detached.

    Raises:
        PlannerError: it did not stand within `timeout_s`.
    """
    remote = ray.remote(PlannerActor).options(
        name=f"planner-{code_hash()}", namespace=NAMESPACE, get_if_exists=True, num_cpus=0, num_gpus=0, max_restarts=0,
        resources=_ON_HEAD,
        # Asked by a group, it would else be looked for in the group's own bundles, which have no head node.
        scheduling_strategy="DEFAULT",
    )  # fmt: skip
    actor = remote.remote("own")
    try:
        ray.get(actor.ping.remote(), timeout=timeout_s)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
        raise PlannerError(f"the planner actor did not start within {timeout_s:g} s: {error}") from error
    return actor


def ask_planner(
    checkpoint: str,
    request: PlanRequest,
    *,
    cluster_file: str | None = None,
    profiles: str | None = None,
    timeout_s: float = PLAN_TIMEOUT_S,
) -> Plan:
    """Asks the planner actor for a plan.

    Raises:
        PlannerError: the planner's own typed errors arrive as themselves; also when no answer came within `timeout_s`.
    """
    arguments = (checkpoint, request.model_dump_json(), cluster_file, profiles)
    answer = _call_actor("plan", arguments, what=checkpoint, timeout_s=timeout_s)
    assert answer is not None
    return Plan.model_validate_json(answer)


def report_measurement(
    measurement: Measurement, *, profiles: str | None = None, timeout_s: float = PLAN_TIMEOUT_S
) -> Measurement | None:
    """Sends a group's measurement to the planner actor; returns what is kept now, None if no profiles are kept.

    Raises:
        PlannerError: it could not be kept, or no answer came within `timeout_s`.
    """
    arguments = (measurement.model_dump_json(), profiles)
    answer = _call_actor("report_measurement", arguments, what="a measurement", timeout_s=timeout_s)
    return Measurement.model_validate_json(answer) if answer is not None else None


def _call_actor(method: str, arguments: tuple[Any, ...], *, what: str, timeout_s: float) -> str | None:
    actor = get_planner_actor(timeout_s=timeout_s)
    try:
        answer: str | None = ray.get(getattr(actor, method).remote(*arguments), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise PlannerError(f"the planner did not answer within {timeout_s:g} s for {what}") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PlannerError):
            raise error.cause from None
        raise PlannerError(f"the planner failed on {what}: {error}") from error
    except ray.exceptions.RayActorError as error:
        raise PlannerError(f"the planner actor died while it worked on {what}: {error}") from error
    return answer


def leave_imports_out_of_collections() -> None:
    """What was imported stays for good: looking through 68,000 objects for garbage took 40 ms of every 17th plan."""
    gc.collect()
    gc.freeze()


@cache
def code_hash() -> str:
    """Hash of the planner's sources and tables, 12 hex digits."""
    return hash_sources(Path(__file__).parent)


def hash_sources(folder: Path) -> str:
    """Hash of the sources and tables in a folder, by their relative paths."""
    digest = hashlib.sha256()
    for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _refuse_what_groups_do_not_run(request: PlanRequest) -> None:
    if request.step_cache is not None:
        raise PlanRequestError(
            f"step_cache {request.step_cache}: groups do not run step caches yet; leave step_cache out"
        )


def _live_cluster(cluster_file: str | None) -> Cluster:
    file = cluster_file or (str(_BOOTSTRAP_FILE) if _BOOTSTRAP_FILE.is_file() else None)
    live: Cluster | None = None
    try:
        live = cluster_from_ray_nodes(ray.nodes())
    except ClusterError:
        if file is None:
            raise
    if file is None:
        assert live is not None
        return live
    possible = cluster_from_yaml(file)
    return possible if live is None else merge_clusters(live, possible)
