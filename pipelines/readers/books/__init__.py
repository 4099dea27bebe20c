"""Books: EPUB, Project Gutenberg texts and other plain text to documents."""
