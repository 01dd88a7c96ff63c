"""The page of deliveries shows what the ledger says, to whom it may, and does what it says."""

import json
import re
from datetime import UTC, datetime
from html import unescape

import pytest
from delivery_site import AT, DeliverySite
from jobs_overviews_site import EVIL
from jobs_site import Elements
from tests.intake.plain_reader import NO_ID, NO_JSON

from theon.intake.kafka_heartbeats import Heartbeat, beat
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

MEND = json.dumps([{"do": "rename", "field": "ident", "to": "id"}])
LIST = "/delivery/dead-letters"


@pytest.fixture
def site(store: Store, store_settings: Settings) -> DeliverySite:
    return DeliverySite(store, store_settings)


def number(html: str, key: str) -> str:
    found = re.search(rf'id="{key}">([^<]*)<', html)
    assert found is not None
    return found[1]


def sources(html: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'<tr data-source="([^"]*)"', html)]


def test_figures_are_those_of_the_ledger_in_the_scope_of_the_reader(site: DeliverySite) -> None:
    site.send("oak", {"id": "a", "at": AT}, {"id": "a", "at": AT}, b"x")
    site.send("elm", {"id": "a", "at": AT}, source="kafka:t")
    site.gap("oak")
    html = site.visitor("olga").see("/delivery")
    assert [number(html, key) for key in ("received", "accepted", "rejected", "waiting")] == list(
        "3111"
    )
    assert (number(html, "open-gaps"), number(html, "pending")) == ("1", "1")
    assert sources(html) == ["http:lms"]
    assert NO_JSON in html
    assert "kafka:t" not in html
    all_of_it = site.visitor("ada").see("/delivery")
    assert sources(all_of_it) == ["kafka:t", "http:lms"]
    assert number(all_of_it, "received") == "4"
    elm = site.visitor("eli").see("/delivery")
    assert sources(elm) == ["kafka:t"]
    assert "Ids 3 to 4" not in elm


def test_what_keeps_events_of_kafka_from_coming_is_said(site: DeliverySite) -> None:
    visitor = site.visitor("olga")
    assert "kafka-fault" not in visitor.see("/delivery")
    site.app.state.delivery_settings = Settings(kafka_brokers="kafka-1:9093")
    assert "No consumer runs" in visitor.see("/delivery")
    refused = Heartbeat(
        id="1",
        group="theon",
        host="one",
        pid=1,
        state="refused",
        partitions=[],
        messages=0,
        error=f"kafka-1:9093: the broker does not let Theon in: {EVIL}. Check sasl.password.",
        started_at=datetime.now(UTC),
    )
    with site.store.transaction(Scope.district()) as conn:
        beat(conn, refused)
    html = visitor.see("/delivery")
    assert "No events come from Kafka now. kafka-1:9093: the broker does not let Theon in" in html
    assert "Check sasl.password." in html
    assert EVIL not in html


def test_an_empty_ledger_says_so(site: DeliverySite) -> None:
    html = site.visitor("olga").see("/delivery")
    assert "None has sent anything yet" in html
    assert "no source is silent" in html
    assert "No dead letter" in site.visitor("ada").see(LIST)


@pytest.mark.parametrize(
    ("name", "reads", "controls"),
    [("ada", True, True), ("olga", True, True), ("sam", True, False), ("tom", False, False),
     ("lea", False, False)],
)  # fmt: skip
def test_each_role_sees_and_does_what_the_table_says(
    site: DeliverySite, name: str, reads: bool, controls: bool
) -> None:
    [letter] = site.send("oak", {"ident": "a", "at": AT})
    gap = site.gap("oak")
    visitor = site.visitor(name)
    for path in ("/delivery", LIST, f"{LIST}/{letter}"):
        assert visitor.get(path).status_code == (200 if reads else 403), path
    if reads:
        assert ("formaction" in visitor.see(f"{LIST}/{letter}")) is controls
        assert ("/delivery/gaps/accept" in visitor.see("/delivery")) is controls
    for path, fields in (
        (f"{LIST}/{letter}/preview", {}),
        (f"{LIST}/preview", {"upto": letter}),
        ("/delivery/gaps/accept", {"gap": gap, "explanation": "x"}),
        (f"{LIST}/{letter}/discard", {}),
        (f"{LIST}/replay", {"upto": letter}),
        (f"{LIST}/discard", {"upto": letter}),
        (f"{LIST}/{letter}/replay", {}),
    ):
        assert visitor.post(path, proven=False, **fields).status_code == 403, path
        answer = visitor.post(path, **fields)
        assert answer.status_code in ((200, 303) if controls else (403,)), path
    assert site.letter(letter).state == ("discarded" if controls else "waiting")


def test_who_is_not_signed_in_is_led_to_the_door(site: DeliverySite) -> None:
    from fastapi.testclient import TestClient

    client = TestClient(site.app, follow_redirects=False)
    for path in ("/delivery", LIST):
        answer = client.get(path)
        assert answer.headers["location"].startswith("/sign-in"), path


