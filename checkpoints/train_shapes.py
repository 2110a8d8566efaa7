"""Trains the checkpoint in `checkpoints/shapes` from nothing, in well under an hour of one H100.

    python checkpoints/train_shapes.py --stage autoencoder --minutes 4 --out state
    python checkpoints/train_shapes.py --stage denoiser --minutes 12 --out state
    python checkpoints/train_shapes.py --stage export --out state --checkpoint checkpoints/shapes

    python checkpoints/train_shapes.py --stage import --checkpoint checkpoints/shapes --out state

`import` takes the weights of a finished checkpoint as the state of both stages, so that only what a change touches has
to be trained again. `--resume` goes on from what lies in `--out`: with `--steps` at the step where the run stopped,
with `--minutes` with a new schedule from the weights so far. Data is drawn on the device while training; nothing is
downloaded.

At this size everything is bound by kernel launches, so one whole step (data, both passes, optimizer) is compiled where
that pays and captured in a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from shapes_data import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOURS,
    Scenes,
    combinations,
    coverage,
    paint,
    palette_table,
    sample_scenes,
)
from shapes_models import (
    LATENT_CHANNELS,
    build_autoencoder,
    build_denoiser,
    build_pipeline,
    build_text_encoder,
    decode_clip,
    encode_clip,
    encode_tokens,
    install_training_attention,
    padding_bias,
    save_checkpoint,
    verify_training_passes,
)
from shapes_prompts import build_tables, misname, sample_prompts
from shapes_samples import draw_samples
from shapes_trainer import Length, Trainer, load_average, load_part, read_step
from torch import Tensor, nn

AUTOENCODER_BATCH = 96
AUTOENCODER_RATE, DENOISER_RATE = 2e-3, 1.5e-3
KL_WEIGHT = 3e-4
BANK_CLIPS = 300_000
MIXTURE = ((1, 512), (2, 64), (3, 320))
"""Latent frames and clips of each part of a denoiser batch: pictures, 5-frame and 9-frame clips."""
SHOW_MOTION = {1: 0.5, 2: 0.9, 3: 0.92}
CURRICULUM_STEPS = 2000
"""Steps over which the prompt's padding grows to its full weight in cross attention."""


class Painter:
    """Draws clips on the training device; combinations that are held out never come up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.table = torch.tensor(combinations(held_out=False), device=device)
        self.colours = torch.from_numpy(palette_table(COLOURS)).to(device)
        self.backgrounds = torch.from_numpy(palette_table(BACKGROUNDS)).to(device)

    def scenes(self, num_scenes: int) -> Scenes:
        return sample_scenes(
            num_scenes, table=self.table, uniform=lambda num: torch.rand(num, device=self.device), xp=torch
        )

    def pixels(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, F, H, W) in [-1, 1] and how much the shape covers them (B, F, H, W)."""
        cover = coverage(scenes, num_frames=CLIP_FRAMES, xp=torch)
        return paint(scenes, cover, colours=self.colours, backgrounds=self.backgrounds), cover


def autoencoder_loss(autoencoder: Any, pixels: Tensor, cover: Tensor, noise: Tensor) -> Tensor:
    """Absolute and squared error, ten times as heavy on and around the shape, and a light KL term."""
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=pixels.is_cuda):
        moments = encode_clip(autoencoder, pixels).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-14.0, 6.0)
        latents = mean + (0.5 * log_variance).exp() * noise
        decoded = decode_clip(autoencoder, latents).float()
    near = torch.nn.functional.max_pool2d(cover, kernel_size=5, stride=1, padding=2)
    weight = (1.0 + 9.0 * near)[:, None]
    error = decoded - pixels
    kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    return (weight * (error.abs() + error.square())).mean() + KL_WEIGHT * kl


