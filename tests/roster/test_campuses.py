"""Campuses: added once, named well, found again."""

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
