"""Fine-tuning from the command line with adapters, metrics, held-out streams and wandb files."""

import json
from functools import partial

import pytest

from streamingvlm import StreamingSession
from streamingvlm.data.prepare import PrepareConfig, SelectionConfig, prepare
from streamingvlm.pitch import Match, reference_line, render
from streamingvlm.video.encoder import write_video

NUM_SECONDS = 20
SMALL = [
    "model=pitch",
    "device=cpu",
    "num_threads=1",
    "fit.num_epochs=null",
    "fit.num_steps=2",
    "fit.batch_size=2",
    "fit.num_workers=0",
    "fit.bf16=false",
    "fit.learning_rate=1e-2",
    "fit.warmup_ratio=null",
    "fit.warmup_steps=0",
    "fit.pack_tokens=3000",
    "fit.log_every_steps=1",
    "fit.save_every_steps=1",
    "fit.evaluate_every_steps=2",
    "text_sink_tokens=16",
    "text_window_tokens=64",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three short matches with their commentary as WhisperX writes it, prepared; one is held out."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    for seed in (11, 12, 13):
        seconds = [second for second, _ in zip(Match(seed).seconds(), range(NUM_SECONDS), strict=False)]
        frames = [frame.permute(1, 2, 0).numpy() for second in seconds for frame in render(second, size=112)]
        write_video(folder / "videos" / f"{seed}.mp4", frames, fps=2)
        words = [
            {"word": word, "start": second.index + 0.1, "end": second.index + 0.9}
            for second in seconds
            for word in reference_line(second).split()
        ]
        segments = [{"start": 0.0, "end": NUM_SECONDS, "text": " ".join(w["word"] for w in words), "words": words}]
        (folder / "videos" / f"{seed}.json").write_text(json.dumps({"segments": segments}))
    selection = SelectionConfig(chunk_turns=8, overlap_turns=4, min_words_per_s=0.0)
    prepare([folder / "videos"], folder / "prepared", PrepareConfig(held_out_fraction=0.34), selection)
    return folder / "prepared"


@pytest.fixture
def train_here(prepared, run_command):
    """Run the verb in this process and in an empty folder; returns exit code, standard output and standard error."""
    return partial(run_command, "train")


def history_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_adapters_are_trained_logged_merged_and_stream(prepared, train_here, tmp_path, caplog, run_command):
    caplog.set_level("INFO")
    code, _, error = train_here(
        prepared,
        *SMALL,
        "folder=run",
        "lora=default",
        "logger=wandb",
        "logger.mode=offline",
        "vision.cache_folder=vision cache",
        "held_out_stream.every_steps=2",
        "held_out_stream.max_turns=3",
    )
    assert code == 0, error
    losses = [entry for entry in history_of(tmp_path / "run" / "checkpoint-2") if "loss" in entry]
    assert len(losses) == 2
    for entry in losses:
        assert entry["tokens_per_s"] > 0 and entry["video_s_per_s"] > 0 and 0 <= entry["data_wait"] <= 1
        assert entry["vision/encoded_s"] > 0
    assert list((tmp_path / "vision cache").rglob("*.safetensors"))
    messages = [record.getMessage() for record in caplog.records]
    (streamed,) = (text for text in messages if text.startswith("held-out stream after step 2"))
    assert len(streamed.splitlines()) == 3 + 3
    (log,) = (tmp_path / "run" / "wandb").rglob("*.wandb")
    assert b"held_out/commentary" in log.read_bytes() and b"train/tokens_per_s" in log.read_bytes()
    for folder in ("checkpoint-1", "model"):
        assert run_command("merge", tmp_path / "run" / folder, f"target={folder}")[0] == 0
    session = StreamingSession.from_pretrained(tmp_path / "model", device="cpu")
    assert session.cache_config.text_window_tokens == 64
    assert session.step(render(next(Match(11).seconds()), size=112)).num_tokens > 0


def test_held_out_streams_change_no_loss(prepared, train_here, tmp_path):
    losses = []
    for folder, every in (("alone", 0), ("streamed", 1)):
        words = [*SMALL, f"folder={folder}", f"held_out_stream.every_steps={every}", "held_out_stream.max_turns=2"]
        assert train_here(prepared, *words)[0] == 0
        losses.append([entry["loss"] for entry in history_of(tmp_path / folder / "checkpoint-2") if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        ("logger=wandb logger.mode=maybe", "logger.mode=maybe is unknown"),
        ("lora=default lora.rank=0", "lora.rank=0"),
        ("held_out_stream.every_steps=1 fit.fsdp=full_shard", "cannot be streamed during training"),
        ("held_out_stream.every_steps=1 held_out_stream.recording=absent", "absent is not in"),
        ("lora=default lora.target_modules=[qproj]", "qproj, which the language model does not have"),
    ],
)
def test_impossible_options_are_reported_in_one_line(prepared, train_here, words, message):
    code, _, error = train_here(prepared, *SMALL, "folder=run", *words.split())
    assert code == 2
    assert message in error and len(error.strip().splitlines()) == 1
