"""Extract the prose of a page from wikitext, without templates, tables, references, files and other apparatus.

There is one pass for each kind of markup, outermost first; a pass is one scan with a compiled pattern, and a stack
where markup nests, so the time is linear in a page's length whatever the page holds. Unbalanced markup loses only its
own brackets, not the text after them, since only closed spans are cut out. Cost: 9 MB/s a core, 11x mwparserfromhell's
`strip_code`, with which it agrees on 99 % of words (tests/pipelines/text/test_extract.py measures both).

    comments -> elements (<ref>, <math>, ...) -> templates and tables -> links -> tags -> lines, headings, lists
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipelines.text.mediawiki_words import CATEGORY_NAMESPACES, FILE_NAMESPACES, LANGUAGES

# Extension tags (Special:Version of a Wikipedia lists them) whose content is no prose.
_DROPPED = (
    "ref|references|math|chem|ce|gallery|timeline|score|syntaxhighlight|source|imagemap|hiero|graph|categorytree|inputbox"
    "|templatedata|templatestyles|maplink|mapframe|indicator|includeonly|style|script"
)
_LITERAL = "nowiki|pre"
_ELEMENT = re.compile(rf"<(/?)({_DROPPED}|{_LITERAL})\b([^<>]*)>", re.IGNORECASE | re.ASCII)
# Markup characters within <nowiki> travel as Unicode noncharacters, which no text contains.
_SHIELD = {ord(char): chr(0xFDD0 + number) for number, char in enumerate("[]{}|<>'=*#:;_-!&")}
_UNSHIELD = {ord(shielded): chr(char) for char, shielded in _SHIELD.items()}
_SHIELDED = re.compile("[\ufdd0-\ufdef]")

# Each alternative begins with a literal, so that the compiled pattern skips to those characters, five times as fast.
_BRACES = re.compile(r"\{\{+|\}\}+|\{\||\|\}(?!\})|</?table\b[^<>]*>", re.IGNORECASE)
_MAX_BRACES = 40  # braces in a row: nested templates at one position; MediaWiki expands none deeper
_TABLE_BREAK = re.compile(r"\n[ \t]*+\n|\n=|\Z")  # end of a table that is never closed

_EXTERNAL_LINK = re.compile(
    r"\[(?:(?:https?:|ftps?:|irc:|news:|gopher:)?//|mailto:)[^\s\[\]<>]*+"
    r"(?:[^\S\n]([^\[\]\n]*+(?:\[\[[^\[\]\n]*+\]\][^\[\]\n]*+)*+))?\]",
    re.IGNORECASE,
)
_LINK_BRACKETS = re.compile(r"\[\[|\]\]")
_FILE_NAME = re.compile(
    r"\.(?:jpe?g|png|svg|gif|tiff?|webp|bmp|xcf|djvu|pdf|og[agv]|opus|webm|midi?|wav|mp[34]|flac|stl)\s*$",
    re.IGNORECASE,
)
_MAX_LINK_DEPTH = 16  # a file's caption holds links, a link holds none
_PIPE_TRICK = re.compile(r"^:?[^:]*:| ?[(（][^()（）]*+[)）]$|,.*$")

_VARIANT = re.compile(r"-\{([^{}\n]*+)\}-")
_BREAKING_TAG = re.compile(
    r"</?(?:br|hr|p|div|li|ul|ol|dl|dd|dt|tr|td|th|caption|tbody|thead|blockquote|center|poem|h[1-6])\b[^<>]*>",
    re.IGNORECASE,
)
_INLINE_TAG = re.compile(
    r"</?(?:abbr|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|mark|noinclude|nobr|onlyinclude|q|rb|rp|rt|rtc"
    r"|ruby|s|samp|section|small|span|strike|strong|sub|sup|time|translate|tt|tvar|u|var|wbr)\b[^<>]*>",
    re.IGNORECASE,
)
_QUOTES = re.compile(r"'{2,}")
_BEHAVIOUR_SWITCH = re.compile(r"__[^\W_a-z]{3,40}(?:_[^\W_a-z]{1,40}){0,4}__")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Remains of removed templates in a sentence: "( , )", "(; 1879)", "Berlin , which".
_EMPTY_BRACKETS = re.compile(r" ?[(（][\s,;:，、；]*+[)）]")
_OPENING_REMAINS = re.compile(r"(?<=[(（])[\s,;，；]++")
_SPACE_BEFORE = re.compile(r" (?=[,)）])")
_WORD = re.compile(r"\w")
_LIST_MARKS = "*#:;"
_NO_LEVEL = 7  # a line of text, which is deeper than any heading


def wikitext_to_text(markup: str) -> str:
    """Return the prose of a page in wikitext.

    Paragraphs are separated by an empty line; headings and list items are lines of their own, without their marks; a
    section left without text loses its heading. Never fails; linear in the length of `markup`.
    """
    text = without_comments(markup)
    text = _without_elements(text)
    text = _QUOTES.sub(_quotes, text)  # before templates, which can leave nothing between quotes: "''{{lang|ar|...}}''"
    text = _without_braces(text)
    text = _with_link_labels(text)
    text = _without_inline_markup(text)
    text = "\n".join(_without_empty_sections([_line(line) for line in text.split("\n")]))
    return text.translate(_UNSHIELD) if _SHIELDED.search(text) else text


def without_comments(text: str) -> str:
    """Return wikitext without comments; a comment that fills a line is removed with the line, as in MediaWiki."""
    pieces = []
    start = 0
    while (opened := text.find("<!--", start)) >= 0 and (closed := text.find("-->", opened + 4)) >= 0:
        pieces.append(text[start:opened])
        start = closed + 3
        if text[opened - 1 : opened] in ("\n", "") and text.startswith("\n", start):
            start += 1
    pieces.append(text[start:].replace("<!--", ""))
    return "".join(pieces)


def _without_elements(text: str) -> str:
    """Remove `_DROPPED` elements; shield the content of `_LITERAL` elements, so that it stays plain text."""
    tags = list(_ELEMENT.finditer(text))
    ends = _matching_ends(tags)
    pieces = []
    position = 0
    for index, tag in enumerate(tags):
        if tag.start() < position:
            continue  # within an element
        pieces.append(text[position : tag.start()])
        position = tag.end()
        if index in ends:
            end = tags[ends[index]]
            if tag[2].lower() in ("nowiki", "pre"):
                pieces.append(text[position : end.start()].translate(_SHIELD))
            position = end.end()
    pieces.append(text[position:])
    return "".join(pieces)


def _matching_ends(tags: list[re.Match[str]]) -> dict[int, int]:
    """Map start tags to end tags, by index. As they do not nest, a start tag before another of its kind is unclosed."""
    ends = {}
    following: dict[str, int] = {}
    for index in range(len(tags) - 1, -1, -1):
        tag = tags[index]
        name = tag[2].lower()
        if tag[1]:
            following[name] = index
        elif not tag[3].endswith("/"):
            end = following.get(name)
            if end is not None and tags[end][1]:
                ends[index] = end
            following[name] = index
    return ends


class _Open(NamedTuple):
    """A template or table that is not closed so far.

    Attributes:
        kind: the mark that closes it.
        start, end: range of its opening mark.
        num_spans: number of spans found before it.
    """

    kind: str
    start: int
    end: int
    num_spans: int


class _Braces:
    """The spans of templates and tables. A closing mark closes the nearest open span of its kind, and all in it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._open: list[_Open] = []
        self._num_open = {"}}": 0, "|}": 0, "</table>": 0}
        self._spans: list[tuple[int, int]] = []
        for match in _BRACES.finditer(text):
            self._meet(match)
        self._drop_unclosed()

    def outside(self) -> Iterator[str]:
        """Yield the text between the spans."""
        position = 0
        for start, end in sorted(self._spans):
            if start > position:
                yield self._text[position:start]
            position = max(position, end)
        yield self._text[position:]

    def _meet(self, match: re.Match[str]) -> None:
        mark, (start, end) = match[0], match.span()
        if end - start > _MAX_BRACES and mark[0] in "{}":
            self._spans.append((start, end))
        elif mark.startswith("{{"):
            for inner in range(start + (end - start) % 2, end, 2):  # an odd brace belongs to the outermost
                self._push("}}", start if inner - start < 2 else inner, inner + 2)
        elif mark.startswith("}}"):
            for inner in range(start + 2, end + 1, 2):
                self._close("}}", start, end if end - inner < 2 else inner)
        elif mark[0] == "<":
            if mark[1] == "/":
                self._close("</table>", start, end)
            else:
                self._push("</table>", start, end)
        elif self._is_at_line_start(start):
            if mark == "{|":
                self._push("|}", start, end)
            else:
                self._close("|}", start, end)

    def _is_at_line_start(self, position: int) -> bool:
        """Whether only blanks and indentation precede `position` in its line, as a table's mark needs."""
        while position and self._text[position - 1] in " \t:":
            position -= 1
        return not position or self._text[position - 1] == "\n"

    def _push(self, kind: str, start: int, end: int) -> None:
        self._open.append(_Open(kind, start, end, len(self._spans)))
        self._num_open[kind] += 1

    def _close(self, kind: str, start: int, end: int) -> None:
        if not self._num_open[kind]:
            self._spans.append((start, end))
            return
        while True:
            opened = self._open.pop()
            self._num_open[opened.kind] -= 1
            if opened.kind == kind:
                break
        del self._spans[opened.num_spans :]
        self._spans.append((opened.start, end))

    def _drop_unclosed(self) -> None:
        """Drop the braces of templates never closed, and the lines of such tables up to the next paragraph."""
        covered = 0
        for opened in self._open:
            end = opened.end
            if opened.kind != "}}" and opened.start >= covered:
                match = _TABLE_BREAK.search(self._text, opened.end)
                covered = end = match.start() if match else len(self._text)
            self._spans.append((opened.start, end))


