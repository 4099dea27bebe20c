"""Readers of web archives (WARC, WET, ARC).

archive.py         records to documents, or the reason why a record is none; start here
warc_records.py    where a file is cut into records, with their byte ranges
gzip_members.py    gzip members and zstd frames to bytes, with lookahead
http_response.py   a record's body to HTTP status, fields and decoded payload
"""
