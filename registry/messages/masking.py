r"""Mask secrets in text that is shown, logged or stored: `***` in place of passwords, tokens and keys.

    mysql://bob:S3/CRET@pw@h/db          mysql://bob:***@h/db
    postgresql://h/db?user=b&password=x  postgresql://h/db?user=b&password=***
    Authorization: Bearer abc123         Authorization: ***
    AWS_SECRET_ACCESS_KEY=abc            AWS_SECRET_ACCESS_KEY=***

`masked` finds secrets by their form, in any text. A password that a library has decoded, or cut out of its URL, has no
form; `without` masks the values that `secrets` finds in a URL or in the environment. In doubt more is masked than
necessary. Cost: about 10 us a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
# Masking every occurrence of a shorter secret would mask ordinary words: in any text, and in a message about its URL.
_MIN_SECRET_CHARS, _MIN_CHARS = 6, 4

_WORD = (
    r"(?:[\w.-]*(?:passw(?:or)?d|passwd|passphrase|secret|credential|signature)[\w.-]*"
    r"|(?:[\w.-]*[_.-])?(?:pwd|pass|sig|jwt|auth|authorization)"
    r"|[\w.-]*token(?:[_.-](?:id|key|value))?"
    r"|[\w.-]*(?:api|access|private|account|signing|shared|encryption|s3|master)[_-]?key(?:[_-]?id)?"
    r"|key)"
)
_NAME = re.compile(rf"{_WORD}\Z", re.IGNORECASE)
_VARIABLE_NAME = re.compile(
    r"(?:\w*_)?(?:KEY|SECRET|TOKEN|PASSW(?:OR)?D|PASSPHRASE|CREDENTIALS?|AUTH)(?:_ID|_KEY|_VALUE|_STRING)?\Z"
)
# name=value, up to a space or `&`, less the quotes and punctuation of the sentence around it.
_PAIR = re.compile(
    rf"(?<![\w.-])({_WORD}=)(?:'[^']*'(?![^\s&)\";,.:\]}}>])|(['\"]?)([^\s&]+?)(?=[)'\";,.:\]}}>]*(?:[\s&]|\Z)))",
    re.IGNORECASE,
)
# 'name': 'value', as in JSON and in the repr of a dict.
_QUOTED_PAIR = re.compile(rf"((['\"]){_WORD}\2\s*[:=,]\s*b?)(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", re.IGNORECASE)
# NAME: value of an environment variable, as in YAML.
_VARIABLE = re.compile(r"(?<!\w)((?:[A-Z0-9]+_)*(?:PASSWORD|SECRET|TOKEN|CREDENTIALS?|KEY)(?:_[A-Z0-9]+)*:[ \t]+)(\S+)")
_HEADER = re.compile(
    r"((?:proxy-)?authorization['\"]?[ \t]*[:=][ \t]*(?:b(?=['\"]))?['\"]?)"
    r"(?:(?:bearer|basic|token|digest|negotiate)[ \t]+)?[^\s'\"]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer[ \t]+)(?=\S*[\d._=+/-])[^\s'\",;]{8,}", re.IGNORECASE)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})?://(\S*@\S*)")
_LOGIN = re.compile(r"(?<![\w/.:@+-])([\w.+-]+:)([^\s/:@'\"]+)(?=@[\w\[])")  # user:password@host without a scheme
_QUERY = re.compile(r"[?#](?=[\w.%-]+=)")
_PORT = re.compile(r"\d*\Z")


def masked(text: str) -> str:
    """Return `text` without the secrets that can be recognised by their form."""
    if "@" in text:
        text = _LOGIN.sub(rf"\1{HIDDEN}", without_login(text))
    if "=" in text or ":" in text or "earer" in text or "EARER" in text:
        text = _HEADER.sub(rf"\1{HIDDEN}", text)
        text = _BEARER.sub(rf"\1{HIDDEN}", text)
        text = _PAIR.sub(lambda m: f"{m[1]}{m[2] or ''}{HIDDEN}", text)
        text = _QUOTED_PAIR.sub(lambda m: f"{m[1]}{m[3][0]}{HIDDEN}{m[3][0]}", text)
        text = _VARIABLE.sub(rf"\1{HIDDEN}", text)
    return text


def without_login(text: str) -> str:
    """Return `text` with the passwords of `scheme://user:password@host` masked, and nothing else changed."""
    if "://" not in text or "@" not in text:
        return text
    return _URL.sub(lambda match: f"{match[1] or ''}://{_masked_authority(match[1] or '', match[2])}", text)


def masked_url(url: str) -> str:
    """Return a whole URL without its secrets; unlike in a text, a password may contain spaces."""
    scheme, mark, rest = url.partition("://")
    if mark and "@" in rest:
        url = f"{scheme}://{_masked_authority(scheme, rest)}"
    return masked(url)


def secrets(variables: Mapping[str, str]) -> list[str]:
    """Return the secrets in variables of an environment, by name or in the URL that they hold, the longest first."""
    found: set[str] = set()
    for name, value in variables.items():
        if is_secret(name):
            found.add(value)
        found |= secrets_of_url(value)
    return sorted((secret for secret in found if len(secret) >= _MIN_SECRET_CHARS), key=len, reverse=True)


def secrets_of_url(url: str) -> set[str]:
    """Return the password and the secret parameters of a URL, also as libraries quote and decode them."""
    scheme, mark, rest = url.partition("://")
    found: set[str] = set()
    if mark and (login := _login(scheme, rest)):
        found.add(login[1])
    if mark:
        found |= {match[3] for match in _PAIR.finditer(rest) if match[3]}
    found |= {way(secret) for secret in tuple(found) for way in (unquote, unquote_plus)}
    found |= {way(secret, safe) for secret in tuple(found) for way in (quote, quote_plus) for safe in ("", "/")}
    return {secret for secret in found if len(secret) >= _MIN_CHARS and secret != HIDDEN}


def is_secret(name: str) -> bool:
    """Return whether a variable or parameter of this name holds a secret."""
    return _NAME.match(name) is not None or _VARIABLE_NAME.match(name) is not None


def without(text: str, hidden: Iterable[str]) -> str:
    """Return `text` with each of the secrets `hidden` masked wherever it occurs, the longest first."""
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _masked_authority(scheme: str, rest: str) -> str:
    login = _login(scheme, rest)
    if login is None:
        return rest
    user, password, after = login
    if not password:
        return rest if scheme.lower() not in ("http", "https") else f"{HIDDEN}@{after}"
    return f"{user}:{HIDDEN}@{after}"


def _login(scheme: str, rest: str) -> tuple[str, str, str] | None:
    """Split what follows `://` into user, password and the rest after `@`; None if there is no login.

    A password may contain `/`, `@`, `?` and `#`, which an URL must quote and people do not: it ends at the last `@`
    before the query. `host:80/@name` is no login, but a port and a path.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    first = rest.find("@")
    if first < 0:
        return None
    if "@" not in authority and (
        ":" not in authority or authority.startswith("[") or _PORT.match(authority.partition(":")[2])
    ):
        return None
    query = _QUERY.search(rest, first)
    end = rest.rfind("@", first, query.start() if query else len(rest))
    user, colon, password = rest[:end].partition(":")
    return (user, password if colon else "", rest[end + 1 :])