def use_channels_last(module: nn.Module) -> None:
    """Lays the weights of convolutions out as the tensor cores read them."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def train_autoencoder(length: Length, *, state_dir: Path, device: torch.device, resume: bool, batch: int) -> None:
    """Stage 1: pixels to latents and back, on 9-frame clips.

    The autoencoder is causal, so that the first frame of a clip is encoded as a picture would be.
    """
    autoencoder = build_autoencoder().to(device)
    use_channels_last(autoencoder)
    painter = Painter(device)
    loss_of = torch.compile(autoencoder_loss, dynamic=False) if device.type == "cuda" else autoencoder_loss

    def step() -> Tensor:
        with torch.no_grad():
            pixels, cover = painter.pixels(painter.scenes(batch))
            noise = torch.randn(batch, LATENT_CHANNELS, 3, 8, 8, device=device)
        return loss_of(autoencoder, pixels, cover, noise)

    trainer = Trainer(
        {"autoencoder": autoencoder}, step, rate=AUTOENCODER_RATE, state_dir=state_dir, name="autoencoder"
    )
    if resume:
        trainer.load()
    trainer.train(length)
    report_autoencoder(state_dir, painter)


@torch.no_grad()
def report_autoencoder(state_dir: Path, painter: Painter) -> None:
    """Prints the error of the averaged autoencoder on fresh clips, first and last frame apart."""
    autoencoder = load_autoencoder(state_dir, painter.device)
    pixels, cover = painter.pixels(painter.scenes(256 if painter.device.type == "cuda" else 2))
    decoded = decode_clip(autoencoder, encode_clip(autoencoder, pixels)[:, :LATENT_CHANNELS]).clamp(-1, 1)
    error = (decoded - pixels).abs()
    inside = cover[:, None].expand_as(error) > 0
    line = {
        "mean_abs_error": error.mean().item(),
        "on_shape": error[inside].mean().item(),
        "first_frame": error[:, :, 0].mean().item(),
        "last_frame": error[:, :, -1].mean().item(),
    }
    print(json.dumps({"autoencoder": line}), flush=True)
    rows = [torch.cat([pixels[i], decoded[i]], dim=2).movedim(1, 0) for i in range(min(10, len(pixels)))]
    strip = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    image = ((strip.movedim(0, 2).cpu() + 1) * 127.5).round().byte().numpy()
    Image.fromarray(image).save(state_dir / "autoencoder.png")


def load_autoencoder(state_dir: Path, device: torch.device) -> Any:
    """The averaged autoencoder, in float32, ready for use."""
    autoencoder = build_autoencoder()
    load_part(autoencoder, load_average(state_dir, "autoencoder"), "autoencoder")
    use_channels_last(autoencoder)
    return autoencoder.to(device).eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class LatentBank:
    """Encoded clips on the device: latents (N, C, 3, 8, 8) bf16, normalised per channel."""

    latents: Tensor
    scenes: Scenes
    mean: Tensor
    std: Tensor


@torch.no_grad()
def fill_bank(autoencoder: Any, painter: Painter, *, num_clips: int) -> LatentBank:
    """Encodes fresh clips; 300,000 take some 1.4 GB."""
    chunk = min(2000, num_clips)
    parts: list[Tensor] = []
    scenes: list[Scenes] = []
    for _ in range(num_clips // chunk):
        batch = painter.scenes(chunk)
        pixels, _ = painter.pixels(batch)
        with torch.autocast(painter.device.type, dtype=torch.bfloat16, enabled=painter.device.type == "cuda"):
            parts.append(encode_clip(autoencoder, pixels)[:, :LATENT_CHANNELS].half())
        scenes.append(batch)
    sample = torch.cat(parts[:10]).float()
    mean, std = sample.mean(dim=(0, 2, 3, 4)), sample.std(dim=(0, 2, 3, 4))
    shape = (1, LATENT_CHANNELS, 1, 1, 1)
    latents = torch.cat([((part.float() - mean.view(shape)) / std.view(shape)).bfloat16() for part in parts])
    fields = {
        name: torch.cat([getattr(batch, name) for batch in scenes])
        for name in ("colour", "shape", "background", "motion", "x", "y", "radius", "travel")
    }
    return LatentBank(latents, Scenes(**fields), mean, std)


def sample_noise_levels(num: int, device: torch.device) -> Tensor:
    """Sigmas in (0, 1): four in five logit-normal around 0.6, the rest uniform, so that both ends are seen."""
    middle = torch.sigmoid(0.4 + torch.randn(num, device=device))
    return torch.where(torch.rand(num, device=device) < 0.8, middle, torch.rand(num, device=device))


def train_denoiser(length: Length, *, state_dir: Path, device: torch.device, resume: bool, scale: float) -> None:
    """Stage 2: text encoder and denoiser together, by flow matching in the latent space."""
    painter = Painter(device)
    start = time.monotonic()
    bank = fill_bank(load_autoencoder(state_dir, device), painter, num_clips=max(64, int(BANK_CLIPS * scale)))
    save_file({"mean": bank.mean, "std": bank.std}, state_dir / "latents.safetensors")
    print(f"bank of {len(bank.latents)} clips in {time.monotonic() - start:.1f} s", flush=True)

    denoiser, text_encoder = build_denoiser().to(device), build_text_encoder().to(device)
    attention = install_training_attention(denoiser)
    if device.type == "cuda":
        denoiser.compile_repeated_blocks(dynamic=False)
    tables = build_tables(device)
    mixture = [(frames, max(2, int(num * scale))) for frames, num in MIXTURE]
    show_motion = torch.cat([torch.full((num,), SHOW_MOTION[frames], device=device) for frames, num in mixture])
    total = len(show_motion)
    curriculum = torch.ones((), device=device)

    def step() -> Tensor:
        with torch.no_grad():
            index = torch.randint(len(bank.latents), (total,), device=device)
            scenes = Scenes(*(getattr(bank.scenes, name)[index] for name in Scenes.__slots__))
            tokens = misname(sample_prompts(scenes, show_motion=show_motion, tables=tables))
            sigma = sample_noise_levels(total, device)
            padded = torch.where(torch.rand(total, device=device) < 0.6, 512.0, 64.0 + 448.0 * torch.rand_like(sigma))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            embeddings, bias = encode_tokens(text_encoder, tokens)
            bias = padding_bias(bias, padded.view(-1, 1, 1, 1))
            bias = torch.cat([bias[..., :-1], bias[..., -1:] * curriculum], dim=-1)
            losses, first = [], 0
            for frames, num in mixture:
                part = slice(first, first + num)
                first += num
                clean = bank.latents[index[part], :, :frames].float()
                noise = torch.randn_like(clean)
                level = sigma[part].view(-1, 1, 1, 1, 1)
                attention.logit_bias = bias[part]
                noisy = clean + level * (noise - clean)
                velocity = denoiser(noisy, sigma[part] * 1000.0, embeddings[part], return_dict=False)[0]
                losses.append((velocity.float() - (noise - clean)).square().mean() * num)
        return torch.stack(losses).sum() / total

    trainer = Trainer(
        {"denoiser": denoiser, "text_encoder": text_encoder},
        step,
        rate=DENOISER_RATE,
        state_dir=state_dir,
        name="denoiser",
        on_progress=lambda index: _set_curriculum(curriculum, index),
    )
    if resume:
        trainer.load()
    trainer.train(length)


def _set_curriculum(curriculum: Tensor, step: int) -> None:
    if step <= CURRICULUM_STEPS and step % 50 == 0:
        curriculum.fill_(min(1.0, step / CURRICULUM_STEPS))


@torch.no_grad()
def import_checkpoint(*, state_dir: Path, checkpoint: Path) -> None:
    """Makes a finished checkpoint the state of both stages, as if they had just ended (the curriculum is over)."""
    pipeline = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    stages = {
        "autoencoder": {"autoencoder": pipeline.vae},
        "denoiser": {"denoiser": pipeline.transformer, "text_encoder": pipeline.text_encoder},
    }
    for stage, modules in stages.items():
        tensors = {
            f"{prefix}.{name}": value.detach().float().contiguous()
            for prefix, module in modules.items()
            for name, value in module.named_parameters()
        }
        for part in ("weights", "average"):
            file = state_dir / f"{stage}_{part}.safetensors"
            save_file(tensors, file, metadata={"step": str(CURRICULUM_STEPS + 1)})


def load_pipeline(state_dir: Path, device: torch.device) -> Any:
    """The pipeline of the averaged weights, float32."""
    autoencoder = load_autoencoder(state_dir, device)
    latents = load_file(state_dir / "latents.safetensors")
    autoencoder.register_to_config(latents_mean=latents["mean"].tolist(), latents_std=latents["std"].tolist())
    denoiser, text_encoder = build_denoiser(), build_text_encoder()
    average = load_average(state_dir, "denoiser")
    load_part(denoiser, average, "denoiser")
    load_part(text_encoder, average, "text_encoder")
    pipeline = build_pipeline(autoencoder, denoiser.eval(), text_encoder.eval()).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(*, state_dir: Path, checkpoint: Path, device: torch.device) -> None:
    """Stage 3: the checkpoint and its sample sheet."""
    pipeline = load_pipeline(state_dir, device)
    draw_samples(pipeline, state_dir / "samples.png")
    size = save_checkpoint(pipeline.to("cpu"), checkpoint)
    print(f"{checkpoint}: {size / 2**20:.2f} MiB", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Command line, with help that says when to change what."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--stage",
        choices=("verify", "import", "autoencoder", "denoiser", "export"),
        required=True,
        help="verify compares the training passes with the library's; the last three follow each other",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the training state and the log")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(__file__).parent / "shapes", help="what export writes, and import reads"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of the stage in steps (repeatable)")
    length.add_argument("--minutes", type=float, help="length of the stage in minutes (default: 4)")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--seed", type=int, default=0, help="seeds weights and data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="scales batches and bank; 0.01 for a try on a CPU")
    return parser.parse_args()


def main() -> None:
    """Runs one stage."""
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed + (read_step(arguments.out, arguments.stage) if arguments.resume else 0))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64
    minutes = arguments.minutes if arguments.minutes is not None or arguments.steps is not None else 4.0
    length = Length(steps=arguments.steps, minutes=minutes)
    if arguments.stage == "import":
        import_checkpoint(state_dir=arguments.out, checkpoint=arguments.checkpoint)
    elif arguments.stage == "verify":
        print(json.dumps(verify_training_passes()))
    elif arguments.stage == "autoencoder":
        batch = max(2, int(AUTOENCODER_BATCH * arguments.scale))
        train_autoencoder(length, state_dir=arguments.out, device=device, resume=arguments.resume, batch=batch)
    elif arguments.stage == "denoiser":
        train_denoiser(length, state_dir=arguments.out, device=device, resume=arguments.resume, scale=arguments.scale)
    else:
        export(state_dir=arguments.out, checkpoint=arguments.checkpoint, device=device)


if __name__ == "__main__":
    main()
