"""A stream that was saved and taken up again is the stream that was never stopped."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_streams import CACHES, SAMPLED, SMALL, TEXTS, VIDEO, second

from streamingvlm.errors import ConfigError, SnapshotError
from streamingvlm.inference import snapshot_folder
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model


def open_session(model, cache=SMALL, **settings) -> StreamingSession:
    return StreamingSession(model, cache=cache, video=VIDEO, **{"sampling": SAMPLED, **TEXTS, **settings})


def steps(session: StreamingSession, start: int, stop: int) -> list[tuple[str, int]]:
    """What was said in these turns, and the tokens in sight after each."""
    said = []
    for turn in range(start, stop):
        line = session.step(second(turn))
        said.append((line.text, line.num_tokens, tuple(session.inspect().ids)))
    return said


def assert_same_cache(one: StreamingSession, other: StreamingSession):
    assert one.inspect().num_cached == other.inspect().num_cached
    assert one.layout == other.layout
    for name in ("keys", "values"):
        assert torch.equal(*(getattr(s.inspect(), name) for s in (one, other))), name


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_a_stream_taken_up_goes_on_bit_for_bit(model, cache, tmp_path):
    whole = open_session(model, cache)
    expected = steps(whole, 0, 10)
    saved = open_session(model, cache)
    said = steps(saved, 0, 5)
    saved.save(tmp_path / "kept")
    taken_up = StreamingSession.load(tmp_path / "kept", model=model)
    assert (taken_up.num_turns, taken_up.end_s) == (5, 5.0)
    said += steps(taken_up, 5, 10)
    assert said == expected
    assert_same_cache(taken_up, whole)
    assert torch.equal(taken_up.inspect().random_state, whole.inspect().random_state)


@pytest.mark.parametrize(("model_type", "name"), [("qwen3_vl", "recompute"), ("qwen3_vl", "streaming")])
def test_features_of_other_families_are_kept_too(models, model_type, name, tmp_path):
    model = models[model_type]
    expected = steps(open_session(model, CACHES[name]), 0, 6)
    saved = open_session(model, CACHES[name], autosave=tmp_path)
    assert steps(saved, 0, 3) + steps(StreamingSession.load(tmp_path, model=model), 3, 6) == expected


@pytest.mark.parametrize("name", ["reread", "native"])
def test_what_is_kept_turn_by_turn_is_what_a_whole_save_would_keep(model, name, tmp_path):
    whole = open_session(model, CACHES[name], autosave=tmp_path / "turns")
    for turn in range(12):
        steps(whole, turn, turn + 1)
        if turn in (0, 4, 11):
            taken_up = StreamingSession.load(tmp_path / "turns", model=model)
            assert_same_cache(taken_up, whole)
    taken_up = StreamingSession.load(tmp_path / "turns", model=model, autosave=tmp_path / "turns")
    assert steps(taken_up, 12, 15) == steps(open_session_at(whole, tmp_path), 12, 15)


def open_session_at(session: StreamingSession, folder: Path) -> StreamingSession:
    session.save(folder / "whole")
    return StreamingSession.load(folder / "whole", model=session.model)


def token_rows(folder: Path) -> dict[str, int]:
    return {file.name: load_file(file)["keys"].shape[2] for file in folder.glob("run-*/tokens-*.safetensors")}


def test_a_turn_costs_its_own_tokens_and_the_folder_stays_small(model, tmp_path):
    session = open_session(model, {**SMALL, "vision_window_s": 4.0, "turn_window_s": 4.0}, autosave=tmp_path)
    most = session.stats.capacity_tokens
    before = {}
    for turn in range(30):
        steps(session, turn, turn + 1)
        rows = token_rows(tmp_path)
        written = sum(count for name, count in rows.items() if name not in before)
        if turn:
            assert written < session.layout.num_tokens / 2, "what is on disk already is not written again"
        assert sum(rows.values()) <= 2 * most
        before = rows
    assert len(list(tmp_path.glob("run-*/state-*"))) == len(list(tmp_path.glob("run-*"))) == 1


def test_everything_that_was_set_is_taken_up(model, tmp_path):
    session = open_session(model, autosave=tmp_path)
    steps(session, 0, 3)
    session.query = "Speak of the goalkeeper."
    session.save(tmp_path)
    taken_up = StreamingSession.load(tmp_path, model=model)
    for name in ("cache_config", "video_config", "sampling_config", "query", "cached_query", "previous_text"):
        assert getattr(taken_up, name) == getattr(session, name), name
    assert taken_up.stats.num_tokens == session.stats.num_tokens > 0
    assert steps(taken_up, 3, 6) == steps(session, 3, 6)
    assert "Speak of the goalkeeper." in model.tokenizer.decode(taken_up.inspect().ids)


def test_a_question_asked_before_or_after_changes_nothing(model, tmp_path):
    session = open_session(model)
    steps(session, 0, 3)
    session.ask("Who scored?")
    session.save(tmp_path / "kept")
    taken_up = StreamingSession.load(tmp_path / "kept", model=model)
    assert taken_up.ask("Who scored?", max_new_tokens=9) == session.ask("Who scored?", max_new_tokens=9)
    assert steps(taken_up, 3, 5) == steps(session, 3, 5)


@pytest.mark.parametrize("name", ["reread", "recompute"])
def test_a_turn_that_was_interrupted_is_taken_up_with_what_it_saw(model, name, tmp_path, monkeypatch):
    session = open_session(model, CACHES[name])
    steps(session, 0, 3)
    with monkeypatch.context() as patch:
        patch.setattr(model.text_model.layers[-1].mlp, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.step(second(3))
    session.save(tmp_path / "kept")
    assert steps(StreamingSession.load(tmp_path / "kept", model=model), 4, 7) == steps(session, 4, 7)


def interrupt(_states):
    raise KeyboardInterrupt


def test_a_stream_moves_into_an_engine_that_serves_others(model, tmp_path):
    expected = steps(open_session(model), 0, 6)
    alone = open_session(model, autosave=tmp_path)
    said = steps(alone, 0, 3)
    with Engine(model, num_slots=2) as engine:
        other = StreamingSession(engine.model, engine=engine, cache=SMALL, video=VIDEO, sampling=SAMPLED)
        steps(other, 0, 2)
        moved = StreamingSession.load(tmp_path, model=model, engine=engine, autosave=tmp_path)
        said += steps(moved, 3, 5)
        steps(other, 2, 4)
    assert said + steps(StreamingSession.load(tmp_path, model=model), 5, 6) == expected


def test_keys_of_another_kind_are_refused_and_leave_no_stream_behind(model, tmp_path):
    with Engine(model, num_slots=1, cache_dtype="fp8") as engine:
        stream = StreamingSession(engine.model, engine=engine, cache=SMALL, video=VIDEO, sampling=SAMPLED)
        steps(stream, 0, 2)
        stream.save(tmp_path)
    with Engine(model, num_slots=1) as engine:
        with pytest.raises(ConfigError, match=r"cache\.dtype=fp8 is not that of the engine"):
            StreamingSession.load(tmp_path, model=model, engine=engine)
        plain = StreamingSession(engine.model, engine=engine, cache=SMALL, video=VIDEO, sampling=SAMPLED)
        plain.save(tmp_path / "plain")
    with Engine(model, num_slots=1, cache_dtype="fp8") as engine:
        with pytest.raises(SnapshotError, match=r"cache\.dtype=None, but the engine has fp8"):
            StreamingSession.load(tmp_path / "plain", model=model, engine=engine)
        StreamingSession(engine.model, engine=engine, cache=SMALL, video=VIDEO, sampling=SAMPLED)  # its slot is free


def test_a_stream_that_has_not_begun_can_be_kept(model, tmp_path):
    open_session(model).save(tmp_path / "kept")
    taken_up = StreamingSession.load(tmp_path / "kept", model=model)
    assert taken_up.end_s == 0.0
    assert steps(taken_up, 0, 3) == steps(open_session(model), 0, 3)


# Two parts, each written and summed up; the document, summed up and written.
NUM_CALLS_OF_A_SAVE = 6


@pytest.mark.parametrize("number", range(1, NUM_CALLS_OF_A_SAVE + 1))
def test_a_save_that_is_broken_off_anywhere_leaves_the_one_before(model, number, tmp_path, monkeypatch):
    session = open_session(model, autosave=tmp_path)
    expected = steps(open_session(model), 0, 6)
    steps(session, 0, 3)
    calls = [0]

    def count_down(function):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == number:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("save_file", "write_json", "_checksum", "_checksum_of_json"):
            patch.setattr(snapshot_folder, name, count_down(getattr(snapshot_folder, name)))
        with pytest.raises(KeyboardInterrupt):
            session.step(second(3))
    taken_up = StreamingSession.load(tmp_path, model=model)
    assert taken_up.num_turns == 3
    assert steps(taken_up, 3, 6) == expected[3:]
    assert steps(session, 4, 6) == expected[4:], "the stream itself goes on, too"
    assert StreamingSession.load(tmp_path, model=model).num_turns == 6


def test_a_full_disk_is_told_and_the_stream_goes_on(model, tmp_path, monkeypatch):
    session = open_session(model, autosave=tmp_path)
    steps(session, 0, 2)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_folder, "save_file", no_space)
        with pytest.raises(SnapshotError, match="No space left") as error:
            session.step(second(2))
    assert "\n" not in str(error.value)
    assert StreamingSession.load(tmp_path, model=model).num_turns == 2
    assert session.num_turns == 3
    steps(session, 3, 4)
    assert StreamingSession.load(tmp_path, model=model).num_turns == 4


def no_space(*_):
    raise OSError(28, "No space left on device")


def test_another_model_is_refused_in_words(model, models, tmp_path):
    session = open_session(model)
    steps(session, 0, 2)
    session.save(tmp_path / "kept")
    others = {
        "other weights": models["qwen3_vl"],
        "dtype torch.float32": replace(model, dtype=torch.bfloat16),
        "device cpu": replace(model, device=torch.device("meta")),
    }
    for words, other in others.items():
        with pytest.raises(SnapshotError, match=words) as error:
            StreamingSession.load(tmp_path / "kept", model=other)
        assert "\n" not in str(error.value)


def test_one_changed_weight_matrix_makes_another_model(tiny_checkpoint):
    one, other = (load_model(tiny_checkpoint(), device="cpu") for _ in range(2))
    half = load_model(tiny_checkpoint(), device="cpu", dtype="bfloat16")
    with torch.no_grad():
        other.text_model.layers[1].mlp.up_proj.weight.mul_(1.1)
    assert one.fingerprint == half.fingerprint != other.fingerprint


@pytest.fixture
def kept(model, tmp_path) -> Path:
    session = open_session(model, autosave=tmp_path / "kept")
    steps(session, 0, 3)
    return tmp_path / "kept"


def manifest(folder: Path, change) -> None:
    path = folder / "snapshot.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def reseal(document: dict):
    document["checksum"] = snapshot_folder._checksum_of_json(document["body"])


def name_a_file_elsewhere(document):
    document["body"]["state"]["name"] = "../../secret.safetensors"
    reseal(document)


def name_a_run_elsewhere(document):
    document["body"]["run"] = "../elsewhere"
    reseal(document)


def lose_a_token(document):
    document["body"]["stream"]["layout"].pop()
    reseal(document)


def set_an_unknown_option(document):
    document["body"]["settings"]["cache"]["colour"] = "red"
    reseal(document)


REFUSED = {
    "version 1": (lambda document: document.update(version=1), "version 1, expected 2"),
    "another format": (lambda document: document.update(format="tar"), "not a snapshot of a stream"),
    "a changed document": (lambda document: document["body"]["stream"].update(num_turns=9), "damaged"),
    "a file elsewhere": (name_a_file_elsewhere, "damaged"),
    "a run elsewhere": (name_a_run_elsewhere, "damaged"),
    "a token too few": (lose_a_token, "damaged"),
    "an unknown option": (set_an_unknown_option, "damaged.*colour"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_this_versions_whole_snapshot_is_refused_in_words(model, kept, change, words):
    manifest(kept, change)
    with pytest.raises(SnapshotError, match=words) as error:
        StreamingSession.load(kept, model=model)
    assert "\n" not in str(error.value)


def flip(path: Path, place: int):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


HARMS = {
    "a bit in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "the last bit": lambda path: flip(path, -1),
    "the header": lambda path: flip(path, 0),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damage_to_any_file_is_told(model, kept, harm):
    files = sorted(path for path in kept.rglob("*") if path.is_file())
    assert len(files) >= 4
    for path in files:
        content = path.read_bytes()
        harm(path)
        with pytest.raises(SnapshotError) as error:
            StreamingSession.load(kept, model=model)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    assert StreamingSession.load(kept, model=model).num_turns == 3


def test_a_folder_of_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(SnapshotError, match=str(path)):
            open_session(model).save(path)
        with pytest.raises(SnapshotError, match=str(path)):
            open_session(model, autosave=path)
        with pytest.raises(SnapshotError, match=str(path)):
            StreamingSession.load(path, model=model)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "file"}


def test_two_streams_cannot_keep_one_folder(model, tmp_path):
    first = open_session(model, autosave=tmp_path)
    steps(first, 0, 1)
    second_ = open_session(model, autosave=tmp_path)
    steps(second_, 0, 2)
    with pytest.raises(SnapshotError, match="another stream"):
        first.step(second(1))
    assert StreamingSession.load(tmp_path, model=model).num_turns == 2
    steps(second_, 2, 3)


def test_what_a_killed_writer_left_is_cleared_away(model, kept):
    (kept / "run-0123456789abcdef0123456789abcdef").mkdir()
    (kept / "run-0123456789abcdef0123456789abcdef" / "tokens-1.safetensors").write_bytes(b"half")
    (kept / ".snapshot.json.0a1b").write_text("half")
    session = StreamingSession.load(kept, model=model, autosave=kept)
    steps(session, 3, 4)
    assert sorted(path.name.partition("-")[0] for path in kept.iterdir()) == ["run", "snapshot.json"]
    assert StreamingSession.load(kept, model=model).num_turns == 4


def test_a_running_stream_can_be_saved_from_another_thread(model, tmp_path):
    session, has_begun, is_saved = open_session(model), threading.Event(), threading.Event()

    def endless():
        turn = 0
        while not is_saved.is_set():
            yield second(turn)
            turn += 1
            has_begun.set()

    def save():
        has_begun.wait()
        session.save(tmp_path / "kept")
        is_saved.set()

    threading.Thread(target=save, daemon=True).start()
    assert list(session.stream(endless()))
    taken_up = StreamingSession.load(tmp_path / "kept", model=model)
    start = taken_up.num_turns
    assert steps(taken_up, start, start + 3) == steps(open_session(model), 0, start + 3)[start:]
