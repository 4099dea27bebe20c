"""Web archives (WARC, WET, ARC) to documents: members, records, HTTP responses, pages."""
