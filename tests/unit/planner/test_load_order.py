"""REQUIREMENTS 2: payload, kind, variant, position."""

from hypothesis import given
from hypothesis import strategies as st

from planner.kinds import classify_component
from planner.load_order import LoadItem, order_components
from planner.plan import ComponentKind


def item(name: str, payload: int | None, position: int, *, kind: ComponentKind | None = None) -> LoadItem:
    kind = kind or classify_component(name, class_name="X", library="diffusers")
    return LoadItem(name, kind, payload, position)


def names(*items: LoadItem) -> list[str]:
    return [position.item.name for position in order_components(items)]


def test_larger_payload_loads_first() -> None:
    assert names(item("transformer", 5, 0), item("text_encoder", 9, 1), item("vae", 1, 2)) == [
        "text_encoder",
        "transformer",
        "vae",
    ]


def test_kind_decides_at_equal_payload() -> None:
    given_items = [
        item("safety_checker", 1, 0),
        item("vae", 1, 1),
        item("image_encoder", 1, 2),
        item("text_encoder", 1, 3),
        item("unet", 1, 4),
    ]
    assert names(*given_items) == ["unet", "text_encoder", "image_encoder", "vae", "safety_checker"]


def test_higher_variant_loads_first_at_equal_payload_and_kind() -> None:
    assert names(item("transformer", 7, 0), item("transformer_2", 7, 1)) == ["transformer_2", "transformer"]


def test_variants_count_as_numbers() -> None:
    assert names(item("text_encoder_2", 1, 0), item("text_encoder_10", 1, 1)) == ["text_encoder_10", "text_encoder_2"]


def test_position_decides_last() -> None:
    assert names(item("adapter_a", 1, 3), item("adapter_b", 1, 2)) == ["adapter_b", "adapter_a"]


def test_unknown_size_counts_as_zero() -> None:
    assert names(item("transformer", None, 0), item("vae", 1, 1), item("text_encoder", 0, 2)) == [
        "vae",
        "transformer",
        "text_encoder",
    ]


def test_alias_ranks_by_the_name_it_is_loaded_as() -> None:
    # In the index it is `decoder` at position 0; it is loaded as `transformer_2`.
    aliased = item("transformer_2", 1, 0)
    assert names(item("transformer", 1, 1), aliased) == ["transformer_2", "transformer"]


def test_each_position_says_which_criterion_decided() -> None:
    reasons = [
        p.reason
        for p in order_components(
            [
                item("transformer", 9, 0),
                item("transformer_2", 9, 1),
                item("vae", 9, 2),
                item("vae_b", 1, 3),
                item("vae_c", 1, 4, kind=ComponentKind.OTHER),
            ]
        )
    ]
    assert "largest payload" in reasons[0]
    assert "higher numbered variant" in reasons[1]
    assert "denoiser loads before vae" in reasons[2]
    assert "smaller payload" in reasons[3]


ITEMS = st.lists(
    st.tuples(
        st.sampled_from(["transformer", "transformer_2", "vae", "text_encoder", "text_encoder_3", "x"]),
        st.none() | st.integers(0, 3),
    ),
    min_size=1,
    max_size=8,
)


@given(ITEMS, st.randoms())
def test_order_is_total_and_independent_of_input_order(pairs: list[tuple[str, int | None]], random: object) -> None:
    items = [item(name, payload, position) for position, (name, payload) in enumerate(pairs)]
    ordered = order_components(items)
    assert sorted(p.item.index_position for p in ordered) == list(range(len(items)))
    assert [p.load_order for p in ordered] == list(range(len(items)))
    payloads = [p.item.payload_bytes or 0 for p in ordered]
    assert payloads == sorted(payloads, reverse=True)
    random.shuffle(items)  # type: ignore[attr-defined]
    assert order_components(items) == ordered
