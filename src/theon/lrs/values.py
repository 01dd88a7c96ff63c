"""The special kinds of text in xAPI: IRIs, ids, times, durations, languages, media types."""

import re
from datetime import datetime
from itertools import takewhile
from typing import Annotated, Any

from pydantic import AfterValidator

# RFC 3987 lets in most of Unicode; these are what it keeps out.
_IRI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\x00-\x20\x7f<>\"{}|\\^`\s]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAILTO = re.compile(r"mailto:[^\s@:<>\"]+@[^\s@:<>\"]+")
_SHA1 = re.compile(r"[0-9a-fA-F]{40}")
_SHA2 = re.compile(r"[0-9a-fA-F]{56}|[0-9a-fA-F]{64}|[0-9a-fA-F]{96}|[0-9a-fA-F]{128}")
_MEDIA = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+*-]+(\s*;.*)?")
_DURATION = re.compile(
    r"P(?:\d+(?:[.,]\d+)?W"
    r"|(?=[\dT])(?:\d+(?:[.,]\d+)?Y)?(?:\d+(?:[.,]\d+)?M)?(?:\d+(?:[.,]\d+)?D)?"
    r"(?:T(?=\d)(?:\d+(?:[.,]\d+)?H)?(?:\d+(?:[.,]\d+)?M)?(?:\d+(?:[.,]\d+)?S)?)?)"
)
# A date and a time of day, then an offset if there is one.
_TIME = re.compile(
    r"\d{4}-?\d{2}-?\d{2}[Tt ]\d{2}(?::?\d{2}(?::?\d{2}(?:[.,]\d+)?)?)?(?P<offset>[Zz]|[+-].*)?"
)
_NO_OFFSET = re.compile(r"-00(:?00)?")
# RFC 5646, its regular tags, what is private, and what is older than the rule.
_LANGUAGE = re.compile(
    r"(?:(?:[a-z]{2,3}(?:-[a-z]{3}){0,3}|[a-z]{4}|[a-z]{5,8})"
    r"(?:-[a-z]{4})?(?:-(?:[a-z]{2}|\d{3}))?(?:-(?:[a-z0-9]{5,8}|\d[a-z0-9]{3}))*"
    r"(?:-[0-9a-wy-z](?:-[a-z0-9]{2,8})+)*(?:-x(?:-[a-z0-9]{1,8})+)?"
    r"|x(?:-[a-z0-9]{1,8})+|i-[a-z0-9]{2,8}|art-lojban|cel-gaulish|en-gb-oed|no-(?:bok|nyn)"
    r"|sgn-(?:be-fr|be-nl|ch-de)|zh-(?:guoyu|hakka|min|min-nan|xiang))",
    re.IGNORECASE,
)


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if pattern.fullmatch(value) is None:
            raise ValueError(f"{value[:100]!r} is no {what}")
        return value

    return AfterValidator(check)


def is_iri(value: str) -> bool:
    """Whether it is an absolute IRI."""
    return _IRI.fullmatch(value) is not None


def is_uuid(value: str) -> bool:
    """Whether it is a UUID in its usual form."""
    return _UUID.fullmatch(value) is not None


def read_time(value: str, *, with_offset: bool = False) -> datetime:
    """The moment that a text of ISO 8601 names; without an offset it is UTC.

    Args:
        value: the text.
        with_offset: whether an offset is needed, as in RFC 3339.

    Raises:
        ValueError: it names none; the offset -00:00 says that none is known.
    """
    found = _TIME.fullmatch(value)
    offset = found["offset"] if found else None
    if found is None or (offset and _NO_OFFSET.fullmatch(offset)):
        raise ValueError(f"{value[:100]!r} is no date and time of ISO 8601 with a known offset")
    if with_offset and offset is None:
        raise ValueError(f"{value[:100]!r} has no offset from UTC, which RFC 3339 asks for")
    try:
        read = datetime.fromisoformat(value.upper() + ("" if offset else "Z"))
        read.timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{value[:100]!r} is no date and time of ISO 8601") from error
    return read


def _check_language(tag: str) -> str:
    if _LANGUAGE.fullmatch(tag) is None:
        raise ValueError(f"{tag[:100]!r} is no language of RFC 5646")
    # The form lets pass what stands there twice: a variant, or the letter before an extension.
    parts = tag.lower().split("-")
    public = parts[1 : parts.index("x") if "x" in parts else None]
    letters = [part for part in public if len(part) == 1]
    before = takewhile(lambda part: len(part) > 1, public)
    variants = [part for part in before if len(part) > 3]
    for found in (variants, letters):
        if len(set(found)) < len(found):
            raise ValueError(f"{tag[:100]!r} has a part twice, which RFC 5646 forbids")
    return tag


def _check_language_map(value: dict[str, str]) -> dict[str, str]:
    for tag in value:
        _check_language(tag)
    return value


def _check_extensions(value: dict[str, Any]) -> dict[str, Any]:
    for key in value:
        if not is_iri(key):
            raise ValueError(f"{key[:100]!r}, the name of an extension, is no IRI")
    return value


Iri = Annotated[str, _matching(_IRI, "IRI with a scheme")]
Uuid = Annotated[str, _matching(_UUID, "UUID")]
Mailto = Annotated[str, _matching(_MAILTO, "address of the form mailto:name@place")]
Sha1 = Annotated[str, _matching(_SHA1, "SHA-1 in 40 hexadecimal digits")]
Sha2 = Annotated[str, _matching(_SHA2, "SHA-2 in hexadecimal digits")]
MediaType = Annotated[str, _matching(_MEDIA, "media type")]
Duration = Annotated[str, _matching(_DURATION, "duration of ISO 8601")]
Language = Annotated[str, AfterValidator(_check_language)]
LanguageMap = Annotated[dict[str, str], AfterValidator(_check_language_map)]
Extensions = Annotated[dict[str, Any], AfterValidator(_check_extensions)]
