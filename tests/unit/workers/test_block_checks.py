"""Where no denoiser call happens a run can be ended too: between the blocks of encoders and decoders."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from tests.lanes_in_threads import leader_of_threads
from tests.tiny_checkpoints import make_tiny_wan_pipeline
from workers.block_checks import add_block_checks
from workers.calls import GenerateCall
from workers.errors import CallCancelledError, DeadlineExceededError, WorkerError
from workers.leader import Leader

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 2,
}


def find_encoder_blocks(pipeline: Any) -> list[nn.Module]:
    return list(pipeline.text_encoder.encoder.block)


def find_decoder_blocks(pipeline: Any) -> list[nn.Module]:
    return list(pipeline.vae.decoder.up_blocks)


def run(leader: Leader, **changes: Any) -> torch.Tensor:
    call = GenerateCall(ARGUMENTS, seed=3, request_id="mine", **changes)
    return torch.from_numpy(leader.run(call, lambda _: None).output)


@pytest.mark.parametrize("find_blocks", [find_encoder_blocks, find_decoder_blocks], ids=["encoder", "decoder"])
@pytest.mark.parametrize("reason", ["cancelled", "too late"])
def test_a_run_ends_before_the_block_that_follows(
    find_blocks: Callable[[Any], list[nn.Module]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_tiny_wan_pipeline()
    blocks = find_blocks(pipeline)
    expected: type[WorkerError] = CallCancelledError if reason == "cancelled" else DeadlineExceededError
    num_passed = 0
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        before = run(leader)

        def stop(*_: Any) -> None:
            if reason == "cancelled":
                leader.cancel("mine")
            else:  # the deadline passes while this block computes, however long that takes
                control = leader._request.control
                assert control is not None
                control._clock = lambda: float("inf")

        def count(*_: Any) -> None:
            nonlocal num_passed
            num_passed += 1

        hooks = [blocks[0].register_forward_hook(stop), *(b.register_forward_hook(count) for b in blocks[1:])]
        with pytest.raises(expected):
            run(leader, deadline_s=1e6)
        assert num_passed == 0
        for hook in hooks:
            hook.remove()
        assert torch.equal(run(leader), before)


def test_blocks_are_parts_with_parts_of_their_own() -> None:
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=3, num_heads=2))
    assert add_block_checks(encoder, lambda: None) == 1 + 1 + 3 * (1 + 2)  # itself, the stack, layers of two parts
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    calls: list[None] = []
    add_block_checks(vae, lambda: calls.append(None))
    vae.decode(torch.zeros(1, 4, 4, 4))
    assert len(calls) > 6


def test_compiled_parts_are_left_alone() -> None:
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    model[0].compile(backend="eager")
    assert add_block_checks(model, lambda: None) == 1  # itself
    assert not model[0]._forward_pre_hooks
    assert not model[0][0]._forward_pre_hooks
