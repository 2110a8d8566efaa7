"""Options that several commands share, and the request to the planner that they make."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from deployments.choices import parse_residency, parse_residency_kind, parse_size, split_assignment
from deployments.errors import SettingsError
from deployments.settings import explain_validation
from planner.plan import Mode, PlanRequest, Residency, ResidencyChoice

_PLANNING = "What the plan may do"
_SHAPES = "What is made"

RayNodes = Sequence[Mapping[str, Any]] | None
Checkpoint = Annotated[str, typer.Argument(help="Folder in diffusers layout (it holds model_index.json).")]
ModeOption = Annotated[
    Mode,
    typer.Option(
        help="speed: all weights on GPUs or no plan; auto: the fastest that fits; memory: the smallest peak.",
        rich_help_panel=_PLANNING,
    ),
]
CfgDegree = Annotated[int | None, typer.Option(min=1, help="Lanes for guidance branches.", rich_help_panel=_PLANNING)]
SequenceDegree = Annotated[
    int | None, typer.Option(min=1, help="Ranks that split a sequence.", rich_help_panel=_PLANNING)
]
FsdpDegree = Annotated[
    int | None, typer.Option(min=1, help="Ranks that share one copy of the weights.", rich_help_panel=_PLANNING)
]
ResidencyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COMPONENT=KIND",
        help="Where weights live: resident, layerwise, layerwise:K, offload, sharded, sharded:parts. Repeatable.",
        rich_help_panel=_PLANNING,
    ),
]
ForbidOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COMPONENT=KIND", help="A residency that must not be chosen. Repeatable.", rich_help_panel=_PLANNING
    ),
]
PrefetchDepth = Annotated[
    int | None, typer.Option(min=1, help="Blocks fetched ahead when streaming.", rich_help_panel=_PLANNING)
]
AttentionOption = Annotated[
    str,
    typer.Option(
        "--attention-backend",
        help="auto, native, cudnn, flash, efficient or math: the denoisers' attention kernel.",
        rich_help_panel=_PLANNING,
    ),
]
CompileOption = Annotated[
    str, typer.Option("--compile", help="auto, blocks or none: compile the denoisers.", rich_help_panel=_PLANNING)
]
DecodingOption = Annotated[
    str,
    typer.Option(
        "--decoding",
        help="auto, whole or tiles: tiles take less memory and change pictures a little; auto takes them where nothing "
        "fits otherwise.",
        rich_help_panel=_PLANNING,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_PLANNING)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_PLANNING)]
Variant = Annotated[str | None, typer.Option(help="Weights variant, e.g. fp16.", rich_help_panel=_PLANNING)]
Size = Annotated[
    str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels, e.g. 512x512.", rich_help_panel=_SHAPES)
]
NumFrames = Annotated[int | None, typer.Option(min=1, help="Frames of a video.", rich_help_panel=_SHAPES)]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.", rich_help_panel=_SHAPES)]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON, and nothing else, on standard output.")]


def make_plan_request(
    *,
    residency: list[str] | None,
    forbid: list[str] | None,
    size: str | None,
    **fields: Any,
) -> PlanRequest:
    """The request to the planner for options as they were given.

    Raises:
        SettingsError: an option is not what its name says.
    """
    try:
        width, height = parse_size(size) if size else (None, None)
        return PlanRequest.model_validate(
            {
                **{name: value for name, value in fields.items() if value is not None},
                "residency": _read_residency(residency or []),
                "forbid": _read_forbidden(forbid or []),
                "width": width,
                "height": height,
            }
        )
    except ValidationError as error:
        raise SettingsError(explain_validation(error)) from error
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _read_residency(texts: list[str]) -> dict[str, ResidencyChoice]:
    choices: dict[str, ResidencyChoice] = {}
    for text in texts:
        name, kind = split_assignment(text)
        if name in choices:
            raise ValueError(f"--residency {name} is given twice: say it once")
        choices[name] = parse_residency(kind)
    return choices


def _read_forbidden(texts: list[str]) -> dict[str, tuple[Residency, ...]]:
    forbidden: dict[str, tuple[Residency, ...]] = {}
    for text in texts:
        name, kind = split_assignment(text)
        forbidden[name] = (*forbidden.get(name, ()), parse_residency_kind(kind))
    return forbidden
