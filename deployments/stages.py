"""How far the start of each group is, for `heliograph status` and `heliograph serve`.

Serve itself says no more than "starting" (and, after half a minute, that resources are missing), and a group that
starts cannot be asked. So it writes one line into the key-value store of Ray's GCS, and takes it away when it is up. A
line of a group that has died is passed over.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import serve
from ray.experimental import internal_kv

from planner.plan import Plan
from workers.calls import ComponentLoaded

logger = logging.getLogger(__name__)
_NAMESPACE = "heliograph"
_PREFIX = "stage/"
_SERVE_NAMESPACE = "serve"
_GROUP = "Group"  # how deployments of groups begin


@dataclass(frozen=True, slots=True)
class Stage:
    """Where one group's start is.

    Attributes:
        app: Serve's name of the app.
        deployment: of the group.
        replica: the name of the coordinator's actor.
        text: for people.
    """

    app: str
    deployment: str
    replica: str
    text: str


class StageReport:
    """The line of the group that starts in this Serve replica. What goes wrong with it is logged, and harms nothing.

    Args:
        plan: says how many bytes there are to load.
    """

    def __init__(self, plan: Plan) -> None:
        context = serve.get_replica_context()
        self._who = (context.app_name, context.deployment, context.replica_id.to_full_id_str())
        self._share = LoadedShare(plan)

    def on_load(self, event: ComponentLoaded) -> None:
        """A component is in place on a rank."""
        logger.info("%s", event)
        self.say(f"loading, {self._share.add(event)} %")

    def say(self, text: str) -> None:
        """The group is at this now."""
        stage = Stage(*self._who, text)
        try:
            internal_kv._internal_kv_put(_key(stage), json.dumps(asdict(stage)).encode(), namespace=_NAMESPACE)
        except Exception as error:  # Ray raises anything here; a start does not fail for want of a word about it
            logger.warning("cannot say that the group is %s: %s", text, error)

    def end(self) -> None:
        """The group is up, or its start has failed."""
        try:
            internal_kv._internal_kv_del(_key(Stage(*self._who, "")), namespace=_NAMESPACE)
        except Exception as error:
            logger.warning("cannot take back what was said of the start: %s", error)


class LoadedShare:
    """How many percent of the weights are in place, counted in bytes over all ranks."""

    def __init__(self, plan: Plan) -> None:
        self._bytes_a_rank = {item.name: item.payload_bytes / len(item.ranks) for item in plan.components}
        self._total = sum(item.payload_bytes for item in plan.components)
        self._done = 0.0

    def add(self, event: ComponentLoaded) -> int:
        """The share, now that one more component is in place on one more rank."""
        self._done += self._bytes_a_rank.get(event.name, 0.0)
        return min(round(100 * self._done / self._total), 100) if self._total else 100


def read_stages() -> list[Stage]:
    """The stages of all groups that are being started on this cluster."""
    keys = internal_kv._internal_kv_list(_PREFIX, namespace=_NAMESPACE)
    values = [internal_kv._internal_kv_get(key, namespace=_NAMESPACE) for key in keys]
    stages = [Stage(**json.loads(value)) for value in values if value is not None]
    return [stage for stage in stages if _is_alive(stage.replica)]


def describe_app(name: str, status: Any, stages: Iterable[Stage]) -> list[str]:
    """Lines for people about one app.

    Args:
        name: of the app.
        status: what `serve.status()` says of it.
        stages: of `read_stages`.
    """
    if not status.deployments:
        word = "planning" if status.status == "DEPLOYING" else status.status
        return [f"{name}: {word}", *_indented(status.message)]
    lines = [f"{name}: {'ready' if status.status == 'RUNNING' else status.status}"]
    for deployment, state in status.deployments.items():
        lines.append(f"  {deployment}: {describe_deployment(name, deployment, state, stages)}")
        lines += [f"  {line}" for line in _indented(state.message)]
    return [*lines, *_indented(status.message)]


def describe_deployment(app: str, deployment: str, state: Any, stages: Iterable[Stage]) -> str:
    """`2 ready; 1 loading, 43 %; 1 waiting for nodes`."""
    counts = {str(getattr(key, "value", key)): number for key, number in state.replica_states.items()}
    texts = [stage.text for stage in stages if (stage.app, stage.deployment) == (app, deployment)]
    num_unheard = counts.get("STARTING", 0) - len(texts)
    unheard = "waiting for nodes" if deployment.startswith(_GROUP) else "starting"  # only groups say more
    starting = Counter(texts) + Counter({unheard: max(num_unheard, 0)})
    parts = [f"{counts['RUNNING']} ready"] if counts.get("RUNNING") else []
    parts += [f"{number} {text}" for text, number in starting.items()]
    parts += [f"{counts['STOPPING']} stopping"] if counts.get("STOPPING") else []
    return "; ".join(parts) or "none"


def _indented(message: str) -> list[str]:
    return [f"  {line}" for line in message.splitlines() if line.strip()]


def _key(stage: Stage) -> str:
    return f"{_PREFIX}{stage.replica}"


def _is_alive(replica: str) -> bool:
    try:
        ray.get_actor(replica, namespace=_SERVE_NAMESPACE)
    except ValueError:
        return False
    return True