def _without_braces(text: str) -> str:
    return "".join(_Braces(text).outside()) if "{" in text or "}" in text or "<" in text else text


def _with_link_labels(text: str) -> str:
    """Replace links by their labels; remove links to files, to categories and to other languages."""
    text = _EXTERNAL_LINK.sub(lambda match: (match[1] or "").strip(), text)
    pieces: list[str] = []
    opened: list[int] = []  # where in `pieces` each open link begins
    position = 0
    for match in _LINK_BRACKETS.finditer(text):
        pieces.append(text[position : match.start()])
        position = match.end()
        if match[0] == "[[":
            if len(opened) < _MAX_LINK_DEPTH:
                opened.append(len(pieces))
        elif opened:
            _replace_tail(pieces, opened.pop(), _label)
    pieces.append(text[position:])
    while opened:
        _replace_tail(pieces, opened.pop(), _unclosed)
    return "".join(pieces)


def _replace_tail(pieces: list[str], start: int, function: Callable[[str], str]) -> None:
    pieces[start:] = [function("".join(pieces[start:]))]


def _label(link: str) -> str:
    """Return the text that `[[link]]` shows."""
    target, bar, label = link.partition("|")
    if "\n" in target.strip():
        return link
    prefix, colon, _ = target.partition(":")
    if colon:
        namespace = " ".join(prefix.replace("_", " ").split()).lower()
        if namespace in FILE_NAMESPACES or (prefix and _FILE_NAME.search(target)):
            return link.partition("\n")[2] if "\n=" in link else ""
        if namespace in CATEGORY_NAMESPACES or prefix in LANGUAGES:
            return ""
    if not bar:
        return target.strip().lstrip(":")
    return label if label.strip() else _PIPE_TRICK.sub("", target.strip()).strip()


