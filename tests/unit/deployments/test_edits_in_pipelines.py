"""What an edit request becomes is what real inpainting and image-to-image pipelines of diffusers take."""

import dataclasses
import inspect
import io

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.pipeline_call import build_arguments
from deployments.schemas import ImageEditRequest
from planner.plan import ServingDefaults
from tests.seam.batched_stable_diffusion import make_image_to_image, make_inpainting
from tests.unit.deployments.fakes import WAN


def file_of(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


WHITE, BLACK = (file_of(Image.new("RGB", (16, 16), colour)) for colour in ("white", "black"))
KEEP_ALL, PAINT_ALL = (file_of(Image.new("RGBA", (16, 16), (0, 0, 0, alpha))) for alpha in (255, 0))


def draw(tiny, **request):
    """The picture of a request, by a tiny real pipeline that has no text encoder: embeddings stand for the prompt."""
    pipeline = tiny.pipeline
    names = tuple(inspect.signature(type(pipeline).__call__).parameters)
    description = dataclasses.replace(
        WAN, pipeline_class=type(pipeline).__name__, accepted_arguments=names, makes_video=False, size_multiple=1
    )
    edit = ImageEditRequest(prompt="a", num_inference_steps=2, **request)
    arguments = build_arguments(edit, ServingDefaults(), description)
    del arguments["prompt"]
    with torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(0)
        result = pipeline(**{**tiny.arguments, **arguments, "generator": generator, "output_type": "np"})
    return np.asarray(result.images[0])


def test_image_to_image_starts_from_the_picture_sent():
    tiny = make_image_to_image()
    white, black = (draw(tiny, images=(image,)) for image in (WHITE, BLACK))
    assert white.shape == (16, 16, 3)
    assert not np.allclose(white, black)


@pytest.mark.parametrize(("mask", "is_kept"), [(KEEP_ALL, True), (PAINT_ALL, False)])
def test_opaque_parts_of_a_mask_stay_and_transparent_ones_are_painted_anew(mask, is_kept):
    """Where everything is painted anew, at full strength, nothing of the picture sent is left."""
    tiny = make_inpainting()
    white, black = (draw(tiny, images=(image,), mask=mask) for image in (WHITE, BLACK))
    assert np.allclose(white, black) is not is_kept
