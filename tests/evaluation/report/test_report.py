"""The report of a stream: well-formed, self-contained, and safe against hostile commentary."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
import torch

from streamingvlm.errors import DataError
from streamingvlm.evaluation.report.rendering import clock, minutes_of, render_report, write_report
from streamingvlm.evaluation.report.stream_report import CacheFill, ReportTurn, StreamReport, Thumbnail

HOSTILE = "</td><script>alert('said')</script><img src=x onerror=alert(1)>{{ 7*7 }}\"'&"
VOID = {"meta", "img", "path", "link", "br"}
URL_ATTRIBUTES = {"src", "href", "srcset", "action", "formaction", "data", "poster", "xlink:href", "background"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed by its own end, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.script, self.style = [], [], [], "", ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{tag} says {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        place = self.open[-1] if self.open else ""
        if place == "script":
            self.script += data
        elif place == "style":
            self.style += data
        else:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def _second(start_s, said, truth, fault, latency_s=0.1):
    return ReportTurn(float(start_s), said, truth, latency_s, CacheFill(20, 10, 30, 40), fault)


@pytest.fixture(scope="module")
def judged():
    seconds = [_second(at, "", "", 0.0) for at in range(190)]
    seconds[70] = _second(70, HOSTILE, "pass by red", 1.0)
    seconds[71] = _second(71, "pass by <b>blue", "pass by red", 0.5)
    seconds[130] = _second(130, "", "shot", 1.0)
    seconds[185:] = [ReportTurn(float(at), None, HOSTILE, fault=1.0) for at in range(185, 190)]
    return StreamReport(
        f"A match {HOSTILE}",
        seconds,
        subtitle=HOSTILE,
        figures={HOSTILE: HOSTILE},
        settings={HOSTILE: {HOSTILE: HOSTILE}},
        thumbnails=[Thumbnail(70.0, torch.full((3, 40, 60), 128, dtype=torch.uint8))],
        capacity_tokens=120,
        note=HOSTILE,
    )


@pytest.fixture(scope="module")
def plain():
    """A video that nobody judged: no truth, no cache."""
    seconds = [ReportTurn(float(at), f"words {at}", None, 2.5 if at == 65 else 0.2) for at in range(100)]
    return StreamReport("Any video", seconds)


@pytest.fixture(params=["judged", "plain"])
def watched(request):
    return request.getfixturevalue(request.param)


def test_a_page_is_well_formed_and_its_links_lead_somewhere(watched):
    page = Page(render_report(watched))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.all("a")]
    assert len(links) > 1 and {link.removeprefix("#") for link in links} <= set(ids)
    named = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert named and set(named) <= set(ids)


def test_a_page_loads_nothing(watched):
    text = render_report(watched)
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in URL_ATTRIBUTES & set(attributes):
            assert attributes[name].startswith(("#", "data:image/jpeg;base64,")), (tag, name)
    assert not re.search(r"https?://|@import|url\(", page.script + page.style)
    assert "://" not in text


def test_its_policy_allows_its_own_script_alone(watched):
    page = Page(render_report(watched))
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in policy
    assert len(page.all("script")) == 1


def test_hostile_words_stay_words(judged):
    page = Page(render_report(judged))
    assert page.all("script") == [{}] and "alert" not in page.script
    assert len(page.all("img")) == 1
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    said = "".join(page.texts)
    # In heading and title, subtitle, note, a figure, settings, the picture, its row, and truths that nobody saw.
    assert said.count("{{ 7*7 }}") >= 12 and said.count("alert('said')") == said.count("{{ 7*7 }}")


def test_the_worst_minute_comes_first_and_says_why(judged):
    page = Page(render_report(judged))
    first = next(a["href"] for a in page.all("a") if a["href"].startswith("#m") and a["href"] != "#minutes")
    assert first == "#m3"
    minutes = minutes_of(judged.turns, 1.0)
    assert [minute.rank for minute in minutes] == [3, 1, 2, 0]
    assert [minute.verdict for minute in minutes] == ["all right", "1 wrong, 1 partly", "1 wrong", "5 wrong"]


def test_a_stream_without_verdicts_shows_its_slowest_minute_first(plain):
    text = render_report(plain)
    page = Page(text)
    assert "Slowest minutes first" in text and "Truth" not in text and "Verdict" not in text
    assert [minute.rank for minute in minutes_of(plain.turns, 1.0)] == [1, 0]
    assert "slowest 2.5 s" in "".join(page.texts)


def test_every_second_is_there_with_what_became_of_it(judged):
    page = Page(render_report(judged))
    rows = [a for a in page.all("tr") if "data-second" in a]
    assert [float(a["data-second"]) for a in rows] == [second.start_s for second in judged.turns]
    marks = [a["class"] for a in page.all("td") if a.get("class", "").startswith("mark ")]
    counts = {mark: marks.count(f"mark {mark}") for mark in ("right", "wrong", "partly", "missed", "not watched")}
    assert counts == {"right": 182, "wrong": 1, "partly": 1, "missed": 1, "not watched": 5}


def test_drawings_have_descriptions_in_words(judged):
    page = Page(render_report(judged))
    drawings = [a for a in page.elements if a[1].get("role") == "img"]
    assert len(drawings) == 3 and all(a["aria-label"] for _, a in drawings)
    assert all(a["aria-hidden"] == "true" for a in page.all("svg"))
    assert all(a["alt"] for a in page.all("img"))
    assert page.all("html") == [{"lang": "en"}]


def test_a_page_is_the_same_each_time(tmp_path, judged):
    for name in ("a.html", "b.html"):
        write_report(judged, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_stream_of_no_second_is_refused():
    with pytest.raises(DataError, match="the stream has no turns"):
        render_report(StreamReport("Nothing", []))


def test_a_clock_has_hours_only_where_there_are_some():
    assert [clock(s) for s in (0, 65, 3600, 7325.5)] == ["0:00", "1:05", "1:00:00", "2:02:05"]
