"""Training sees the vision of a live session; each turn is encoded once, in whichever process and order."""

import pickle
import shutil

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from streamingvlm.config import VideoConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.pitch import Match, render
from streamingvlm.training.feature_store import FeatureStore
from streamingvlm.training.vision_cache import CachedVision, PendingVision
from streamingvlm.video.encoder import write_video
from streamingvlm.video.reader import open_video

NUM_SECONDS = 14
SETTINGS = {"fps": 2.0, "min_pixels": 56 * 56, "max_pixels": 112 * 112}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A match of 14 s at 8 frames a second, a key frame at its start alone."""
    path = tmp_path_factory.mktemp("video") / "match.mp4"
    seconds = [second for second, _ in zip(Match(3).seconds(), range(NUM_SECONDS), strict=False)]
    frames = [frame.permute(1, 2, 0).numpy() for second in seconds for frame in render(second, size=112, fps=8.0)]
    write_video(path, frames, fps=8)
    return path


def frozen(folder):
    model = load_model(folder, device="cpu", dtype="float32")
    model.hf.model.visual.requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return frozen(tiny_checkpoint("qwen2_5_vl"))


def recording(video, start_s=0.0):
    return {"id": "match", "video": video.name, "start_s": start_s, "num_turns": NUM_SECONDS}


def cached(model, video, folder=None, *, root=None, max_bytes=2**24, **settings):
    store = FeatureStore(folder, max_bytes=max_bytes)
    config = VideoConfig(**{**SETTINGS, **settings})
    return CachedVision(model.hf.model.visual, model.family, config, store, video_root=root or video.parent)


def read(vision, *chunk):
    return vision.encode(vision.reader(*chunk))


def features_of_a_session(model, video, **settings):
    """Return the features that a session gives its language model, from its own encoder, turn by turn."""
    session = StreamingSession(model, video={**SETTINGS, **settings})
    config = session.video_config
    with open_video(video, fps=config.fps, turn_s=config.turn_s) as reader:
        return [session.vision_encoder.features(turn.frames) for turn in reader]


def assert_same(mine, other):
    assert len(mine) == len(other) > 0
    for a, b in zip(mine, other, strict=True):
        assert a.grid == b.grid
        assert torch.equal(a.embeddings, b.embeddings)
        assert len(a.deepstack) == len(b.deepstack)
        assert all(torch.equal(x, y) for x, y in zip(a.deepstack, b.deepstack, strict=True))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("resize", ["processor", "qwen_vl_utils"])
def test_encoded_and_cached_features_equal_those_of_a_session(tiny_checkpoint, video, tmp_path, family, resize):
    model = frozen(tiny_checkpoint(family))
    live = features_of_a_session(model, video, resize=resize)
    fresh, kept = (cached(model, video, tmp_path, resize=resize) for _ in range(2))
    features = read(fresh, recording(video), 3, 8)
    assert_same(features, live[3:11])
    assert all(bool(turn.deepstack) == (family == "qwen3_vl") for turn in features)
    assert_same(read(kept, recording(video), 3, 8), features)
    assert (fresh.counts.num_encoded, fresh.counts.num_hits) == (8, 0)
    assert (kept.counts.num_encoded, kept.counts.num_hits) == (0, 8)
    assert kept.metrics()["vision/hit_rate"] == 1.0


def test_overlapping_chunks_encode_each_turn_once(model, video, tmp_path):
    vision = cached(model, video, tmp_path)
    live = features_of_a_session(model, video)
    for first in (6, 0, 4, 8):
        assert_same(read(vision, recording(video), first, 6), live[first : first + 6])
    assert vision.counts.num_encoded == NUM_SECONDS
    assert vision.counts.num_hits == 4 * 6 - NUM_SECONDS


def test_a_recording_may_begin_anywhere_in_its_file(model, video, tmp_path):
    vision = cached(model, video, tmp_path)
    live = features_of_a_session(model, video)
    assert_same(read(vision, recording(video, start_s=5.0), 2, 3), live[7:10])
    read(vision, recording(video), 7, 3)
    assert (vision.counts.num_encoded, vision.counts.num_hits) == (3, 3)


def test_only_missing_turns_are_decoded_in_one_pass(model, video, tmp_path, monkeypatch):
    opened = []

    def counting(*args, **kwargs):
        opened.append(kwargs["start_s"])
        return open_video(*args, **kwargs)

    monkeypatch.setattr("streamingvlm.training.vision_cache.open_video", counting)
    vision = cached(model, video, tmp_path)
    read(vision, recording(video), 4, 2)
    read(vision, recording(video), 2, 8)
    read(vision, recording(video), 2, 8)
    assert opened == [4.0, 2.0]
    assert vision.counts.num_encoded == 8


@pytest.mark.parametrize(
    "change",
    [{"fps": 4.0}, {"max_pixels": 84 * 84}, {"resize": "qwen_vl_utils"}, {"decoder": "decord"}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_give_other_keys(model, video, tmp_path, change):
    one, other = cached(model, video, tmp_path), cached(model, video, tmp_path, **change)
    assert one.reader.key(video, 1.0) != other.reader.key(video, 1.0)


def test_other_weights_give_other_keys(tiny_checkpoint, video, tmp_path):
    model = frozen(tiny_checkpoint("qwen2_5_vl"))
    before = cached(model, video, tmp_path)
    with torch.no_grad():
        next(model.hf.model.visual.merger.parameters()).view(-1)[0] += 1e-3
    assert before.reader.key(video, 1.0) != cached(model, video, tmp_path).reader.key(video, 1.0)


def test_the_key_depends_on_the_content_of_a_video_not_on_its_name(model, video, tmp_path):
    moved = shutil.copy(video, tmp_path / "other name.mp4")
    reader = cached(model, video).reader
    assert reader.key(video, 2.0) == reader.key(moved, 2.0) != reader.key(moved, 3.0)
    content = bytearray(moved.read_bytes())
    content[len(content) // 2] ^= 1
    moved.write_bytes(content)
    assert reader.key(video, 2.0) != reader.key(moved, 2.0)


def test_a_damaged_entry_is_encoded_again_and_counted(model, video, tmp_path):
    live = features_of_a_session(model, video)
    read(cached(model, video, tmp_path), recording(video), 0, 3)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"")
    vision = cached(model, video, tmp_path)
    assert_same(read(vision, recording(video), 0, 3), live[:3])
    assert (vision.counts.num_corrupt, vision.counts.num_encoded) == (1, 1)


class Chunks(Dataset):
    """Chunks as DataLoader workers read them."""

    def __init__(self, reader, row):
        self.reader, self.row = reader, row

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.reader(self.row, 4 * index, 6)


def test_workers_decode_and_the_process_of_the_tower_encodes(model, video, tmp_path):
    vision = cached(model, video, tmp_path)
    live = features_of_a_session(model, video)
    read(vision, recording(video), 0, 2)
    loader = DataLoader(Chunks(vision.reader, recording(video)), collate_fn=list, num_workers=1)
    for index, (chunk,) in enumerate(loader):
        assert chunk.grids == [turn.grid for turn in live[4 * index : 4 * index + 6]]
        assert_same(vision.encode(chunk), live[4 * index : 4 * index + 6])
    assert vision.counts.decode_s > 0


def test_the_reader_for_workers_holds_no_weights(model, video):
    vision = cached(model, video)
    assert len(pickle.dumps(vision.reader)) < 5_000
    chunk = pickle.loads(pickle.dumps(vision.reader))(recording(video), 0, 1)
    assert isinstance(chunk.turns[0], PendingVision)
    assert_same(vision.encode(chunk), read(vision, recording(video), 0, 1))


def test_a_trainable_tower_is_refused(tiny_checkpoint, video):
    with pytest.raises(ConfigError, match="freeze"):
        cached(load_model(tiny_checkpoint("qwen2_5_vl"), device="cpu"), video)


def test_a_missing_video_and_one_that_ends_early_are_named(model, video, tmp_path):
    vision = cached(model, video)
    with pytest.raises(VideoError, match=r"absent\.mp4"):
        read(vision, {"video": "absent.mp4", "start_s": 0.0}, 0, 1)
    with pytest.raises(VideoError, match=r"match\.mp4.* no frame at 14 s"):
        read(vision, recording(video), 12, 4)
    with pytest.raises(VideoError, match=r"match\.mp4.* no frame at 20 s.*prepare the data again"):
        read(vision, recording(video), 20, 4)
