"""Readers: an input file -> documents, one at a time, whatever the state of the file.

    streams.py        a file -> its decompressed bytes, past damage where the format allows it
    pages.py          a MediaWiki dump's bytes -> `<page>` fragments with their offsets
    members.py        gzip members and zstd frames -> bytes, with a look ahead
    records.py        a WARC or ARC file -> its records, past damage
    http.py           a record's body -> HTTP status, fields and decoded payload
    warc.py           records -> documents, and why the rest are none
    wikipedia.py      fragments -> documents, redirects, and the wiki they are of
    articles.py       a wiki's articles in any form: which reader a file is for, and what they share
    extracted.py      WikiExtractor's `<doc>` files and JSON lines -> documents
    rows.py           Parquet of articles, as wikimedia/wikipedia -> documents
    books.py          a file -> the book in it
    gutenberg.py      a text of Project Gutenberg -> what its header says, and the book alone
    epub.py           an EPUB -> what its package says, and its text
    edition.py        what a book says of itself -> its key and its names

A reader raises `InputError` only if the input is not of its kind at all. All else that can be wrong with an input is a
document that ended FAILED, with a reason and the offset: nothing is dropped, and one bad record costs only itself.
"""
