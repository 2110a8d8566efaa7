"""Trains the checkpoint in `checkpoints/shapes` from nothing, in well under an hour of one H100.

    python checkpoints/train_shapes.py --stage autoencoder --minutes 4 --out state
    python checkpoints/train_shapes.py --stage denoiser --minutes 12 --out state
    python checkpoints/train_shapes.py --stage export --out state --checkpoint checkpoints/shapes

`--resume` goes on from what lies in `--out`: with `--steps` at the step where the run stopped, with `--minutes` with a
new schedule from the weights so far. Data is drawn on the device while training; nothing is downloaded.

At this size everything is bound by kernel launches, so one whole step (data, both passes, optimizer) is compiled where
that pays and captured in a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from shapes_data import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOURS,
    Attributes,
    Scenes,
    combinations,
    coverage,
    held_out_prompts,
    paint,
    palette_table,
    sample_scenes,
)
from shapes_models import (
    DEFAULTS,
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
from shapes_prompts import build_tables, sample_prompts
from torch import Tensor, nn

AUTOENCODER_BATCH = 96
AUTOENCODER_RATE, DENOISER_RATE = 2e-3, 1.5e-3
KL_WEIGHT = 3e-4
BANK_CLIPS = 300_000
MIXTURE = ((1, 512), (2, 64), (3, 320))
"""Latent frames and clips of each part of a denoiser batch: pictures, 5-frame and 9-frame clips."""
SHOW_MOTION = {1: 0.5, 2: 0.9, 3: 0.92}
WARM_UP_STEPS = 300
CURRICULUM_STEPS = 2000
"""Steps over which the prompt's padding grows to its full weight in cross attention."""
AVERAGE_EVERY = 8
LOG_EVERY_S, SAVE_EVERY_S = 10.0, 120.0


@dataclass(frozen=True, slots=True)
class Length:
    """How long a stage runs: a number of steps, or of minutes of wall clock."""

    steps: int | None
    minutes: float | None

    def progress(self, step: int, elapsed_s: float) -> float:
        """Share of the run that is over."""
        if self.steps is not None:
            return step / self.steps
        return elapsed_s / (60.0 * (self.minutes or 1.0))


class Trainer:
    """One optimizer, one captured step, averaged weights, and files to go on from.

    Args:
        modules: What is trained; parameters carry the module's name in the files.
        step: Computes the loss of one fresh batch.
        rate: Peak learning rate; warmed up, then a cosine to zero.
        state_dir: Where the files go.
        name: Their prefix.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        step: Callable[[], Tensor],
        *,
        rate: float,
        state_dir: Path,
        name: str,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.modules, self.rate, self.state_dir, self.name = modules, rate, state_dir, name
        self.parameters = {
            f"{prefix}.{key}": value for prefix, module in modules.items() for key, value in module.named_parameters()
        }
        values = list(self.parameters.values())
        self.device = values[0].device
        on_gpu = self.device.type == "cuda"
        self.average = [value.detach().clone() for value in values]
        self.optimizer = torch.optim.AdamW(
            values,
            lr=torch.tensor(0.0, device=self.device) if on_gpu else 0.0,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=on_gpu,
            capturable=on_gpu,
        )
        self._loss_of_batch, self._values, self._on_progress = step, values, on_progress
        self.step_index = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss = torch.zeros((), device=self.device)

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of_batch()
        loss.backward()
        nn.utils.clip_grad_norm_(self._values, 1.0)
        self.optimizer.step()
        self._loss = loss.detach()

    def _capture(self) -> None:
        """Runs the step three times outside a graph, then records it; the first run compiles."""
        start = time.monotonic()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        print(f"{self.name}: compiled in {time.monotonic() - start:.1f} s", flush=True)
        self._graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self._graph):
            self._step()

    def _set_rate(self, progress: float) -> None:
        warm_up = min(1.0, (self.step_index - self._first_step + 1) / WARM_UP_STEPS)
        rate = self.rate * warm_up * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def train(self, length: Length) -> None:
        """Runs to the end of `length`, logging every ten seconds and saving every two minutes."""
        self._first_step = self.step_index
        if self.device.type == "cuda":
            self._set_rate(0.0)
            self._capture()
        start = last_log = last_save = time.monotonic()
        last_step = self.step_index
        progress = length.progress(self.step_index, 0.0)
        while progress < 1.0:
            self._set_rate(progress)
            if self._on_progress is not None:
                self._on_progress(self.step_index)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step()
            self.step_index += 1
            if self.step_index % AVERAGE_EVERY == 0:
                self._update_average()
            if self.step_index % 64 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.monotonic()
            if now - last_log > LOG_EVERY_S:
                self._log(self.step_index - last_step, now - last_log, now - start)
                last_log, last_step = now, self.step_index
            if now - last_save > SAVE_EVERY_S:
                self.save()
                last_save = now
            progress = length.progress(self.step_index, now - start)
        self._log(self.step_index - last_step, time.monotonic() - last_log, time.monotonic() - start)
        self.save()

    def _log(self, num_steps: int, seconds: float, elapsed_s: float) -> None:
        memory_gb = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0
        line = {
            "stage": self.name,
            "step": self.step_index,
            "loss": round(self._loss.item(), 5),
            "steps_per_s": round(num_steps / max(seconds, 1e-6), 2),
            "memory_gb": round(memory_gb, 2),
            "elapsed_s": round(elapsed_s, 1),
        }
        print(json.dumps(line), flush=True)
        with (self.state_dir / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _update_average(self) -> None:
        """An exponential average whose memory grows with the run, up to some 3,000 steps."""
        seen = self.step_index - self._first_step
        decay = min(1.0 - AVERAGE_EVERY / 3000.0, seen / (seen + 10.0 * AVERAGE_EVERY))
        torch._foreach_lerp_(self.average, [value.detach() for value in self._values], 1.0 - decay)

    def save(self) -> None:
        """Writes weights, their average and the optimizer's moments (bfloat16), each a file."""
        meta = {"step": str(self.step_index)}
        names = list(self.parameters)
        weights = {name: value.detach().contiguous() for name, value in self.parameters.items()}
        average = {name: value.contiguous() for name, value in zip(names, self.average, strict=True)}
        moments = {
            f"{moment}.{name}": self.optimizer.state[value][moment].bfloat16().contiguous()
            for name, value in self.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
            if value in self.optimizer.state
        }
        for part, tensors in (("weights", weights), ("average", average), ("moments", moments)):
            save_file(tensors, self.state_dir / f"{self.name}_{part}.safetensors", metadata=meta)

    def load(self) -> None:
        """Goes on from the files of `save`."""
        weights = load_file(self.state_dir / f"{self.name}_weights.safetensors")
        average = load_average(self.state_dir, self.name)
        moments_file = self.state_dir / f"{self.name}_moments.safetensors"
        moments = load_file(moments_file) if moments_file.exists() else {}
        step = read_step(self.state_dir, self.name)
        with torch.no_grad():
            for index, (name, value) in enumerate(self.parameters.items()):
                value.copy_(weights[name])
                self.average[index].copy_(average[name])
                if f"exp_avg.{name}" not in moments:
                    continue
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(step), device=self.device),
                    "exp_avg": moments[f"exp_avg.{name}"].float().to(self.device),
                    "exp_avg_sq": moments[f"exp_avg_sq.{name}"].float().to(self.device),
                }
        self.step_index = step


