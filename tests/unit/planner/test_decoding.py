"""The table of decoders against the installed diffusers, and what it says for shapes between those counted."""

import pytest

from planner.decoding import at_length, can_tile, decode_bytes, find_decoder
from planner.plan import Decoding
from planner.tables import table_version

pytest.importorskip("torch")
import diffusers

from tests.tools.make_decoder_table import CASES, measure

QUICK = ("AutoencoderKL", "AutoencoderKLQwenImage")
WAN_BASE = 96
NOT_COUNTED = {
    "it makes sound": (
        "AutoencoderKLKVAEAudio", "AutoencoderKLLTX2Audio", "AutoencoderKLMiniMaxH3Audio", "AutoencoderOobleck",
        "AutoencoderSAME", "Cosmos3AVAEAudioTokenizer", "LongCatAudioDiTVae", "MMAudioVAE", "MMAudioVocoder",
        "MiniMaxMusic3Vocoder",
    ),
    "it makes proteins": ("RFD4ProteinaAutoencoder",),
    "no pipeline declares it": (
        "AutoencoderKLKVAE", "AutoencoderKLKVAEVideo", "AutoencoderRAE", "AutoencoderVidTok", "ConsistencyDecoderVAE",
    ),
    "it decodes in its own tiles only, and only lengths and sizes that fill them": ("AutoencoderKLAllegro",),
    "its decoder is a transformer, without levels whose channels would say how large it is": (
        "AutoencoderKLMiniMaxH3", "LTX2VideoDiffusionDecoderModel",
    ),
}  # fmt: skip
"""Decoders of diffusers that the table leaves out, by reason."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.full) for n in CASES])
def test_table_is_what_the_installed_decoder_takes(name: str) -> None:
    assert diffusers.__version__ == table_version("decoders"), "run python -m tests.tools.make_decoder_table"
    counted, kept = measure(CASES[name]), find_decoder(name)
    assert kept is not None
    assert (kept.top_channels, kept.top_patch) == (counted.top_channels, counted.top_patch)
    for field in ("bytes_per_pixel", "tile_bytes", "tiled_bytes_per_pixel"):
        expected = pytest.approx(dict(getattr(counted, field)), rel=0.01, abs=1.0)
        assert dict(getattr(kept, field)) == expected, "run python -m tests.tools.make_decoder_table"
    squared = pytest.approx(dict(counted.bytes_per_pixel_squared), rel=0.01, abs=0.0)
    assert dict(kept.bytes_per_pixel_squared) == squared, "run python -m tests.tools.make_decoder_table"


def test_every_decoder_of_diffusers_is_counted_or_left_out_for_a_reason() -> None:
    left_out = [name for names in NOT_COUNTED.values() for name in names]
    exported = {
        name
        for name in dir(diffusers)
        if str(getattr(getattr(diffusers, name), "__module__", "")).startswith("diffusers.models.autoencoders.")
    }
    assert exported == {*CASES, *left_out}
    assert len(left_out) + len(CASES) == len(exported)
    assert [name for name in CASES if find_decoder(name) is None] == []


def test_attention_among_all_positions_counts_where_it_is_larger_than_the_last_levels() -> None:
    config = {"decode_block_out_channels": [256, 512, 512, 512], "patch_size": 4}

    def cosmos_bytes(pixels: int) -> float:
        found = decode_bytes("AutoencoderKLCosmos", config, pixels=pixels, num_frames=81)
        assert found is not None
        return found

    small, large = 256 * 256, 1280 * 704
    assert cosmos_bytes(2 * small) == 2 * cosmos_bytes(small)
    assert cosmos_bytes(2 * large) == 4 * cosmos_bytes(large)


@pytest.mark.parametrize(("frames", "expected"), [(1, 10.0), (5, 20.0), (9, 30.0), (17, 50.0)])
def test_lengths_between_and_beyond_those_counted_lie_on_straight_lines(frames: int, expected: float) -> None:
    assert at_length(((1, 10.0), (9, 30.0)), frames) == expected


def wan_bytes(*, pixels: int = 832 * 480, decoding: Decoding = Decoding.WHOLE, **config: int) -> float:
    found = decode_bytes(
        "AutoencoderKLWan", {"base_dim": WAN_BASE, **config}, pixels=pixels, num_frames=81, decoding=decoding
    )
    assert found is not None
    return found


def test_bytes_grow_with_pixels_and_with_the_channels_of_the_last_level() -> None:
    assert wan_bytes(pixels=2 * 832 * 480) == 2 * wan_bytes()
    assert wan_bytes(base_dim=2 * WAN_BASE) == 2 * wan_bytes()


def test_a_last_level_of_patches_has_a_fraction_of_the_pixels() -> None:
    assert wan_bytes() == 4 * wan_bytes(patch_size=2)


def test_tiles_take_less_than_large_frames_and_no_more_than_small_ones() -> None:
    assert wan_bytes(decoding=Decoding.TILES) < 0.5 * wan_bytes()
    assert wan_bytes(pixels=64 * 64, decoding=Decoding.TILES) == wan_bytes(pixels=64 * 64)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("AutoencoderOfNobody", {"base_dim": 96}),
        ("AutoencoderKLWan", {}),
        ("AutoencoderKL", {"block_out_channels": ["x"]}),
    ],
)
def test_what_was_not_counted_has_no_figure(name: str, config: dict[str, object]) -> None:
    assert decode_bytes(name, config, pixels=64, num_frames=1) is None


@pytest.mark.parametrize(("name", "expected"), [("AutoencoderKLHunyuanVideo", True), ("AutoencoderKL", False)])
def test_tiles_are_chosen_only_for_what_was_counted(name: str, expected: bool) -> None:
    assert can_tile(name) is expected
