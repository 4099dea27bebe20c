"""Document filters: keep a document, or drop it with a reason.

rules.py     the levels none, light and fineweb, the reasons, and the language filter; start here
fineweb.py   FineWeb's quality rules for web pages: Gopher, C4 and FineWeb's own, with their thresholds
"""
