"""Settings come from their own variables, and from nothing that only sounds alike."""

from pathlib import Path

import pytest

from theon.errors import InputError
from theon.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("THEON_HOME", "THEON_HOST", "PORT", "POSTGRES_URL", "THEON_SESSION_LIMIT_S"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_home_folder_and_host_of_the_machine_are_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`HOME` and `HOST` are set on most machines and mean something else."""
    monkeypatch.setenv("HOST", "school.example")
    settings = load_settings()
    assert settings.home_dir == tmp_path / ".theon"
    assert settings.host == "127.0.0.1"


def test_each_variable_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an operator sets is what holds."""
    monkeypatch.setenv("THEON_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PORT", "4000")
    monkeypatch.setenv("THEON_SESSION_LIMIT_S", "900")
    settings = load_settings()
    assert (settings.home_dir, settings.port) == (tmp_path / "data", 4000)
    assert settings.session_limit_s == 900


def test_a_value_that_does_not_fit_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session limit below a slot would lose gaps; the message says which variable it is."""
    monkeypatch.setenv("THEON_SESSION_LIMIT_S", "60")
    with pytest.raises(InputError, match="THEON_SESSION_LIMIT_S"):
        load_settings()


def test_a_form_that_does_not_fit_is_shown_by_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "kafka-1")
    with pytest.raises(InputError, match="should look like kafka-1:9092,kafka-2:9092"):
        load_settings()


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files leave them so; an empty THEON_HOME would be whatever folder one stands in."""
    unset = load_settings()
    for variable in ("THEON_HOME", "THEON_HOST", "POSTGRES_URL", "KAFKA_BROKERS", "JWT_SECRET"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("ENABLE_REAL_TIME_ANALYTICS", "")
    assert load_settings() == unset


def test_a_password_in_an_address_that_does_not_fit_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "theon:geheim@kafka-1:9092")
    monkeypatch.setenv("REDIS_URL", "http://:geheim@redis-1:6379")
    with pytest.raises(InputError, match="KAFKA_BROKERS") as refused:
        load_settings()
    assert "kafka-1:9092" in refused.value.message
    assert "redis-1:6379" in refused.value.message
    assert "geheim" not in refused.value.message


def test_fields_can_be_given_by_name(tmp_path: Path) -> None:
    """Code and tests name a field, not a variable."""
    assert Settings(home=tmp_path).home_dir == tmp_path