def _unclosed(rest: str) -> str:
    """Return the text after brackets never closed; a file's first line is its options and caption, and is removed."""
    prefix, colon, _ = rest.partition(":")
    is_file = colon and prefix.strip().lower() in FILE_NAMESPACES
    return rest.partition("\n")[2] if is_file else rest


def _without_inline_markup(text: str) -> str:
    if "-{" in text:
        text = _VARIANT.sub(_variant, text)
    text = _BREAKING_TAG.sub("\n", text)
    text = _INLINE_TAG.sub("", text)
    if "__" in text:
        text = _BEHAVIOUR_SWITCH.sub("", text)
    return _ENTITY.sub(_decoded, text) if "&" in text else text


def _variant(match: re.Match[str]) -> str:
    """Return the first of `-{zh-hans:A; zh-hant:B}-`; "" for a rule only declared (`-{H|...}-`, `-{T|...}-`)."""
    flags, bar, rules = match[1].rpartition("|")
    if bar and flags.strip() in ("H", "T", "-"):
        return ""
    first = rules.partition(";")[0]
    return first.partition(":")[2].strip() if ":" in first else first


def _quotes(match: re.Match[str]) -> str:
    """Remove quotes for bold and italics; four are an apostrophe and bold, of more than five the excess is text."""
    length = len(match[0])
    return "'" * (length - 5) if length > 5 else "'" if length == 4 else ""


def _decoded(match: re.Match[str]) -> str:
    """Return an entity's character, shielded from being read as markup; a blank for a control character."""
    text = html.unescape(match[0])
    return " " if unicodedata.category(text[:1] or "\0") == "Cc" else text.translate(_SHIELD)


class _Line(NamedTuple):
    text: str
    level: int = _NO_LEVEL


_BLANK = _Line("")


def _line(raw: str) -> _Line:
    text = " ".join(raw.split())
    if not _WORD.search(text) or text[0] == "|":  # "|": rest of an unclosed table or template
        return _BLANK
    if text[0] == "=" and text[-1] == "=" and len(text) > 2:
        level = min(len(text) - len(text.lstrip("=")), len(text) - len(text.rstrip("=")), (len(text) - 1) // 2, 6)
        return _Line(_mended(text[level:-level]), level)
    if text.startswith("----"):
        text = text.lstrip("-")
    return _Line(_mended(text.lstrip(_LIST_MARKS)))


def _mended(line: str) -> str:
    """Return `line` without the remains of removed templates in brackets and before commas."""
    if "(" in line or "（" in line:
        line = _OPENING_REMAINS.sub("", _EMPTY_BRACKETS.sub("", line))
    if " ," in line or " )" in line:
        line = _SPACE_BEFORE.sub("", line)
    return line.strip()


def _without_empty_sections(lines: list[_Line]) -> list[str]:
    """Return the text of `lines` without headings of empty sections, and with at most one empty line in a row."""
    kept: list[str] = []
    level_below = 0  # of the line kept last, counted from the end
    for line in reversed(lines):
        if not line.text:
            if kept and kept[-1]:
                kept.append("")
        elif line.level == _NO_LEVEL:
            kept.append(line.text)
            level_below = _NO_LEVEL
        elif line.level < level_below:
            kept += [line.text, ""] if kept[-1] == "" else ["", line.text, ""]
            level_below = line.level
    while kept and not kept[-1]:
        kept.pop()
    return kept[::-1]
