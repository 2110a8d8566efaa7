"""Pictures and videos as files."""

import io
import tempfile
from pathlib import Path
from typing import Any, Literal

from deployments.errors import BadRequestError

_INPUT_FORMATS = ("PNG", "JPEG", "WEBP")
_DEFAULT_QUALITY = 95
_THUMBNAIL_QUALITY = 85


def encode_image(pixels: Any, *, output_format: Literal["png", "jpeg", "webp"], quality: int | None = None) -> bytes:
    """A picture's file. pixels: (H, W, 3) uint8; quality: 0 to 100, for jpeg and webp."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if output_format == "png":
        image.save(buffer, format="PNG", compress_level=4)
    else:
        image.save(buffer, format=output_format, quality=_DEFAULT_QUALITY if quality is None else quality)
    return buffer.getvalue()


def encode_thumbnail(frames: Any) -> bytes:
    """A webp of a video's first frame. frames: (F, H, W, 3) uint8."""
    return encode_image(frames[0], output_format="webp", quality=_THUMBNAIL_QUALITY)


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


def check_image(content: bytes, *, max_pixels: int, param: str) -> None:
    """Looks at a client's picture without decoding it.

    Raises:
        BadRequestError: it is no png, jpeg or webp, not whole, followed by something else, or too large.
    """
    image = _open(content, param)
    if _ENDS[image.format](content) != len(content):
        raise BadRequestError(f"{param}: the file is cut off, or something follows it", param, "invalid_image")
    width, height = image.size
    if width * height > max_pixels:
        raise BadRequestError(
            f"{param}: {width}x{height} pixels, at most {max_pixels} are allowed here", param, "limit_exceeded"
        )


def decode_image(content: bytes, *, param: str) -> Any:
    """A client's picture as an RGB image of PIL, upright.

    Raises:
        BadRequestError: it cannot be decoded.
    """
    from PIL import ImageOps

    image = _open(content, param)
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise anything on broken files
        raise _unreadable(param) from error


def decode_mask(content: bytes) -> Any:
    """A mask as pipelines want it, white where to paint. As in OpenAI's API transparent means that; without an alpha
    channel the picture is taken as it is.

    Raises:
        BadRequestError: it cannot be decoded.
    """
    from PIL import ImageOps

    image = _open(content, "mask")
    try:
        image.load()
        return ImageOps.invert(image.getchannel("A")) if "A" in image.getbands() else image.convert("L")
    except Exception as error:  # decoders raise anything on broken files
        raise _unreadable("mask") from error


def _open(content: bytes, param: str) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content), formats=_INPUT_FORMATS)
    except Exception as error:  # decoders raise anything on broken files
        raise _unreadable(param) from error


def _end_of_png(content: bytes) -> int | None:
    """Where the last chunk ends; None if it is not there. A chunk: its length, name, content and checksum."""
    position = 8
    while position + 12 <= len(content):
        length, name = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        position += 12 + length
        if name == b"IEND":
            return position
    return None


def _end_of_webp(content: bytes) -> int:
    """Where the RIFF container ends, by its own word; odd sizes are padded."""
    size = int.from_bytes(content[4:8], "little")
    return 8 + size + size % 2


def _end_of_jpeg(content: bytes) -> int | None:
    """The end, if there is an end marker at all: cameras write more behind it, and only decoding tells whose it is."""
    return len(content) if b"\xff\xd9" in content else None


_ENDS = {"PNG": _end_of_png, "WEBP": _end_of_webp, "JPEG": _end_of_jpeg, "MPO": _end_of_jpeg}


def _unreadable(param: str) -> BadRequestError:
    return BadRequestError(f"{param} is no readable png, jpeg or webp", param, "invalid_image")
