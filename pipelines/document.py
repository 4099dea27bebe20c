"""The values that readers yield: documents, redirects and wikis.

The steps of the per-file stage fill documents in. Nothing here outlives that stage, whose output is Parquet; a worker
holds one document at a time.
"""

from __future__ import annotations

import dataclasses
import enum

from registry.schema import AliasKind, Kind, Status

# Reasons for which a reading does not show its document's present text, so it supersedes no other capture.
NO_CAPTURE = (
    "http-status",  # the server answered with an error, or with nothing
    "redirect",  # the server named another URL
    "revisit",  # the archive only notes that nothing had changed since an earlier capture
    "media-type",  # an image, a script, a style sheet, an archive
    "not-http",  # a DNS answer, a note of the crawler
    "no-response",  # a request whose answer is not in the archive
    "segment",  # a part of a record that continues in another file
)


class Form(enum.Enum):
    """The form of a document's markup, which decides how text is extracted (`pipelines.text.extract`)."""

    TEXT = "text"
    WIKITEXT = "wikitext"
    HTML = "html"


@dataclasses.dataclass(slots=True)
class Document:
    """A document that was read. Its final status is kept, filtered, duplicate, superseded or failed.

    Attributes:
        kind: of the source that published it.
        key: the canonical key of that source; None only if it failed before the key was known.
        locator: distinguishes it from the source's other documents: canonical URL, or the key (`registry.ids.doc_id`).
        url: its URL, if it has one.
        title: as published, e.g. "Douglas Adams".
        scope: the wiki that its title is unique in ("enwiki"); None outside wikis.
        form: of `markup`; TEXT if the reader gave `text` itself.
        markup: as read; bytes if their encoding is still to be detected; dropped once extracted.
        charset: of `markup`, as declared by the transport; "" if it declares none.
        text: the clean text.
        language: ISO 639-1 ("en"), as the input says or as detected; "" if neither.
        captured: time of capture, ISO 8601 UTC ("2016-12-01T08:15:00Z"); "" if the input does not say.
        input_file: the input's name, without its directory.
        input_offset: bytes from the start of the input; the row in a Parquet file.
        input_length: bytes; 0 if not known.
        input_stored: offset and length count bytes of the stored file (a WARC's gzip member), not of its decompressed
            content.
        aliases: more names that it can be looked up by.
        is_disambiguation: a page that only lists the meanings of a title.
        status: KEPT until a step changes it.
        reason: for a status other than KEPT; few distinct values, since they are counted.
        detail: explains `reason` to a person; not stored in snapshots.
    """

    kind: Kind
    key: str | None
    locator: str
    url: str | None = None
    title: str | None = None
    scope: str | None = None
    form: Form = Form.TEXT
    markup: str | bytes = ""
    charset: str = ""
    text: str = ""
    language: str = ""
    captured: str = ""
    input_file: str = ""
    input_offset: int = 0
    input_length: int = 0
    input_stored: bool = False
    aliases: tuple[tuple[AliasKind, str], ...] = ()
    is_disambiguation: bool = False
    status: Status = Status.KEPT
    reason: str | None = None
    detail: str = ""

    def end(self, status: Status, reason: str, detail: str = "") -> None:
        """Set the final status, with its reason."""
        self.status, self.reason, self.detail = status, reason, detail


@dataclasses.dataclass(slots=True, frozen=True)
class Redirect:
    """A title that only names another title of the same wiki."""

    scope: str
    title: str
    target: str


@dataclasses.dataclass(slots=True, frozen=True)
class WikiSite:
    """The wiki of an input: its database name and the host of its article URLs ("enwiki", "en.wikipedia.org")."""

    scope: str
    host: str
