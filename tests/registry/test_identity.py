"""All spellings of one source give one key or one candidate, and no text makes a public function fail."""

from __future__ import annotations

import contextlib
import hashlib
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry import identity, ids
from registry.errors import RecordError
from registry.hosts import canonical_host, registrable_domain
from registry.identity import Candidate, candidates, canonical_isbn, canonical_key, canonical_title, fold_title, web_key

HOSTILE = st.text(max_size=40) | st.text(
    st.sampled_from("aZ0.:/@[]%?#&=+_- \\\tßİ。．é\u0301\ud800٣ǆ\u200e"), max_size=40
)
WEB_EN = ids.source_id("web:wikipedia.org")


def urls_of(title_path: str, title_query: str) -> list[str]:
    """Return the spellings of one article's URL."""
    hosts = [
        "en.wikipedia.org",
        "en.m.wikipedia.org",
        "EN.Wikipedia.ORG",
        "en.wikipedia.org:443",
        "www.en.wikipedia.org",
    ]
    forms = [f"https://{host}/wiki/{title_path}" for host in hosts]
    site = "en.wikipedia.org"
    return [
        *forms,
        f"http://{site}/wiki/{title_path}",
        f"//{site}/wiki/{title_path}",
        f"{site}/wiki/{title_path}",
        f"https://{site}/wiki/{title_path}#History",
        f"https://{site}/wiki/{title_path}?action=raw&x=1#y",
        f"https://{site}/wiki/{title_path}%23History",
        f"https://{site}/wiki/index.php/{title_path}",
        f"https://{site}/w/index.php/{title_path}",
        f"https://{site}/w/index.php?title={title_query}",
        f"https://{site}/w/index.php?action=history&title={title_query}&oldid=7#top",
        f"https://{site}/?title={title_query}",
    ]


ARTICLES = {
    "Café au lait": [
        *urls_of("Caf%C3%A9_au_lait", "Caf%C3%A9+au+lait"),
        *urls_of("Café_au_lait", "Café_au_lait"),
        *urls_of("café%20au%20lait", "caf%c3%a9%20au%20lait"),
        *urls_of("Cafe\u0301_au__lait_", "Cafe\u0301_au_lait"),
    ],
    "AC/DC": [*urls_of("AC/DC", "AC/DC"), *urls_of("AC%2FDC", "AC%2FDC"), *urls_of("aC/DC", "aC/DC")],
    "Node.js": urls_of("Node.js", "node.js"),
    "東京": [*urls_of("東京", "東京"), *urls_of("%E6%9D%B1%E4%BA%AC", "%E6%9D%B1%E4%BA%AC")],
    "What?": urls_of("What%3F", "What%3F"),
    "C++": urls_of("C%2B%2B", "C%2B%2B"),
}


@pytest.mark.parametrize("title", ARTICLES)
def test_every_url_of_an_article_means_the_article_then_its_site(title: str) -> None:
    assert len(ARTICLES[title]) >= 16
    for url in ARTICLES[title]:
        found = [candidate for candidate in candidates(url) if candidate.matched_by == "url"]
        assert len(found) == 2, url
        assert (canonical_title(found[0].alias or ""), found[0].scope) == (title, "enwiki"), url
        assert found[1] == Candidate(matched_by="url", source_id=WEB_EN), url


@pytest.mark.parametrize(
    "url",
    [
        "https://en.wikipedia.org/?curid=12",
        "https://en.m.wikipedia.org/w/index.php?curid=0012&title=Something_else",
        "en.wikipedia.org/wiki/Whatever?curid=12#x",
    ],
)
def test_a_page_id_in_a_url_is_the_key(url: str) -> None:
    found = [c for c in candidates(url) if c.matched_by == "url"]
    assert found[0] == Candidate(matched_by="url", source_id=ids.source_id("wiki:enwiki:12"))
    assert found[1].source_id == WEB_EN


