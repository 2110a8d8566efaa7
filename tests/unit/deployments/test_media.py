import io

import av
import numpy as np
from PIL import Image

from deployments.media import encode_mp4, encode_png


def make_gradient(*shape):
    return (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)


def test_png_keeps_every_pixel():
    pixels = make_gradient(16, 24, 3)
    assert (np.asarray(Image.open(io.BytesIO(encode_png(pixels)))) == pixels).all()


def test_mp4_has_all_frames_at_the_rate_given_and_even_sides():
    content = encode_mp4(make_gradient(5, 33, 48, 3), fps=8)
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (len(frames), stream.average_rate, stream.height, stream.width) == (5, 8, 32, 48)


def test_mp4_has_its_index_in_front():
    content = encode_mp4(make_gradient(2, 32, 32, 3), fps=8)
    assert content.index(b"moov") < content.index(b"mdat")
