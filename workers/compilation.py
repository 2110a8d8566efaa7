"""Compiles a denoiser's blocks: one graph a class of blocks instead of one a model, and kept between starts.

Set-up order: compile on the empty model, then shard or stream: gathering and copies stand around the compiled call.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch._dynamo
import torch._inductor.config
from torch import nn

from workers.calls import RankStats
from workers.shard_conditions import model_class_name, resolve_boundaries

logger = logging.getLogger(__name__)
_MAX_REASONS = 8
_MAX_REASON_CHARACTERS = 200

DETERMINISTIC = "TORCHINDUCTOR_DETERMINISTIC"
"""Unless the environment says otherwise, inductor makes no choice by timing that changes how sums are rounded: ranks
make such choices each for itself, and two that differed (blocks of 2,048 and 4,096 in one norm on an H200) gave another
picture on two lanes than on one GPU."""

MAX_GRAPHS_A_BLOCK = 64
"""Shapes a block is compiled for before torch falls back to uncompiled code; its own limit of 8 is soon reached by a
service of several sizes, lengths and batches."""


def compile_blocks(module: nn.Module, *, backend: str | Any = "inductor") -> int:
    """Lets each block compile at its first call, in place; parameters may still be on meta.

    Returns:
        The number of blocks.

    Raises:
        LoadError: no block boundary is known for the model.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS_A_BLOCK)
    if DETERMINISTIC not in os.environ:
        torch._inductor.config.deterministic = True
    # Counted over all blocks of a class, which share their code.
    names = resolve_boundaries(module).outermost()
    total = MAX_GRAPHS_A_BLOCK * max(1, len(names))
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, total)
    for name in names:
        module.get_submodule(name).compile(backend=backend)
    classes = Counter(type(module.get_submodule(name)).__name__ for name in names)
    logger.info(
        "%s: %s are compiled at their first call",
        model_class_name(module), ", ".join(f"{count} {name}" for name, count in classes.items()),
    )  # fmt: skip
    return len(names)


def count_graphs() -> dict[str, Any]:
    """Fields of `RankStats` for this process: its compiled graphs, their breaks, and why they broke."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return {}
    counters = dynamo.utils.counters
    reasons = [str(reason).splitlines()[0][:_MAX_REASON_CHARACTERS] for reason in counters["graph_break"]]
    return {
        "num_graphs": counters["stats"].get("unique_graphs", 0),
        "num_graph_breaks": sum(counters["graph_break"].values()),
        "graph_break_reasons": reasons[:_MAX_REASONS],
    }


class GraphWatch:
    """Says how whole the ranks' compiled blocks are, when it has changed: a break costs only speed and is not seen."""

    def __init__(self) -> None:
        self._reported: dict[int, tuple[int, int]] = {}

    def report(self, ranks: Iterable[RankStats]) -> None:
        """Call it after a request; silent where nothing was compiled since the last one."""
        for rank in ranks:
            counts = (rank.num_graphs, rank.num_graph_breaks)
            if counts == self._reported.get(rank.world_rank, (0, 0)):
                continue
            self._reported[rank.world_rank] = counts
            if rank.num_graph_breaks:
                logger.warning(
                    "rank %d: compiled blocks: %d graphs, broken %d times: %s",
                    rank.world_rank, *counts, "; ".join(rank.graph_break_reasons),
                )  # fmt: skip
            else:
                logger.info("rank %d: compiled blocks: %d graphs, none broken", rank.world_rank, rank.num_graphs)
