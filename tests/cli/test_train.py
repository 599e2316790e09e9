"""``streamingvlm train`` fine-tunes a checkpoint on prepared data, and reports bad input before it trains."""

import json
import shutil

import pytest
import transformers
from prepared_pitch import write_prepared

from streamingvlm import StreamingSession
from streamingvlm.cli.main import run
from streamingvlm.cli.verbs import VERBS
from streamingvlm.pitch import Match, render
from streamingvlm.training.checkpoints import checkpoints

FEW = [
    "device=cpu",
    "fit.num_epochs=null",
    "fit.num_steps=2",
    "fit.batch_size=2",
    "fit.save_every_steps=1",
    "fit.evaluate_every_steps=2",
    "fit.log_every_steps=1",
    "fit.num_workers=1",
    "fit.pack_tokens=900",
    "fit.bf16=false",
    "video.min_pixels=3136",
    "video.max_pixels=7056",
    "text_window_tokens=64",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("data"), num_matches=2, duration_s=12)


def call(*words):
    """Run the verb with these words."""
    run(VERBS["train"], [*map(str, words)])


def test_a_checkpoint_is_fine_tuned_and_streams_with_its_settings(data, tiny_checkpoint, tmp_path, capsys):
    words = [data, f"model={tiny_checkpoint()}", f"folder={tmp_path / 'run'}", *FEW]
    call(*words, f"vision.cache_folder={tmp_path / 'cache'}")
    history = json.loads((checkpoints(tmp_path / "run")[-1] / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2]
    session = StreamingSession.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert (session.cache_config.text_sink_tokens, session.cache_config.text_window_tokens) == (512, 64)
    assert (session.video_config.max_pixels, session.video_config.turn_format) == (7056, "time-range-1")
    assert session.step(render(next(Match(0).seconds()))).num_tokens > 0
    call(*words, "resume=true")
    other_data = write_prepared(tmp_path / "other", num_matches=2, duration_s=12, seed=5)
    for change, named in (
        ({"data": f"data={other_data}"}, "digest of the data"),
        ({"video.max_pixels": "video.max_pixels=9000"}, "video.max_pixels=7056, not 9000"),
        ({"text_window_tokens": "text_window_tokens=32"}, "text_window_tokens=64, not 32"),
        ({"lora": "lora=default"}, "lora=None, not rank 16"),
    ):
        given = {word.split("=")[0]: word for word in (f"data={data}", *words[1:])} | change
        with pytest.raises(SystemExit):
            call(*given.values(), "resume=true")
        assert named in capsys.readouterr().err


MEAN = [0.4, 0.5, 0.6]


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def base_with_processors(request, tiny_checkpoint, tmp_path):
    """A tiny checkpoint with the processor files that a release has."""
    base = shutil.copytree(tiny_checkpoint(request.param), tmp_path / "base")
    transformers.Qwen2VLImageProcessor(image_mean=MEAN).save_pretrained(base)
    kind = "Qwen3VL" if request.param == "qwen3_vl" else "Qwen2VL"
    own = {"image_mean": MEAN, "video_processor_type": f"{kind}VideoProcessor"}
    (base / "video_preprocessor_config.json").write_text(json.dumps(own))
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return base


def test_other_engines_load_what_training_and_merging_write(data, base_with_processors, tmp_path):
    words = [data, f"model={base_with_processors}", *FEW, "fit.num_steps=1"]
    call(*words, f"folder={tmp_path / 'lora'}", "lora=default")
    run(VERBS["merge"], [str(tmp_path / "lora" / "model"), f"target={tmp_path / 'merged'}"])
    call(*words, f"folder={tmp_path / 'whole'}")
    for folder in (tmp_path / "merged", tmp_path / "whole" / "model"):
        assert list(transformers.AutoImageProcessor.from_pretrained(folder).image_mean) == MEAN
        assert json.loads((folder / "video_preprocessor_config.json").read_text())["image_mean"] == MEAN
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "goal"}], tokenize=False) == "goal"
        assert transformers.AutoModelForImageTextToText.from_pretrained(folder).config.model_type
        if transformers.utils.is_torchvision_available():  # the video processor needs it
            assert list(transformers.AutoProcessor.from_pretrained(folder).video_processor.image_mean) == MEAN


def test_a_damaged_video_is_skipped_and_named_or_ends_the_run(tiny_checkpoint, tmp_path, capsys, caplog):
    data = write_prepared(tmp_path / "data", num_matches=3, duration_s=12)
    video = tmp_path / "data" / "videos" / "0.mp4"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    words = [data, f"model={tiny_checkpoint()}", *FEW, "fit.batch_size=4", "fit.pack_tokens=0"]
    with pytest.raises(SystemExit):
        call(*words, f"folder={tmp_path / 'refused'}")
    assert "cannot be read, more than max_bad_fraction=0.01" in capsys.readouterr().err
    call(*words, f"folder={tmp_path / 'run'}", "fit.max_bad_fraction=0.5")
    assert "2 of 4 examples so far" in caplog.text and "0.mp4" in caplog.text
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["give data=FOLDER"]),
        (["data=nowhere"], ["nowhere", "streamingvlm prepare"]),
        (["model=nowhere/at/all"], ["no model folder nowhere/at/all"]),
        (["model=MODEL_OF_ANOTHER_KIND"], ["llama", "give one of qwen2_vl"]),
        (["folder=FULL"], ["FULL is not empty", "resume=true"]),
        (["video_root=FULL"], ["2 of 2 videos", "0.mp4", "video_root=FOLDER"]),
        (["device=zz"], ["device=zz is unknown", "cpu"]),
        (["fit.lr=1"], ["fit.lr is unknown", "learning_rate"]),
        (["fit.batch_size=0"], ["batch_size=0"]),
        (["experiment=stage3"], ["experiment=stage3 is unknown", "stage1"]),
        (["fit.fsdp=full_shard"], ["fsdp=full_shard needs two or more processes"]),
        (["fit.pack_tokens=50"], ["longer than pack_tokens=50"]),
        (["fit.keep_checkpoints=1000000000000"], ["GB free", "free some space"]),
        (["fit.liger=true"], ["streamingvlm[liger]"]),
        (["experiment=pitch", "device=zz"], ["device=zz is unknown"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_reported_in_one_line(data, tiny_checkpoint, tmp_path, monkeypatch, capsys, words, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "notes.txt").touch()
    (tmp_path / "MODEL_OF_ANOTHER_KIND").mkdir()
    (tmp_path / "MODEL_OF_ANOTHER_KIND" / "config.json").write_text('{"model_type": "llama"}')
    given = {"data": str(data), "model": str(tiny_checkpoint()), "folder": "run"} if words else {}
    given.update(dict(word.split("=", 1) for word in words))
    with pytest.raises(SystemExit) as exit_:
        call(
            *[f"{name}={value}" for name, value in given.items()],
            *[few for few in FEW if few.split("=")[0] not in given],
        )
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("streamingvlm train: ") and error.count("\n") == 1
    assert [part for part in parts if part not in error] == []
    assert not (tmp_path / "run" / "model").exists()