def test_letters_of_another_campus_are_not_there(site: DeliverySite) -> None:
    [letter] = site.send("elm", {"ident": "a", "at": AT})
    gap = site.gap("elm")
    olga = site.visitor("olga")
    assert f'data-letter="{letter}"' not in olga.see(LIST)
    for path in (f"{LIST}/{letter}",):
        assert olga.get(path).status_code == 404
    for verb in ("replay", "discard"):
        assert olga.post(f"{LIST}/{letter}/{verb}", mend=MEND).status_code == 404
        assert olga.post(f"{LIST}/{verb}", upto=letter, mend=MEND).status_code == 303
    assert olga.post("/delivery/gaps/accept", gap=gap, explanation="x").status_code == 404
    assert site.letter(letter).state == "waiting"


def test_a_letter_is_previewed_mended_and_replayed(site: DeliverySite) -> None:
    [letter] = site.send("oak", {"ident": "a", "at": AT})
    olga = site.visitor("olga")
    path = f"{LIST}/{letter}"
    html = olga.see(path)
    assert unescape(re.search(r'id="original"[^>]*>(.*?)</pre>', html)[1]) == json.dumps(  # type: ignore[index]
        {"ident": "a", "at": AT}
    )
    seen = olga.post(f"{path}/preview", mend=MEND, note="new LMS").text
    assert 'class="outcome accepted"' in seen
    assert unescape(re.search(r"<textarea[^>]*>(.*?)</textarea>", seen)[1]) == MEND  # type: ignore[index]
    assert site.letter(letter).state == "waiting"
    wrong = olga.post(f"{path}/preview", mend='[{"do": "eval"}]')
    assert wrong.status_code == 200
    assert "a step does one of" in wrong.text
    assert "1 refused again" in olga.done(f"{path}/replay")
    assert "1 dead letter accepted" in olga.done(f"{path}/replay", mend=MEND, note="new LMS")
    html = olga.see(path)
    assert number(html, "state") == "replayed"
    assert "new LMS" in html
    assert "olga (" in html
    assert "formaction" not in html
    assert olga.done(f"{path}/replay") == "It does not wait any more."


def test_a_group_is_replayed_up_to_what_was_shown(site: DeliverySite) -> None:
    site.send("oak", {"ident": "a", "at": AT}, {"ident": "b", "at": AT}, b"x")
    olga = site.visitor("olga")
    html = olga.see(f"{LIST}?source=http:lms&reason={NO_ID}")
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', html))
    fields.pop("csrf_token")
    late = site.send("oak", {"ident": "c", "at": AT})[-1]
    seen = olga.post(f"{LIST}/preview", **fields, mend=MEND).text
    assert seen.count('class="outcome accepted"') == 2
    assert "2 dead letters accepted" in olga.done(f"{LIST}/replay", **fields, mend=MEND)
    assert site.letter(late).state == "waiting"
    assert "1 dead letter discarded" in olga.done(f"{LIST}/discard", upto=late, reason=NO_JSON)


def test_a_gap_is_accepted_with_a_reason(site: DeliverySite) -> None:
    gap = site.gap("oak")
    olga = site.visitor("olga")
    assert f'data-gap="{gap}"' in olga.see("/delivery")
    assert olga.post("/delivery/gaps/accept", gap=gap, explanation=" ").status_code == 400
    assert "accepted" in olga.done("/delivery/gaps/accept", gap=gap, explanation="deleted")
    assert f'data-gap="{gap}"' not in olga.see("/delivery")
    assert olga.post("/delivery/gaps/accept", gap=gap, explanation="x").status_code == 409
    assert olga.post("/delivery/gaps/accept", gap="x", explanation="x").status_code == 400


def test_a_clock_that_is_off_stands_beside_its_source_until_it_is_accepted(
    site: DeliverySite,
) -> None:
    for source in ("http:lms", "http:app"):
        site.send("oak", {"id": source, "at": AT}, source=source)
    site.clock("oak", "http:lms", 3 * 3600)
    olga = site.visitor("olga")
    html = olga.see("/delivery")
    assert number(html, "open-gaps") == "1"
    assert re.findall(r'class="off">([^<]*)<', html) == ["clock 3 h ahead"]
    assert "678 came from the future. Set the clock or the time zone at the source." in html
    [gap] = re.findall(r'data-gap="(\d+)"', html)
    olga.done("/delivery/gaps/accept", gap=gap, explanation="it is replaced in May")
    assert 'class="off"' not in olga.see("/delivery")


def test_nothing_that_was_sent_becomes_part_of_the_page(site: DeliverySite) -> None:
    site.fill()
    ada = site.visitor("ada")
    letters = [int(n) for n in re.findall(r'data-letter="(\d+)"', ada.see(LIST))]
    assert len(letters) == 6
    for path in ("/delivery", LIST, *(f"{LIST}/{n}" for n in letters)):
        found = Elements(ada.see(path))
        assert "img" not in found.names, path
        assert not [name for name in found.attributes if name.startswith("on")], path
    assert EVIL in unescape(ada.see("/delivery"))
    seen = ada.post(f"{LIST}/preview", upto=max(letters), mend=EVIL, note=EVIL)
    assert "img" not in Elements(seen.text).names
