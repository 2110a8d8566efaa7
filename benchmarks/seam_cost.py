"""What the denoiser seam adds to a step: on one rank, and on two ranks over loopback.

    python -m benchmarks.seam_cost [--steps N] [--tokens N]

The denoiser is one small elementwise operation on real-sized latents, so that what is left is the seam: hooking, the
queue, deferral, the message, the answer. The plain step makes one call, since of two calls a second rank takes one. The
plain transfer is a bare socket between the same two processes that carries the same bytes to and fro. All rows are
measured in turns, so that whatever else the host does meets them alike.
"""

import argparse
import multiprocessing
import socket
import statistics
import threading
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
STEPS_A_TURN = 25
NUM_WARMUP_TURNS = 4
HEADER_BYTES = 160
"""Of a call whose structure is known, with its frame; the answer's is a little shorter."""

Step = Callable[[], Any]


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
    parser.add_argument("--steps", type=int, default=2000, help="steps to time")
    parser.add_argument("--tokens", type=int, default=4096, help="latent positions (16 channels, float32)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    links, plain = _start_follower()
    steps = {
        "plain step": _plain_step(options.tokens),
        "seam, 1 rank": _seam_step(options.tokens, {}),
        "seam, 2 ranks, a step of 2 calls": _seam_step(options.tokens, links),
        "plain transfer, 2 processes": _transfer(plain, options.tokens * 16 * 4 + HEADER_BYTES),
    }
    rows = _measure(steps, num_turns=options.steps // STEPS_A_TURN)
    plain_step, one_rank, two_ranks, transfer = rows
    for key in ("median_ms", "min_ms"):
        one_rank[f"added_{key}"] = one_rank[key] - plain_step[key]
        two_ranks[f"added_{key}"] = two_ranks[key] - plain_step[key]
        two_ranks[f"above_transfer_{key}"] = two_ranks[f"added_{key}"] - transfer[key]
    keep("seam_cost", rows)


def _arguments(latents: torch.Tensor) -> dict[str, Any]:
    """Latents are new at each step, as a scheduler's are."""
    return {"hidden_states": latents + 0.0, "timestep": torch.tensor([1.0]), "return_dict": False}


def _plain_step(tokens: int) -> Step:
    module, embeddings, latents = TinyDenoiser(), torch.randn(1, 512, 64), torch.randn(1, 16, tokens)

    def step() -> torch.Tensor:
        first = module(**_arguments(latents), encoder_hidden_states=embeddings)[0]
        result: torch.Tensor = first + 4.0 * (first - first)
        return result

    return step


def _seam_step(tokens: int, links: dict[int, Link]) -> Step:
    module, num_ranks = TinyDenoiser(), 1 + len(links)
    lanes = Lanes(
        LaneLayout(num_ranks=num_ranks, num_lanes=num_ranks),
        local={"transformer": LocalComponent.wrap("transformer", module, is_denoiser=True)},
        links=links,
    )
    seam = Seam(lanes)
    seam.attach("transformer", module)
    positive, negative, latents = torch.randn(1, 512, 64), torch.randn(1, 512, 64), torch.randn(1, 16, tokens)

    def step() -> torch.Tensor:
        arguments = _arguments(latents)
        second = first = module(**arguments, encoder_hidden_states=positive)[0]
        if num_ranks == 2:
            second = module(**arguments, encoder_hidden_states=negative)[0]
        seam.end_step()
        result: torch.Tensor = wait_all(second + 4.0 * (first - second))  # a scheduler's step waits
        return result

    return step


def _transfer(connection: socket.socket, num_bytes: int) -> Step:
    payload, answer = bytearray(num_bytes), bytearray(num_bytes)
    connection.sendall(num_bytes.to_bytes(8, "little"))

    def step() -> None:
        connection.sendall(payload)
        _read(connection, answer)

    return step


def _start_follower() -> tuple[dict[int, Link], socket.socket]:
    """A follower in a process of its own, and a bare connection to an echo in it."""
    key = new_key()
    listener = WireListener("127.0.0.1", key)
    echo_listener = socket.create_server(("127.0.0.1", 0))
    arguments = (listener.address, key, echo_listener.getsockname())
    multiprocessing.get_context("spawn").Process(target=_follow, args=arguments, daemon=True).start()
    wires = listener.accept(1, timeout_s=60.0)
    connection, _ = echo_listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return {rank: Link(wire, TensorRoute(CPU, None, rank), SentTensors()) for rank, wire in wires.items()}, connection


def _follow(address: tuple[str, int], key: bytes, echo_address: tuple[str, int]) -> None:
    torch.set_num_threads(1)
    wire = connect(address, key, world_rank=1, timeout_s=60.0)
    threading.Thread(target=_echo, args=(echo_address,), daemon=True).start()
    component = LocalComponent.wrap("transformer", TinyDenoiser(), is_denoiser=True)
    follow(Link(wire, TensorRoute(CPU, None, 0)), components={"transformer": component}, extra_stats=dict)


def _echo(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        length = bytearray(8)
        _read(connection, length)
        payload = bytearray(int.from_bytes(length, "little"))
        while _read(connection, payload):
            connection.sendall(payload)


def _read(connection: socket.socket, target: bytearray) -> int:
    return connection.recv_into(target, len(target), socket.MSG_WAITALL)


def _measure(steps: dict[str, Step], *, num_turns: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {what: [] for what in steps}
    with torch.no_grad():
        for turn in range(NUM_WARMUP_TURNS + num_turns):
            for what, step in steps.items():
                for _ in range(STEPS_A_TURN):
                    start = time.perf_counter()
                    step()
                    if turn >= NUM_WARMUP_TURNS:
                        seconds[what].append(time.perf_counter() - start)
    return [{"what": what, **_summary(values)} for what, values in seconds.items()]


def _summary(seconds: list[float]) -> dict[str, float]:
    milliseconds = sorted(1e3 * value for value in seconds)
    tenth = len(milliseconds) // 10
    return {
        "median_ms": statistics.median(milliseconds),
        "min_ms": milliseconds[0],
        "p90_ms": milliseconds[-tenth - 1],
    }


if __name__ == "__main__":
    main()
