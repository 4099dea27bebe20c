"""Host name -> the name that a web source is keyed by, and the wiki that a host serves.

A web source is a registrable domain: the public suffix (private suffixes count: `alice.github.io`) and one label more.
tldextract holds the list; its packaged copy is used and no network, and the hash of that copy is in every manifest,
since a newer list can move a host to another source. What tldextract leaves open is settled here: case, IDN against
punycode (both become lower-case A-labels), IP literals, trailing dots, hosts that are a suffix themselves, single
labels, and unknown top-level domains (the list's own default rule, `*`: the last two labels).
About 15 microseconds a host once the list is loaded (60 ms).
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import idna

from registry.errors import RecordError

if TYPE_CHECKING:
    from tldextract import TLDExtract

_MAX_HOST_CHARS = 1024  # DNS allows 253; room for percent-encoded and Unicode spellings of one
_ASCII_LABEL = re.compile(r"[a-z0-9_*-]+")
# Wikimedia hosts whose database name is not language + project.
_SCOPE_OF_HOST = {
    "wikidata.org": "wikidatawiki",
    "commons.wikimedia.org": "commonswiki",
    "species.wikimedia.org": "specieswiki",
    "meta.wikimedia.org": "metawiki",
    "incubator.wikimedia.org": "incubatorwiki",
    "mediawiki.org": "mediawikiwiki",
}
_SUFFIX_OF_PROJECT = {
    "wikipedia": "wiki",
    "wiktionary": "wiktionary",
    "wikibooks": "wikibooks",
    "wikinews": "wikinews",
    "wikiquote": "wikiquote",
    "wikisource": "wikisource",
    "wikiversity": "wikiversity",
    "wikivoyage": "wikivoyage",
}
# Languages whose host is not their database name: https://noc.wikimedia.org/conf/ (wgLanguageCode overrides).
_SCOPE_OF_LANGUAGE = {"be-tarask": "be_x_old", "yue": "zh_yue", "nan": "zh_min_nan", "lzh": "zh_classical"}


def canonical_host(host: str) -> str:
    """`host` in lower-case A-labels, without port, userinfo or trailing dot; IPv6 in brackets, compressed.

    Raises:
        RecordError: `bad-host`, if there is no host in it.
    """
    if len(host) > _MAX_HOST_CHARS:
        raise RecordError("bad-host", f"a host of {len(host)} characters; at most {_MAX_HOST_CHARS} are read")
    address = _ip_literal(host.strip())
    if address:
        return address
    labels = [_a_label(label) for label in _mapped(host).strip(".").split(".") if label]
    if not labels or not all(labels):
        raise RecordError("bad-host", f"no host name in {host!r}")
    return ".".join(labels)


def registrable_domain(host: str) -> str:
    """The registrable domain of a canonical host; the host itself where it is an IP, a suffix or a single label."""
    if "." not in host or host.startswith("[") or _is_ipv4(host):
        return host
    parts = _extractor()(host)
    suffix = parts.suffix or host.rpartition(".")[2]
    num_labels = suffix.count(".") + 2
    labels = host.split(".")
    return host if len(labels) < num_labels else ".".join(labels[-num_labels:])


def desktop_host(host: str) -> str:
    """A wiki's host without what marks its mobile site or is only `www` ("en.m.wikipedia.org" -> "en.wikipedia.org")."""
    return ".".join(label for label in host.lower().strip(".").split(".") if label not in ("m", "zero", "www"))


def wiki_scope_of_host(host: str) -> str | None:
    """The database name of the Wikimedia wiki at `host` ("en.m.wikipedia.org" -> "enwiki"), or None."""
    bare = desktop_host(host)
    if bare in _SCOPE_OF_HOST:
        return _SCOPE_OF_HOST[bare]
    labels = bare.split(".")
    if len(labels) != 3 or labels[2] != "org" or labels[1] not in _SUFFIX_OF_PROJECT:
        return None
    language = _SCOPE_OF_LANGUAGE.get(labels[0], labels[0]).replace("-", "_")
    return language + _SUFFIX_OF_PROJECT[labels[1]]


@functools.cache
def suffix_list_digest() -> str:
    """SHA-256 of the public-suffix snapshot in use: part of the identity of every web source."""
    import tldextract

    return hashlib.sha256((Path(tldextract.__file__).parent / ".tld_set_snapshot").read_bytes()).hexdigest()


@functools.cache
def _extractor() -> TLDExtract:
    import tldextract

    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None, include_psl_private_domains=True)


def _ip_literal(host: str) -> str | None:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare.partition("%")[0].rstrip("."))
    except ValueError:
        return None
    return f"[{address.compressed}]" if address.version == 6 else str(address)


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _mapped(host: str) -> str:
    """UTS 46 mapping (case, width, ideographic dots); NFKC and lower case where UTS 46 forbids a character."""
    if host.isascii():
        return host.strip().lower()
    try:
        return str(idna.uts46_remap(host.strip(), std3_rules=False, transitional=False))
    except (idna.IDNAError, UnicodeError):
        return unicodedata.normalize("NFKC", host).strip().lower().replace("\u3002", ".")


def _a_label(label: str) -> str:
    if label.isascii():
        return label if _ASCII_LABEL.fullmatch(label) else ""
    try:
        return idna.alabel(label).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        pass
    try:
        return "xn--" + label.encode("punycode").decode("ascii")
    except UnicodeError:
        return ""
