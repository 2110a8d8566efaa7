"""The benchmark that judges the embedded checkpoint however it is placed, on a few prompts."""

from pathlib import Path

import pytest

from benchmarks import judged_placements

PLACEMENTS = ("2 ranks, CFG lanes", "2 ranks, sharded", "1 rank, float32, guidance off")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_placements_draw_what_was_asked_and_guidance_off_does_not(tmp_path: Path) -> None:
    rows = judged_placements.main(["--num-prompts", "20", "--folder", str(tmp_path), "--only", *PLACEMENTS])
    accepted = {name: [row["accepted"] for row in rows if row["placement"] == name] for name in PLACEMENTS}
    assert min(accepted["2 ranks, CFG lanes"]) >= 0.95
    assert min(accepted["2 ranks, sharded"]) >= 0.95
    assert max(accepted["1 rank, float32, guidance off"]) <= 0.85
