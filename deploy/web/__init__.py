"""A page to look at: `lfd-run MODEL SOURCE http://127.0.0.1:8080`.

    /               the page
    /layers         the newest frame as JPEG and its class map, for the page: `?after=N` waits for a later one than N
    /stream.mjpg    endless JPEG pictures for other programs
    /snapshot.jpg   one of them
    /stats.json     how the run is; `?history=SECONDS` adds a record a second, of up to five minutes
    /healthz        200 while pictures come, otherwise 503 with the reason
    /metrics        for Prometheus

Streams and snapshots take `view=overlay|mask|side|plain`, `opacity=0..1` and `classes=road,sky` (by name or number).

The page gets frame and class map apart, and lays one over the other in the browser: each viewer has a view, an opacity
and classes of their own, and the server encodes each picture once for all of them. Programs that show JPEGs only get
theirs composed here, once for all who ask for the same, at most MAX_VIEWS different ones at a time.

Nobody waits for a viewer: one who is ready for a picture asks for the newest, and for nobody nothing is painted or
encoded. `sink` takes the frames, `pictures` encodes them, `server` and `guard` decide who gets what, `numbers` counts.
"""
