"""A document on its way from an input to its end, and a redirect, which is only a name.

A reader makes these, the steps of the per-file stage fill them in; none of them outlives the stage, whose output is
Parquet. One document is in memory at a time per worker.
"""

from __future__ import annotations

import dataclasses
import enum

from registry.schema import AliasKind, Kind, Status

# Why a reading is no capture of its document's text: it says nothing of what the text is now, and so replaces none.
NO_CAPTURE = (
    "http-status",  # the server answered with an error, or with nothing
    "redirect",  # ... or named another URL
    "revisit",  # the archive only notes that nothing had changed since an earlier capture
    "media-type",  # an image, a script, a style sheet, an archive
    "not-http",  # a DNS answer, a note of the crawler
    "no-response",  # a request that the archive holds no answer to
    "segment",  # a part of a record that goes on in another file
)


class Form(enum.Enum):
    """What a reader found, and so what makes text of it (`pipelines.text.extract`)."""

    TEXT = "text"
    WIKITEXT = "wikitext"
    HTML = "html"


@dataclasses.dataclass(slots=True)
class Document:
    """One thing that was read. It ends kept, filtered, duplicate, superseded or failed, never nowhere.

    Attributes:
        kind: what kind of source published it.
        key: the canonical key of that source; None only for a failure that hid it.
        locator: what tells it from the source's other documents: canonical URL, or the key (`registry.ids.doc_id`).
        url: where it was, if it was anywhere.
        title: as published, e.g. "Douglas Adams".
        scope: the wiki that its title is unique in ("enwiki"); None outside wikis.
        form: what `markup` is; TEXT if the reader gave `text` itself.
        markup: what the reader found; bytes where their encoding is still to be found; dropped once extracted.
        charset: of `markup`, as the transport says; "" if it does not.
        text: the clean text.
        language: ISO 639-1 ("en"), as the input says or as detected; "" if neither.
        captured: when, ISO 8601 UTC ("2016-12-01T08:15:00Z"); "" if the input does not say.
        input_file: the input's name, without its place.
        input_offset: bytes from the start of the input; of a Parquet file, the row.
        input_length: bytes; 0 if not known.
        input_stored: offset and length are of the file as it lies (a WARC's gzip member), not of its decompressed
            content.
        aliases: more names that it can be looked up by.
        is_disambiguation: a page that only lists what a title can mean.
        status: KEPT until a step says otherwise.
        reason: why, for a status other than KEPT; few distinct values, since they are counted.
        detail: words for a person about `reason`; not stored.
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
        """Ends the document's way with `status`, for `reason`."""
        self.status, self.reason, self.detail = status, reason, detail


@dataclasses.dataclass(slots=True, frozen=True)
class Redirect:
    """A title that only names another title of the same wiki."""

    scope: str
    title: str
    target: str


@dataclasses.dataclass(slots=True, frozen=True)
class WikiSite:
    """A wiki that an input is of: its database name and the host of its article URLs ("enwiki", "en.wikipedia.org")."""

    scope: str
    host: str
