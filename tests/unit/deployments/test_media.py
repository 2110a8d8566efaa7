import io

import av
import numpy as np
import pytest
from PIL import Image

from deployments.errors import BadRequestError
from deployments.media import check_image, decode_image, decode_mask, encode_image, encode_mp4


def make_gradient(*shape):
    return (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)


def test_png_keeps_every_pixel():
    pixels = make_gradient(16, 24, 3)
    assert (np.asarray(Image.open(io.BytesIO(encode_image(pixels, output_format="png")))) == pixels).all()


def test_mp4_has_all_frames_at_the_rate_given_and_even_sides():
    content = encode_mp4(make_gradient(5, 33, 48, 3), fps=8)
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (len(frames), stream.average_rate, stream.height, stream.width) == (5, 8, 32, 48)


def test_mp4_has_its_index_in_front():
    content = encode_mp4(make_gradient(2, 32, 32, 3), fps=8)
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_compression_makes_files_smaller_and_stays_near_the_pixels(output_format):
    pixels = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    best = encode_image(pixels, output_format=output_format, quality=100)
    assert len(encode_image(pixels, output_format=output_format, quality=5)) < len(best)
    decoded = Image.open(io.BytesIO(best))
    assert decoded.format == output_format.upper()
    assert abs(np.asarray(decoded).astype(int) - pixels.astype(int)).max() <= 8


def as_png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_input_pictures_are_checked_before_they_are_decoded():
    content = as_png(Image.fromarray(make_gradient(32, 64)))
    check_image(content, max_pixels=2048, param="image")
    with pytest.raises(BadRequestError, match="64x32"):
        check_image(content, max_pixels=2047, param="image")
    with pytest.raises(BadRequestError, match="readable"):
        check_image(b"GIF89a", max_pixels=2048, param="image")
    with pytest.raises(BadRequestError, match="readable"):
        decode_image(content[: len(content) // 2], param="image")
    assert decode_image(content, param="image").mode == "RGB"


def test_transparent_parts_of_a_mask_are_white_and_a_mask_without_alpha_is_taken_as_it_is():
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert list(decode_mask(as_png(image)).tobytes()) == [0, 255]
    assert list(decode_mask(as_png(Image.new("L", (1, 1), 7))).tobytes()) == [7]
