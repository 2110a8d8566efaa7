"""Which denoisers may split their tokens over ranks, when the planner does it by itself, and what it costs."""

from dataclasses import replace

import pytest

from planner.checkpoint import Checkpoint, Component, read_checkpoint
from planner.cluster import Cluster, NodeType, cluster_from_flags
from planner.costs import denoiser_activation_bytes, main_denoiser, resolve_workload
from planner.errors import PlanRequestError
from planner.plan import GroupPlan, Mode, PlanRequest
from planner.search import plan_group
from planner.sequence import UNSPLIT_CLASSES, check_sequence, exchange_seconds, find_sequence_problem
from planner.tables import find_model
from tests.unit.planner.checkpoints import write_wan

CPU8 = Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 64 * 2**30),), "test")
SIZE = {"width": 2048, "height": 2048}
"""16,384 tokens."""


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Four heads."""
    return read_checkpoint(str(write_wan(tmp_path_factory.mktemp("wan"))))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two denoisers of 512 heads and 40 blocks, 10 GiB each; sparse."""
    folder = write_wan(tmp_path_factory.mktemp("wide"), num_layers=40, width=8192, two_transformers=True)
    return read_checkpoint(str(folder))


def denoiser(checkpoint: Checkpoint) -> Component:
    found = main_denoiser(checkpoint)
    assert found is not None
    return found


def with_denoiser(checkpoint: Checkpoint, component: Component) -> Checkpoint:
    others = (c for c in checkpoint.components if c.name != component.name)
    return replace(checkpoint, components=(component, *others))


def group_of(checkpoint: Checkpoint, num_gpus: int, **request: object) -> GroupPlan:
    cluster = cluster_from_flags(gpus_per_node=num_gpus, gpu_memory_gib=80, num_nodes=1, host_memory_gib=512)
    return plan_group(checkpoint, cluster, PlanRequest(**{**SIZE, **request})).group  # type: ignore[arg-type]


def degrees(group: GroupPlan) -> tuple[int, int, int, int]:
    return group.num_ranks, group.cfg_degree, group.sequence_degree, group.fsdp_degree


def test_a_degree_must_divide_the_heads_and_the_refusal_names_degrees_that_do(wan: Checkpoint) -> None:
    with pytest.raises(PlanRequestError) as caught:
        plan_group(wan, CPU8, PlanRequest(sequence_degree=3))
    assert str(caught.value) == (
        "sequence_degree=3: transformer (WanTransformer3DModel) has 4 attention heads (num_attention_heads in its "
        "config.json), which the degree must divide; use sequence_degree 2 or 4, or use cfg_degree and fsdp_degree "
        "instead"
    )
    assert degrees(plan_group(wan, CPU8, PlanRequest(sequence_degree=2, cfg_degree=2)).group) == (4, 2, 2, 1)


@pytest.mark.parametrize(
    ("class_name", "need"),
    [
        ("UNet2DConditionModel", "is a UNet"),
        ("SanaTransformer2DModel", "needs a context parallel plan"),
        ("LTX2VideoTransformer3DModel", "leaves the rotary tables"),
    ],
)
def test_models_that_cannot_be_split_are_refused_by_name(wan: Checkpoint, class_name: str, need: str) -> None:
    component = replace(denoiser(wan), class_name=class_name)
    with pytest.raises(
        PlanRequestError, match=rf"transformer \({class_name}\) .*{need}.*leave sequence_degree out, or"
    ):
        check_sequence(with_denoiser(wan, component), degree=2)
    check_sequence(with_denoiser(wan, component), degree=1)


def test_heads_that_the_configuration_does_not_state_are_refused(wan: Checkpoint) -> None:
    component = replace(denoiser(wan), config={})
    assert "needs num_attention_heads" in (find_sequence_problem(component, degree=2) or "")


def test_a_helios_of_more_blocks_than_its_plan_covers_is_refused(wide: Checkpoint) -> None:
    component = replace(denoiser(wide), class_name="HeliosTransformer3DModel")
    assert find_sequence_problem(component, degree=2) is None
    longer = replace(component, blocks=(*component.blocks, component.blocks[0]))
    assert "has 41 blocks" in (find_sequence_problem(longer, degree=2) or "")


def test_every_excluded_class_has_a_plan_in_diffusers() -> None:
    for name in UNSPLIT_CLASSES:
        declared = find_model("diffusers", name)
        assert declared is not None
        assert declared.context_parallel, f"{name} is refused anyway"


def test_activations_shrink_with_the_degree(wide: Checkpoint) -> None:
    workload = resolve_workload(wide, PlanRequest(**SIZE))  # type: ignore[arg-type]
    needed = [
        denoiser_activation_bytes(
            denoiser(wide), wide, workload, dtype="bfloat16", rows=1, sequence_degree=sequence_degree
        )
        for sequence_degree in (1, 2, 4)
    ]
    assert needed[1] < 0.52 * needed[0]  # the prompt's tokens are not counted as split
    assert needed[2] < 0.53 * needed[1]


def test_exchange_takes_the_bytes_that_leave_a_rank(wan: Checkpoint) -> None:
    """4 states x 4 blocks x half of 16,384 tokens x 64 wide x 2 bytes, of which the other half of the heads leaves."""
    workload = resolve_workload(wan, PlanRequest(**SIZE))  # type: ignore[arg-type]
    seconds = exchange_seconds(denoiser(wan), wan, workload, degree=2, link_gb_s=100.0)
    assert seconds == pytest.approx(4 * 4 * 16_384 / 2 * 64 * 2 / 2 / 100e9)
    assert exchange_seconds(denoiser(wan), wan, workload, degree=1, link_gb_s=100.0) == 0.0
    encoder = wan.find("text_encoder")
    assert encoder is not None
    assert exchange_seconds(encoder, wan, workload, degree=2, link_gb_s=100.0) == 0.0


def test_gpus_that_lanes_leave_over_share_tokens(wide: Checkpoint) -> None:
    assert degrees(group_of(wide, 4, num_ranks=4)) == (4, 2, 2, 1)
    assert degrees(group_of(wide, 4, num_ranks=4, mode=Mode.SPEED)) == (4, 2, 2, 1)
    assert degrees(group_of(wide, 4, num_ranks=4, fsdp_degree=4, cfg_degree=2)) == (4, 2, 2, 4)
    assert degrees(group_of(wide, 8, num_ranks=8)) == (8, 2, 4, 1)


def test_tokens_are_not_split_unasked_where_nothing_is_left_over(wide: Checkpoint, wan: Checkpoint) -> None:
    assert degrees(group_of(wide, 4))[2] == 1
    assert degrees(group_of(wide, 4, num_ranks=2)) == (2, 2, 1, 1)
    assert degrees(group_of(wide, 4, num_ranks=4, mode=Mode.MEMORY))[2] == 1
    assert degrees(group_of(wide, 4, num_ranks=4, sequence_degree=1))[2] == 1
    assert plan_group(wan, CPU8, PlanRequest(num_ranks=4)).group.sequence_degree == 1


def test_an_explicit_degree_is_never_overridden(wide: Checkpoint) -> None:
    assert degrees(group_of(wide, 4, sequence_degree=4)) == (4, 1, 4, 1)
    assert degrees(group_of(wide, 4, num_ranks=4, sequence_degree=2)) == (4, 2, 2, 1)
