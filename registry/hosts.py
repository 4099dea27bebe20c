"""Host names: the registrable domain that keys a web source, and the Wikimedia wiki that a host serves.

A web source is a registrable domain: the public suffix (private suffixes count: `alice.github.io`) and one label more.
The list is the copy packaged with tldextract, read without network; its hash is in every manifest, since a newer list
can move a host to another source. The list's algorithm (https://publicsuffix.org/list/) is written out here in thirty
lines: importing tldextract imports requests, which takes longer than a whole lookup, and tldextract does not define
case, IDN against punycode (both become lower-case A-labels here), IP literals, trailing dots, hosts that are a suffix
themselves, single labels and unknown top-level domains (the list's own default rule, `*`). The tests compare both.
About 5 microseconds a host once the list is loaded (20 ms).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import ipaddress
import re
import unicodedata
from pathlib import Path

import idna

from registry.errors import RecordError, UsageError

_MAX_HOST_CHARS = 1024  # DNS allows 253; this leaves room for percent-encoded and Unicode spellings
_MAX_RULE_LABELS = 16  # the list's longest rule has 7
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
    """Return `host` in lower-case A-labels, without trailing dot; IPv6 in brackets, compressed, without zone.

    Args:
        host: a host without userinfo and port, as `registry.urls.host_of` takes it from a URL.

    Raises:
        RecordError: `bad-host`, if it is not a host name or address.
    """
    if len(host) > _MAX_HOST_CHARS:
        raise RecordError("bad-host", f"a host of {len(host)} characters; expected at most {_MAX_HOST_CHARS}")
    address = _ip_literal(host.strip())
    if address:
        return address
    labels = [_a_label(label) for label in _mapped(host).strip(".").split(".") if label]
    if not labels or not all(labels):
        raise RecordError("bad-host", f"no host name in {host!r}")
    return ".".join(labels)


def registrable_domain(host: str) -> str:
    """Return the registrable domain of a canonical host; the host itself if it is an IP, a suffix or a single label.

    A host that ends in a number is an IP address in some notation (`127.1`, `010.0.0.1`), not a name: kept whole.
    """
    labels = host.split(".")
    if len(labels) == 1 or host.startswith("[") or labels[-1].isdecimal():
        return host
    return ".".join(labels[-1 - _num_suffix_labels(labels) :])


def desktop_host(host: str) -> str:
    """Return a wiki's host without the labels `m`, `zero` and `www`: "en.wikipedia.org" for "en.m.wikipedia.org"."""
    labels = [label for label in host.lower().split(".") if label]
    return ".".join([label for label in labels[:-2] if label not in ("m", "zero", "www")] + labels[-2:])


def wiki_scope_of_host(host: str) -> str | None:
    """Return the database name of the Wikimedia wiki at `host` ("enwiki" for "en.m.wikipedia.org"), or None."""
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
    """Return the SHA-256 of the public-suffix list in use: part of the identity of every web source."""
    return hashlib.sha256(_suffix_list()).hexdigest()


def _suffix_list() -> bytes:
    package = importlib.util.find_spec("tldextract")  # found, not imported: see the module docstring
    if package is None or package.origin is None:
        raise UsageError("the public-suffix list is not installed; `pip install tldextract` brings it")
    return (Path(package.origin).parent / ".tld_set_snapshot").read_bytes()


@functools.cache
def _suffix_rules() -> frozenset[str]:
    lines = (line.strip() for line in _suffix_list().decode().splitlines())
    rules = (line.split()[0] for line in lines if line and not line.startswith("//"))
    return frozenset(rule if rule.isascii() else ".".join(map(_a_label, rule.split("."))) for rule in rules)


def _num_suffix_labels(labels: list[str]) -> int:
    """Return how many of the last labels are the public suffix: the longest matching rule decides, else `*`."""
    rules = _suffix_rules()
    for length in range(min(len(labels), _MAX_RULE_LABELS), 0, -1):
        name = ".".join(labels[-length:])
        if "!" + name in rules:
            return length - 1
        if name in rules or "*." + name.partition(".")[2] in rules:
            return length
    return 1


def _ip_literal(host: str) -> str | None:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare.partition("%")[0].rstrip("."))
    except ValueError:
        return None
    return f"[{address.compressed}]" if address.version == 6 else str(address)


def _mapped(host: str) -> str:
    """Apply the UTS 46 mapping (case, width, ideographic dots), or NFKC and lower case if it forbids a character."""
    if host.isascii():
        return host.strip().lower()
    try:
        return str(idna.uts46_remap(host.strip(), std3_rules=False, transitional=False))
    except (idna.IDNAError, UnicodeError):
        return unicodedata.normalize("NFKC", host).strip().lower().replace("\u3002", ".")


def _a_label(label: str) -> str:
    """Return a label in the form that DNS uses; "" if it has a character that is not allowed in hosts."""
    try:
        ascii_label = label if label.isascii() else idna.alabel(label).decode("ascii")
    except (idna.IDNAError, UnicodeError):  # names that IDNA 2008 forbids are registered all the same: emoji
        try:
            ascii_label = "xn--" + label.encode("punycode").decode("ascii")
        except UnicodeError:
            return ""
    return ascii_label if _ASCII_LABEL.fullmatch(ascii_label) else ""
