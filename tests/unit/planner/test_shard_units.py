"""What is gathered at once of a sharded component: blocks where they fit, parts where only those do."""

from typing import Any

import pytest

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import cluster_from_flags
from planner.errors import InfeasiblePlanError, PlanRequestError
from planner.plan import Compilation, Mode, Plan, PlanRequest, Residency, ResidencyChoice, ShardUnit
from planner.search import plan_group

DEGREES: dict[str, Any] = {"num_ranks": 2, "cfg_degree": 1, "sequence_degree": 1, "fsdp_degree": 2}
VIDEO: dict[str, Any] = {"width": 832, "height": 480, "num_frames": 81}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    pytest.importorskip("torch")
    from tests.tools.skeletons import write_skeleton

    return read_checkpoint(str(write_skeleton(tmp_path_factory.mktemp("skeletons"), "Wan2.1-T2V-14B")))


def plan(wan: Checkpoint, *, gib: float = 80, shard_by: ShardUnit | None = None, **wishes: Any) -> Plan:
    """For two GPUs of so many GiB, where only the sharded denoiser needs much."""
    residency = {
        "transformer": ResidencyChoice(residency=Residency.SHARDED, shard_by=shard_by),
        "text_encoder": ResidencyChoice(residency=Residency.LAYERWISE, num_resident_blocks=0),
    }
    cluster = cluster_from_flags(gpus_per_node=2, gpu_type="H100", gpu_memory_gib=gib, host_memory_gib=512)
    return plan_group(wan, cluster, PlanRequest(residency=residency, decoding="tiles", **DEGREES, **VIDEO, **wishes))


def unit(found: Plan) -> ShardUnit | None:
    return next(component.shard_by for component in found.components if component.name == "transformer")


def denoising_gib(found: Plan) -> float:
    return max(max(m.gpu_bytes) for m in found.memory.timeline if m.stage == "denoise") / 2**30


def test_blocks_are_taken_where_they_fit_and_parts_where_only_those_do(wan: Checkpoint) -> None:
    roomy = plan(wan, compile="none")
    assert unit(roomy) is ShardUnit.BLOCKS
    sizes = [gib for gib in range(18, 30) if _fits(wan, gib)]
    units = [unit(plan(wan, gib=gib, compile="none")) for gib in sizes]
    assert units[0] is ShardUnit.PARTS
    assert units[-1] is ShardUnit.BLOCKS
    assert units == sorted(units, key=[ShardUnit.PARTS, ShardUnit.BLOCKS].index)


def _fits(wan: Checkpoint, gib: float) -> bool:
    try:
        plan(wan, gib=gib, compile="none")
    except InfeasiblePlanError:
        return False
    return True


def test_parts_save_more_than_a_block(wan: Checkpoint) -> None:
    blocks, parts = (plan(wan, shard_by=shard_by, compile="none") for shard_by in ShardUnit)
    saved = denoising_gib(blocks) - denoising_gib(parts)
    block, around_blocks, feed_forward, embedder = 0.655, 0.485, 0.264, 0.483
    assert saved == pytest.approx(2 * block + around_blocks - (embedder + feed_forward), abs=0.02)


def test_mode_memory_takes_parts_unless_blocks_are_stated(wan: Checkpoint) -> None:
    assert unit(plan(wan, mode=Mode.MEMORY)) is ShardUnit.PARTS
    assert unit(plan(wan, mode=Mode.MEMORY, shard_by=ShardUnit.BLOCKS)) is ShardUnit.BLOCKS


def test_compiled_denoisers_are_sharded_by_blocks(wan: Checkpoint) -> None:
    found = plan(wan, mode=Mode.MEMORY, compile="blocks")
    assert (unit(found), found.compile) == (ShardUnit.BLOCKS, Compilation.BLOCKS)


def test_stated_parts_are_not_compiled_and_refused_where_compiling_is_stated(wan: Checkpoint) -> None:
    found = plan(wan, shard_by=ShardUnit.PARTS)
    assert (unit(found), found.compile) == (ShardUnit.PARTS, Compilation.NONE)
    with pytest.raises(PlanRequestError, match="sharded:blocks"):
        plan(wan, shard_by=ShardUnit.PARTS, compile="blocks")
