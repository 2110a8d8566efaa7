"""Plans made by hand for tests of groups, so that those do not depend on what the planner would choose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

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
    checkpoint: Path,
    *,
    num_ranks: int = 1,
    cfg_degree: int = 1,
    sequence_degree: int = 1,
    fsdp_degree: int = 1,
    cpus_per_rank: float = 0.5,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    residency: Mapping[str, Residency] | None = None,
    num_resident_blocks: int = 0,
    ranks: Mapping[str, int] | None = None,
) -> Plan:
    """A plan for a checkpoint of `make_tiny_wan`; with `fsdp_degree` transformer and text encoder are sharded.

    `ranks` puts components on one rank each, whole. On CUDA all ranks share one GPU.
    """
    everywhere = tuple(range(num_ranks))
    components = []
    for index, (name, library, class_name, kind) in enumerate(_WAN):
        own_rank = (ranks or {}).get(name)
        is_sharded = fsdp_degree > 1 and kind is not ComponentKind.VAE and own_rank is None
        chosen = (residency or {}).get(name, Residency.SHARDED if is_sharded else Residency.RESIDENT)
        is_layerwise = chosen is Residency.LAYERWISE
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
                residency=chosen,
                num_resident_blocks=num_resident_blocks if is_layerwise else None,
                prefetch_depth=1 if is_layerwise else None,
                ranks=everywhere if is_sharded or kind is ComponentKind.DENOISER else (own_rank or 0,),
                load_order=index,
                reason="made by hand",
            )
        )
    rank_bundle = {"CPU": cpus_per_rank, **({"GPU": 1 / num_ranks} if device == "cuda" else {})}
    return Plan(
        checkpoint=str(checkpoint),
        checkpoint_fingerprint="test",
        pipeline_class="WanPipeline",
        mode=Mode.AUTO,
        device=device,
        dtype=dtype,
        variant=None,
        payload_bytes=3,
        components=tuple(components),
        group=GroupPlan(
            num_ranks=num_ranks,
            cfg_degree=cfg_degree,
            sequence_degree=sequence_degree,
            fsdp_degree=fsdp_degree,
            bundles=({"CPU": 0.1}, *([rank_bundle] * num_ranks)),
            strategy="STRICT_PACK",
            share_gpu=device == "cuda" and num_ranks > 1,
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
