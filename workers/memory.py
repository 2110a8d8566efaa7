"""Memory of this process: what it peaked at, and how its device memory is handed out."""

import logging
import os
import resource
from collections.abc import Mapping

import torch

logger = logging.getLogger(__name__)

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def peak_bytes() -> int:
    """Peak bytes since the process began: allocated device memory on a GPU rank, resident host memory on a CPU rank."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def use_expandable_segments(environment: Mapping[str, str] = os.environ) -> bool:
    """Lets freed device memory of one stage serve another one's larger tensors; before anything is allocated.

    A plan counts tensors, and fills a GPU up to its headroom. torch's default keeps freed memory in pieces of the sizes
    that were asked for, which a tensor larger than each of them cannot use.

    Returns:
        Whether it was set; not where the environment configures torch's allocator already.
    """
    given = next((name for name in ALLOCATOR_VARIABLES if name in environment), None)
    if given is not None:
        logger.info("torch's allocator is configured by %s=%s", given, environment[given])
        return False
    # Not by a variable: which name takes effect differs between torch's versions, and the wrong one is passed over.
    settle = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    settle("expandable_segments:True")
    return True