@pytest.mark.parametrize(
    "url", ["https://en.wikipedia.org/", "https://en.wikipedia.org/w/index.php?curid=" + "9" * 9999]
)
def test_a_wiki_url_without_a_page_means_only_its_site(url: str) -> None:
    assert candidates(url) == [Candidate(matched_by="url", source_id=WEB_EN)]


def test_the_wikis_of_a_snapshot_extend_the_known_ones() -> None:
    url = "https://wiki.example.org/wiki/Main"
    assert [c.scope for c in candidates(url)] == [None]
    known = candidates(url, {"wiki.example.org": ["mywiki", "otherwiki"]})
    assert [c.scope for c in known] == ["mywiki", "otherwiki", None]


def test_article_url_round_trips() -> None:
    for title in ARTICLES:
        url = identity.article_url("en.wikipedia.org", title)
        assert url.isascii()
        assert candidates(url)[0] == Candidate(matched_by="url", alias=candidates(url)[0].alias, scope="enwiki")
        assert canonical_title(candidates(url)[0].alias or "") == title


@pytest.mark.parametrize(
    "url",
    [
        "https://www.gutenberg.org/ebooks/1342",
        "http://gutenberg.org/ebooks/1342/",
        "www.gutenberg.org/ebooks/1342.epub3.images",
        "//www.gutenberg.org/ebooks/1342?x=1#y",
        "https://m.gutenberg.org/ebooks/1342.mobile",
        "https://www.gutenberg.org/files/1342/1342-0.txt",
        "https://www.gutenberg.org/files/1342/1342-h/1342-h.htm",
        "https://www.gutenberg.org/cache/epub/1342/pg1342.txt",
        "https://www.gutenberg.org/etext/1342",
        "https://www.gutenberg.org/dirs/1/3/4/1342/1342.txt",
        "http://aleph.gutenberg.org/1/3/4/1342/",
        "https://www.gutenberg.net/EBOOKS/1342",
        "http://www.gutenberg.org/1342",  # as EPUBs of Project Gutenberg identify themselves
    ],
)
def test_gutenberg_urls(url: str) -> None:
    found = [c.source_id for c in candidates(url) if c.matched_by == "url"]
    assert found[0] == ids.source_id("book:gutenberg:1342")
    assert found[1] == ids.source_id(web_key(url))


@pytest.mark.parametrize(
    "path", ["ebooks/author/68", "ebooks/bookshelf/13", "browse/scores/top", "", "ebooks/" + "1" * 5000]
)
def test_gutenberg_pages_that_are_not_books(path: str) -> None:
    found = candidates(f"https://www.gutenberg.org/{path}")
    assert [c.source_id for c in found] == [ids.source_id("web:gutenberg.org")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0306406152", "9780306406157"),
        ("0-306-40615-2", "9780306406157"),
        ("0 306 40615 2", "9780306406157"),
        ("ISBN 0-306-40615-2", "9780306406157"),
        ("isbn:0306406152", "9780306406157"),
        ("ISBN-10: 0-306-40615-2", "9780306406157"),
        ("ISBN10 0306406152", "9780306406157"),
        ("9780306406157", "9780306406157"),
        ("978-0-306-40615-7", "9780306406157"),
        ("978 0 306 40615 7", "9780306406157"),
        ("978–0–306–40615–7", "9780306406157"),
        ("978\u20110\u2011306\u201140615\u20117", "9780306406157"),
        ("978\u22120\u2212306\u221240615\u22127", "9780306406157"),
        ("ISBN-13: 978-0-306-40615-7", "9780306406157"),
        ("ISBN13 9780306406157", "9780306406157"),
        ("urn:isbn:9780306406157", "9780306406157"),
        ("ＩＳＢＮ ９７８-0-306-40615-7", "9780306406157"),
        ("  978-0-306-40615-7\n", "9780306406157"),
        ("080442957X", "9780804429573"),
        ("0-8044-2957-x", "9780804429573"),
        ("155404295X", "9781554042951"),
        ("979-10-90636-07-1", "9791090636071"),
        ("0306406153", None),
        ("9780306406158", None),
        ("0804429570", None),
        ("X804429570", None),
        ("08044X9570", None),
        ("1234567890128", None),
        ("978030640615X", None),
        ("030640615", None),
        ("97803064061577", None),
        ("", None),
        ("Anarchism", None),
        ("٠306406152", None),
    ],
)
def test_isbn(text: str, expected: str | None) -> None:
    assert canonical_isbn(text) == expected
    if expected:
        assert identity.book_key(isbn=text) == f"book:isbn:{expected}"
        assert [c.matched_by for c in candidates(text)][:2] == ["isbn", "isbn"]


