"""What a component is to its pipeline."""

from pathlib import Path

import pytest

from planner.checkpoint import read_checkpoint
from planner.errors import CheckpointFormatError
from planner.kinds import classify_component, runs_every_step
from planner.plan import ComponentKind
from tests.unit.planner.checkpoints import write_wan


@pytest.mark.parametrize(
    ("name", "class_name", "kind"),
    [
        ("controlnet", "SD3ControlNetModel", ComponentKind.CONTROLNET),
        ("controlnet", "ControlNetUnionModel", ComponentKind.CONTROLNET),
        ("unet", "UNetControlNetXSModel", ComponentKind.DENOISER),
        ("controlnet", "ControlNetXSAdapter", ComponentKind.OTHER),
        ("adapter", "T2IAdapter", ComponentKind.OTHER),
        ("motion_adapter", "MotionAdapter", ComponentKind.OTHER),
    ],
)
def test_controlnets_are_told_from_denoisers_and_adapters(name: str, class_name: str, kind: ComponentKind) -> None:
    assert classify_component(name, class_name=class_name, library="diffusers") is kind


def test_denoisers_and_controlnets_run_every_step() -> None:
    assert {kind for kind in ComponentKind if runs_every_step(kind)} == {
        ComponentKind.DENOISER,
        ComponentKind.CONTROLNET,
    }


def test_several_controlnets_in_one_component_are_refused(tmp_path: Path) -> None:
    write_wan(tmp_path, extra={"controlnet": ["diffusers", "MultiControlNetModel"]})
    with pytest.raises(CheckpointFormatError, match="controlnet is a MultiControlNetModel, several models"):
        read_checkpoint(str(tmp_path))
