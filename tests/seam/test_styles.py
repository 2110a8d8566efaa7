"""What two lanes must not get wrong: too few branches for the lanes, and calls that cannot be cut."""

from typing import Any

import pytest
import torch

from tests.lanes_in_threads import leader_of_threads
from tests.seam.basic import make_stable_diffusion
from tests.seam.equality import BATCHED_TOLERANCE, NUM_STEPS, one_thread, relative_error, run_on, run_plain
from workers.errors import CallError


@pytest.mark.parametrize("num_lanes", [3, 4])
def test_more_lanes_than_branches_are_left_idle(num_lanes: int) -> None:
    with one_thread():
        expected, _ = run_plain(make_stable_diffusion())
        tiny = make_stable_diffusion()
        with leader_of_threads(tiny.pipeline, num_lanes=num_lanes) as leader:
            run_on(leader, tiny)
            result = run_on(leader, tiny)
    assert relative_error(result.output, expected) <= BATCHED_TOLERANCE
    assert [stats.denoiser_rows for stats in result.ranks] == [NUM_STEPS, NUM_STEPS] + [0] * (num_lanes - 2)


def test_a_call_that_cutting_would_change_runs_whole_and_is_counted() -> None:
    tiny = make_stable_diffusion()
    unet = tiny.pipeline.unet
    plain = type(unet).forward

    class Mixing(type(unet)):
        """A denoiser whose rows depend on each other: no cut can be right."""

        def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return plain(self, sample + sample.mean(dim=0, keepdim=True).flip(-1) * len(sample), *args, **kwargs)

    unet.__class__ = Mixing
    with one_thread():
        expected, _ = run_plain(tiny)
        with leader_of_threads(tiny.pipeline, num_lanes=2) as leader:
            run_on(leader, tiny)
            result = run_on(leader, tiny)
            assert leader.seam.counts.uncut_signatures == 1
    assert torch.equal(result.output, expected)
    assert [stats.denoiser_rows for stats in result.ranks] == [2 * NUM_STEPS, 0]


def test_a_cut_result_of_another_shape_ends_the_request_and_the_next_one_runs_serially() -> None:
    tiny = make_stable_diffusion()
    unet = tiny.pipeline.unet
    plain = type(unet).forward
    shrinks = False

    class Shrinking(type(unet)):
        """A denoiser whose single rows come back smaller once the flag is set."""

        def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            (result,) = plain(self, sample, *args, **kwargs)
            return (result[..., :-1] if shrinks and len(sample) == 1 else result,)

    unet.__class__ = Shrinking
    with one_thread():
        expected, _ = run_plain(tiny)
        with leader_of_threads(tiny.pipeline, num_lanes=2) as leader:
            run_on(leader, tiny)
            shrinks = True
            with pytest.raises(CallError, match="another structure"):
                run_on(leader, tiny)
            assert torch.equal(run_on(leader, tiny).output, expected)