@given(st.integers(0, 10**9 - 1))
def test_exactly_one_check_digit_of_an_isbn_10_is_accepted(number: int) -> None:
    digits = f"{number:09d}"
    right = "0123456789X"[sum(position * int(d) for position, d in enumerate(digits, 1)) % 11]
    accepted = [check for check in "0123456789X" if canonical_isbn(digits + check)]
    assert accepted == [right]


def test_book_keys() -> None:
    text = "It is a truth universally acknowledged"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert identity.book_key(gutenberg=1342, isbn="080442957X", text=text) == "book:gutenberg:1342"
    assert identity.book_key(isbn="080442957X", text=text) == "book:isbn:9780804429573"
    assert identity.book_key(isbn="0804429570", text=text) == f"book:sha256:{digest}"
    with pytest.raises(RecordError) as caught:
        identity.book_key(isbn="0804429570")
    assert caught.value.reason == "no-identity"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("web:example.com", "web:example.com"),
        ("web:WWW.Example.com.", "web:example.com"),
        ("WEB:bücher.example", "web:xn--bcher-kva.example"),
        ("web:https://www.example.com:80/x", "web:example.com"),
        ("web:[2001:DB8::0:1]", "web:[2001:db8::1]"),
        (" wiki:enwiki:12 ", "wiki:enwiki:12"),
        ("Wiki:ENWIKI:0012", "wiki:enwiki:12"),
        ("wiki:zh_yuewiki:0", "wiki:zh_yuewiki:0"),
        ("book:gutenberg:1342", "book:gutenberg:1342"),
        ("book:isbn:9780306406157", "book:isbn:9780306406157"),
        ("BOOK:SHA256:0123456789ABCDEF", "book:sha256:0123456789abcdef"),
        ("shared:0123456789abcdef", "shared:0123456789abcdef"),
        ("wiki:enwiki:١٢", None),
        ("wiki:enwiki:", None),
        ("book:gutenberg:x", None),
        ("book:isbn:0306406152", None),
        ("shared:0123", None),
        ("web:", None),
        ("web:not a host", None),
        ("web:<>", None),
        ("Web: a history", None),
        ("wikipedia", None),
    ],
)
def test_canonical_key(text: str, key: str | None) -> None:
    assert canonical_key(text) == key
    first = next(iter(candidates(text)))
    assert (first.matched_by == "key") == (key is not None)
    if key:
        assert first.source_id == ids.source_id(key)
        assert len([c for c in candidates(text) if c.matched_by == "title"]) == 0


@pytest.mark.parametrize("title", ["Node.js", "AC/DC", "Who's Afraid?", "S.H.I.E.L.D.", "1984", "C#", "9/11", "a.b/c"])
def test_titles_that_look_like_hosts_or_paths_are_titles_first(title: str) -> None:
    assert candidates(title)[0] == Candidate(matched_by="title", alias=title)


def test_a_query_that_can_be_a_title_and_a_site_means_both() -> None:
    assert candidates("Node.js") == [
        Candidate(matched_by="title", alias="Node.js"),
        Candidate(matched_by="url", source_id=ids.source_id("web:node.js")),
    ]
    assert all(c.matched_by == "title" for c in candidates("AC/DC") + candidates("S.H.I.E.L.D."))
    assert [c.alias for c in candidates("Anarchism#History")] == ["Anarchism#History", "Anarchism"]


@pytest.mark.parametrize(
    "text", ["example.com", "www.example.com:80/x?y", "bücher。example", "10.0.0.5", "10.0.0.5:80/x", "[::1]:80"]
)
def test_bare_hosts_mean_sites_too(text: str) -> None:
    assert candidates(text)[-1] == Candidate(matched_by="url", source_id=ids.source_id(web_key(text)))


