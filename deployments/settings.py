"""The app's settings: what stands under `args:` in a Serve config."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deployments.choices import parse_residency, parse_size
from planner.plan import PlanRequest


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}: {_advise(str(key), list(cls.model_fields))}")
        return data


class Limits(_Settings):
    """Ceilings of one request; above them it is refused with a 400 that names the ceiling."""

    max_steps: int = Field(default=100, ge=1)
    max_pixels: int = Field(default=2048 * 2048, ge=1)
    max_frames: int = Field(default=257, ge=1)
    max_images: int = Field(default=10, ge=1)
    max_prompt_characters: int = Field(default=4000, ge=1)
    max_body_bytes: int = Field(default=1 << 20, ge=1024)


class WarmUpShape(_Settings):
    """A shape that a group runs before it serves. `num_frames=1` is a picture, None the checkpoint's default."""

    size: str = "auto"
    num_frames: int | None = Field(default=None, ge=1)

    @field_validator("size")
    @classmethod
    def _size_is_readable(cls, value: str) -> str:
        if value != "auto":
            parse_size(value)
        return value


class AppSettings(_Settings):
    """Arguments of `deployments.app:build_app`.

    Attributes:
        checkpoint: folder in diffusers layout, at the same path on every node. A relative path is looked up in the
            current folder, then beside the packages (a Ray `working_dir` that holds the checkpoint).
        name: what clients pass as `model`; the folder's name if empty.
        plan: wishes to the planner; anything left out is decided by it.
        num_replicas: groups, each one copy of the model.
        num_ingress_replicas: HTTP front ends; with two, one may die without a failed request.
        max_ongoing_requests: calls a group takes at once; one runs, the others wait beside it. Keep it small: what
            waits at a group cannot move to another.
        max_queued_requests: requests admitted by one ingress replica; above it, 429.
        request_timeout_s: for everything that a request waits for.
        start_timeout_s: for starting a group, weights included.
        warm_up: shapes that each group runs before it serves; without any, the checkpoint's default picture and video.
        plan_timeout_s: for the planner's answer.
        health_timeout_s: `/health` answers within this time.
        profiles: folder or URL of calibration profiles, the same for every node; without it `HELIOGRAPH_PROFILES`,
            else none are kept.
    """

    checkpoint: str = Field(min_length=1)
    name: str = Field(default="", max_length=200)
    plan: PlanRequest = Field(default_factory=PlanRequest)
    limits: Limits = Field(default_factory=Limits)
    num_replicas: int = Field(default=1, ge=1)
    num_ingress_replicas: int = Field(default=2, ge=1)
    max_ongoing_requests: int = Field(default=2, ge=1)
    max_queued_requests: int = Field(default=64, ge=1)
    request_timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    start_timeout_s: float = Field(default=1800.0, gt=0, allow_inf_nan=False)
    warm_up: tuple[WarmUpShape, ...] = Field(default=(), max_length=32)
    plan_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    health_timeout_s: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    profiles: str | None = Field(default=None, min_length=1, max_length=1000)

    @field_validator("plan", mode="before")
    @classmethod
    def _read_plan(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for key in value:
            if key not in PlanRequest.model_fields:
                raise ValueError(f"unknown key {key!r}: {_advise(str(key), list(PlanRequest.model_fields))}")
        residency = value.get("residency")
        if not isinstance(residency, dict):
            return value
        choices = {name: parse_residency(kind) if isinstance(kind, str) else kind for name, kind in residency.items()}
        return {**value, "residency": choices}

    @property
    def served_name(self) -> str:
        """What clients pass as `model`."""
        return self.name or Path(self.checkpoint).name

    @property
    def checkpoint_folder(self) -> Path:
        """The checkpoint's folder on this machine; whether it exists is for the planner to say."""
        folder = Path(self.checkpoint).expanduser()
        beside_packages = Path(__file__).parent.parent / folder
        return beside_packages if not folder.exists() and beside_packages.exists() else folder.absolute()


def explain_validation(error: ValidationError) -> str:
    """A validation error in one line a key, without the values given."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{path}: {message}" if path else message)
    return "; ".join(lines)


def _advise(key: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(allowed)}"
