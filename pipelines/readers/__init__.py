"""Readers turn an input file into documents, one at a time, also where the file is damaged.

    streams.py        decompress any file (gzip, bzip2, xz, plain), past damage where the format allows it
    wikipedia/        a wiki's articles: XML dumps, WikiExtractor's output
    web/              web archives: WARC, WET, ARC
    books/            EPUB, Project Gutenberg's texts, other plain text
    rows/             text that others extracted, as rows of a table: Parquet

A reader raises `InputError` only if the input is not of its kind at all. Any other fault of an input becomes a FAILED
document with a reason and its offset: nothing is dropped silently, and one bad record loses only itself.
"""
