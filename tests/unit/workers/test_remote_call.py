"""A component on the other end of a real socket answers like one that is here, to the bit."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, VQModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2Config, Qwen2ForCausalLM

from workers.errors import CallCancelledError, CallError
from workers.follower import follow
from workers.lanes import LaneLayout, Lanes
from workers.link import Link, TensorRoute
from workers.remote_call import RemoteComponents, ServedEntries
from workers.request_control import RequestControl, RunningRequest
from workers.stand_in import RemoteComponentError, build_stand_in
from workers.stream_build import Library
from workers.tensor_memory import SentTensors
from workers.wire import WireListener, connect, new_key

CPU = torch.device("cpu")


@contextmanager
def remote_part(
    module: nn.Module, folder: Path, *, library: Library, request: RunningRequest | None = None
) -> Iterator[Any]:
    """The stand-in of `module`, which a thread serves; the checkpoint in `folder` is that of `module`."""
    module.eval().save_pretrained(folder)  # type: ignore[operator]
    served = ServedEntries({}, {"part": module}, RunningRequest())
    key = new_key()
    listener = WireListener("127.0.0.1", key)
    thread = threading.Thread(target=_serve, args=(listener.address, key, served), daemon=True)
    thread.start()
    wires = listener.accept(1, timeout_s=10.0)
    listener.close()
    links = {1: Link(wires[1], TensorRoute(CPU, None, 1), SentTensors())}
    lanes = Lanes(LaneLayout(num_ranks=2, num_lanes=1), local={}, links=links)
    remote = RemoteComponents(lanes, request or RunningRequest(), ranks={"part": 1})
    class_name = type(module).__name__
    try:
        yield build_stand_in(
            folder, name="part", library=library, class_name=class_name, dtype=torch.float32, device=CPU,
            call=remote.call,
        )  # fmt: skip
    finally:
        lanes.close()
        thread.join(timeout=10.0)
        assert not thread.is_alive(), "the other rank did not leave"


def _serve(address: tuple[str, int], key: bytes, served: ServedEntries) -> None:
    wire = connect(address, key, world_rank=1, timeout_s=10.0)
    follow(Link(wire, TensorRoute(CPU, None, 0)), components=served, extra_stats=dict)


def make_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip


def make_clip() -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config)


@torch.no_grad()
def test_an_autoencoder_encodes_samples_and_decodes_as_here(tmp_path: Path) -> None:
    vae = make_vae()
    pixels = torch.rand(2, 3, 16, 16)
    with remote_part(vae, tmp_path, library="diffusers") as part:
        for mode in (lambda d, g: d.sample(generator=g), lambda d, g: d.mode()):
            here, there = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
            expected = mode(vae.encode(pixels).latent_dist, here)
            assert torch.equal(mode(part.encode(pixels).latent_dist, there), expected)
        latents = vae.encode(pixels, return_dict=False)[0].mode()
        assert torch.equal(part.encode(pixels, return_dict=False)[0].mode(), latents)
        decoded = part.decode(latents, return_dict=False, generator=torch.Generator())[0]
        assert torch.equal(decoded, vae.decode(latents, return_dict=False)[0])


@torch.no_grad()
def test_a_generator_comes_back_advanced(tmp_path: Path) -> None:
    vae = make_vae()
    pixels = torch.rand(1, 3, 16, 16)
    here, there = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    with remote_part(vae, tmp_path, library="diffusers") as part:
        expected = vae(pixels, sample_posterior=True, generator=here).sample
        assert torch.equal(part(pixels, sample_posterior=True, generator=there).sample, expected)
        assert torch.equal(here.get_state(), there.get_state())


@torch.no_grad()
def test_a_text_encoder_and_its_parts_answer_with_the_librarys_outputs(tmp_path: Path) -> None:
    clip = make_clip()
    tokens = torch.tensor([[2, 5, 6, 1], [2, 7, 1, 1]])
    with remote_part(clip, tmp_path, library="transformers") as part:
        expected, output = clip(tokens, output_hidden_states=True), part(tokens, output_hidden_states=True)
        assert type(output) is type(expected)
        assert torch.equal(output[0], expected[0])
        assert torch.equal(output.pooler_output, expected.pooler_output)
        assert all(torch.equal(a, b) for a, b in zip(output.hidden_states, expected.hidden_states, strict=True))
        find_norm: Callable[[Any], Any] = lambda model: dict(model.named_modules())[norm_name(model)]  # noqa: E731
        normed = find_norm(clip)(expected.hidden_states[-2])
        assert torch.equal(find_norm(part)(output.hidden_states[-2]), normed)


def norm_name(model: nn.Module) -> str:
    """The layer that pipelines with `clip_skip` call by themselves."""
    return next(name for name, _ in model.named_modules() if name.endswith("final_layer_norm"))


@torch.no_grad()
def test_a_language_model_encodes_without_its_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, eos_token_id=1, bos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    tokens = torch.tensor([[2, 5, 6, 7]])
    expected = model(tokens, output_hidden_states=True).hidden_states[-1]
    generated = model.generate(tokens, max_new_tokens=4, do_sample=False)
    with remote_part(model, tmp_path, library="transformers") as part:
        assert torch.equal(part(tokens, output_hidden_states=True).hidden_states[-1], expected)
        assert torch.equal(part.generate(tokens, max_new_tokens=4, do_sample=False), generated)


@torch.no_grad()
def test_the_stand_in_has_the_class_the_configuration_and_the_statistics_but_no_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    with remote_part(vae, tmp_path, library="diffusers") as part:
        assert isinstance(part, AutoencoderKLFlux2)
        assert (part.config.latent_channels, part.config.patch_size) == (4, [2, 2])
        assert (part.dtype, part.device) == (torch.float32, CPU)
        assert all(parameter.is_meta for parameter in part.parameters())
        assert torch.equal(part.bn.running_mean, vae.bn.running_mean)
        assert part.to(dtype=torch.float32) is part
        with pytest.raises(RemoteComponentError, match=r"part .AutoencoderKLFlux2. lies on another rank"):
            part.to(dtype=torch.float16)


@torch.no_grad()
def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    with remote_part(make_vae(), tmp_path, library="diffusers") as part:
        with pytest.raises(CallError, match=r"part.decode is on rank 1, but a .*object cannot be sent"):
            part.decode(object())
        assert part.decode(torch.zeros(1, 4, 4, 4)).sample.shape == (1, 3, 8, 8)


def test_private_entries_are_not_served() -> None:
    served = ServedEntries({}, {"part": make_vae()}, RunningRequest())
    for entry in ("part._modules", "part.decode.__globals__", "other", "part.__class__"):
        with pytest.raises(CallError):
            served[entry]


def test_a_cancelled_request_calls_nothing(tmp_path: Path) -> None:
    request = RunningRequest()
    control = RequestControl()
    request.begin("mine", control)
    request.cancel("mine")
    vae = make_vae()
    with remote_part(vae, tmp_path, library="diffusers", request=request) as part, pytest.raises(CallCancelledError):
        part.decode(torch.zeros(1, 4, 4, 4))


@torch.no_grad()
def test_a_quantizing_autoencoder_decodes_as_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, latent_channels=3,
        up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=12,
    )  # fmt: skip
    latents = torch.rand(1, 3, 4, 4)
    with remote_part(model, tmp_path, library="diffusers") as part:
        assert torch.equal(part.decode(latents).sample, model.decode(latents).sample)
