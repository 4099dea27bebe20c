"""Web keys of hosts that break naive code; the suffix algorithm compared with tldextract, rule by rule."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tldextract

from registry import hosts
from registry.errors import RecordError
from registry.identity import canonical_key, web_key

KEYS = [
    # plain hosts, case, dots, scheme, port, userinfo, path
    ("example.com", "example.com"),
    ("WWW.Example.COM", "example.com"),
    ("a.b.c.example.com", "example.com"),
    ("example.com.", "example.com"),
    ("www.example.com..", "example.com"),
    (".example.com", "example.com"),
    ("a..example.com", "example.com"),
    ("//example.com/x", "example.com"),
    ("https://example.com", "example.com"),
    ("HTTPS://EXAMPLE.COM:443/A?b#c", "example.com"),
    ("http://user:pa:ss@example.com:8080/x", "example.com"),
    ("http://user@evil.example@example.com/", "example.com"),
    ("http://example.com?q=http://other.org/", "example.com"),
    ("http://example.com#other.org", "example.com"),
    ("http://example.com:80", "example.com"),
    ("http://example.com:/x", "example.com"),
    ("http:/example.com/x", "example.com"),
    ("https:\\\\example.com\\x", "example.com"),
    ("http://evil.example\\@example.com/", "evil.example"),
    ("  http://example.com/ \n", "example.com"),
    ("http://exa\tmple.com/", "example.com"),
    # IDN and punycode give the same key
    ("http://bücher.example/", "xn--bcher-kva.example"),
    ("http://BÜCHER.example/", "xn--bcher-kva.example"),
    ("http://bu\u0308cher.example/", "xn--bcher-kva.example"),
    ("http://xn--bcher-kva.example/", "xn--bcher-kva.example"),
    ("http://XN--BCHER-KVA.Example/", "xn--bcher-kva.example"),
    ("http://b%C3%BCcher.example/", "xn--bcher-kva.example"),
    ("http://%65xample.com/", "example.com"),
    ("http://straße.de/", "xn--strae-oqa.de"),
    ("http://strasse.de/", "strasse.de"),
    ("http://例え.テスト/", "xn--r8jz45g.xn--zckzah"),
    ("http://例え。テスト/", "xn--r8jz45g.xn--zckzah"),
    ("http://www．example｡com/", "example.com"),
    ("http://ｅｘａｍｐｌｅ.com/", "example.com"),
    ("http://i❤.ws/", "xn--i-7iq.ws"),
    ("http://ex\u00adample.com/", "example.com"),
    ("http://президент.рф/", "xn--d1abbgf6aiiy.xn--p1ai"),
    ("http://www.食狮.公司.cn/", "xn--85x722f.xn--55qx5d.cn"),
    ("http://www.xn--85x722f.xn--55qx5d.cn/", "xn--85x722f.xn--55qx5d.cn"),
    # the public-suffix list: several labels, wildcards, exceptions, private suffixes
    ("www.bbc.co.uk", "bbc.co.uk"),
    ("co.uk", "co.uk"),
    ("a.b.example.ck", "b.example.ck"),
    ("example.ck", "example.ck"),
    ("www.ck", "www.ck"),
    ("foo.www.ck", "www.ck"),
    ("foo.kawasaki.jp", "foo.kawasaki.jp"),
    ("a.foo.kawasaki.jp", "a.foo.kawasaki.jp"),
    ("x.a.foo.kawasaki.jp", "a.foo.kawasaki.jp"),
    ("city.kawasaki.jp", "city.kawasaki.jp"),
    ("www.city.kawasaki.jp", "city.kawasaki.jp"),
    ("kawasaki.jp", "kawasaki.jp"),
    ("alice.github.io", "alice.github.io"),
    ("x.alice.GitHub.io", "alice.github.io"),
    ("github.io", "github.io"),
    ("me.blogspot.com", "me.blogspot.com"),
    ("blogspot.com", "blogspot.com"),
    ("bucket.s3.amazonaws.com", "bucket.s3.amazonaws.com"),
    # no suffix known
    ("http://localhost:8080/x", "localhost"),
    ("http://intranet/wiki", "intranet"),
    ("com", "com"),
    ("a.b.unknowntld", "b.unknowntld"),
    ("wiki.corp.internal", "corp.internal"),
    # what DNS allows and browsers do not
    ("my_host.example.com", "example.com"),
    ("_dmarc.example_2.com", "example_2.com"),
    ("-a-.example.com", "example.com"),
    # addresses
    ("http://192.168.0.1/x", "192.168.0.1"),
    ("192.168.0.1.", "192.168.0.1"),
    ("http://192.168.0.1:8080/", "192.168.0.1"),
    ("http://１９２.168.0.1/", "192.168.0.1"),
    ("http://127.1/", "127.1"),
    ("http://010.0.0.1/", "010.0.0.1"),
    ("http://999.1.2.3/", "999.1.2.3"),
    ("http://[2001:DB8:0:0:0:0:0:1]:80/", "[2001:db8::1]"),
    ("http://2001:db8::1/", "[2001:db8::1]"),
    ("http://[fe80::1%25eth0]/", "[fe80::1]"),
    ("http://[::ffff:1.2.3.4]/", "[::ffff:102:304]"),
]
NO_HOST = [
    "",
    " ",
    "http://",
    "http:///x",
    "/wiki/Path",
    "http://..",
    "http://[::1",
    "http://::1]/",
    "http://[nonsense]/",
    "http://exa mple.com/",
    "http://a<b>.com/",
    "http://a%2Fb.com/",
    "http://a%00.com/",
    "http://a%40b.com/",
    "http://a.com:80:80/",
    "http://a℀b.com/",
    "http://é+x.com/",
    "http://" + "a" * 2000 + ".com/",
]


def test_the_table_is_large_and_has_no_duplicates() -> None:
    assert len(KEYS) >= 60
    assert len({url for url, _ in KEYS}) == len(KEYS)


@pytest.mark.parametrize(("url", "host"), KEYS)
def test_web_key(url: str, host: str) -> None:
    assert web_key(url) == f"web:{host}"
    assert web_key(host) == f"web:{host}"
    assert canonical_key(f"web:{host}") == f"web:{host}"


@pytest.mark.parametrize("url", NO_HOST)
def test_a_url_without_a_host_is_a_bad_record(url: str) -> None:
    with pytest.raises(RecordError) as caught:
        web_key(url)
    assert caught.value.reason in ("bad-host", "bad-url")


def test_every_rule_of_the_list_agrees_with_tldextract() -> None:
    oracle = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None, include_psl_private_domains=True)
    rules = hosts._suffix_rules()
    num_below_a_suffix = 0
    for rule in sorted(rules):
        suffix = rule.lstrip("!").replace("*", "wild")
        for host in (suffix, f"a.{suffix}", f"b.a.{suffix}"):
            parts = oracle(host)
            expected = f"{parts.domain}.{parts.suffix}".strip(".") if parts.suffix else host
            assert hosts.registrable_domain(host) == expected, (rule, host)
            num_below_a_suffix += expected != host
    assert len(rules) > 5000
    assert num_below_a_suffix > 5000
    assert {rule[:2] for rule in rules} >= {"*.", "!c", "!w"}


def test_the_digest_is_that_of_the_packaged_list() -> None:
    packaged = Path(tldextract.__file__).with_name(".tld_set_snapshot").read_bytes()
    assert b"BEGIN PRIVATE DOMAINS" in packaged
    assert hosts.suffix_list_digest() == hashlib.sha256(packaged).hexdigest()


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("en.wikipedia.org", "enwiki"),
        ("en.m.wikipedia.org", "enwiki"),
        ("www.en.wikipedia.org", "enwiki"),
        ("zh-yue.wikipedia.org", "zh_yuewiki"),
        ("yue.wikipedia.org", "zh_yuewiki"),
        ("be-tarask.wikipedia.org", "be_x_oldwiki"),
        ("de.wiktionary.org", "dewiktionary"),
        ("fr.m.wikisource.org", "frwikisource"),
        ("commons.m.wikimedia.org", "commonswiki"),
        ("www.wikidata.org", "wikidatawiki"),
        ("wikipedia.org", None),
        ("www.wikipedia.org", None),
        ("en.wikipedia.org.evil.example", None),
        ("en.wikipedia.com", None),
        ("example.org", None),
    ],
)
def test_wiki_scope_of_host(host: str, scope: str | None) -> None:
    assert hosts.wiki_scope_of_host(host) == scope


@pytest.mark.parametrize(
    ("host", "desktop"),
    [("en.m.wikipedia.org", "en.wikipedia.org"), ("www.x.org", "x.org"), ("m.com", "m.com"), ("WWW.com.", "www.com")],
)
def test_desktop_host_keeps_the_domain(host: str, desktop: str) -> None:
    assert hosts.desktop_host(host) == desktop
