"""The commands of the benchmarks with a judge, on small videos in the published layouts, against a real server."""

import json
from functools import partial
from itertools import islice

import pytest
from chat_server import ChatServer
from published_layouts import candidate_line, inf_streams_line, livesports_row, write_lines

from streamingvlm.pitch import Match, reference_line, write_mp4

SEEDS = (11, 12)
DURATION_S, START_S = 12, 4
SEGMENTS = ((4, 8), (8, 12))
NO_KEY = ["judge.endpoint.model=m", "judge.endpoint.api_key_env=NO_SUCH_KEY"]
UNREACHABLE = ["judge.endpoint.model=m", "judge.endpoint.api_key_env=null", "judge.endpoint.max_retries=0"]


def truth(seed):
    lines = [
        (float(i), i + 1.0, reference_line(second))
        for i, second in enumerate(islice(Match(seed).seconds(), DURATION_S))
    ]
    return [line for line in lines if line[2]]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two short matches, as Inf-Streams-Eval and as LiveSports-3K-CC would have them."""
    folder = tmp_path_factory.mktemp("published")
    for seed in SEEDS:
        write_mp4(folder / f"g{seed}.mp4", seed, DURATION_S, size=112, fps=4)
    write_lines(folder / "all.jsonl", [inf_streams_line(f"g{seed}.mp4", truth(seed)) for seed in SEEDS])
    cut = [(seed, [line for line in truth(seed) if a <= line[0] < b]) for seed in SEEDS for a, b in SEGMENTS]
    write_lines(folder / "segments.jsonl", [inf_streams_line(f"g{seed}.mp4", lines) for seed, lines in cut])
    rows = [
        livesports_row(f"g{seed}.mp4", a, a, b, f"Segment at {a} of {seed}.") for seed in SEEDS for a, b in SEGMENTS
    ]
    write_lines(folder / "events.jsonl", rows)
    return folder


@pytest.fixture
def evaluate_here(run_command):
    """Run the script in this process; returns exit code, standard output and standard error."""
    return partial(run_command, "evaluate")


def judged_by(server, **settings):
    asked = {"model": "m", "base_url": server.url, "api_key_env": "null", "max_retries": 1, **settings}
    return [f"judge.endpoint.{name}={value}" for name, value in asked.items()]


@pytest.fixture
def inf_streams(published):
    return [
        "benchmark=inf_streams",
        f"transcripts={published}/all.jsonl",
        f"segments={published}/segments.jsonl",
        f"start_s={START_S}",
        "clip_s=3",
    ]


@pytest.fixture
def livesports(published):
    return ["benchmark=livesports", f"events={published}/events.jsonl"]


def file_of(path, said):
    """A candidate that says one thing in every second of every video."""
    utterances = [(float(second), second + 1.0, said) for second in range(DURATION_S)]
    return write_lines(path, [candidate_line(f"g{seed}.mp4", utterances) for seed in SEEDS])


@pytest.fixture
def two_files(folder):
    """Two finished candidates."""
    good, bad = (file_of(folder / f"{name}.jsonl", name) for name in ("good", "bad"))
    return ["candidate=file", f"candidate.path={good}", "rival=file", f"rival.path={bad}"]


def knows_good(body, num_before):
    """The letter of the text that says "good", A where both do or none does."""
    shown_as_b = body["messages"][-1]["content"].partition("### Commentary B")[2]
    shown_as_a = body["messages"][-1]["content"].partition("### Commentary B")[0]
    return "B" if "good" in shown_as_b and "good" not in shown_as_a else "A"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_session_against_the_last_frames(folder, inf_streams, evaluate_here):
    with ChatServer(lambda *_: "A") as server:
        words = [*inf_streams, *judged_by(server), "result_path=result.json"]
        code, said, told = evaluate_here(*words)
        assert code == 0, told
        assert "candidate: pitch (streaming cache)" in said
        assert "rival: pitch (last 4 frames, no cache)" in said
        assert "win rate 50.00% (95 % interval 50.00% to 50.00%): 4 of 8 votes, 4 comparisons over 2 videos" in said
        assert "judging will ask 8 times (0 answers are kept already)" in told
        again, said_again, told_again = evaluate_here(*words)
    assert (again, said_again) == (0, said)
    assert "judging will ask 0 times (8 answers are kept already)" in told_again
    # Where both say the same, the two questions are one.
    assert 4 <= len(server.requests) <= 8
    ours, theirs = (lines_of(folder / "inf_streams.work" / f"{role}.jsonl") for role in ("candidate", "rival"))
    assert [line["video"] for line in ours] == ["g11.mp4", "g12.mp4"] == [line["video"] for line in theirs]
    assert all(item["start_time"] >= START_S and item["response"] for line in ours for item in line["items"])
    result = json.loads((folder / "result.json").read_text())
    assert result["win_rate"]["rate"] == 0.5 and result["win_rate_by_video"] == {"g11.mp4": 0.5, "g12.mp4": 0.5}
    assert len(result["verdicts"]) == 4
    assert result["sides"]["rival"]["path"] == "last 4 frames, no cache"


def test_the_papers_protocol_in_clips_without_a_judge(folder, inf_streams, evaluate_here):
    words = ["protocol=paper", "mode=clips", "rival_mode=infinite", "judge.enabled=false", "num_videos=1"]
    code, said, told = evaluate_here(*inf_streams, *words, "rival=session")
    assert code == 0, told
    assert "wrote inf_streams.work/candidate.jsonl, inf_streams.work/rival.jsonl" in said
    kept = [json.loads(file.read_text()) for file in (folder / "inf_streams.work" / "commentary").iterdir()]
    ours, theirs = sorted(kept, key=lambda document: -len(document["clips"]))
    assert [(clip["chunk_start"], clip["chunk_end"]) for clip in ours["clips"]] == [(4, 7), (7, 10), (10, 11)]
    assert len(theirs["clips"]) == 1
    told_before = " ".join(text for _, end_s, text in truth(11) if end_s <= START_S)
    assert {clip["previous_text"] for clip in ours["made_with"]["clips"]} == {told_before} != {""}
    assert {clip["previous_text"] for clip in theirs["made_with"]["clips"]} == {""}


def test_files_are_compared_by_the_rule_of_the_judge(folder, inf_streams, two_files, evaluate_here):
    with ChatServer(knows_good) as server:
        code, said, _ = evaluate_here(*inf_streams, *two_files, *judged_by(server))
        assert code == 0
        assert "candidate: good.jsonl (a file)" in said and "win rate 100.00%" in said
        other_way = [f"candidate.path={folder}/bad.jsonl", f"rival.path={folder}/good.jsonl"]
        _, said, _ = evaluate_here(*inf_streams, *two_files, *other_way, *judged_by(server))
    assert "candidate: bad.jsonl (a file)" in said and "win rate 0.00%" in said
    assert len(server.requests) == 8


def test_livesports_through_the_session(folder, livesports, evaluate_here):
    with ChatServer(lambda *_: "B") as server:
        words = [*livesports, "rival.num_frames=2", "result_path=result.json", *judged_by(server)]
        code, said, told = evaluate_here(*words)
    assert code == 0, told
    assert "rival: pitch (last 2 frames, no cache)" in said
    assert "win rate 50.00%" in said and "4 comparisons over 2 videos, 4 ties" in said
    predicted = lines_of(folder / "livesports.work" / "candidate.jsonl")
    assert [(line["video_id"], line["event_id"], line["begin"], line["end"]) for line in predicted] == [
        (f"g{seed}", str(a), a, b) for seed in SEEDS for a, b in SEGMENTS
    ]
    assert any(line["pred"] for line in predicted)
    assert {len(verdict["votes"]) for verdict in json.loads((folder / "result.json").read_text())["verdicts"]} == {2}


def test_a_remote_candidate_comments_and_is_judged(folder, livesports, evaluate_here):
    events = [(seed, a, b) for seed in SEEDS for a, b in SEGMENTS]
    predicted = [{"video_id": f"g{seed}", "event_id": a, "begin": a, "end": b, "pred": "bad"} for seed, a, b in events]
    theirs = write_lines(folder / "theirs.jsonl", predicted)

    def commentator_and_judge(body, num_before):
        is_judged = isinstance(body["messages"][-1]["content"], str)
        return knows_good(body, num_before) if is_judged else "good play"

    with ChatServer(commentator_and_judge) as server:
        remote = [word.replace("judge", "candidate") for word in judged_by(server)]
        words = ["candidate=endpoint", *remote, "rival=file", f"rival.path={theirs}", *judged_by(server)]
        code, said, told = evaluate_here(*livesports, *words)
    assert code == 0, told
    assert "m, commenting, will ask 4 times" in told
    assert "candidate: m (remote endpoint)" in said and "win rate 100.00%" in said
    assert len(server.requests) == 4 + 8


def test_a_run_whose_judge_fails_is_resumed(inf_streams, two_files, evaluate_here):
    with ChatServer(lambda body, n: "A" if len(server.requests) <= 3 else 503) as server:
        words = [*inf_streams, *two_files, *judged_by(server, num_parallel=1, max_retries=0)]
        code, said, told = evaluate_here(*words)
    assert (code, said) == (2, "")
    assert told.splitlines()[-1].endswith("run the same command again later: answers so far are kept")
    num_answered = len(server.answered)
    with ChatServer(knows_good) as server:
        code, said, told = evaluate_here(*inf_streams, *two_files, *judged_by(server))
    assert code == 0
    assert len(server.requests) == 8 - num_answered
    assert f"({num_answered} answers are kept already)" in told


def test_an_estimate_alone_watches_and_asks_nothing(folder, inf_streams, evaluate_here):
    with ChatServer(lambda *_: 500) as server:
        words = ["judge.estimate_only=true", *judged_by(server, usd_per_million_in=1, usd_per_million_out=1)]
        code, said, told = evaluate_here(*inf_streams, *words)
    assert (code, said, server.requests) == (0, "", [])
    assert "judging will ask 8 times" in told and "about 0.00 USD" in told
    assert list(folder.iterdir()) == []


def test_a_limit_on_the_cost_stops_before_anything_is_done(folder, inf_streams, evaluate_here):
    code, _, told = evaluate_here(*inf_streams, *UNREACHABLE, "judge.max_cost_usd=1")
    assert code == 2
    assert "judge.max_cost_usd=1 is below the estimate" in told
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "words, reason",
    [
        ([], "judge.endpoint.model is empty"),
        (NO_KEY, "NO_SUCH_KEY is not set; put the endpoint's key there, or say judge.endpoint.api_key_env=null"),
        ([*UNREACHABLE, "judge.endpoint.base_url=http://127.0.0.1:9/v1"], "127.0.0.1:9/v1 cannot be reached"),
        ([*UNREACHABLE, "transcripts=null"], "transcripts is not given; name a file: transcripts=PATH"),
        ([*UNREACHABLE, "segments=gone.jsonl"], "segments=gone.jsonl is no file; check the path"),
        ([*UNREACHABLE, "protocol=kind"], "protocol=kind is unknown; choose one of fair, paper"),
        ([*UNREACHABLE, "rival.path=null"], "rival.path is not given"),
        ([*UNREACHABLE, "mode=chunks"], "mode=chunks is unknown; choose one of infinite, clips"),
        ([*UNREACHABLE, "chunk_s=50"], "chunk_s was renamed to clip_s; use the new name"),
    ],
)
def test_errors_are_one_line(inf_streams, two_files, evaluate_here, words, reason):
    code, said, told = evaluate_here(*inf_streams, *two_files, *words)
    assert (code, said) == (2, "")
    assert reason in told.splitlines()[-1]
    assert "Traceback" not in told


def test_a_rival_without_a_key_is_reported_before_any_video_is_read(folder, inf_streams, evaluate_here):
    remote = ["rival=endpoint", "rival.endpoint.model=m", "rival.endpoint.api_key_env=NO_SUCH_KEY"]
    code, _, told = evaluate_here(*inf_streams, *UNREACHABLE, *remote)
    assert code == 2
    assert told.endswith(
        "NO_SUCH_KEY is not set; put the endpoint's key there, or say rival.endpoint.api_key_env=null\n"
    )
    assert list(folder.iterdir()) == []


def test_missing_videos_are_reported_before_a_model_is_loaded(inf_streams, evaluate_here):
    code, _, told = evaluate_here(*inf_streams, *UNREACHABLE, "video_root=elsewhere", "model=no/such/model")
    assert code == 2
    assert told.endswith("elsewhere/g11.mp4 and 1 more of 2 videos: no such file; check video_root\n")


def test_another_layout_is_reported_in_one_line(inf_streams, livesports, published, evaluate_here):
    for words, named in ((inf_streams, "transcripts"), (livesports, "events")):
        other = {"transcripts": "events.jsonl", "events": "all.jsonl"}[named]
        code, _, told = evaluate_here(*words, f"{named}={published}/{other}")
        assert code == 2
        assert f"{other}:1 is no" in told and "expected" in told


@pytest.mark.parametrize(
    ("answer", "ends"), [("Both are fine.", 2), ("<think>Well.</think>\nA", 0), ('{"verdict": "B"}', 0)]
)
def test_a_judge_without_one_valid_vote_is_an_error(inf_streams, two_files, evaluate_here, answer, ends):
    with ChatServer(lambda *_: answer) as server:
        code, said, told = evaluate_here(*inf_streams, *two_files, *judged_by(server))
    assert code == ends, told
    assert ("none of 8 votes is valid" in said, "raise judge.max_tokens" in told) == ((ends == 2,) * 2)
