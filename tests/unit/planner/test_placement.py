"""How many blocks stay on the device, on which rank an encoder lives, and what a node's host memory holds once."""

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import GIB, Cluster, cluster_from_flags
from planner.costs import resolve_workload
from planner.degrees import Degrees
from planner.errors import InfeasiblePlanError, PlanRequestError
from planner.execution import Execution
from planner.fallbacks import find_fallbacks
from planner.hardware import find_gpu
from planner.memory import GIB as MEMORY_GIB
from planner.memory import Placement, idle_bytes, pinned_bytes
from planner.plan import Compilation, ComponentPlan, Decoding, Mode, Plan, PlanRequest, Residency, ResidencyChoice
from planner.prediction import Setting
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_safetensors, write_wan

SHORT = {"width": 64, "height": 64, "num_frames": 1, "num_inference_steps": 4}
LONG = {"width": 1280, "height": 720, "num_frames": 81}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two denoisers of 40 blocks of 256 MiB (10 GiB each), a text encoder of 6 and an autoencoder of 4 GiB; sparse."""
    folder = tmp_path_factory.mktemp("big")
    write_wan(folder, num_layers=40, width=8192, two_transformers=True, encoder_layers=24)
    write_safetensors(folder / "vae" / "diffusion_pytorch_model.safetensors", {"decoder.conv.weight": (2**15, 2**16)})
    return read_checkpoint(str(folder))


def gpus(count: int, gib: float, *, nodes: int = 1, host_gib: float = 512) -> Cluster:
    return cluster_from_flags(
        gpus_per_node=count, gpu_type="H100", gpu_memory_gib=gib, num_nodes=nodes, host_memory_gib=host_gib
    )


DENOISERS = ("transformer", "transformer_2")
RESIDENT = {name: ResidencyChoice(residency=Residency.RESIDENT) for name in (*DENOISERS, "text_encoder", "vae")}
ONLY_STREAMED = {name: (Residency.RESIDENT, Residency.OFFLOAD) for name in DENOISERS}


def stream(text: str = "layerwise", *, names: tuple[str, ...] = DENOISERS) -> dict[str, ResidencyChoice]:
    kind, _, k = text.partition(":")
    choice = ResidencyChoice(residency=Residency(kind), num_resident_blocks=int(k) if k else None)
    return dict.fromkeys(names, choice)


def component(plan: Plan, name: str) -> ComponentPlan:
    return next(c for c in plan.components if c.name == name)


def resident_blocks(plan: Plan) -> dict[str, int | None]:
    """Of the denoisers that are streamed."""
    return {
        c.name: c.num_resident_blocks
        for c in plan.components
        if c.residency is Residency.LAYERWISE and c.name in DENOISERS
    }


def knees(
    checkpoint: Checkpoint, shapes: Mapping[str, int], compilation: Compilation = Compilation.BLOCKS
) -> Mapping[str, int]:
    """The knees of both denoisers, from the time model alone."""
    setting = Setting(
        checkpoint=checkpoint,
        workload=resolve_workload(checkpoint, PlanRequest(**shapes)),  # type: ignore[arg-type]
        degrees=Degrees(1, 1, 1, 1, ""),
        dtype="bfloat16",
        device="cuda",
        gpu=find_gpu("H100"),
        ranks_per_node=1,
        execution=Execution((), compilation, Decoding.WHOLE),
    )
    placements = tuple(
        Placement(c, Residency.LAYERWISE if c.name.startswith("transformer") else Residency.RESIDENT, (0,))
        for c in checkpoint.components
    )
    return setting.times(placements).knees


def test_memory_mode_keeps_no_block(big: Checkpoint) -> None:
    plan = plan_group(big, gpus(1, 24), PlanRequest(mode=Mode.MEMORY, num_ranks=1, **SHORT))  # type: ignore[arg-type]
    assert set(resident_blocks(plan).values()) == {0}


@pytest.mark.parametrize("mode", list(Mode))
def test_stated_number_of_blocks_holds_in_every_mode(big: Checkpoint, mode: Mode) -> None:
    request = PlanRequest(mode=mode, residency=stream("layerwise:7"), **SHORT)  # type: ignore[arg-type]
    assert resident_blocks(plan_group(big, gpus(1, 80), request)) == {"transformer": 7, "transformer_2": 7}


@pytest.mark.parametrize("mode", list(Mode))
def test_stated_layerwise_is_the_knee_in_every_mode(big: Checkpoint, mode: Mode) -> None:
    request = PlanRequest(mode=mode, num_ranks=1, residency=stream(), **SHORT)  # type: ignore[arg-type]
    plan = plan_group(big, gpus(1, 80), request)
    assert resident_blocks(plan) == knees(big, SHORT, plan.compile)


@pytest.mark.parametrize("shapes", [SHORT, LONG])
def test_auto_keeps_at_least_the_knee_and_all_that_fits(big: Checkpoint, shapes: dict[str, int]) -> None:
    request = PlanRequest(num_ranks=1, forbid=ONLY_STREAMED, **shapes)  # type: ignore[arg-type]
    plan = plan_group(big, gpus(1, 60), request)
    found = resident_blocks(plan)
    for name, knee in knees(big, shapes).items():
        assert knee <= found[name] <= 40  # type: ignore[operator]
        assert f"from {knee} resident blocks on" in component(plan, name).reason
    budget = 60 * GIB * 96 // 100
    assert max(plan.memory.gpu_peak_bytes) > budget - 2 * 256 * 2**20 or set(found.values()) == {40}


def test_auto_takes_what_fits_where_the_knee_does_not_and_says_so(big: Checkpoint) -> None:
    assert knees(big, SHORT) == {"transformer": 40, "transformer_2": 40}
    plan = plan_group(big, gpus(1, 16), PlanRequest(num_ranks=1, forbid=ONLY_STREAMED, **SHORT))  # type: ignore[arg-type]
    found = resident_blocks(plan)
    assert 0 < found["transformer"] < 40  # type: ignore[operator]
    assert "only from 40 resident blocks on" in component(plan, "transformer").reason


def test_two_denoisers_share_what_is_left(big: Checkpoint) -> None:
    plan = plan_group(big, gpus(1, 16), PlanRequest(num_ranks=1, forbid=ONLY_STREAMED, **SHORT))  # type: ignore[arg-type]
    found = resident_blocks(plan)
    assert abs(found["transformer"] - found["transformer_2"]) <= 1  # type: ignore[operator]


# Host memory


@pytest.mark.parametrize("text", ["layerwise:0", "offload"])
@pytest.mark.parametrize(("nodes", "of_a_node"), [(1, 2), (2, 1)])
def test_weights_in_host_memory_are_counted_once_a_node(big: Checkpoint, nodes: int, of_a_node: int, text: str) -> None:
    assert MEMORY_GIB == GIB
    wanted = {"residency": stream(text), **SHORT}
    one = plan_group(big, gpus(1, 80), PlanRequest(num_ranks=1, **wanted))  # type: ignore[arg-type]
    two = plan_group(big, gpus(2 // nodes, 80, nodes=nodes), PlanRequest(cfg_degree=2, **wanted))  # type: ignore[arg-type]
    in_host_memory = 2 * 40 * 256 * 2**20
    assert in_host_memory < one.memory.host_peak_bytes < in_host_memory + 5 * GIB
    # A second rank on the node adds its process, not its weights.
    added = two.memory.host_peak_bytes - one.memory.host_peak_bytes
    assert 0 <= added < 4 * GIB if of_a_node == 2 else added == 0


def place(checkpoint: Checkpoint, **choices: str) -> tuple[Placement, ...]:
    """Denoisers on both of two ranks, the rest on the first, all resident but for `choices`, e.g. `layerwise:20`."""
    placements = []
    for c in checkpoint.components:
        kind, _, k = choices.get(c.name, "resident").partition(":")
        ranks = (0, 1) if c.name in DENOISERS else (0,)
        placements.append(Placement(c, Residency(kind), ranks, num_resident_blocks=int(k or 0)))
    return tuple(placements)


@pytest.mark.parametrize("ranks_on_node", [1, 2])
def test_what_pins_more_is_no_fallback_however_many_ranks_share_it(big: Checkpoint, ranks_on_node: int) -> None:
    pinned = functools.partial(
        pinned_bytes, degrees=Degrees(2, 2, 1, 1, ""), dtype="bfloat16", ranks_on_node=ranks_on_node
    )
    streamed, offloaded = place(big, transformer="layerwise:20"), place(big, text_encoder="offload")
    # Of 40 blocks of 256 MiB half, one copy a node, and a text encoder of 6 GiB.
    assert 5 * GIB < pinned(streamed) < 5.1 * GIB < 6 * GIB < pinned(offloaded)
    assert find_fallbacks(streamed, [offloaded], pinned_bytes_of=pinned) == ()
    (fallback,) = find_fallbacks(offloaded, [streamed], pinned_bytes_of=pinned)
    assert fallback["transformer"] == ResidencyChoice(residency=Residency.LAYERWISE, num_resident_blocks=20)


# The rank of an encoder


def test_components_of_one_gpu_and_of_cpus_stay_with_the_leader(big: Checkpoint) -> None:
    cpus = cluster_from_flags(gpus_per_node=0, host_memory_gib=512)
    for plan in (
        plan_group(big, gpus(1, 80), PlanRequest(**SHORT)),  # type: ignore[arg-type]
        plan_group(big, cpus, PlanRequest(cfg_degree=2, **SHORT)),  # type: ignore[arg-type]
    ):
        assert component(plan, "text_encoder").ranks == component(plan, "vae").ranks == (0,)


def test_text_encoder_leaves_the_autoencoders_rank_where_that_saves_memory(big: Checkpoint) -> None:
    wanted = {"cfg_degree": 2, "mode": Mode.SPEED, **LONG}
    together, apart = (
        plan_group(big, gpus(2, 80), PlanRequest(component_ranks=ranks, **wanted))  # type: ignore[arg-type]
        for ranks in ({"text_encoder": 0}, {})
    )
    assert component(apart, "text_encoder").ranks == (1,)
    assert component(apart, "vae").ranks == (0,)
    assert max(apart.memory.gpu_peak_bytes) < max(together.memory.gpu_peak_bytes)
    # The bytes of the group are the same, they only lie elsewhere.
    assert sum(apart.memory.timeline[-4].gpu_bytes) == sum(together.memory.timeline[-4].gpu_bytes)


def test_text_encoder_stays_where_moving_it_saves_nothing(big: Checkpoint) -> None:
    request = PlanRequest(cfg_degree=2, residency=stream("offload", names=("text_encoder", "vae")), **LONG)  # type: ignore[arg-type]
    assert component(plan_group(big, gpus(2, 80), request), "text_encoder").ranks == (0,)


def test_stated_rank_is_kept_also_where_another_would_be_better(big: Checkpoint) -> None:
    request = PlanRequest(cfg_degree=2, mode=Mode.SPEED, component_ranks={"text_encoder": 0, "vae": 1}, **LONG)  # type: ignore[arg-type]
    plan = plan_group(big, gpus(2, 80), request)
    assert component(plan, "text_encoder").ranks == (0,)
    assert component(plan, "vae").ranks == (1,)


def test_loading_takes_as_long_as_the_rank_that_reads_most(big: Checkpoint) -> None:
    both, apart = (
        plan_group(big, gpus(2, 80), PlanRequest(cfg_degree=2, mode=Mode.SPEED, component_ranks=ranks, **LONG))  # type: ignore[arg-type]
        for ranks in ({"text_encoder": 1, "vae": 1}, {"text_encoder": 1})
    )
    assert both.predicted.load_s is not None
    assert apart.predicted.load_s is not None
    assert both.predicted.load_s > apart.predicted.load_s


def test_rank_that_the_group_does_not_have_is_named(big: Checkpoint) -> None:
    with pytest.raises(InfeasiblePlanError, match="text_encoder is wanted on rank 5, the last rank is 1"):
        plan_group(big, gpus(2, 80), PlanRequest(cfg_degree=2, component_ranks={"text_encoder": 5}))


@pytest.mark.parametrize("mode", list(Mode))
def test_encoder_on_another_rank_makes_smaller_gpus_suffice(big: Checkpoint, mode: Mode) -> None:
    def smallest(ranks: dict[str, int]) -> int:
        request = PlanRequest(cfg_degree=2, mode=mode, component_ranks=ranks, residency=RESIDENT, **LONG)  # type: ignore[arg-type]
        for gib in range(24, 64, 4):
            with contextlib.suppress(InfeasiblePlanError):
                plan_group(big, gpus(2, gib), request)
                return gib
        raise AssertionError("none suffices")

    assert smallest({}) <= smallest({"text_encoder": 0}) - 4


def test_denoiser_cannot_be_put_on_one_rank(big: Checkpoint) -> None:
    with pytest.raises(PlanRequestError, match="transformer lives on every rank"):
        plan_group(big, gpus(2, 80), PlanRequest(cfg_degree=2, component_ranks={"transformer": 1}))


@pytest.mark.parametrize("kind", list(Residency))
def test_bytes_of_a_component_are_conserved_in_every_residency(big: Checkpoint, kind: Residency) -> None:
    transformer = big.find("transformer")
    assert transformer is not None
    whole = transformer.tally.placed_bytes("bfloat16")
    for k in (0, 7, 40) if kind is Residency.LAYERWISE else (0,):
        placement = Placement(transformer, kind, (0, 1), num_resident_blocks=k, prefetch_depth=1)
        device, host = idle_bytes(placement, dtype="bfloat16", fsdp=2)
        largest = max(block.tally.placed_bytes("bfloat16") for block in transformer.blocks)
        ring = min(2, 40 - k) * largest if kind is Residency.LAYERWISE else 0
        assert (device - ring + host) * (2 if kind is Residency.SHARDED else 1) == pytest.approx(whole, abs=2)


@given(st.data(), st.sampled_from([(1, 1, 1), (2, 2, 1), (4, 2, 4)]))
@settings(max_examples=60, deadline=None)
def test_peaks_alone_are_those_of_the_timeline(
    big: Checkpoint, data: st.DataObject, degrees: tuple[int, int, int]
) -> None:
    num_ranks, cfg, fsdp = degrees
    setting = Setting(
        checkpoint=big,
        workload=resolve_workload(big, PlanRequest()),
        degrees=Degrees(num_ranks, cfg, 1, fsdp, ""),
        dtype="bfloat16",
        device="cuda",
        gpu=None,
        ranks_per_node=num_ranks,
        execution=Execution((), Compilation.NONE, Decoding.WHOLE),
    )
    ranks = st.sampled_from([tuple(range(num_ranks)), *((rank,) for rank in range(num_ranks))])
    placements = tuple(
        Placement(
            c, data.draw(st.sampled_from(list(Residency))), data.draw(ranks), data.draw(st.integers(0, len(c.blocks)))
        )
        for c in big.components
    )
    assert setting.device_peaks(placements) == setting.trace(placements).gpu_peak_bytes


def test_tiny_checkpoint_folder_is_not_needed(tmp_path: Path) -> None:
    """A checkpoint is planned for from what was read; its folder may be gone."""
    folder = write_wan(tmp_path / "gone")
    checkpoint = read_checkpoint(str(folder))
    folder.rename(tmp_path / "elsewhere")
    assert plan_group(checkpoint, gpus(1, 24), PlanRequest()).feasible
