"""The canonical URL, part of every web document's id: golden vectors, idempotence, and w3lib on ordinary URLs."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from w3lib.url import canonicalize_url

from registry.errors import RecordError
from registry.identity import canonical_url, web_key

GOLDEN = [
    ("http://example.com", "http://example.com/"),
    ("example.com/a", "http://example.com/a"),
    ("HTTP://Example.COM:80/A", "http://example.com/A"),
    ("https://example.com:443/", "https://example.com/"),
    ("https://example.com:80/", "https://example.com:80/"),
    ("http://user:pw@example.com/", "http://example.com/"),
    ("http://u:p:q@example.com:8080/", "http://example.com:8080/"),
    ("http://example.com./a#frag", "http://example.com/a"),
    ("http://bücher.example/é?ü=ß", "http://xn--bcher-kva.example/%C3%A9?%C3%BC=%C3%9F"),
    ("http://[2001:DB8:0::1]:80/", "http://[2001:db8::1]/"),
    ("http://[2001:DB8::1]:8080/", "http://[2001:db8::1]:8080/"),
    ("http://2001:db8::1/", "http://[2001:db8::1]/"),
    ("http://example.com/%7Euser/%41%2f%2F%e9", "http://example.com/~user/A%2F%2F%E9"),
    ("http://example.com/%2541", "http://example.com/%2541"),
    ("http://example.com/100%", "http://example.com/100%25"),
    ("http://example.com/a b", "http://example.com/a%20b"),
    ("http://example.com/a/./b/../c", "http://example.com/a/c"),
    ("http://example.com/../..", "http://example.com/"),
    ("http://example.com/a/%2e%2E/b/.", "http://example.com/b/"),
    ("http://example.com//a//b", "http://example.com//a//b"),
    ("http://example.com/wiki/Foo_(bar);v=1,2", "http://example.com/wiki/Foo_(bar);v=1,2"),
    ("http://example.com/?b=2&a=2&a=1&&c", "http://example.com/?a=1&a=2&b=2&c="),
    ("http://example.com/?q=a+b&r=a%20b&s=%2B", "http://example.com/?q=a+b&r=a+b&s=%2B"),
    ("http://example.com/?q=%e9&x=%26", "http://example.com/?q=%E9&x=%26"),
    ("http://example.com?", "http://example.com/"),
    ("http://example.com\\a\\b?c\\d", "http://example.com/a/b?c%5Cd="),
    ("ftp://example.com:21/a", "ftp://example.com/a"),
]


@pytest.mark.parametrize(("url", "expected"), GOLDEN)
def test_golden(url: str, expected: str) -> None:
    assert canonical_url(url) == expected
    assert canonical_url(expected) == expected


@pytest.mark.parametrize("url", ["", "http://", "http://a:b/", "http://a:99999/", "http://[::1", "http://a b/"])
def test_an_invalid_url_is_a_bad_record(url: str) -> None:
    with pytest.raises(RecordError):
        canonical_url(url)


PIECE = st.text("abZ09-._~%41Ff2é ;,+!$'()*:@\\", max_size=8)
HARD = st.builds(
    lambda path, query, tail: "http://example.com/" + "/".join(path) + "?" + "&".join(query) + tail,
    st.lists(PIECE | st.sampled_from([".", "..", "%2e", "%2E%2e"]), max_size=5),
    st.lists(st.builds("{}={}".format, PIECE, PIECE) | PIECE, max_size=4),
    st.sampled_from(["", "#x", "?", "&"]),
)


@given(HARD | st.text(max_size=30).map("http://example.com/".__add__))
@example("http://example.com/%252541")
def test_a_canonical_url_is_idempotent_ascii_and_on_the_same_site(url: str) -> None:
    canonical = canonical_url(url)
    assert canonical_url(canonical) == canonical
    assert canonical.isascii()
    assert " " not in canonical
    assert "#" not in canonical
    assert web_key(canonical) == web_key(url) == "web:example.com"


PLAIN = st.text("abcXYZ019-._~é", min_size=1, max_size=6)
ORDINARY = st.builds(
    lambda path, query: "http://example.com/" + "/".join(path) + "?" + "&".join(f"{k}={v}" for k, v in query),
    st.lists(PLAIN.filter(lambda piece: piece.strip(".")), max_size=4),
    st.lists(st.tuples(PLAIN, PLAIN), max_size=4),
)


@given(ORDINARY)
def test_w3lib_agrees_on_ordinary_urls(url: str) -> None:
    assert canonical_url(url) == canonicalize_url(url)


@given(st.permutations(["a=1", "a=2", "b=%20", "c"]))
def test_the_order_of_query_fields_does_not_count(fields: list[str]) -> None:
    assert canonical_url("http://example.com/?" + "&".join(fields)) == "http://example.com/?a=1&a=2&b=+&c="
