"""Runs one function on gloo ranks of their own processes, with a deadline, and collects what each returns."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

RankFunction = Callable[..., Any]


def run_ranks(
    function: RankFunction, folder: Path, *args: Any, num_ranks: int = 2, deadline_s: float = 150
) -> list[Any]:
    """Calls `function(mesh, *args)` on each rank; returns the JSON-able results by rank.

    Raises:
        TimeoutError: not all ranks ended in time; they are killed.
        ProcessRaisedException: with the trace of the rank that failed.
    """
    context = multiprocessing.start_processes(
        _run_one, (num_ranks, str(folder), function, args), nprocs=num_ranks, join=False, start_method="spawn"
    )
    end = time.monotonic() + deadline_s
    try:
        while not context.join(timeout=max(0.1, end - time.monotonic())):
            if time.monotonic() > end:
                raise TimeoutError(f"{function.__name__}: ranks still run after {deadline_s} s")
    finally:
        for process in context.processes:
            process.kill()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]


def _run_one(rank: int, num_ranks: int, folder: str, function: RankFunction, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    mesh: DeviceMesh = init_device_mesh("cpu", (num_ranks,))
    result = function(mesh, *args)
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo that still wind down abort an ordinary exit now and then
