"""Writes `commands.md`, `settings.md` and `metrics.md` from the program itself: `make docs`.

With `--check` it writes nothing and fails where a page is out of date. In both cases it
fails where a command, option, setting, metric or column does not say what it is.
"""

import inspect
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from typer.main import get_command

from theon import errors
from theon.cli import app
from theon.intake.runs import EXIT_WITH_REJECTS
from theon.metrics.catalog import Metric, load_catalog
from theon.settings import Settings

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by `make docs`; change the program's texts instead. -->\n"
NONE = "–"  # noqa: RUF001 - a dash in a table

# A name ends with its unit.
UNITS = {
    "s": "seconds",
    "hours": "hours",
    "slots": "jobs",
    "mb": "megabytes",
    "ids": "ids",
    "events": "messages",
    "ms": "milliseconds",
    "threads": "threads",
}


# -- commands -----------------------------------------------------------------------------


def commands_page(program: Any = None) -> str:
    """Every command with its help, arguments, options and examples; the exit statuses."""
    lines = ["# Commands", "", NOTE]
    lines += ["Results go to standard output, progress and messages to standard error.", ""]
    for name, command in sorted(leaves(program or get_command(app))):
        text, *examples = (command.help or "").split("Example:")
        lines += [f"## theon {name}", "", " ".join(text.split()), ""]
        lines += ["```sh", *(" ".join(call.split()) for call in examples), "```", ""]
        if command.params:
            lines += table(
                ["argument or option", "what", "values", "unless given"],
                map(_parameter_row, command.params),
            )
    lines += ["## Exit statuses", ""]
    lines += table(["status", "when"], [[f"`{n}`", text] for n, text in sorted(exit_statuses())])
    return "\n".join(lines).rstrip() + "\n"


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below a group, by its full name without the program's."""
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from leaves(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


def exit_statuses() -> list[tuple[int, str]]:
    """What each exit status means; those of errors in the words of their classes."""
    found = [
        (0, "All is done."),
        (
            errors.TheonError.exit_status,
            "`theon metrics verify` found a difference, `theon intake reconcile` something "
            "missing, `theon doctor` a failed check; or any failure that is none of those below.",
        ),
        (
            EXIT_WITH_REJECTS,
            "Ingested, reconciled or replayed, but something was rejected, or the source ended "
            "early.",
        ),
        (130, "Ctrl-C. The message says what is kept."),
        (143, "Asked to end (SIGTERM). The message says what is kept."),
    ]
    for kind in errors.TheonError.__subclasses__():
        if kind.__module__ == errors.__name__:
            found.append((kind.exit_status, inspect.cleandoc(kind.__doc__ or "")))
    return found


def _parameter_row(parameter: Any) -> list[str]:
    is_option = parameter.param_type_name == "option"
    name = parameter.opts[0] if is_option else parameter.name.upper()
    return [f"`{name}`", parameter.help or "", _values(parameter), _default(parameter)]


def _values(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if getattr(parameter, "is_flag", False):
        return "flag"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    limits = _range(parameter.min, parameter.max)
    return {int: "whole number", Path: "path"}.get(kind, "text") + (f", {limits}" if limits else "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    if parameter.default in (None, False):
        return NONE
    default = parameter.default
    return f"`{default.value if isinstance(default, Enum) else default}`"


# -- settings -----------------------------------------------------------------------------


def settings_page(settings: type[Settings] = Settings) -> str:
    """Every setting: environment variable, default, what fits, meaning."""
    lines = ["# Settings", "", NOTE]
    lines += [
        "All come from the environment, where an empty one counts as not set, and are checked when "
        "a command starts: a value that does not fit ends it with status 2 and names the variable.",
        "",
    ]
    rows = []
    for name, field in settings.model_fields.items():
        default = "not set" if field.default is None else f"`{field.default}`"
        rows.append([f"`{variable(name, field)}`", default, _fits(name, field), field.description])
    lines += table(["variable", "default", "what fits", "what"], rows)
    return "\n".join(lines).rstrip() + "\n"


def variable(name: str, field: FieldInfo) -> str:
    """The environment variable of a setting."""
    alias = field.validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else str(alias or name)


def _fits(name: str, field: FieldInfo) -> str:
    limits = {
        key: getattr(m, key) for m in field.metadata for key in ("ge", "le") if hasattr(m, key)
    }
    if field.annotation is not int:
        return "path" if field.annotation is Path else "text"
    unit = UNITS.get(name.rpartition("_")[2], "")
    return _range(limits.get("ge"), limits.get("le"), unit)


def _range(low: float | None, high: float | None, unit: str = "") -> str:
    after = f" {unit}" if unit else ""
    if low is None:
        return unit if high is None else f"{high:,}{after} at most"
    return f"{low:,}{after} or more" if high is None else f"{low:,} to {high:,}{after}"


# -- metrics ------------------------------------------------------------------------------


def metrics_page(catalog: dict[str, Metric] | None = None) -> str:
    """Every metric with its columns, and what counts as activity."""
    lines = ["# Metrics", "", NOTE]
    lines += [
        "A metric is one SQL file in `src/theon/metrics/definitions`; "
        "[how to add one](guides/metrics.md). Times are UTC. Days, weeks and months are the "
        "campus's own; weeks begin on Monday.",
        "",
    ]
    for name, metric in (catalog or load_catalog()).items():
        lines += [
            f"## {name}",
            "",
            metric.question,
            "",
            f"One row per {', '.join(f'`{key}`' for key in metric.grain)}. "
            f"Version {metric.version}, owner {metric.owner}, "
            f"promises {', '.join(metric.requirements)}.",
            "",
        ]
        rows = [[f"`{c.name}`", c.type, c.unit or NONE, _meaning(c)] for c in metric.columns]
        lines += table(["column", "type", "unit", "what"], rows)
    return "\n".join([*lines, *_activity()]).rstrip() + "\n"


def _meaning(column: Any) -> str:
    at_once = " Known when the event is accepted." if column.family == "outcome" else ""
    return f"{column.description}{at_once}"


def _activity() -> list[str]:
    text = resources.files("theon.events").joinpath("activity_rules.toml").read_text("utf-8")
    rules = tomllib.loads(text)
    lines = ["## What counts as activity", ""]
    lines += [
        "The rules are data: `src/theon/events/activity_rules.toml`. Every event is stored. It "
        "counts unless one of these holds; the first that does is the reason it is counted under.",
        "",
    ]
    rows = [
        [e["reason"], _any_in_words(e["any"]), e.get("comment", NONE)] for e in rules["excluded"]
    ]
    lines += table(["reason", "when", "why"], rows)
    lines += ["What counts adds one to `total_actions`, and to each of these that fits:", ""]
    rows = [[f"`{name}`", _any_in_words(m["any"])] for name, m in rules["measures"].items()]
    return lines + table(["column", "when"], rows)


def _any_in_words(rules: list[dict[str, Any]]) -> str:
    return "; or ".join(
        " and ".join(_in_words(key, value) for key, value in rule.items()) for rule in rules
    )


def _in_words(key: str, value: Any) -> str:
    whole = {"absent": "is not given", "present": "is given", "true": "is true"}
    if key in whole:
        return " and ".join(f"`{column}` {whole[key]}" for column in value)
    for ending, verb in (("_contains", "contains"), ("_prefix", "begins with")):
        if key.endswith(ending):
            return f"`{key.removesuffix(ending)}` {verb} `{value}`"
    values = " or ".join(f"`{v}`" for v in value)
    if key.startswith("not_"):
        return f"`{key.removeprefix('not_')}` is not {values}"
    return f"`{key}` is {values}"


# -- all of them --------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
}


def table(head: list[str], rows: Iterable[list[Any]]) -> list[str]:
    """The lines of a Markdown table, and an empty one after it."""
    lines = [head, ["---"] * len(head)]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def undescribed(
    program: Any = None,
    settings: type[Settings] = Settings,
    catalog: dict[str, Metric] | None = None,
) -> list[str]:
    """What does not say what it is: commands, options, settings, metrics, columns."""
    found = []
    for name, command in leaves(program or get_command(app)):
        if f"Example: theon {name}" not in _without_variables(command.help or ""):
            found.append(f"theon {name}: help with an example")
        found += [f"theon {name}: {p.name}" for p in command.params if not p.help]
    found += [variable(n, f) for n, f in settings.model_fields.items() if not f.description]
    for metric in (catalog or load_catalog()).values():
        if not metric.question or not metric.owner:
            found.append(f"{metric.name}: question and owner")
        found += [f"{metric.name}.{c.name}" for c in metric.columns if not c.description]
    return found


def _without_variables(text: str) -> str:
    """`PORT=8080 theon serve` is an example of `theon serve`."""
    return " ".join(w for w in text.split() if not ("=" in w and w.split("=")[0].isupper()))


def main(arguments: list[str]) -> int:
    """Write the pages, or check them; return the exit status."""
    missing = undescribed()
    for what in missing:
        print(f"{what} has no description", file=sys.stderr)  # noqa: T201
    stale = [
        name
        for name, page in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != page()
    ]
    if "--check" in arguments:
        for name in stale:
            print(f"docs/{name} is out of date; run `make docs`", file=sys.stderr)  # noqa: T201
        return 1 if stale or missing else 0
    for name in stale:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
