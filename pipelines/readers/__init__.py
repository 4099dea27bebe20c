"""Readers: an input file -> documents, one at a time, whatever the state of the file.

    streams.py        a file -> its decompressed bytes, past damage where the format allows it
    pages.py          a MediaWiki dump's bytes -> `<page>` fragments with their offsets
    wikipedia.py      fragments -> documents, redirects, and the wiki they are of

A reader raises `InputError` only if the input is not of its kind at all. All else that can be wrong with an input is a
document that ended FAILED, with a reason and the offset: nothing is dropped, and one bad record costs only itself.
"""
