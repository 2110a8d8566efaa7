"""The table of decoders against the installed diffusers, and what it says for shapes between those counted."""

import pytest

from planner.decoding import Decoder, decode_bytes_per_pixel, find_decoder

pytest.importorskip("torch")
from tests.tools.make_decoder_table import CASES, measure

QUICK = ("AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderKLLTXVideo")
WAN_BASE = 96


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.full) for n in CASES])
def test_table_is_what_the_installed_decoder_takes(name: str) -> None:
    counted, kept = measure(CASES[name]), find_decoder(name)
    assert kept is not None
    assert (kept.top_channels, kept.top_patch) == (counted.top_channels, counted.top_patch)
    assert dict(kept.bytes_per_pixel) == pytest.approx(dict(counted.bytes_per_pixel), rel=0.01), (
        "run python -m tests.tools.make_decoder_table"
    )


@pytest.mark.parametrize(("frames", "expected"), [(1, 10.0), (5, 20.0), (9, 30.0), (17, 50.0)])
def test_lengths_between_and_beyond_those_counted_lie_on_straight_lines(frames: int, expected: float) -> None:
    assert Decoder(8, 1, ((1, 10.0), (9, 30.0))).at(frames) == expected


def test_bytes_grow_with_the_channels_of_the_last_level() -> None:
    narrow = decode_bytes_per_pixel("AutoencoderKLWan", {"base_dim": WAN_BASE}, num_frames=81)
    wide = decode_bytes_per_pixel("AutoencoderKLWan", {"base_dim": 2 * WAN_BASE}, num_frames=81)
    assert narrow is not None
    assert wide == 2 * narrow


def test_a_last_level_of_patches_has_a_fraction_of_the_pixels() -> None:
    whole = decode_bytes_per_pixel("AutoencoderKLWan", {"base_dim": WAN_BASE}, num_frames=81)
    patched = decode_bytes_per_pixel("AutoencoderKLWan", {"base_dim": WAN_BASE, "patch_size": 2}, num_frames=81)
    assert patched is not None
    assert whole == 4 * patched


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("AutoencoderOfNobody", {"base_dim": 96}),
        ("AutoencoderKLWan", {}),
        ("AutoencoderKL", {"block_out_channels": ["x"]}),
    ],
)
def test_what_was_not_counted_has_no_figure(name: str, config: dict[str, object]) -> None:
    assert decode_bytes_per_pixel(name, config, num_frames=1) is None
