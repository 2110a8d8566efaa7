"""A group's lanes inside one process: followers are threads with copies of the components, joined by real sockets.

The seam, the wire and the followers' loop are the real ones; only Ray and processes are left out.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from workers.call_pace import CallDeadlines, CallPace
from workers.component_call import LocalComponent
from workers.components import RankComponents
from workers.follower import follow
from workers.lanes import LaneLayout, Lanes
from workers.leader import Leader
from workers.link import Link, TensorRoute
from workers.tensor_memory import SentTensors
from workers.wire import WireListener, connect, new_key

CPU = torch.device("cpu")


def find_denoisers(pipeline: Any) -> list[str]:
    return [name for name in ("transformer", "transformer_2", "unet") if getattr(pipeline, name, None) is not None]


@contextmanager
def lanes_of_threads(
    pipeline: Any, *, num_lanes: int, denoisers: list[str] | None = None, timeout_s: float = 60.0
) -> Iterator[Lanes]:
    """Lanes of one rank each around `pipeline`'s denoisers; the pipeline's own modules are the leader's."""
    names = find_denoisers(pipeline) if denoisers is None else denoisers
    modules = {name: getattr(pipeline, name) for name in names}
    key = new_key()
    listener = WireListener("127.0.0.1", key)
    threads = [
        threading.Thread(target=_run_follower, args=(listener.address, key, rank, copy.deepcopy(modules)), daemon=True)
        for rank in range(1, num_lanes)
    ]
    for thread in threads:
        thread.start()
    wires = listener.accept(num_lanes - 1, timeout_s=10.0)
    listener.close()
    lanes = Lanes(
        LaneLayout(num_ranks=num_lanes, num_lanes=num_lanes),
        local={name: LocalComponent.wrap(name, module, is_denoiser=True) for name, module in modules.items()},
        links={rank: Link(wire, TensorRoute(CPU, None, rank), SentTensors()) for rank, wire in wires.items()},
        pace=CallPace(CallDeadlines(floor_s=timeout_s, first_s=timeout_s)),
    )
    try:
        yield lanes
    finally:
        lanes.close()
        for thread in threads:
            thread.join(timeout=10.0)
            assert not thread.is_alive(), "a follower did not leave"


@contextmanager
def leader_of_threads(pipeline: Any, *, num_lanes: int, denoisers: list[str] | None = None) -> Iterator[Leader]:
    """A leader around `pipeline` whose followers are threads."""
    pipeline.set_progress_bar_config(disable=True)
    with lanes_of_threads(pipeline, num_lanes=num_lanes, denoisers=denoisers) as lanes:
        yield Leader(pipeline, lanes, components=RankComponents())


def _run_follower(address: tuple[str, int], key: bytes, rank: int, modules: dict[str, torch.nn.Module]) -> None:
    wire = connect(address, key, world_rank=rank, timeout_s=10.0)
    components = {name: LocalComponent.wrap(name, module, is_denoiser=True) for name, module in modules.items()}
    extra = {"weight_bytes_read": 0, "peak_bytes": 0}
    follow(Link(wire, TensorRoute(CPU, None, 0)), components=components, extra_stats=lambda: extra)
