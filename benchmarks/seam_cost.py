"""What the denoiser seam adds to a call: on one rank, and on two ranks over loopback.

    python -m benchmarks.seam_cost [--calls N] [--tokens N]

The denoiser is one small elementwise operation on real-sized latents, so that what is left is the seam: hooking, the
queue, deferral, the message, the answer. On two ranks a step makes two calls; a follower adds a direct one's.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.record import keep
from workers.component_call import LocalComponent
from workers.deferred import wait_all
from workers.follower import follow
from workers.lanes import LaneLayout, Lanes
from workers.link import Link, TensorRoute
from workers.seam import Seam
from workers.tensor_memory import SentTensors
from workers.wire import WireListener, connect, new_key

CPU = torch.device("cpu")


class TinyDenoiser(torch.nn.Module):
    """Reads its arguments and returns a tensor of the latents' shape."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool,
    ) -> tuple[torch.Tensor]:
        assert not return_dict
        return (hidden_states * timestep + encoder_hidden_states[0, 0, 0],)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="steps to time")
    parser.add_argument("--tokens", type=int, default=4096, help="latent positions (16 channels, float32)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        {"what": "direct call", **_time(_direct(options.tokens), options.calls)},
        {"what": "seam, 1 rank", **_time(_seam(options.tokens, 1), options.calls)},
        {"what": "seam, 2 ranks, a step of 2 calls", **_time(_seam(options.tokens, 2), options.calls)},
    ]
    for row in rows:
        row["added_ms"] = row["median_ms"] - rows[0]["median_ms"]
        row["share_of_50ms_step"] = row["added_ms"] / 50.0
    keep("seam_cost", rows)


def _arguments(tokens: int, step: int) -> dict[str, Any]:
    latents = torch.randn(1, 16, tokens)
    return {"hidden_states": latents, "timestep": torch.tensor([float(step)]), "return_dict": False}


def _direct(tokens: int) -> Callable[[int], Any]:
    module, embeddings = TinyDenoiser(), torch.randn(1, 512, 64)
    arguments = _arguments(tokens, 0)
    return lambda _: module(**arguments, encoder_hidden_states=embeddings)[0]


def _seam(tokens: int, num_ranks: int) -> Callable[[int], Any]:
    module = TinyDenoiser()
    links = _start_follower() if num_ranks == 2 else {}
    lanes = Lanes(
        LaneLayout(num_ranks=num_ranks, num_lanes=num_ranks),
        local={"transformer": LocalComponent.wrap("transformer", module, is_denoiser=True)},
        links=links,
    )
    seam = Seam(lanes)
    seam.attach("transformer", module)
    positive, negative = torch.randn(1, 512, 64), torch.randn(1, 512, 64)
    latents = _arguments(tokens, 0)

    def step(_: int) -> torch.Tensor:
        arguments = {**latents, "hidden_states": latents["hidden_states"] + 0.0}  # new latents each step
        first = module(**arguments, encoder_hidden_states=positive)[0]
        if num_ranks == 1:
            return wait_all(first)
        second = module(**arguments, encoder_hidden_states=negative)[0]
        seam.end_step()
        return wait_all(second + 4.0 * (first - second))  # a scheduler's step waits

    return step


def _start_follower() -> dict[int, Link]:
    key = new_key()
    listener = WireListener("127.0.0.1", key)
    process = multiprocessing.get_context("spawn").Process(target=_follow, args=(listener.address, key), daemon=True)
    process.start()
    wires = listener.accept(1, timeout_s=60.0)
    return {rank: Link(wire, TensorRoute(CPU, None, rank), SentTensors()) for rank, wire in wires.items()}


def _follow(address: tuple[str, int], key: bytes) -> None:
    torch.set_num_threads(1)
    wire = connect(address, key, world_rank=1, timeout_s=60.0)
    component = LocalComponent.wrap("transformer", TinyDenoiser(), is_denoiser=True)
    follow(Link(wire, TensorRoute(CPU, None, 0)), components={"transformer": component}, extra_stats=dict)


def _time(step: Callable[[int], Any], num_calls: int) -> dict[str, float]:
    with torch.no_grad():
        for index in range(50):
            step(index)
        seconds = []
        for index in range(num_calls):
            start = time.perf_counter()
            step(index)
            seconds.append(time.perf_counter() - start)
    milliseconds = sorted(1e3 * value for value in seconds)
    return {"median_ms": statistics.median(milliseconds), "p90_ms": milliseconds[int(0.9 * len(milliseconds))]}


if __name__ == "__main__":
    main()
