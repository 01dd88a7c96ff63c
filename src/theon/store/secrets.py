"""Passwords that Theon makes for itself, one file each in `THEON_HOME/secrets` (mode 0600)."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path


def make_home(home: Path) -> None:
    """Make the folder of all data, for its user alone (mode 0700); an existing one stays."""
    home.parent.mkdir(parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)


def secrets_dir(home: Path) -> Path:
    """The folder of the secrets, made if it is not there yet (mode 0700)."""
    make_home(home)
    folder = home / "secrets"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    return folder


def make_secret(home: Path, name: str) -> str:
    """The secret `name`, made at random (256 bits) the first time.

    Of two processes that make it at once, one wins and both return the same secret.
    """
    folder = secrets_dir(home)
    path = folder / name
    if not path.exists():
        handle, draft = tempfile.mkstemp(dir=folder, prefix=f".{name}-")  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(draft, path)  # whole or not at all, and never over an existing one
        finally:
            Path(draft).unlink()
    return path.read_text(encoding="ascii").strip()
