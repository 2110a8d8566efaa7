"""The Ray of a test run: as a command's own, with room for several small groups and no GPU unless asked."""

from contextlib import AbstractContextManager
from pathlib import Path

import deployments.local_ray


def local_ray(*, num_cpus: float = 8, num_gpus: int = 0) -> AbstractContextManager[Path]:
    """A private Ray; its processes and folder are gone afterwards."""
    return deployments.local_ray.local_ray(num_cpus=num_cpus, num_gpus=num_gpus)
