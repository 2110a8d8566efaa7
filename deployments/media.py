"""Pictures and videos as files."""

import io
from typing import Any


def encode_png(pixels: Any) -> bytes:
    """A PNG file. pixels: (H, W, 3) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels, mode=None).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_mp4(frames: Any, *, fps: int) -> bytes:
    """An H.264 mp4 file that browsers play. frames: (F, H, W, 3) uint8; odd sides lose their last row or column."""
    import av

    _, height, width, _ = frames.shape
    height, width = height - height % 2, width - width % 2
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels[:height, :width], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
