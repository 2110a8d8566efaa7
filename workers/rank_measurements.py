"""What a rank measured of itself, for the statistics of a call."""

from typing import Any

from workers.compilation import count_graphs
from workers.memory import device_used_bytes, peak_bytes


def measure_rank(*, weight_bytes_read: int) -> dict[str, Any]:
    """Fields of `RankStats` beside those of `count_work`; they travel as JSON."""
    return {
        "weight_bytes_read": weight_bytes_read,
        "peak_bytes": peak_bytes(),
        "device_used_bytes": device_used_bytes(),
        **count_graphs(),
    }
