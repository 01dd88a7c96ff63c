"""Writes `commands.md` and `settings.md` from the program itself: `make docs`.

With `--check` it writes nothing and fails where a page is out of date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AliasChoices
from typer.main import get_command

from theon.cli import app
from theon.settings import Settings

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by `make docs`; change the program's texts instead. -->\n"


def commands_page() -> str:
    """Every command with its help, options and example."""
    lines = ["# Commands", "", NOTE]
    for name, command in sorted(_leaves(get_command(app))):
        text, _, examples = (command.help or "").partition("Example:")
        lines += [f"## theon {name}", "", " ".join(text.split()), ""]
        calls = [" ".join(call.split()) for call in examples.split("Example:")]
        lines += ["```", *calls, "```", ""]
        if command.params:
            lines += ["| option | what | unless given |", "|---|---|---|"]
            lines += [_option_row(option) for option in command.params]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def settings_page() -> str:
    """Every setting: environment variable, default, meaning."""
    lines = ["# Settings", "", NOTE, "All come from the environment.", ""]
    lines += ["| variable | default | what |", "|---|---|---|"]
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        name = alias.choices[0] if isinstance(alias, AliasChoices) else alias
        default = "not set" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


PAGES = {"commands.md": commands_page, "settings.md": settings_page}


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from _leaves(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


def _option_row(option: Any) -> str:
    name = option.opts[0] if option.param_type_name == "option" else option.name.upper()
    default = "needed" if option.required else f"`{option.default}`"
    if not option.required and option.default in (None, False):
        default = "–"  # noqa: RUF001 - a dash in a table
    return f"| `{name}` | {option.help} | {default} |"


def main(arguments: list[str]) -> int:
    """Write the pages, or check them; return the exit status."""
    stale = [
        name
        for name, page in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != page()
    ]
    if "--check" in arguments:
        for name in stale:
            print(f"docs/{name} is out of date; run `make docs`", file=sys.stderr)  # noqa: T201
        return 1 if stale else 0
    for name in stale:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
