"""Accounts: what is kept of a password, and who may change whose account."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from argon2 import PasswordHasher, Type, extract_parameters
from sqlalchemy import text

from tests.access.conftest import PASSWORD
from theon.access import passwords, sessions
from theon.access.accounts import add_account, list_accounts, set_disabled, set_password
from theon.access.errors import ForbiddenError, SignInError
from theon.access.principals import Principal, Via
from theon.access.roles import Role
from theon.errors import InputError
from theon.store.engine import Store
from theon.store.scope import Scope

OAK = Principal("account:9", "head", Role.CAMPUS_ADMINISTRATOR, "oak", Via.SESSION)
TEACHER = Principal("account:8", "ann", Role.TEACHER, "oak", Via.SESSION)


def add(store: Store, name: str = "ann", **changes: object) -> None:
    given = {"password": PASSWORD, "role": Role.TEACHER, "campus": "oak", **changes}
    add_account(store, name=name, **given)  # type: ignore[arg-type]


def enter(store: Store, name: str = "ann", password: str = PASSWORD) -> sessions.NewSession:
    return sessions.sign_in(store, name, password, address="10.0.0.1", lasts_s=3600)


def stored_hash(store: Store) -> str:
    with store.transaction(Scope.district()) as conn:
        return str(conn.execute(text("SELECT password_hash FROM theon.accounts")).scalar_one())


def test_only_an_argon2id_hash_is_kept(district: Store) -> None:
    add(district)
    assert stored_hash(district).startswith("$argon2id$")
    assert PASSWORD not in stored_hash(district)


def test_a_hash_follows_todays_parameters(district: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash of weaker parameters lets its owner in once more, and is then a strong one."""
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1)
    with monkeypatch.context() as then:
        then.setattr(passwords, "HASHER", weak)
        add(district)
    before = stored_hash(district)
    enter(district)
    after = stored_hash(district)
    assert "m=8192" in before
    assert after != before
    assert not passwords.needs_rehash(after)
    enter(district)
    assert stored_hash(district) == after


def test_outside_of_tests_a_hash_takes_what_the_library_recommends() -> None:
    """RFC 9106's second choice or more: 64 MiB, three passes."""
    asked = "from theon.access.passwords import hash_password as h; print(h('four words or more'))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    found = extract_parameters(done.stdout.strip())
    assert (found.type, found.memory_cost >= 65_536, found.time_cost >= 3) == (Type.ID, True, True)


@pytest.mark.parametrize(
    "bad", ["", "elevenchars", "a" * 1025, "aaaabbbbaaaabbbb", "annabel-annabel"]
)
def test_a_password_that_is_easy_to_guess_is_refused(district: Store, bad: str) -> None:
    """And the message does not repeat it."""
    with pytest.raises(InputError, match="password cannot be used") as caught:
        add(district, "annabel", password=bad)
    assert not bad or bad not in str(caught.value)


@pytest.mark.parametrize("bad", ["", "  ", "ann lee", "ann<b>", "a" * 255, "ann\x00"])
def test_a_name_that_cannot_be_typed_again_is_refused(district: Store, bad: str) -> None:
    with pytest.raises(InputError, match="account's name"):
        add(district, bad)


def test_a_name_is_one_persons_in_the_whole_district(district: Store) -> None:
    """However it is written, and also if the other one is out of sight."""
    add(district, "Ann@School.example", campus="elm")
    with pytest.raises(InputError, match="taken"):
        add(district, "ann@school.EXAMPLE", by=OAK)
    assert enter(district, " ANN@school.example ").principal.campus == "elm"


def test_an_unknown_campus_is_refused(district: Store) -> None:
    with pytest.raises(InputError, match="no campus 'ash'"):
        add(district, campus="ash")


def test_a_campus_administrator_manages_their_own_campus(district: Store) -> None:
    """Another campus's accounts are neither seen nor changed, nor is anybody above."""
    add(district, "ann", by=OAK)
    add(district, "eve", campus="elm")
    add(district, "root", role=Role.SYSTEM_ADMINISTRATOR, campus="district")
    assert [account.name for account in list_accounts(district, by=OAK)] == ["ann"]
    for name in ("eve", "root"):
        with pytest.raises(InputError, match="no account"):
            set_password(district, name, "another long password", by=OAK)
        with pytest.raises(InputError, match="no account"):
            set_disabled(district, name, disabled=True, by=OAK)
    with pytest.raises(InputError, match="no campus 'elm' here"):
        add(district, "bob", campus="elm", by=OAK)
    with pytest.raises(ForbiddenError):
        add(district, "bob", role=Role.SYSTEM_ADMINISTRATOR, campus="district", by=OAK)
    assert [account.name for account in list_accounts(district)] == ["ann", "eve", "root"]


def test_a_teacher_manages_nobody(district: Store) -> None:
    add(district, "bob")
    with pytest.raises(ForbiddenError):
        list_accounts(district, by=TEACHER)
    with pytest.raises(ForbiddenError):
        add(district, "eve", role=Role.LEARNER, by=TEACHER)
    with pytest.raises(ForbiddenError):
        set_password(district, "bob", "another long password", by=TEACHER)
    enter(district, "bob")


def test_a_new_password_ends_every_session(district: Store, account: Callable[[Role], str]) -> None:
    """Of this account, and of no other; the old password lets nobody in."""
    name, other = account(Role.TEACHER), account(Role.LEARNER)
    mine, theirs = enter(district, name), enter(district, other)
    set_password(district, name, "another long password")
    assert sessions.read_session(district, mine.token) is None
    assert sessions.read_session(district, theirs.token) == theirs.principal
    with pytest.raises(SignInError):
        enter(district, name)
    enter(district, name, "another long password")


def test_a_shut_account_is_out_at_once(district: Store) -> None:
    """Its sessions end, the right password answers as a wrong one does, until it is opened."""
    add(district)
    session = enter(district)
    assert set_disabled(district, "ann", disabled=True).disabled_at is not None
    assert sessions.read_session(district, session.token) is None
    with pytest.raises(SignInError, match="name and password do not fit"):
        enter(district)
    assert set_disabled(district, "ann", disabled=False).disabled_at is None
    enter(district)


def test_a_password_changed_in_the_middle_of_signing_in_wins(
    district: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever typed the old one meanwhile gets no session that the change did not end."""
    add(district)
    verify = sessions.verify_password

    def change_meanwhile(known: str | None, password: str) -> bool:
        set_password(district, "ann", "another long password")
        return verify(known, password)

    monkeypatch.setattr(sessions, "verify_password", change_meanwhile)
    with pytest.raises(SignInError):
        enter(district)
