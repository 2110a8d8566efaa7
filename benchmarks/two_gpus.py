"""What two ranks do over NCCL, each by the whole path: planner, placement group, rank actors, pipelines.

    python -m benchmarks.two_gpus [--only SECTION ...] [--small] [--limit-s SECONDS] [--compile none]

Needs two GPUs of 80 GB in one machine; 6.5 minutes. Weights are random, configurations the published ones; one-GPU
figures are measured in the same run, two groups of one rank at a time. After every section the figures so far are
written, and one that fails or runs out of time leaves the others theirs. `--small` tries the script with tiny models
on two CPU ranks over gloo, and measures nothing.
"""

import argparse
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.group_faults import measure_faults
from benchmarks.group_runs import (
    ALONE,
    EAGER,
    LANES,
    LANES_AND_SHARDS,
    SAFE_ENVIRONMENT,
    SEQUENCE,
    SHARDS,
    UNCOMPILED,
    Bench,
    Outcome,
    Runs,
    Spec,
    difference,
)
from benchmarks.measuring import scratch_in_memory
from benchmarks.record import print_rows, write
from benchmarks.seam_over_group import measure_seam
from planner.plan import ShardUnit
from workers.group import WorkerGroup

NAME = "two_gpus"
NUM_SERVED_STEPS = 50
REFERENCES_LIMIT_S, SECTION_LIMIT_S = 200.0, 140.0
GUIDED, UNGUIDED = 5.0, 1.0
SECTIONS = ("cfg", "fsdp", "equality", "seam", "sequence", "faults")

_WAN = Spec("Wan 1.3B", LANES, (Runs(GUIDED, short=2, long=6, decodes=True),))
_QWEN = Spec("Qwen-Image", LANES, (Runs(GUIDED, short=2, long=10, decodes=True),))
_SHARDED = Spec("Wan 14B", SHARDS, (Runs(UNGUIDED, short=1, long=3),))
_LANES_AND_SHARDS = Spec("Wan 14B", LANES_AND_SHARDS, (Runs(GUIDED, short=1, long=2),))
_BY_PARTS = Spec("Wan 14B", SHARDS, (Runs(UNGUIDED, short=1, long=2),), choices=EAGER, shard_by=ShardUnit.PARTS)
_SEQUENCE = Spec("Wan 1.3B", SEQUENCE, (Runs(GUIDED, short=1, long=4),))
_SHAPES = tuple(
    Spec("shapes", LANES, (Runs(4.0, short=1, long=6),), choices=UNCOMPILED, dtype=dtype)
    for dtype in ("float32", "float16")
)
REFERENCES: Mapping[str, tuple[Spec, ...]] = {
    "fsdp": (
        Spec("Wan 14B", ALONE, (Runs(UNGUIDED, short=1, long=3), Runs(GUIDED, short=1, long=2))),
        replace(_BY_PARTS, degrees=ALONE, shard_by=None),
    ),
    "cfg": (replace(_QWEN, degrees=ALONE), replace(_WAN, degrees=ALONE)),
    "sequence": (replace(_WAN, degrees=ALONE), replace(_SEQUENCE, degrees=ALONE, choices=EAGER)),
    "equality": tuple(replace(spec, degrees=ALONE) for spec in _SHAPES),
}
"""Groups of one rank that sections compare with, the longest first."""


