"""The project's pages, and the shell lines in them."""

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_BLOCK = re.compile(r"^```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"[A-Z_]+=.*")


def theon_lines(text: str) -> list[list[str]]:
    """The words of each `theon …` line in the page's code, without variables and redirections."""
    found = []
    for block in _BLOCK.finditer(text):
        for line in block["text"].splitlines():
            words = shlex.split(line, comments=True) if "theon" in line else []
            while words and _VARIABLE.fullmatch(words[0]):
                del words[0]
            if words and words[0] == "theon":
                end = next((i for i, w in enumerate(words) if w in (">", "|", "&&")), len(words))
                found.append(words[1:end])
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a person with a new THEON_HOME and `theon` on the path."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("POSTGRES_", "THEON_"))}
    program = str(Path(sys.executable).parent)
    home = str(tmp_path_factory.mktemp("home"))
    return kept | {
        "THEON_HOME": home,
        "PATH": f"{program}{os.pathsep}{kept['PATH']}",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="session")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def section(readme: str) -> Callable[[str], str]:
    """`section("Licence")`: the README's text below that heading."""

    def find(title: str) -> str:
        _, heading, rest = readme.partition(f"\n## {title}\n")
        assert heading, f"README.md has no section {title!r}"
        return rest.partition("\n## ")[0]

    return find
