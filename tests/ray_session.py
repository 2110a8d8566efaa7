"""A local Ray for tests: its own temporary folder, token authentication on."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def local_ray(*, num_cpus: float = 8, num_gpus: int = 0) -> Iterator[Any]:
    """A private Ray; its processes and folder are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="heliograph-ray-", ignore_cleanup_errors=True) as folder:
        context = ray.init(
            address="local",
            num_cpus=int(num_cpus),
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            yield context
        finally:
            ray.shutdown()
