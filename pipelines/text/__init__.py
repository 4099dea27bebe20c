"""Text extraction: wikitext and HTML to plain text, and the language of a text."""
