"""Split a text of Project Gutenberg into its header's facts and the book, without header, licence and credits.

Three generations of headers are recognised by their last line: "*** START OF THE PROJECT GUTENBERG EBOOK ... ***"
(since 2003, also with THIS for THE, or without blanks), "*END*THE SMALL PRINT! ..." (since 1991), and a few lines with
no end mark ("January, 1991  [Etext #11]"). Facts are taken only from the header: a number in brackets in the text is
not the book's. No I/O; the time is linear in the text.

    edition, body = read_gutenberg(text)
"""

from __future__ import annotations

import re

from pipelines.readers.books.edition import Edition, joint_name
from pipelines.text.languages import language_code

_HEADER_CHARS = 60_000  # longest header; one with the small print has 15,000
_FIRST_CHARS = 1_500  # start of a text, where a header names the project
_OLD_HEADER_CHARS = 3_000  # longest header without an end mark
_TRAILER_CHARS = 60_000  # longest trailer; the licence has 19,000
_LAST_LINE_CHARS = 1_000  # "End of Project Gutenberg's ..." can take several lines
_CREDIT_CHARS = 3_000  # longest paragraph of credits; a longer one belongs to the book
_MAX_CREDITS = 8

_PROJECT = re.compile(r"project\s+gutenberg", re.IGNORECASE)
_START = re.compile(  # a long title takes several lines, up to the asterisks
    r"^[ \t]*\*+[ \t]*START OF TH(?:E|IS) PROJECT GUTENBERG(?:[ \t]+e-?(?:book|text)\b,?)?"
    r"(?:([^\n*]*(?:\n(?![ \t]*\n)[^\n*]*){0,3})\*{2}[^\n]*|[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(r"^[ \t]*\*+[ \t]*END OF TH(?:E|IS) PROJECT GUTENBERG[^\n]*", re.IGNORECASE | re.MULTILINE)
_SMALL_PRINT_START = re.compile(r"^[^\w\n]{0,40}START\W{0,9}THE SMALL PRINT!", re.IGNORECASE | re.MULTILINE)
_SMALL_PRINT_END = re.compile(r"^[^\w\n]{0,40}END\W{0,9}THE SMALL PRINT![^\n]*", re.IGNORECASE | re.MULTILINE)
_LAST_LINE = re.compile(r"^[^\w\n]{0,40}End of (?:the |this )?Project Gutenberg\b[^\n]*", re.IGNORECASE | re.MULTILINE)
_LICENCE = re.compile(
    r"^[^\w\n]{0,40}START: FULL LICENSE\b|^[^\w\n]{0,40}THE FULL PROJECT GUTENBERG LICENSE\b", re.I | re.MULTILINE
)
_FIRST_LINE = re.compile(
    r"\W{0,200}?(?:(?:This is )?The |This is a )?Project Gutenberg(?:['’]s)?\s+"
    r"(?:Copyrighted\s+)?(?:e-?(?:book|text)|edition)s?(?P<rest>[^\n]*)(?:\n[ \t]*by[ \t]+(?P<by>[^\n]+))?",
    re.IGNORECASE,
)
_FIELD = re.compile(r"([A-Z][A-Za-z]+(?: [A-Za-z]+){0,3})[ \t]*:[ \t]*(.*)")
_NUMBER = re.compile(r"\[[ \t]*e-?(?:text|book)[ \t]*#?[ \t]*([0-9]{1,7})[ \t]*\]", re.IGNORECASE)
_NUMBER_LINE = re.compile(
    r"^[ \t]*(?:[A-Z][a-z]+,?[ \t]+(?:[0-9]{1,2},?[ \t]+)?[0-9]{4}[ \t]*)?" + _NUMBER.pattern + r"[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_DATE = re.compile(r"([A-Z][a-z]{2})[a-z]*\.?[ \t]+([0-9]{1,2}),?[ \t]+([0-9]{4})")
_UPDATED = re.compile(r"(?:most recently|last) updated:?[ \t]*([^\n\]]+)", re.IGNORECASE)
_MONTHS = dict(
    zip(("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), range(1, 13), strict=True)
)
_CREDIT = re.compile(
    r"[\W_]*(?:(?:this |the )?(?:e-?(?:text|book)|html version|updated editions?|proofed|digital edition)?"
    r"[ \t]*(?:was |is )?"
    r"(?:produced|prepared|transcribed|scanned|digiti[sz]ed|created|proofread) (?:for project gutenberg )?(?:by|from)\b"
    r"|transcriber['’]?s?['’]? notes?\b|credits:)",
    re.IGNORECASE,
)
_RULE = re.compile(r"[\s*+=_|~-]+")


def read_gutenberg(text: str) -> tuple[Edition, str] | None:
    """Return the facts of a text's header, and its body; None if the text is not Project Gutenberg's.

    Args:
        text: with line ends as "\\n", and with its indentation, which marks continued lines.
    """
    if not _PROJECT.search(text, 0, _FIRST_CHARS):
        return None
    found = _header_end(text)
    if found is None:
        return None
    end, start = found
    header = text[:end]
    edition = _edition(header, _START.match(text, end))
    body = text[start : _body_end(text, start)]
    return edition, _without_last_line(body)


def without_credits(text: str) -> str:
    """Return normalised `text` without the credits before the book: "Produced by ..." and transcriber's notes."""
    rest = text
    for _ in range(_MAX_CREDITS):
        first, _, after = rest.partition("\n\n")
        if len(first) > _CREDIT_CHARS:
            break
        if _CREDIT.match(first) or (_RULE.fullmatch(first) and _CREDIT.match(after, 0, _CREDIT_CHARS)):
            rest = after
        else:
            break
    return rest


def _header_end(text: str) -> tuple[int, int] | None:
    """Return the end of the header and the start of the book; None if there is no header."""
    start = _START.search(text, 0, _HEADER_CHARS)
    if start:
        end = start.end()
        legal = _SMALL_PRINT_START.search(text, end, end + _OLD_HEADER_CHARS)
        closed = _SMALL_PRINT_END.search(text, legal.end(), _HEADER_CHARS) if legal else None
        return start.start(), closed.end() if closed else end
    closed = _SMALL_PRINT_END.search(text, 0, _HEADER_CHARS)
    if closed and not _LAST_LINE.search(text, 0, closed.start()):
        return closed.start(), closed.end()
    first = _FIRST_LINE.match(text)
    if not first:
        return None
    number = _NUMBER_LINE.search(text, first.end(), _OLD_HEADER_CHARS)
    end = (number or first).end()
    return end, end


def _body_end(text: str, start: int) -> int:
    """Return the end of the book: at the last end marker, else at the closing line or the licence."""
    ends = [match.start() for match in _END.finditer(text, start)]
    if ends:
        return ends[-1]
    tail = max(start, len(text) - _TRAILER_CHARS)
    found = [match.start() for p in (_LAST_LINE, _LICENCE, _SMALL_PRINT_START) if (match := p.search(text, tail))]
    return min(found, default=len(text))


def _without_last_line(body: str) -> str:
    match = _LAST_LINE.search(body, max(0, len(body) - _LAST_LINE_CHARS))
    return body[: match.start()] if match else body


def _edition(header: str, marker: re.Match[str] | None) -> Edition:
    fields = _fields(header)
    title, by = _title_of_first_line(header)
    title = title or " ".join((marker[1] or "").split() if marker else ()) or None
    authors = _names(fields.get("author") or fields.get("authors") or "") or ([by] if by else [])
    return Edition(
        title=" ".join(fields.get("title", "").split()) or title,
        authors=tuple(authors),
        joint=joint_name(authors),
        gutenberg_number=_ebook_number(header, fields),
        language=language_code(fields.get("language", "")),
        published=_published(header, fields),
    )


def _fields(header: str) -> dict[str, str]:
    """Return the fields by name in lower case; indented lines continue a field, and the first of a name counts."""
    fields: dict[str, str] = {}
    name = ""
    for line in header.split("\n"):
        match = _FIELD.fullmatch(line)
        if match:
            name = match[1].lower() if match[1].lower() not in fields else ""
            if name:
                fields[name] = match[2].strip()
        elif name and line.strip() and line[0] in " \t":
            fields[name] += "\n" + line.strip()
        else:
            name = ""
    return fields


def _names(value: str) -> list[str]:
    """Return the names, one per line; a line that ends in a comma, "&" or "and" continues on the next."""
    lines: list[str] = []
    for line in value.split("\n"):
        if lines and re.search(r"(?:,|&|\band)$", lines[-1]):
            lines[-1] += " " + line
        elif line:
            lines.append(line)
    return lines


def _title_of_first_line(header: str) -> tuple[str | None, str]:
    """Return title and author of the line "The Project Gutenberg Etext of TITLE, by AUTHOR"."""
    start = next(iter(re.finditer(r"\S", header)), None)
    match = _FIRST_LINE.match(header, start.start()) if start else None
    if not match:
        return None, ""
    rest = re.sub(r"^(?:\s*#?\s*[0-9]+)?\s*(?:of\b|,|:)?\s*", "", match["rest"].strip("*# \t"))
    title, _, author = rest.partition(", by ")
    if not author and not match["by"] and " by " in rest:
        title, _, author = rest.rpartition(" by ")
    return title.strip(" *,.") or None, (author or match["by"] or "").strip(" *,.#")


def _ebook_number(header: str, fields: dict[str, str]) -> int | None:
    """Return the book's number: from its release date, else from a line of its own, else the header's only number."""
    for value in (fields.get("release date", ""), fields.get("posting date", "")):
        if match := _NUMBER.search(value):
            return int(match[1])
    for pattern in (_NUMBER_LINE, _NUMBER):
        numbers = {int(match[1]) for match in pattern.finditer(header)}
        if numbers:
            return numbers.pop() if len(numbers) == 1 else None
    return None


def _published(header: str, fields: dict[str, str]) -> str:
    """Return the date when the text was last changed, else released; "" if no day is stated."""
    updated = _UPDATED.search(header)
    for value in (updated[1] if updated else "", fields.get("release date", "")):
        match = _DATE.search(value)
        month = _MONTHS.get(match[1]) if match else None
        if match and month and 1 <= int(match[2]) <= 31:
            return f"{match[3]}-{month:02d}-{int(match[2]):02d}T00:00:00Z"
    return ""
