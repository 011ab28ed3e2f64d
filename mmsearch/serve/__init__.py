"""The HTTP API and the web page, on the library's public API alone.

    settings  where it listens, who may ask, and the limits
    guard     what no request passes unchecked: host, origin, token, size; the headers that keep a browser strict
    problems  every error in one form (RFC 9457)
    shapes    what travels as JSON
    service   what the server holds: the index, its threads, open answers, thumbnails, the run that indexes
    app       the routes
    files     files by item id, and several as a zip
    runs      indexing in the background, with progress and cancel
    metrics   what Prometheus reads
    server    the socket, the signals, what is printed
    page/     the page: plain JavaScript modules, one style sheet, no build and nothing from elsewhere

FastAPI, uvicorn and what they bring are imported by `mmsearch serve` alone.
"""
