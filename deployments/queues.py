"""What waits and runs, over all ingress replicas: each knows its own requests, the database the jobs of nobody yet."""

import asyncio
import logging
import math
from collections.abc import Sequence

from deployments.answers import Queue
from deployments.jobs.desk import JobDesk
from deployments.metrics import PREFIX
from deployments.metrics_api import Gather, ReplicaMetrics
from deployments.service import Service

logger = logging.getLogger(__name__)


async def read_queues(service: Service, desk: JobDesk, gather: Gather) -> list[Queue]:
    """One entry a model; none if the database or the other replicas do not answer within `health_timeout_s`."""
    try:
        async with asyncio.timeout(service.settings.health_timeout_s):
            replicas, untaken = await asyncio.gather(gather(), desk.num_untaken())
    except Exception as error:  # health is said also while a database or Serve's controller is away
        logger.warning("/health: the queues are not known: %s", type(error).__name__)
        return []
    return [_queue_of(model, replicas, num_untaken=untaken.get(model, 0)) for model in service.models]


def _queue_of(model: str, replicas: Sequence[ReplicaMetrics], *, num_untaken: int) -> Queue:
    seconds_left = _total(f"{PREFIX}_queued_work_seconds", model, replicas)
    return Queue(
        model=model,
        num_running=int(_total(f"{PREFIX}_num_requests_running", model, replicas)),
        num_waiting=int(_total(f"{PREFIX}_num_requests_waiting", model, replicas)),
        num_untaken_jobs=num_untaken,
        seconds_left=None if math.isnan(seconds_left) else seconds_left,
    )


def _total(name: str, model: str, replicas: Sequence[ReplicaMetrics]) -> float:
    metrics = [metric for replica in replicas for metric in replica.metrics if metric.name == name]
    return sum(sample.value for metric in metrics for sample in metric.samples if sample.labels["model"] == model)
