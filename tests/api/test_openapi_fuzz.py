"""Every route of the published OpenAPI document, with whatever its schema allows and forbids."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from tests.api.jobs_service import Service

from theon.access.roles import Role
from theon.api.delivery import add_delivery_api
from theon.api.events import add_events_api
from theon.settings import Settings

# Streams end when their client leaves: this one would wait for ever.
STREAMS = r"/stream|/events$"
AT_LEAST = 30  # operations, or the document is not what it was

EXAMPLES = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow
    ],
)  # fmt: skip


@pytest.fixture
def whole_api(service: Service, store_settings: Settings) -> Iterator[BaseSchema]:
    """All routes with JSON; the learning record store has tests of its own."""
    add_delivery_api(service.app, service.store)
    with add_events_api(service.app, service.store, store_settings):
        yield schemathesis.openapi.from_asgi("/openapi.json", service.app)


@pytest.mark.slow
def test_no_request_makes_the_service_fail(whole_api: BaseSchema, service: Service) -> None:
    """An answer is a success or a refusal with words, never a fault of the service."""
    key = service.key(Role.SYSTEM_ADMINISTRATOR, "district")
    shown = {"Authorization": f"Bearer {key}"}
    tried = []
    for found in whole_api.exclude(method="GET", path_regex=STREAMS).get_all_operations():
        operation = found.ok()
        tried.append(operation.label)

        @EXAMPLES
        @given(case=operation.as_strategy())
        def holds(case: Case) -> None:
            answer = case.call(headers=shown)
            case.validate_response(answer, checks=[not_a_server_error])
            if answer.status_code >= 400:
                said = answer.json()
                assert said.get("error") or said.get("rejections") or "detail" in said, answer.text

        holds()
    assert len(tried) >= AT_LEAST, tried
