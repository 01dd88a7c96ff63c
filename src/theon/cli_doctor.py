"""`theon doctor`: is everything there that Theon needs?"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from theon import bootstrap
from theon.errors import TheonError
from theon.settings import Settings

if TYPE_CHECKING:
    from theon.bootstrap import Theon

LEAST_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One check's result.

    Attributes:
        state: `ok`; `warn`, works but look at it; `fail`, does not work.
        what: the check and what it found.
        next_step: what to do, empty where nothing is.
    """

    state: Literal["ok", "warn", "fail"]
    what: str
    next_step: str = ""

    @property
    def line(self) -> str:
        """As one line of output."""
        return f"{self.state:<4}  {self.what}"


def examine(settings: Settings) -> list[Finding]:
    """Run every check; a failed one does not stop those that do not depend on it."""
    findings = [_python(), *_home(settings.home_dir)]
    try:
        theon = bootstrap.open_theon(settings)
    except TheonError as error:
        where = f"{error.where}: " if error.where else ""
        return [*findings, Finding("fail", f"PostgreSQL: {where}{error.what}", error.next_step)]
    with theon:
        for check in (_postgres, _migrations, _row_security, _lake, _last_refresh):
            findings.extend(_run(check, theon))
    return findings


def _run(check: "Callable[[Theon], Iterator[Finding]]", theon: "Theon") -> Iterator[Finding]:
    try:
        yield from check(theon)
    except TheonError as error:
        yield Finding("fail", f"{error.where}: {error.what}", error.next_step)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", f"Python {version}")


def _home(home: Path) -> Iterator[Finding]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home):
            pass
    except OSError as error:
        yield Finding(
            "fail",
            f"THEON_HOME {home} cannot be written: {error.strerror}",
            "Set THEON_HOME to a folder that you may write to.",
        )
        return
    free = shutil.disk_usage(home).free
    size = f"{free / 1e9:,.1f} GB free"
    if free < LEAST_FREE_BYTES:
        yield Finding("warn", f"THEON_HOME {home}, only {size}", "Free some disk space.")
    else:
        yield Finding("ok", f"THEON_HOME {home} can be written, {size}")


def _postgres(theon: "Theon") -> Iterator[Finding]:
    from sqlalchemy import text  # noqa: PLC0415

    from theon.store.scope import Scope  # noqa: PLC0415

    with theon.store.transaction(Scope.district()) as conn:
        version = conn.execute(text("SHOW server_version")).scalar_one()
    kind = "embedded" if theon.settings.postgres_url is None else "of POSTGRES_URL"
    yield Finding("ok", f"PostgreSQL {version} ({kind}) answers")


def _migrations(theon: "Theon") -> Iterator[Finding]:
    from sqlalchemy import text  # noqa: PLC0415

    with theon.store.owner_transaction() as conn:
        found = conn.execute(text("SELECT version_num FROM theon.schema_version")).scalars().all()
    yield Finding("ok", f"schema version {', '.join(found)}, brought up to date when opened")


def _row_security(theon: "Theon") -> Iterator[Finding]:
    from sqlalchemy import text  # noqa: PLC0415

    from theon.store.scope import Scope  # noqa: PLC0415

    with theon.store.transaction(Scope("")) as conn:
        role, bypasses = conn.execute(
            text(
                "SELECT rolname, rolsuper OR rolbypassrls FROM pg_roles"
                " WHERE rolname = current_user"
            )
        ).one()
        seen = conn.execute(text("SELECT count(*) FROM theon.campuses")).scalar_one()
    if bypasses or seen:
        yield Finding(
            "fail",
            f"row-level security: the role {role} sees {seen} campuses without a scope",
            "Let Theon make its own role (unset POSTGRES_APP_URL), or take SUPERUSER and "
            "BYPASSRLS from this one.",
        )
    else:
        yield Finding("ok", f"row-level security holds for the role {role}")


def _lake(theon: "Theon") -> Iterator[Finding]:
    files = theon.lake.files()
    missing = [file.path for file in files if not os.access(file.path, os.R_OK)]
    if missing:
        yield Finding(
            "fail",
            f"event lake: {len(missing)} of {len(files)} files cannot be read, the first is "
            f"{missing[0]}",
            "Restore the folder from a backup, or give its files back their rights.",
        )
        return
    events = sum(file.rows for file in files)
    yield Finding("ok", f"event lake {theon.lake.path}: {events:,} events in {len(files)} files")


def _last_refresh(theon: "Theon") -> Iterator[Finding]:
    from sqlalchemy import text  # noqa: PLC0415

    from theon.store.scope import Scope  # noqa: PLC0415

    with theon.store.transaction(Scope.district()) as conn:
        at = conn.execute(text("SELECT max(refreshed_at) FROM theon.refresh_state")).scalar_one()
    if at is None:
        yield Finding(
            "warn",
            "metrics were never refreshed",
            "Run `theon ingest`, then `theon metrics refresh`; `theon demo` shows how it looks.",
        )
        return
    age_h = (datetime.now(UTC) - at).total_seconds() / 3600
    yield Finding("ok", f"metrics refreshed {at:%Y-%m-%d %H:%M} UTC, {age_h:,.1f} hours ago")
