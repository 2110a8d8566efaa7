from workers.recently_used import RecentlyUsed


def test_the_entry_unused_for_longest_goes_first() -> None:
    entries = RecentlyUsed[str, int](2)
    entries["a"], entries["b"] = 1, 2
    assert entries["a"] == 1
    entries["c"] = 3
    assert dict(entries) == {"a": 1, "c": 3}


def test_setting_an_entry_again_keeps_it_and_its_place_is_the_last() -> None:
    entries = RecentlyUsed[str, int](2)
    entries["a"], entries["b"] = 1, 2
    entries["a"] = 4
    entries["c"] = 3
    assert dict(entries) == {"a": 4, "c": 3}
