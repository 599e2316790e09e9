"""A layout as it is drawn in a notebook and on the server's page."""

import re

from streamingvlm.cache.cache_bar import CacheSpan, bar_html
from streamingvlm.cache.layout import CacheLayout, Segment, SegmentKind

LAYOUT = CacheLayout(
    (
        Segment(SegmentKind.SYSTEM, 5),
        Segment(SegmentKind.PREVIOUS, 4),
        Segment(SegmentKind.PREVIOUS, 6, turn=0),
        Segment(SegmentKind.TIME, 2, turn=3),
        Segment(SegmentKind.VISION_START, 1, turn=3),
        Segment(SegmentKind.VISION, 8, turn=3, grid=(1, 2, 4)),
        Segment(SegmentKind.SPEECH, 3, turn=3),
        Segment(SegmentKind.VISION, 8, turn=4, grid=(1, 2, 4)),
    ),
    sink_tokens=6,
)
SPANS = [
    CacheSpan("prompt", 5),
    CacheSpan("sink", 6),
    CacheSpan("window", 4),
    CacheSpan("text", 2, 3),
    CacheSpan("vision", 9, 3),
    CacheSpan("text", 3, 3),
    CacheSpan("vision", 8, 4),
]


def test_the_spans_join_neighbours_and_split_the_text_at_the_sink():
    assert LAYOUT.cache_spans() == SPANS


def test_the_sink_is_for_drawing_alone():
    assert CacheLayout(LAYOUT.segments) == LAYOUT


def test_the_bar_is_to_scale_with_a_label_for_each_turn():
    bar, turns, legend = re.findall(r"<div.*?>.*?(?=<div style=.display|<div>|$)", bar_html(SPANS))
    assert list(map(int, re.findall(r"flex:(\d+)", bar))) == [span.num_tokens for span in SPANS]
    assert re.findall(r"flex:(\d+)[^>]*>(\d*)<", turns) == [("15", ""), ("14", "3"), ("8", "4")]
    assert "text sink 6" in legend and "vision window 17" in legend and "37 tokens" in legend


def test_in_a_notebook_a_layout_is_the_bar_and_its_table_without_anything_from_elsewhere():
    html = LAYOUT._repr_html_()
    assert bar_html(SPANS) in html and "previous text" in html
    assert not re.search(r"https?:|<script|url\(|src=", html)
    assert len(re.findall("<div", html)) == len(re.findall("</div>", html))


def test_an_empty_layout_is_drawn():
    assert "0 tokens" in CacheLayout()._repr_html_()
