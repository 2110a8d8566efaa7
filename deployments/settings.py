"""The app's settings: what stands under `args:` in a Serve config."""

import difflib
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deployments.choices import parse_residency, parse_size
from planner.plan import PlanRequest

# What a call sets by itself, or what would hand out more than pixels. Callbacks are code; of a call with several
# pictures a prompt (num_images_per_prompt, num_videos_per_prompt) only the first would be handed on.
_OWN_ARGUMENTS = frozenset({"prompt", "generator", "output_type", "return_dict", "latents"})


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
    max_upload_bytes: int = Field(default=20 << 20, ge=1024)  # bodies with pictures
    body_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)  # for sending a body
    max_input_pixels: int = Field(default=4096 * 4096, ge=1)
    max_input_images: int = Field(default=4, ge=1)


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


class AutoscalingSettings(_Settings):
    """How many groups a model has, by the work that waits for them.

    Attributes:
        min_replicas: groups that are always there; 0 lets the last one go, and the next request waits for a start.
        max_replicas: never more groups than this.
        target_gpu_seconds: GPU-seconds that may wait before one more group is wanted; a group of n GPUs works off n of
            them a second.
        up_delay_s: how long more groups must be wanted before they are started.
        down_delay_s: how long fewer must suffice before the others end; a start's time is a good choice.
        to_zero_delay_s: how long there must be nothing to do before the last group ends.
    """

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(ge=1)
    target_gpu_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    up_delay_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    down_delay_s: float = Field(default=300.0, ge=0, le=86400, allow_inf_nan=False)
    to_zero_delay_s: float = Field(default=900.0, ge=0, le=86400, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "AutoscalingSettings":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, more than max_replicas, {self.max_replicas}")
        return self


class ModelSettings(_Settings):
    """One model and its groups.

    Attributes:
        checkpoint: folder in diffusers layout, at the same path on every node, or a URL (`s3://`, `hf://`, ...) that
            each node fetches into its cache. A relative path is looked up in the current folder, then beside the
            packages (a Ray `working_dir` that holds the checkpoint).
        name: what clients pass as `model`; the folder's name if empty.
        plan: wishes to the planner; anything left out is decided by it.
        num_replicas: groups, each one copy of the model.
        autoscaling: instead of `num_replicas`, as many groups as the waiting work needs.
        max_ongoing_requests: calls a group takes at once; one runs, the others wait beside it. Keep it small: what
            waits at a group cannot move to another.
        rollover: how a redeploy changes the groups. `surge` starts a new group beside the old ones and stops an old one
            when it is up; without room for one more, the old ones go on serving until there is. `replace` stops an old
            group first: needs no room, but requests wait for the new one.
        start_timeout_s: for starting a group, weights included.
        step_deadline_factor: a call of a denoiser (or an encoder) that takes this many times what the slowest of its
            shape took lately, or what the plan predicts for a step, has hung: the group ends and is replaced.
        step_deadline_floor_s: no call gets less time than this.
        warm_up: shapes that each group runs before it serves; without any, the checkpoint's default picture and video.
        profiles: folder or URL of calibration profiles, the same for every node; without it `HELIOGRAPH_PROFILES`,
            else none are kept.
        beyond_plan: what becomes of requests with more pixels times frames than the plan has GPU memory for: a 400, or
            they are tried, and fail where the memory does not suffice.
        extra_args: arguments of the pipeline, beyond the usual ones, that clients may set by `extra_args`.
    """

    checkpoint: str = Field(min_length=1)
    name: str = Field(default="", max_length=200)
    plan: PlanRequest = Field(default_factory=PlanRequest)
    num_replicas: int = Field(default=1, ge=1)
    autoscaling: AutoscalingSettings | None = None
    max_ongoing_requests: int = Field(default=2, ge=1)
    rollover: Literal["surge", "replace"] = "surge"
    start_timeout_s: float = Field(default=1800.0, gt=0, allow_inf_nan=False)
    step_deadline_factor: float = Field(default=20.0, gt=1, allow_inf_nan=False)
    step_deadline_floor_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    warm_up: tuple[WarmUpShape, ...] = Field(default=(), max_length=32)
    profiles: str | None = Field(default=None, min_length=1, max_length=1000)
    beyond_plan: Literal["refuse", "try"] = "refuse"
    extra_args: tuple[str, ...] = ()

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

    @field_validator("extra_args")
    @classmethod
    def _extra_args_are_harmless(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name in _OWN_ARGUMENTS or name.startswith("callback") or name.endswith("_per_prompt"):
                raise ValueError(f"{name!r} cannot be given to clients: the service sets it")
        return value

    @model_validator(mode="after")
    def _replicas_are_said_once(self) -> Self:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas: with autoscaling, say min_replicas and max_replicas there")
        return self

    @property
    def max_groups(self) -> int:
        """Groups that there may be at once."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.max_replicas

    @property
    def served_name(self) -> str:
        """What clients pass as `model`."""
        return self.name or Path(self.checkpoint).name

    @property
    def checkpoint_location(self) -> str:
        """The checkpoint's URL, or its folder on this machine; whether it exists is for the planner to say."""
        if "://" in self.checkpoint:
            return self.checkpoint
        folder = Path(self.checkpoint).expanduser()
        beside_packages = Path(__file__).parent.parent / folder
        return str(beside_packages if not folder.exists() and beside_packages.exists() else folder.absolute())


class StateSettings(_Settings):
    """Where jobs and results live.

    Attributes:
        folder: for the SQLite file and the results, unless those have URLs; `$XDG_STATE_HOME/heliograph` if empty.
        database: `postgresql://USER:PASSWORD@HOST/NAME` or `sqlite:///FILE`.
        storage: folder or fsspec URL (`s3://bucket/prefix`) for finished files.
        placement: `head` puts all ingress replicas on the head node, so that they share its disk; `auto` does so if
            the database or the storage is a local file.
    """

    folder: str = ""
    database: str = ""
    storage: str = ""
    placement: Literal["auto", "head", "anywhere"] = "auto"

    @property
    def database_url(self) -> str:
        """The database, resolved on this machine."""
        return self.database or f"sqlite:///{self._folder / 'jobs.sqlite'}"

    @property
    def storage_url(self) -> str:
        """The results' storage, resolved on this machine."""
        return self.storage or str(self._folder / "results")

    @property
    def is_on_head(self) -> bool:
        """Whether all ingress replicas must run on one node."""
        is_local = not self.database.startswith("postgres") or "://" not in self.storage.removeprefix("file://")
        return self.placement == "head" or (self.placement == "auto" and is_local)

    @property
    def _folder(self) -> Path:
        default = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "heliograph"
        return (Path(self.folder) if self.folder else default).expanduser().absolute()


class JobSettings(_Settings):
    """How jobs are worked on.

    Attributes:
        max_queued: unfinished jobs of one model; above it, 429.
        num_slots: jobs that one ingress replica has at groups at once; the number of groups if None.
        run_timeout_s: from the first denoising step to the file.
        lease_s: after this time without a renewal another replica takes the job.
        poll_s: how often a replica with a free slot looks for jobs that others accepted.
        max_attempts: groups or replicas that may die under a job before it fails.
        retention_s: how long finished jobs and their files are kept.
        url_lifetime_s: how long the name of a picture (`response_format: url`) works.
    """

    max_queued: int = Field(default=1000, ge=1)
    num_slots: int | None = Field(default=None, ge=1)
    run_timeout_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    lease_s: float = Field(default=15.0, gt=0, allow_inf_nan=False)
    poll_s: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_attempts: int = Field(default=5, ge=1)
    retention_s: float = Field(default=86400.0, gt=0, allow_inf_nan=False)
    url_lifetime_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)


class ApiKey(_Settings):
    """One key: whose it is, and the SHA-256 of it (`heliograph key NAME` makes both)."""

    name: str = Field(min_length=1, max_length=200)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TracingSettings(_Settings):
    """Where OpenTelemetry spans go, if anywhere.

    Attributes:
        endpoint: of a collector that takes OTLP over HTTP, e.g. `http://collector:4318/v1/traces`; needs extra `otel`.
            Headers and certificates come from OpenTelemetry's own environment variables.
        service_name: as which this app appears there.
    """

    endpoint: str = Field(default="", max_length=1000)
    service_name: str = Field(default="heliograph", min_length=1, max_length=200)

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("write http://HOST:4318/v1/traces, or https")
        return value


class AppSettings(ModelSettings):
    """Arguments of `deployments.app:build_app`: one model's settings, or `models`, and what they share.

    Attributes:
        models: several models, each with its own groups; instead of `checkpoint` and the other keys of one model.
        num_ingress_replicas: HTTP front ends; with two, one may die without a failed request.
        max_queued_requests: requests of a model admitted by one ingress replica; above it, 429.
        max_queued_seconds: predicted seconds that a model's groups need for all that one ingress replica has admitted;
            above it, 429. If None, `request_timeout_s` divided by the ingress replicas, which do not know of one
            another's requests: so that what is admitted is done in time.
        request_timeout_s: for everything that a request waits for.
        cluster_file: a file for `ray up`, on the head node, whose node types (`available_node_types`) the autoscaler
            may still start: they are planned for beside the nodes that are up. Without it `~/ray_bootstrap_config.yaml`
            there, where `ray up` leaves it.
        plan_timeout_s: for the planner's answer.
        health_timeout_s: `/health` answers within this time.
        api_keys: who may use the service; with none, everybody who reaches the port.
        api_keys_file: further keys, a line each: NAME, a space, SHA-256. On every node that runs an ingress replica.
        allow_open_port: lets HTTP listen beyond loopback without a key.
        open_metrics: lets anybody who reaches the port read `/metrics`; else it needs a key like all else.
        page: whether `/` shows the page. The page itself needs no key; what it asks for does.
        tracing: where OpenTelemetry spans go.
        public_url: how clients reach the service, for URLs in answers; what they sent as Host if empty.
    """

    checkpoint: str = ""
    models: tuple[ModelSettings, ...] = ()
    limits: Limits = Field(default_factory=Limits)
    state: StateSettings = Field(default_factory=StateSettings)
    jobs: JobSettings = Field(default_factory=JobSettings)
    num_ingress_replicas: int = Field(default=2, ge=1)
    max_queued_requests: int = Field(default=64, ge=1)
    max_queued_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    request_timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    cluster_file: str = Field(default="", max_length=1000)
    plan_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    health_timeout_s: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    api_keys: tuple[ApiKey, ...] = ()
    api_keys_file: str = ""
    allow_open_port: bool = False
    open_metrics: bool = False
    page: bool = True
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    public_url: str = ""

    @model_validator(mode="after")
    def _models_are_said_once(self) -> "AppSettings":
        if not self.models:
            if not self.checkpoint:
                raise ValueError("checkpoint: name a checkpoint's folder, or list several under models")
            return self
        for key in ModelSettings.model_fields:
            if key in self.model_fields_set:
                raise ValueError(f"{key}: with models, it belongs into each of them")
        names = [model.served_name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: {name!r} is there twice: give each a name")
        return self

    @property
    def served_models(self) -> tuple[ModelSettings, ...]:
        """The models, however they were written."""
        return self.models or (self,)

    @property
    def queue_ceiling_s(self) -> float:
        """Predicted seconds that one ingress replica may have admitted of one model."""
        return self.max_queued_seconds or self.request_timeout_s / self.num_ingress_replicas

    @property
    def has_keys(self) -> bool:
        """Whether clients must show a key."""
        return bool(self.api_keys or self.api_keys_file)


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