def test_ids_are_candidates() -> None:
    assert candidates("0123456789ABCDEF")[0] == Candidate(matched_by="id", source_id=0x0123456789ABCDEF)
    assert candidates("") == candidates(" \n") == []


@pytest.mark.parametrize(
    ("title", "canonical"),
    [
        ("anarchism", "Anarchism"),
        ("  foo__bar _ ", "Foo bar"),
        ("cafe\u0301", "Café"),
        ("éa", "Éa"),
        ("ßa", "ßa"),
        ("ანარქიზმი", "ანარქიზმი"),  # kawiki's titles: upper() would give Mtavruli capitals
        ("ǆep", "ǅep"),
        ("\u200eFoo\u202a", "Foo"),
        ("a\u00a0b\u3000c", "A b c"),
        ("1a", "1a"),
        ("", ""),
    ],
)
def test_canonical_title(title: str, canonical: str) -> None:
    assert canonical_title(title) == canonical


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("STRASSE", "straße"),
        ("ＡＢＣ＿x", "abc x"),
        ("ﬁsh", "FISH"),
        ("Ⅳ", "iv"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("İ", "i\u0307"),
    ],
)
def test_variants_of_a_title_fold_to_the_same_text(one: str, other: str) -> None:
    assert fold_title(one) == fold_title(other)


def test_different_titles_fold_to_different_texts() -> None:
    titles = ["Mercury", "Mercury (planet)", "Émile", "Emile", "C", "C++", "C#", "東京", "東京都"]
    assert len({fold_title(title) for title in titles}) == len(titles)


@given(HOSTILE)
@example("\u0345a\u0300")
@example("\u1fb3\u0345")
@example("ﬀ\u0130")
def test_canonical_and_folded_titles_are_idempotent(title: str) -> None:
    canonical = canonical_title(title)
    assert canonical_title(canonical) == canonical
    assert canonical_title(unicodedata.normalize("NFD", canonical)) == canonical
    folded = fold_title(title)
    assert fold_title(folded) == folded
    assert fold_title(canonical) == folded


@given(HOSTILE)
def test_no_text_makes_a_public_function_fail(text: str) -> None:
    for function in (web_key, canonical_host, identity.canonical_url):
        with contextlib.suppress(RecordError):
            function(text)
    canonical_isbn(text)
    canonical_key(text)
    identity.article_url("en.wikipedia.org", text)
    identity.book_key(text=text)
    identity.wiki_scope_of_host(text)
    identity.desktop_host(text)
    for prefix in ("", "https://", "https://en.wikipedia.org/wiki/", "en.wikipedia.org/?title=", "web:"):
        for candidate in candidates(prefix + text):
            assert (candidate.source_id is None) != (candidate.alias is None)
            assert ids.alias_hash(fold_title(candidate.alias or "")) >= 0


LABEL = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="/?#@:[]\\%"), min_size=1, max_size=8
)


@given(st.lists(LABEL, min_size=1, max_size=4))
def test_web_key_is_idempotent(labels: list[str]) -> None:
    try:
        key = web_key("http://" + ".".join(labels) + "/x")
    except RecordError:
        return
    host = key.removeprefix("web:")
    assert host.isascii()
    assert host == host.lower()
    assert web_key(host) == web_key(f"https://u@www.{host}:81/") if "." in host and not host[-1].isdigit() else True
    assert web_key(host) == key == canonical_key(key)
    assert canonical_host(host) == host
    assert registrable_domain(host) == host


@given(
    st.sampled_from(["bücher", "例え", "президент", "ñandú", "ελληνικά", "中文"]),
    st.sampled_from(["com", "github.io", "рф"]),
)
def test_unicode_and_punycode_give_the_same_key(label: str, suffix: str) -> None:
    host = f"{label}.{suffix}"
    assert web_key(host) == web_key(host.encode("idna").decode()) == web_key(host.upper())
