"""Measured memory of this process."""

import resource

import torch


def peak_bytes() -> int:
    """Peak bytes since the process began: allocated device memory on a GPU rank, resident host memory on a CPU rank."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
