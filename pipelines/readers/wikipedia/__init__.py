"""Readers of a wiki's articles.

articles.py           choose the reader for a file, by its content; start here
xml_dump.py           MediaWiki XML dumps: articles, redirects, and the wiki they are of
page_splitter.py      cut a dump's bytes into `<page>` fragments with their offsets
wikiextractor.py      WikiExtractor's output: `<doc>` files and JSON lines
article_document.py   an article's document and its wiki, shared by the readers of all forms
"""
