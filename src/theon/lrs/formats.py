"""A statement as it is shown: with ids alone, or with what the store knows, in one language."""

from collections.abc import Callable, Mapping
from typing import Any

from theon.lrs.statements import identifiers

Definitions = Mapping[str, Mapping[str, Any]]


def to_ids(statement: Mapping[str, Any]) -> dict[str, Any]:
    """Only what says who and what is meant."""
    return _shown(statement, _bare_actor, _only_id, _only_id)


def to_canonical(
    statement: Mapping[str, Any], definitions: Definitions, languages: list[str]
) -> dict[str, Any]:
    """With the definitions that are known of activities, each text in one language.

    Args:
        statement: as stored.
        definitions: by the ids of activities.
        languages: as `read_languages` gives them.
    """

    def activity(value: Mapping[str, Any]) -> Mapping[str, Any]:
        definition = definitions.get(value["id"], value.get("definition"))
        if definition is None:
            return value
        return {**value, "definition": _one_language(definition, languages)}

    def verb(value: Mapping[str, Any]) -> Mapping[str, Any]:
        if "display" not in value:
            return value
        return {**value, "display": choose(value["display"], languages)}

    return _shown(statement, lambda actor: actor, activity, verb)


def read_languages(header: str) -> list[str]:
    """The languages of an Accept-Language, the most wanted first, in small letters."""
    found = []
    for place, part in enumerate(header.split(",")):
        tag, _, weight = part.strip().partition(";")
        try:
            wanted = float(weight.strip().removeprefix("q=") or 1)
        except ValueError:
            wanted = 0.0
        if tag.strip() and wanted > 0:
            found.append((-wanted, place, tag.strip().lower()))
    return [tag for _, _, tag in sorted(found)]


def choose(texts: Mapping[str, str], languages: list[str]) -> dict[str, str]:
    """One of the texts: in the most wanted language that is there, else the first."""
    for wanted in languages:
        for tag in texts:
            if tag.lower() == wanted or tag.lower().startswith(f"{wanted}-"):
                return {tag: texts[tag]}
        for tag in texts:  # en for somebody who asks for en-GB
            if wanted.startswith(f"{tag.lower()}-"):
                return {tag: texts[tag]}
    return dict(list(texts.items())[:1])


def _one_language(definition: Mapping[str, Any], languages: list[str]) -> dict[str, Any]:
    shown = dict(definition)
    for name in ("name", "description"):
        if name in shown:
            shown[name] = choose(shown[name], languages)
    for name in ("choices", "scale", "source", "target", "steps"):
        if name in shown:
            shown[name] = [
                {**component, "description": choose(component["description"], languages)}
                if "description" in component
                else component
                for component in shown[name]
            ]
    return shown


def _bare_actor(actor: Mapping[str, Any]) -> dict[str, Any]:
    kept = {"objectType", *identifiers(actor)}
    shown = {name: value for name, value in actor.items() if name in kept}
    if "member" in actor and not identifiers(actor):
        shown["member"] = [_bare_actor(member) for member in actor["member"]]
    return shown


def _only_id(thing: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": thing["id"]}


def _shown(
    told: Mapping[str, Any],
    actor: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    activity: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    verb: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> dict[str, Any]:
    shown = {**told, "actor": actor(told["actor"]), "verb": verb(told["verb"])}
    if "authority" in told:
        shown["authority"] = actor(told["authority"])
    kind = told["object"].get("objectType", "Activity")
    if kind == "Activity":
        shown["object"] = activity(told["object"])
    elif kind in ("Agent", "Group"):
        shown["object"] = actor(told["object"])
    elif kind == "SubStatement":
        shown["object"] = _shown(told["object"], actor, activity, verb)
    if "context" in told:
        context = dict(told["context"])
        for name in ("instructor", "team"):
            if name in context:
                context[name] = actor(context[name])
        for name, inner in (("contextAgents", "agent"), ("contextGroups", "group")):
            if name in context:
                context[name] = [{**part, inner: actor(part[inner])} for part in context[name]]
        if "contextActivities" in context:
            context["contextActivities"] = {
                name: [activity(value) for value in values]
                for name, values in context["contextActivities"].items()
            }
        shown["context"] = context
    return shown
