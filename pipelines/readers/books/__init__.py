"""Readers of books; one file is one book.

book.py        choose the reader for a file, by its content; start here
epub.py        an EPUB's metadata, and the text of its chapters
gutenberg.py   Project Gutenberg's header, and the book without it
edition.py     the facts that a book states about itself: its key, names and ISBNs
"""