def load_average(state_dir: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a stage."""
    return dict(load_file(state_dir / f"{name}_average.safetensors"))


def read_step(state_dir: Path, name: str) -> int:
    """The step at which a stage was saved."""
    from safetensors import safe_open

    with safe_open(state_dir / f"{name}_weights.safetensors", framework="pt") as file:
        return int(file.metadata()["step"])


def load_part(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copies `prefix.*` into a module, all of it."""
    own = {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
    missing, unexpected = module.load_state_dict(own, strict=False)
    # UMT5 shares its embedding under a second name, which is not saved.
    if unexpected or set(missing) - {"encoder.embed_tokens.weight"}:
        raise KeyError(f"{prefix}: missing {missing}, unexpected {unexpected}: train the stage again from nothing")


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
            layer.to(memory_format=torch.channels_last_3d)
        elif isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)


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
            tokens = sample_prompts(scenes, show_motion=show_motion, tables=tables)
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


def draw_samples(pipeline: Any, target: Path, *, columns: int = 6, rows: int = 3, strips: int = 3) -> None:
    """A sheet of pictures and video strips with their prompts, all of held-out combinations."""
    pictures = held_out_prompts(columns * rows, seed=1, with_motion=False)
    videos = [prompt for prompt in held_out_prompts(40, seed=2, with_motion=True) if prompt.motion != "still"][:strips]
    side, caption, gap = 96, 40, 8
    width = max(columns, CLIP_FRAMES) * (side + gap) + gap
    sheet = Image.new("RGB", (width, (rows + strips) * (side + caption + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (prompt, frames) in enumerate(zip(pictures, _render(pipeline, pictures, num_frames=1), strict=True)):
        step = (width - gap) // columns
        left, top = gap + (index % columns) * step, gap + (index // columns) * (side + caption + gap)
        sheet.paste(frames[0].resize((side, side), Image.Resampling.NEAREST), (left, top))
        _write(pen, prompt, left, top + side + 2, width=step - gap)
    for row, (prompt, frames) in enumerate(zip(videos, _render(pipeline, videos, num_frames=CLIP_FRAMES), strict=True)):
        top = gap + (rows + row) * (side + caption + gap)
        for column, frame in enumerate(frames):
            left = gap + column * (side + gap)
            sheet.paste(frame.resize((side, side), Image.Resampling.NEAREST), (left, top))
        _write(pen, prompt, gap, top + side + 2, width=width)
    sheet.save(target, optimize=True)


def _render(pipeline: Any, prompts: list[Attributes], *, num_frames: int) -> list[list[Image.Image]]:
    videos = pipeline(
        [prompt.prompt() for prompt in prompts],
        height=int(DEFAULTS["height"]),
        width=int(DEFAULTS["width"]),
        num_frames=num_frames,
        num_inference_steps=int(DEFAULTS["num_inference_steps"]),
        guidance_scale=float(DEFAULTS["guidance_scale"]),
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="pil",
    ).frames
    return list(videos)


def _write(pen: ImageDraw.ImageDraw, prompt: Attributes, left: int, top: int, *, width: int) -> None:
    lines, line = [], ""
    for word in prompt.prompt().split():
        if line and pen.textlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    for row, text in enumerate([*lines, line]):
        pen.text((left, top + 12 * row), text, fill="black")


def parse_arguments() -> argparse.Namespace:
    """Command line, with help that says when to change what."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--stage",
        choices=("verify", "autoencoder", "denoiser", "export"),
        required=True,
        help="verify compares the training passes with the library's; the others follow each other",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the training state and the log")
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).parent / "shapes", help="what export writes")
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
    if arguments.stage == "verify":
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
