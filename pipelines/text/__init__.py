"""Text extraction: from a document's markup to plain text, and the language of a text.

extract.py           choose by the document's form: wikitext, HTML, plain text; HTML and character sets are here
wikitext.py          wikitext to prose
disambiguation.py    recognise pages that only list the meanings of a title
mediawiki_words.py   MediaWiki's namespaces, redirect words and templates in all languages
languages.py         a language's name or code to ISO 639-1, and language detection
"""
