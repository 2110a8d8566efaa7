"""Pictures and videos as files."""

import io
import tempfile
from pathlib import Path
from typing import Any


def encode_png(pixels: Any) -> bytes:
    """A PNG file. pixels: (H, W, 3) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_mp4(frames: Any, *, fps: int) -> bytes:
    """An H.264 mp4 file that browsers play while it loads. frames: (F, H, W, 3) uint8.

    Odd sides lose their last row or column: the format wants even ones.
    """
    import av

    height, width = (side - side % 2 for side in frames.shape[1:3])
    with tempfile.TemporaryDirectory(prefix="heliograph-") as folder:
        path = Path(folder) / "video.mp4"  # moving the index to the front needs a real file
        with av.open(str(path), mode="w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(pixels[:height, :width], format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()
