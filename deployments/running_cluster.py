"""A connection to a Ray cluster that runs already."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.errors import LocalServiceError


@contextmanager
def connected() -> Iterator[None]:
    """Connects to the cluster that `RAY_ADDRESS` names, else to the one of this machine, with the token.

    Raises:
        LocalServiceError: there is none, or it does not let us in.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises anything here
        raise LocalServiceError(f"no running Ray cluster to ask: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