class TwoGpus:
    """A run: its rows so far, the one-GPU outcomes, and what is left of its time."""

    def __init__(self, bench: Bench, options: argparse.Namespace) -> None:
        self.bench = bench
        self.rows: list[dict[str, Any]] = []
        self.alone: dict[str, Outcome] = {}
        self._choices = {"compile": options.compile} if options.compile != "auto" else {}
        self._end = time.monotonic() + options.limit_s
        self._folder = options.folder
        self._keeping = threading.Lock()
        self._sections = [section for section in SECTIONS if section in options.only]

    def run(self) -> None:
        """The references of all sections, then section after section."""
        self._bounded("references", self._measure_alone, limit_s=REFERENCES_LIMIT_S)
        for section in self._sections:
            self._bounded(section, getattr(self, f"_{section}"), limit_s=SECTION_LIMIT_S)

    def add(self, section: str, **figures: Any) -> None:
        """Keeps a row at once; from any thread."""
        with self._keeping:
            self.rows.append({"section": section, **figures})
            write(NAME, self.rows, folder=self._folder)

    def _bounded(self, section: str, action: Callable[[], None], *, limit_s: float) -> None:
        """Runs a section on a thread; whatever goes wrong in it is a row, and its groups end."""
        left_s = min(limit_s * (3 if self.bench.is_small else 1), self._end - time.monotonic())
        if left_s < 15.0:
            self.add(section, failed="skipped, no time left")
            return
        self.bench.say(f"== {section}")
        thread = threading.Thread(target=self._attempt, args=(section, action), daemon=True)
        thread.start()
        thread.join(left_s)
        if thread.is_alive():
            self.add(section, failed=f"stopped after {left_s:.0f} s")
        self.bench.stop_all()
        thread.join(20.0)

    def _attempt(self, section: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # what one section meets must not cost the others' figures
            traceback.print_exc()
            self.add(section, failed=f"{type(error).__name__}: {str(error)[:300]}")

    def _measure_alone(self) -> None:
        """The one-rank groups, two at a time, each on a GPU of its own."""
        specs = [
            self._spec(spec) for section, specs in REFERENCES.items() if section in self._sections for spec in specs
        ]
        wanted = {spec.label: spec for spec in specs}
        with ThreadPoolExecutor(1 if self.bench.is_small else 2) as pool:
            for label, spec in wanted.items():
                pool.submit(self._attempt, f"reference {label}", partial(self._add_alone, spec, self.bench.epoch))

    def _add_alone(self, spec: Spec, epoch: int) -> None:
        self.bench.check(epoch)
        outcome = self.alone[spec.label] = self.bench.measure(spec)
        self.add("reference", **_figures(outcome))

    def _spec(self, spec: Spec) -> Spec:
        """With the choices that the command line makes for all groups."""
        small = tuple(replace(runs, long=runs.short + 1) for runs in spec.runs) if self.bench.is_small else spec.runs
        return replace(spec, choices={**self._choices, **spec.choices}, runs=small)

    def _reference(self, spec: Spec, *, choices: Mapping[str, Any] | None = None) -> Outcome | None:
        alone = self._spec(
            replace(spec, degrees=ALONE, shard_by=None, choices=spec.choices if choices is None else choices)
        )
        return self.alone.get(alone.label)

    def _cfg(self) -> None:
        for spec in (_WAN, _QWEN):
            pair = self.bench.measure(self._spec(spec))
            self.add("cfg", **_figures(pair), **_compare(pair, self._reference(spec), guidance=GUIDED))
            self._add_equality(pair, self._reference(spec), guidance=GUIDED)

    def _fsdp(self) -> None:
        for spec, guidance in ((_SHARDED, UNGUIDED), (_BY_PARTS, UNGUIDED), (_LANES_AND_SHARDS, GUIDED)):
            alone = self._reference(spec)
            pair = self.bench.measure(self._spec(spec))
            self.add("fsdp", **_figures(pair), **_compare(pair, alone, guidance=guidance),
                     **_memory(pair, alone, guidance=guidance))  # fmt: skip
            self._add_equality(pair, alone, guidance=guidance)

    def _sequence(self) -> None:
        pair = self.bench.measure(self._spec(_SEQUENCE))
        tuned, eager = self._reference(_WAN), self._reference(_SEQUENCE, choices=EAGER)
        self.add("sequence", **_figures(pair), **_compare(pair, tuned, guidance=GUIDED), against="1 GPU as planned")
        self.add("sequence", **_figures(pair), **_compare(pair, eager, guidance=GUIDED), against="1 GPU, uncompiled")
        self._add_equality(pair, eager, guidance=GUIDED)

    def _equality(self) -> None:
        for spec in _SHAPES:
            also = self._measure_seam if spec is _SHAPES[0] and "seam" in self._sections else None
            pair = self.bench.measure(self._spec(spec), also=also)
            self._add_equality(pair, self._reference(spec), guidance=4.0)

    def _add_equality(self, pair: Outcome, alone: Outcome | None, *, guidance: float) -> None:
        """Compared only after as many steps."""
        latents = None if alone is None else alone.latents.get(guidance)
        if latents is not None and alone is not None and pair.num_steps[guidance] == alone.num_steps[guidance]:
            self.add("equality", what=pair.label, rows=pair.rows, **difference(latents, pair.latents[guidance]))

    def _seam(self) -> None:
        """On a group of its own, unless the section before has lent it one."""
        if "equality" not in self._sections:
            with self.bench.group(self._spec(_SHAPES[0])) as group:
                self._measure_seam(group)

    def _measure_seam(self, group: WorkerGroup) -> None:
        rows = measure_seam(group, num_steps=5 if self.bench.is_small else 200)
        for row, spec in zip(rows, (_WAN, _QWEN), strict=True):
            step_s = self._pair_steps().get(self._spec(spec).label)
            share = {} if step_s is None else {"share_of_step": 1e-6 * row["added_us_a_step"] / step_s}
            self.add("seam", **row, **share)

    def _pair_steps(self) -> dict[str, float]:
        return {row["what"]: row["step_s"] for row in self.rows if row["section"] == "cfg" and "step_s" in row}

    def _faults(self) -> None:
        measure_faults(self.bench, lambda row: self.add("faults", **row))


def _figures(outcome: Outcome) -> dict[str, Any]:
    steps = {} if len(outcome.step_s) != 1 else {"step_s": next(iter(outcome.step_s.values()))}
    several = {f"step_s_guidance_{key:g}": value for key, value in outcome.step_s.items()} if not steps else {}
    peaks = [max(peaks) for peaks in zip(*outcome.peak_bytes.values(), strict=True)] if outcome.peak_bytes else []
    return {"what": outcome.label, "start_s": outcome.start_s, **steps, **several,
            "peak_gib": [peak / 2**30 for peak in peaks], "plan": outcome.plan}  # fmt: skip


def _compare(pair: Outcome, alone: Outcome | None, *, guidance: float) -> dict[str, Any]:
    """How many times as fast as one GPU: the denoising loop, and whole requests of 50 steps."""
    if alone is None or guidance not in alone.step_s:
        return {}
    figures = {"alone_step_s": alone.step_s[guidance], "speedup": alone.step_s[guidance] / pair.step_s[guidance]}
    whole = [one.request_s(guidance=guidance, num_steps=NUM_SERVED_STEPS) for one in (alone, pair)]
    if whole[0] is not None and whole[1] is not None:
        figures |= {"alone_request_s": whole[0], "request_s": whole[1], "request_speedup": whole[0] / whole[1]}
    return figures


def _memory(pair: Outcome, alone: Outcome | None, *, guidance: float) -> dict[str, Any]:
    """Shares of the unsharded denoiser's bytes: at rest, read, and at the peak without the activations of one GPU.

    Of the last rank; encoders that it holds too do not count.
    """
    if alone is None:
        return {}
    whole = max(1, sum(alone.denoiser_bytes))
    activations = alone.peak_bytes[guidance][0] - alone.at_rest_bytes[0]
    others = pair.at_rest_bytes[-1] - pair.denoiser_bytes[-1]
    return {
        "at_rest_share": [held / whole for held in pair.denoiser_bytes],
        "read_share_last_rank": pair.read_bytes[-1] / whole,
        "peak_share_last_rank": (pair.peak_bytes[guidance][-1] - activations - others) / whole,
        "activations_gib": activations / 2**30,
    }


def main(arguments: list[str] | None = None) -> int:
    """Exit status: the number of sections that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION",
                        help=", ".join(SECTIONS))  # fmt: skip
    parser.add_argument("--small", action="store_true", help="tiny models on two CPU ranks, to try the script itself")
    parser.add_argument("--compile", choices=("auto", "none"), default="auto", help="none: no denoiser is compiled")
    parser.add_argument("--limit-s", type=float, default=590.0, help="for all together; what is left over is skipped")
    parser.add_argument("--folder", type=Path, help="where the figures are kept")
    options = parser.parse_args(arguments)
    os.environ.update(SAFE_ENVIRONMENT)  # before Ray starts, so that all its processes have it
    # Where nothing is compiled at installation and bytecode is not kept, each rank's imports take 17 s instead of 6.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    from tests.ray_session import local_ray

    num_cpus, num_gpus = (8, 0) if options.small else (os.cpu_count() or 8, 2)
    with scratch_in_memory() as scratch:
        bench = Bench(Path(scratch), is_small=options.small)
        with local_ray(num_cpus=num_cpus, num_gpus=num_gpus):
            bench.say("Ray is up")
            run = TwoGpus(bench, options)
            run.run()
            bench.say("done")
    print_rows(run.rows)
    return sum("failed" in row for row in run.rows)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread of a section that was given up may still wait for a rank
