"""Turn a document's markup (wikitext, HTML, plain text) into clean text: `extract` chooses the function for the form.

Cost: wikitext 9 MB/s (`pipelines.text.wikitext`); a web page 3 ms with resiliparse (main content, no boilerplate) and
about 30 ms with trafilatura; plain text is only normalised.

    from pipelines.text.extract import wikitext_to_text
    print(wikitext_to_text("[[Douglas Adams|Adams]] wrote it.{{cn}}"))
"""

from __future__ import annotations

import contextlib
import enum
import importlib.metadata
import re

from pipelines.document import Document, Form
from pipelines.text.wikitext import wikitext_to_text
from registry.errors import RecordError, UsageError
from registry.schema import Status

__all__ = ["HtmlExtractor", "decode", "extract", "full_text", "html_to_text", "normalise", "wikitext_to_text"]

# The libraries' time grows with depth squared: 10,000 levels take seconds, 100,000 minutes. Browsers stop at 512.
MAX_DEPTH = 2_000
_COUNT_DEPTH_FROM = 10_000  # tags; a page with fewer is never slow
# Elements that stay open until they are closed; the elements left out are void, or close one another.
_NESTING_TAG = re.compile(
    r"<(/?)(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr|p|li|td|th|tr|tbody|thead|tfoot"
    r"|dt|dd|option|optgroup|h[1-6]|html|head|body|script|style)\b)[a-z]",
    re.IGNORECASE,
)
# HTML takes "<a id='x'/>" for a start tag, and so "<title/>" for a title that holds the whole page.
_CLOSED_TAG = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr)\b)([A-Za-z][\w:.-]*+)"
    r"""((?:[^<>"'/]|"[^"<]*"|'[^'<]*'|/(?!>))*+)/>"""
)
_FIGURE = re.compile(r"<(/?)(?:figure|figcaption)\b", re.IGNORECASE)  # resiliparse leaves captions out
_EMPTY_LINES = re.compile(r"\n{3,}")
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class HtmlExtractor(enum.StrEnum):
    """The library that extracts text from HTML."""

    RESILIPARSE = "resiliparse"
    TRAFILATURA = "trafilatura"

    def version(self) -> str:
        """Return the library's name and release, since another release can extract other text.

        Raises:
            UsageError: the library is not installed.
        """
        try:
            return f"{self.value} {importlib.metadata.version(self.value)}"
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(f"{self.value} is not installed; run `pip install 'nulls[{self.value}]'`") from None


def extract(document: Document, html: HtmlExtractor = HtmlExtractor.RESILIPARSE) -> None:
    """Set `document.text` from its markup and drop the markup. A document that has ended gets no text.

    Raises:
        RecordError: `too-deep`, for HTML nested too deeply.
    """
    markup, document.markup = document.markup, ""
    if document.status is not Status.KEPT:
        return
    if document.form is Form.WIKITEXT and isinstance(markup, str):
        document.text = wikitext_to_text(markup)
    elif document.form is Form.HTML:
        source = decode(markup, document.charset) if isinstance(markup, bytes) else markup
        title, document.text = html_to_text(source, html)
        document.title = document.title or title
    elif isinstance(markup, bytes):
        document.text = normalise(decode(markup, document.charset, is_html=False))
    elif markup:
        document.text = normalise(markup)


def decode(payload: bytes, charset: str = "", *, is_html: bool = True) -> str:
    """Decode bytes by byte-order mark, else as UTF-8 if valid, else by `charset`, meta tag or detection, in that order.

    Args:
        payload: bytes of one page or text.
        charset: encoding that the HTTP header states; ignored if unknown, or if the bytes are invalid in it.
        is_html: whether a meta tag is looked for.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    for mark, encoding in _MARKS:
        if payload.startswith(mark):
            return payload[len(mark) :].decode(encoding, "replace")
    named = map_encoding_to_html5(charset.strip(" \"'").lower(), fallback_utf8=False) if charset else None
    if b"\x1b" not in payload:  # escape sequences switch alphabets in encodings that look like ASCII
        for encoding in ("utf-8", named or ""):  # few texts are valid UTF-8 by chance, many headers are wrong
            with contextlib.suppress(UnicodeDecodeError, LookupError):
                if encoding:
                    return payload.decode(encoding)
    likeliest = named or detect_encoding(payload, from_html_meta=is_html) or "utf-8"
    return str(bytes_to_str(payload, likeliest, errors="replace"))


def html_to_text(html: str, extractor: HtmlExtractor = HtmlExtractor.RESILIPARSE) -> tuple[str | None, str]:
    """Return a page's title and its main content; "" if everything looks like boilerplate.

    Raises:
        RecordError: `too-deep`.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    _check_depth(html)
    tree = HTMLTree.parse(html)
    title = " ".join(_CONTROLS.sub("", tree.title or "").split()) or None
    if extractor is HtmlExtractor.TRAFILATURA:
        import trafilatura

        return title, normalise(trafilatura.extract(html, include_comments=False) or "")
    return title, normalise(extract_plain_text(tree, main_content=True, alt_texts=False))


def full_text(xhtml: str) -> str:
    """Return all text of a book's chapter, boilerplate included: text marked up as navigation belongs to the book.

    Args:
        xhtml: XHTML or HTML; it is parsed as HTML, so XML's self-closed tags ("<title/>") are written out first.

    Raises:
        RecordError: `too-deep`.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    html = _FIGURE.sub(r"<\1div", _CLOSED_TAG.sub(r"<\1\2></\1>", xhtml))
    _check_depth(html)
    tree = HTMLTree.parse(html)
    return normalise(extract_plain_text(tree, main_content=False, alt_texts=False, list_bullets=False))


def normalise(text: str) -> str:
    """Return text without control characters and surrogates, blanks folded, at most one empty line in a row."""
    text = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(" ".join(line.split()) for line in text.split("\n"))  # a third of the time of a regular expression
    return _EMPTY_LINES.sub("\n\n", text).strip()


def _check_depth(html: str) -> None:
    if html.count("<") < _COUNT_DEPTH_FROM:
        return
    depth = 0
    for match in _NESTING_TAG.finditer(html):
        depth = max(0, depth - 1) if match[1] else depth + 1
        if depth > MAX_DEPTH:
            raise RecordError("too-deep", f"elements are nested more than {MAX_DEPTH} deep")
