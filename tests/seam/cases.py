"""All cases of the seam's matrix."""

from tests.seam import (
    basic,
    batched_controlnets,
    batched_images,
    batched_omnigen,
    batched_stable_diffusion,
    batched_stages,
    batched_videos,
    branch_image,
    branch_video,
    branch_wan,
    guiders,
    unguided,
)
from tests.seam.tiny import Case

ALL_CASES: tuple[Case, ...] = (
    *basic.CASES,
    *batched_stable_diffusion.CASES,
    *batched_stages.CASES,
    *batched_images.CASES,
    *batched_omnigen.CASES,
    *batched_videos.CASES,
    *batched_controlnets.CASES,
    *branch_image.CASES,
    *branch_video.CASES,
    *branch_wan.CASES,
    *guiders.CASES,
    *unguided.CASES,
)


def find_case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in ALL_CASES if case.name == name)
