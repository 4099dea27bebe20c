"""Reports of a request and of an audit: the content as data (`request_report`), and one HTML file of it (`page`)."""
