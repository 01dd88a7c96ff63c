"""Links in the pages lead somewhere; the house's form is kept."""

import re
from pathlib import Path

import pytest
from tests.docs.conftest import PAGES, ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_REQUIREMENT = re.compile(r"^\| [A-EX]\d+ \|", re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Relative links of a page to files or headings that are not there."""
    broken = []
    for link in _LINK.finditer(page.read_text(encoding="utf-8")):
        path, _, anchor = link["target"].partition("#")
        if "://" in link["target"]:
            continue
        target = (page.parent / path).resolve() if path else page
        missing = not target.exists() or root not in (target, *target.parents)
        if missing or (anchor and anchor not in _anchors(target)):
            broken.append(link["target"])
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A title: here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#a-title-here) [b](there.md#elsewhere) [c](missing.md) [d](https://x.y/z) "
        "![e](../outside.png)"
    )
    assert broken_links(page, tmp_path) == ["there.md#elsewhere", "missing.md", "../outside.png"]


def test_the_pages_that_a_reader_needs_are_reached_from_the_readme():
    """No page stands alone: each is linked from the README or from a page that is."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not page.exists():
            continue
        reached.add(page)
        if page.is_dir():
            waiting += page.glob("*.md")
        elif page.suffix == ".md":
            links = _LINK.finditer(page.read_text(encoding="utf-8"))
            paths = [link["target"].partition("#")[0] for link in links]
            waiting += [(page.parent / p).resolve() for p in paths if p and "://" not in p]
    assert [str(p.relative_to(ROOT)) for p in PAGES if p not in reached] == []


def test_the_readme_claims_promises_by_their_ids(readme):
    assert len(_REQUIREMENT.findall(readme)) >= 14


def test_a_decision_is_a_page_with_context_decision_and_what_was_turned_down():
    for page in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        text = page.read_text(encoding="utf-8").lower()
        number = int(page.name[:4])
        assert text.startswith(f"# {number}. "), page.name
        for part in ("\n## context", "\n## decision", "turned down"):
            assert part in text, f"{page.name}: {part.strip()}"
