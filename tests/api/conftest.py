"""A district of two schools and a service with the API of jobs over it."""

from collections.abc import Iterator

import pytest
from tests.access.conftest import account, district
from tests.api.jobs_service import Service, make_service
from tests.api.xapi_service import Lrs, make_lrs

from theon.settings import Settings
from theon.store.engine import Store

__all__ = ["account", "district"]  # pytest finds them here


@pytest.fixture
def service(district: Store, store_settings: Settings) -> Service:
    return make_service(district, store_settings)


@pytest.fixture
def lrs(district: Store, store_settings: Settings) -> Iterator[Lrs]:
    with make_lrs(district, store_settings) as made:
        yield made
