"""Plans made by hand for tests of groups, so that those do not depend on what the planner would choose."""

from pathlib import Path

from planner.plan import (
    ComponentKind,
    ComponentPlan,
    GroupPlan,
    MemoryPlan,
    Mode,
    Plan,
    PredictedTimes,
    Residency,
    ServingDefaults,
)

_WAN = (
    ("transformer", "diffusers", "WanTransformer3DModel", ComponentKind.DENOISER),
    ("text_encoder", "transformers", "UMT5EncoderModel", ComponentKind.TEXT_ENCODER),
    ("vae", "diffusers", "AutoencoderKLWan", ComponentKind.VAE),
)


def make_wan_plan(
    checkpoint: Path, *, num_ranks: int = 1, cfg_degree: int = 1, fsdp_degree: int = 1, cpus_per_rank: float = 0.5
) -> Plan:
    """A CPU plan for a checkpoint of `make_tiny_wan`; with `fsdp_degree` transformer and text encoder are sharded."""
    everywhere = tuple(range(num_ranks))
    components = []
    for index, (name, library, class_name, kind) in enumerate(_WAN):
        is_sharded = fsdp_degree > 1 and kind is not ComponentKind.VAE
        components.append(
            ComponentPlan(
                name=name,
                library=library,
                class_name=class_name,
                kind=kind,
                payload_bytes=1,
                num_parameters=1,
                num_blocks=2,
                block_rule=None,
                residency=Residency.SHARDED if is_sharded else Residency.RESIDENT,
                num_resident_blocks=None,
                prefetch_depth=None,
                ranks=everywhere if is_sharded or kind is ComponentKind.DENOISER else (0,),
                load_order=index,
                reason="made by hand",
            )
        )
    rank_bundle = {"CPU": cpus_per_rank}
    return Plan(
        checkpoint=str(checkpoint),
        checkpoint_fingerprint="test",
        pipeline_class="WanPipeline",
        mode=Mode.AUTO,
        device="cpu",
        dtype="float32",
        variant=None,
        payload_bytes=3,
        components=tuple(components),
        group=GroupPlan(
            num_ranks=num_ranks,
            cfg_degree=cfg_degree,
            sequence_degree=1,
            fsdp_degree=fsdp_degree,
            bundles=({"CPU": 0.1}, *([rank_bundle] * num_ranks)),
            strategy="STRICT_PACK",
        ),
        memory=MemoryPlan(
            gpu_peak_bytes=(0,) * num_ranks,
            gpu_capacity_bytes=(0,) * num_ranks,
            host_peak_bytes=0,
            host_capacity_bytes=0,
            timeline=(),
        ),
        predicted=PredictedTimes(load_s=None, step_s=None, request_s=None),
        defaults=ServingDefaults(),
        rejected=(),
        fingerprint="test",
    )
