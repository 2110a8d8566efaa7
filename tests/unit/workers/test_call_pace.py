"""How long calls may take."""

from workers.call_pace import CallDeadlines, CallPace

DEADLINES = CallDeadlines(factor=10.0, floor_s=2.0, first_s=100.0)


def test_the_first_two_calls_of_a_kind_have_the_time_that_compiling_takes() -> None:
    pace = CallPace(DEADLINES)
    assert pace.deadline_s("a") == 100.0
    pace.add("a", 80.0)  # compiled: no measure of what follows
    assert pace.deadline_s("a") == 100.0
    pace.add("a", 1.0)
    assert pace.deadline_s("a") == 10.0
    assert pace.deadline_s("b") == 100.0


def test_the_slowest_call_counts_and_fades() -> None:
    pace = CallPace(DEADLINES)
    for seconds in (1.0, 5.0, 1.0):
        pace.add("a", seconds)
    assert pace.deadline_s("a") == 10.0 * 0.95 * 5.0
    for _ in range(200):
        pace.add("a", 1.0)
    assert pace.deadline_s("a") == 10.0


def test_no_call_gets_less_than_the_floor() -> None:
    pace = CallPace(DEADLINES)
    for _ in range(3):
        pace.add("a", 0.001)
    assert pace.deadline_s("a") == 2.0


def test_a_slow_prediction_gives_more_time_from_the_first_call_on() -> None:
    pace = CallPace(DEADLINES, predicted_step_s=30.0)
    assert pace.deadline_s("a") == 300.0
    for _ in range(3):
        pace.add("a", 1.0)
    assert pace.deadline_s("a") == 300.0
