"""What `sizing` computes from a config.json is what an engine allocates for the loaded model."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from streamingvlm.cache.kv_cache import bytes_per_token
from streamingvlm.cli.architectures import architecture_named
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.sizing import StreamSizing, tokens_per_s
from streamingvlm.inference.stream_config import StreamConfig
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model, load_without_weights
from streamingvlm.pitch.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
NUM_STREAMS = 3
SMALL = {"cache": {"vision_window_s": 8.0}, "video": {"max_pixels": 100_000}}


def allocated_bytes(model, settings, **texts):
    """The key/value pool of an engine with NUM_STREAMS streams."""
    with Engine(model, num_slots=NUM_STREAMS, cache_dtype=settings["cache"].get("dtype")) as engine:
        streams = [engine.add_stream(StreamConfig.resolve(model, **settings), **texts) for _ in range(NUM_STREAMS)]
        pool = engine.runner.pool
        assert len(streams) == NUM_STREAMS
        return sum(buffer.untyped_storage().nbytes() for buffer in (pool.keys, pool.values, pool.rotated))


@pytest.mark.parametrize("cache_dtype", [None, "fp8"])
@pytest.mark.parametrize("name", [*FAMILIES, "pitch"])
def test_the_sizes_are_those_that_an_engine_allocates(tiny_checkpoint, name, cache_dtype):
    folder = name if name == "pitch" else tiny_checkpoint(name)
    settings = {**SMALL, "cache": {**SMALL["cache"], "dtype": cache_dtype}}
    texts = {"query": "Who has the ball?", "previous_text": "kick-off"}
    model = load_model(folder, device="cpu", cpu_kernels=False)
    structure = load_without_weights(folder, device="cpu")
    sizing = StreamSizing.of(StreamConfig.resolve(structure, **settings), *texts.values())
    assert sizing.cache_bytes(NUM_STREAMS) == pytest.approx(allocated_bytes(model, settings, **texts), rel=0.01)
    assert sizing.weight_bytes == sum(weight.nbytes for weight in model.hf.parameters())
    assert sizing.num_parameters == sum(weight.numel() for weight in model.hf.parameters())


def test_as_many_streams_fit_as_an_engine_with_that_memory_opens(tiny_checkpoint):
    model = load_model(tiny_checkpoint(), device="cpu")
    config = StreamConfig.resolve(model, **SMALL)
    sizing = StreamSizing.of(config)
    memory_bytes = sizing.weight_bytes + sizing.cache_bytes(NUM_STREAMS)
    assert sizing.num_fitting(memory_bytes) == NUM_STREAMS
    assert sizing.num_fitting(memory_bytes - 1) == NUM_STREAMS - 1
    assert sizing.num_fitting(0) == 0


def test_a_cache_without_a_bound_has_no_size(tiny_checkpoint):
    config = StreamConfig.resolve(load_without_weights(tiny_checkpoint(), device="cpu"), cache={"policy": "full"})
    sizing = StreamSizing.of(config)
    assert (sizing.tokens, sizing.cache_bytes(2), sizing.num_fitting(10**12)) == (None, None, None)


def test_a_config_json_is_enough(tiny_checkpoint, tmp_path):
    shutil.copy(tiny_checkpoint() / "config.json", tmp_path)
    model = load_without_weights(tmp_path, device="cpu", tokenizer=build_tokenizer())
    whole = load_without_weights(tiny_checkpoint(), device="cpu")
    assert {weight.device.type for weight in model.hf.parameters()} == {"meta"}
    alone, of_checkpoint = (StreamSizing.of(StreamConfig.resolve(one)) for one in (model, whole))
    assert alone.num_parameters == of_checkpoint.num_parameters
    assert alone.tokens == pytest.approx(of_checkpoint.tokens, rel=0.03)  # another tokenizer
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model.family.model_type


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_files_beside_a_checkpoint_change_its_size_as_they_change_its_streams(
    model_type, tiny_checkpoint, tmp_path
):
    folder = shutil.copytree(tiny_checkpoint(model_type), tmp_path / "tuned")
    limits = {"shortest_edge": 50_000, "longest_edge": 200_000}
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"size": limits}))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 70}))
    model, structure = load_model(folder, device="cpu"), load_without_weights(folder, device="cpu")
    assert structure.stream_defaults == model.stream_defaults
    stock = load_without_weights(tiny_checkpoint(model_type), device="cpu")
    tuned, stock = (StreamSizing.of(StreamConfig.resolve(one)) for one in (structure, stock))
    assert tuned.tokens != stock.tokens
    assert tuned.cache_bytes(NUM_STREAMS) == pytest.approx(allocated_bytes(model, {"cache": {}}), rel=0.01)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_tokens_of_a_second_are_those_of_its_frames(tiny_checkpoint, model_type):
    model = load_model(tiny_checkpoint(model_type), device="cpu")
    config = StreamConfig.resolve(model)
    frames = torch.zeros(config.video.num_frames, 3, 360, 640, dtype=torch.uint8)
    assert tokens_per_s(config, 360, 640) == len(config.vision_encoder.features(frames).embeddings)


def test_the_page_has_the_bytes_of_a_token():
    page = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
    for row, architecture, dtype in (
        ("shape of Qwen2.5-VL-3B | bfloat16", "3b", torch.bfloat16),
        ("shape of Qwen2.5-VL-7B | bfloat16", "7b", torch.bfloat16),
        ("embedded model | float32", None, torch.float32),
    ):
        text_config = (
            load_without_weights("pitch").hf.config.text_config
            if architecture is None
            else SimpleNamespace(**architecture_named(architecture)["text_config"])
        )
        assert f"| {row} | {bytes_per_token(text_config, dtype):,} |" in page
