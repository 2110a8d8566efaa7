"""The training loop behind `train_shapes.py`: one captured step, averaged weights, files to go on from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WARM_UP_STEPS = 300
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
        self.step_index = self._first_step = 0
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
    with safe_open(state_dir / f"{name}_weights.safetensors", framework="pt") as file:
        return int(file.metadata()["step"])


def load_part(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copies `prefix.*` into a module.

    Raises:
        KeyError: Weights are missing or left over, as after a change of the architecture.
    """
    own = {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
    missing, unexpected = module.load_state_dict(own, strict=False)
    # UMT5 shares its embedding under a second name, which is not saved.
    if unexpected or set(missing) - {"encoder.embed_tokens.weight"}:
        raise KeyError(f"{prefix}: missing {missing}, unexpected {unexpected}: train the stage again from nothing")
