"""Campuses: added once, named well, found again."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from theon.errors import InputError
from theon.roster.campuses import add_campus, get_campus, list_campuses
from theon.store.engine import Store
from theon.store.scope import Scope


def test_a_campus_is_found_as_it_was_added(store: Store) -> None:
    """What `add_campus` was told is what `get_campus` and `list_campuses` say."""
    added = add_campus(store, "lincoln", "Europe/London", name="Lincoln High")
    assert get_campus(store, "lincoln") == added
    assert (added.name, added.timezone, added.parent) == (
        "Lincoln High",
        "Europe/London",
        "district",
    )
    assert [c.slug for c in list_campuses(store, Scope.district())] == ["district", "lincoln"]
    assert [c.id for c in list_campuses(store, Scope("lincoln"))] == [added.id]


def test_the_same_campus_again_changes_nothing(store: Store) -> None:
    """Adding is safe to repeat; values that are left out are not compared."""
    added = add_campus(store, "lincoln", "Europe/London", name="Lincoln High")
    assert add_campus(store, "lincoln", "Europe/London", name="Lincoln High") == added
    assert add_campus(store, "lincoln", "Europe/London") == added


def test_a_campus_with_other_values_is_refused_by_what_differs(store: Store) -> None:
    """Neither its zone nor its place changes by adding it again."""
    add_campus(store, "north", "UTC")
    add_campus(store, "lincoln", "Europe/London")
    with pytest.raises(InputError, match="timezone is 'Europe/London', not 'Europe/Paris'"):
        add_campus(store, "lincoln", "Europe/Paris")
    with pytest.raises(InputError, match="parent is 'district', not 'north'"):
        add_campus(store, "lincoln", "Europe/London", parent="north")
    assert get_campus(store, "lincoln").timezone == "Europe/London"


@pytest.mark.parametrize(
    ("slug", "offer"),
    [
        ("Lincoln High", "lincoln-high"),
        ("a_b", "a-b"),
        ("-a", "a"),
        ("x" * 64, "x" * 63),
        ("é!", ""),
    ],
)
def test_a_slug_that_does_not_fit_is_refused_with_one_that_does(
    store: Store, slug: str, offer: str
) -> None:
    """The slug that is offered is accepted."""
    with pytest.raises(InputError) as caught:
        add_campus(store, slug, "UTC")
    assert repr(slug) in caught.value.message
    if offer:
        assert repr(offer) in caught.value.next_step
        assert add_campus(store, offer, "UTC").slug == offer


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Europe/Lodnon", "Europe/London"),
        ("europe/london", "Europe/London"),
        ("London", "Europe/London"),
        ("America/NewYork", "America/New_York"),
        ("Kigali", "Africa/Kigali"),
    ],
)
def test_a_misspelt_time_zone_is_answered_with_the_one_meant(
    store: Store, given: str, meant: str
) -> None:
    """And no campus is made."""
    with pytest.raises(InputError, match=f"did you mean .*{meant}"):
        add_campus(store, "lincoln", given)
    assert [c.slug for c in list_campuses(store, Scope.district())] == ["district"]


def test_an_unknown_campus_is_answered_with_near_ones_and_the_command(store: Store) -> None:
    """So that a typing error is mended at once."""
    add_campus(store, "lincoln", "Europe/London")
    with pytest.raises(InputError, match="did you mean lincoln") as caught:
        get_campus(store, "lincon")
    assert "theon campus add lincon" in caught.value.next_step
    with pytest.raises(InputError, match="there is no campus 'nowhere'"):
        add_campus(store, "oak", "UTC", parent="nowhere")


def test_two_who_add_the_same_campus_at_once_both_have_it(store: Store) -> None:
    """The second finds what the first made."""
    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(lambda _: add_campus(store, "lincoln", "UTC"), range(8)))
    assert len(set(added)) == 1


def test_a_scope_lists_its_own_part_of_the_tree(store: Store) -> None:
    """Itself and all below; what is above stays unnamed."""
    add_campus(store, "north", "UTC")
    add_campus(store, "oak", "UTC", parent="north")
    add_campus(store, "south", "UTC")
    found = list_campuses(store, Scope("north"))
    assert [(c.slug, c.parent) for c in found] == [("north", None), ("oak", "north")]
    assert list_campuses(store, Scope("nowhere")) == []
