"""Where frames and class maps go; `check_outputs` judges what was typed, `open_sink` makes the sink.

    Sink                        What it gives                             Options
    null://                     nothing
    display://                  a window; q, Esc or closing it ends       title
    FILE.webm .mp4 .avi         a film of the overlay                     segment, keep
    FILE.mp4?codec=h264         the same by an ffmpeg process             codec, crf, preset, segment, keep
    DIR/                        a PNG of label values a frame             show, format, every, keep
    FILE.jsonl                  a line of JSON a frame and a status       every
    http://HOST:PORT            a page with the live picture              token, fps, quality

    Option   Value              What it does
    title    text               the window's title: one for each of several streams
    codec    mp4v, h264         of an .mp4; h264 is what browsers play
    crf      0..51              quality of h264: 0 is lossless, 23 the default, 51 the worst
    preset   ultrafast..slow    time an h264 encoder takes for a smaller film; veryfast is the default
    segment  seconds 1..86400   FILE-00001.webm, FILE-00002.webm ..., each finished when full
    keep     1..1000000         of a run's own segments or pictures only the latest so many stay
    show     mask, overlay      what a picture shows
    format   png, jpg           of overlay pictures
    every    1..1000000         only the first of every so many frames
    token    text               what viewers of a page must know; made and printed where HOST is no loopback address
    fps      1..60              pictures a second at most, of a page
    quality  1..100             of a page's JPEGs

Nothing stands under a final name before it is complete. A source that ends gives all pictures, or all lines, or none.
A live one may run for days: each of its pictures gets its name at once, lines are appended under the final name, and
both stay when the run fails; so does its film, as far as it plays. What a killed run left is removed by the next one.
"""

from deploy.sinks.display import check_display, has_screen
from deploy.sinks.null import NullSink
from deploy.sinks.outputs import SINKS, About, check_outputs, open_sink

__all__ = ["SINKS", "About", "NullSink", "check_display", "check_outputs", "has_screen", "open_sink"]
