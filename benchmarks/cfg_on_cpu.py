"""CFG parallelism without a GPU: two ranks of one thread against one process with one thread and with two.

    python -m benchmarks.cfg_on_cpu [--steps N] [--checkpoint FOLDER]

A step is two calls of a real denoiser (the shapes checkpoint's, at its own size) and the guidance arithmetic. The three
ways do the same work and are measured in turns; their results are compared to the bit. On two cores, two ranks take
about 0.56 of one thread's time when the host is idle, and about as long as two threads in one process.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

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
SHAPES = Path(__file__).parent.parent / "checkpoints" / "shapes"
LATENTS_SHAPE = (1, 12, 3, 16, 16)
"""64 x 64 pixels, 9 frames."""
GUIDANCE_SCALE = 4.0

Step = Callable[[], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="steps to time each way")
    parser.add_argument("--checkpoint", type=Path, default=SHAPES)
    options = parser.parse_args()
    serial = _step(_load(options.checkpoint), None)
    module = _load(options.checkpoint)
    two_ranks = _step(module, _attach(module, options.checkpoint))
    ways: dict[str, tuple[int, Step]] = {
        "serial, 1 thread": (1, serial),
        "serial, 2 threads": (2, serial),
        "2 ranks of 1 thread": (1, two_ranks),
    }
    keep("cfg_on_cpu", _measure(ways, num_steps=options.steps))


def _load(checkpoint: Path) -> torch.nn.Module:
    """With weights where the allocator puts them: CPUs add in another order for a mapped file's odd addresses."""
    module: torch.nn.Module = WanTransformer3DModel.from_pretrained(
        checkpoint, subfolder="transformer", torch_dtype=torch.float32
    )
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module.eval()


def _step(module: torch.nn.Module, seam: Seam | None) -> Step:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(LATENTS_SHAPE, generator=generator)
    positive, negative = torch.randn(2, 1, 512, 64, generator=generator)

    def step() -> torch.Tensor:
        arguments: dict[str, Any] = {"hidden_states": latents + 0.0, "timestep": torch.tensor([500.0])}
        conditional = module(**arguments, encoder_hidden_states=positive, return_dict=False)[0]
        unconditional = module(**arguments, encoder_hidden_states=negative, return_dict=False)[0]
        if seam is not None:
            seam.end_step()
        result: torch.Tensor = wait_all(unconditional + GUIDANCE_SCALE * (conditional - unconditional))
        return result

    return step


def _attach(module: torch.nn.Module, checkpoint: Path) -> Seam:
    key = new_key()
    listener = WireListener("127.0.0.1", key)
    arguments = (listener.address, key, checkpoint)
    multiprocessing.get_context("spawn").Process(target=_follow, args=arguments, daemon=True).start()
    wires = listener.accept(1, timeout_s=120.0)
    lanes = Lanes(
        LaneLayout(num_ranks=2, num_lanes=2),
        local={"transformer": LocalComponent.wrap("transformer", module, is_denoiser=True)},
        links={rank: Link(wire, TensorRoute(CPU, None, rank), SentTensors()) for rank, wire in wires.items()},
    )
    seam = Seam(lanes)
    seam.attach("transformer", module)
    return seam


def _follow(address: tuple[str, int], key: bytes, checkpoint: Path) -> None:
    torch.set_num_threads(1)
    component = LocalComponent.wrap("transformer", _load(checkpoint), is_denoiser=True)
    wire = connect(address, key, world_rank=1, timeout_s=60.0)
    follow(Link(wire, TensorRoute(CPU, None, 0)), components={"transformer": component}, extra_stats=dict)


def _measure(ways: dict[str, tuple[int, Step]], *, num_steps: int) -> list[dict[str, Any]]:
    milliseconds: dict[str, list[float]] = {what: [] for what in ways}
    results = {}
    with torch.no_grad():
        for turn in range(2 + num_steps):  # the first two learn and warm up
            for what, (num_threads, step) in ways.items():
                torch.set_num_threads(num_threads)
                start = time.perf_counter()
                results[what] = step()
                if turn >= 2:
                    milliseconds[what].append(1e3 * (time.perf_counter() - start))
    one_thread, two_threads, two_ranks = ways
    assert torch.equal(results[two_ranks], results[one_thread]), "two ranks gave another result than one"
    medians = {what: statistics.median(values) for what, values in milliseconds.items()}
    return [
        {
            "what": what,
            "median_ms": medians[what],
            "min_ms": min(values),
            "to_1_thread": medians[what] / medians[one_thread],
            "to_2_threads": medians[what] / medians[two_threads],
            "min_to_1_thread": min(values) / min(milliseconds[one_thread]),
            "min_to_2_threads": min(values) / min(milliseconds[two_threads]),
        }
        for what, values in milliseconds.items()
    ]


if __name__ == "__main__":
    main()
