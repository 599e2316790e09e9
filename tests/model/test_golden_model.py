"""The checkpoint of the recorded runs: its flat config.json, weights and tokenizer, against what was recorded."""

import json
import runpy

import numpy as np
import pytest
import torch

from streamingvlm.model.loading import load_model

LOGIT_STRIDE = 997
MAX_CARRIED_BYTES = 10 * 10**6


@pytest.fixture(scope="module")
def model(golden):
    return load_model(golden / "model", device="cpu")


def strided_ids(golden, num_ids):
    vocabulary = golden / "vocabulary.npz"
    return np.load(vocabulary)["strided_ids"] if vocabulary.exists() else np.arange(0, num_ids, LOGIT_STRIDE)


def test_the_flat_config_is_read(model):
    text = model.hf.config.text_config
    assert text.rope_parameters["rope_type"] == "default"
    assert text.rope_parameters["rope_theta"] == 1e6
    assert list(text.rope_parameters["mrope_section"]) == [2, 3, 3]
    assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (3, 4, 2)
    assert model.lm_head.weight is model.text_model.embed_tokens.weight
    assert model.family.tokens_per_second == 2


@torch.no_grad()
def test_one_full_pass_gives_the_recorded_logits(golden, model):
    if not (golden / "hf_full_pass_A.npz").exists():
        pytest.skip(f"{golden} holds no recorded full pass")
    recorded = np.load(golden / "hf_full_pass_A.npz")
    input_ids = torch.from_numpy(recorded["input_ids"]).long()
    frames = torch.from_numpy(np.load(golden / "frames.npz")["frames"])[: 2 * len(recorded["prompt_end"])]
    embeddings = model.text_model.embed_tokens(input_ids)
    embeddings[input_ids == model.hf.config.video_token_id] = model.vision_encoder(min_pixels=1).features(frames)[0]
    positions = torch.from_numpy(recorded["position_ids"])[:, None]
    hidden = model.text_model(inputs_embeds=embeddings[None], position_ids=positions).last_hidden_state[0]
    logits = model.lm_head(hidden[torch.from_numpy(recorded["prompt_end"]).long()]).numpy()

    best = np.take_along_axis(logits, recorded["top_ids"].astype(np.int64), axis=1)
    np.testing.assert_allclose(best, recorded["top_logits"], atol=1e-4)
    np.testing.assert_allclose(logits[:, strided_ids(golden, logits.shape[1])], recorded["logits_strided"], atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(axis=1), recorded["top_ids"][:, 0])


def test_the_recorded_prompts_are_cut_into_the_recorded_tokens(golden, model):
    num_rounds = 0
    for path in sorted(golden.glob("*.json")):
        run = np.load(path.with_suffix(".npz"))
        for row in json.loads(path.read_text("utf-8"))["rounds"]:
            arrays = f"r{row['round']:03d}"
            new_ids = run[f"{arrays}/input_ids"][len(run[f"{arrays}/prefix_ids"]) :]
            num_vision = int((new_ids == model.hf.config.video_token_id).sum())
            text = row["text"].replace("<|video_pad|>", "<|video_pad|>" * num_vision)
            assert model.tokenizer.encode(text) == new_ids.tolist(), f"{path.stem} round {row['round']}"
            num_rounds += 1
    assert num_rounds > 0


def test_the_carried_recording_is_small_and_says_what_it_kept(carried_golden):
    num_bytes = sum(path.stat().st_size for path in carried_golden.rglob("*") if path.is_file())
    assert num_bytes < MAX_CARRIED_BYTES
    vocabulary = np.load(carried_golden / "vocabulary.npz")
    full_ids = vocabulary["full_ids"]
    assert (np.diff(full_ids) > 0).all()
    np.testing.assert_array_equal(full_ids[vocabulary["strided_ids"]], np.arange(0, 151936, LOGIT_STRIDE))


def test_the_carried_recording_is_what_its_script_makes(carried_golden, full_golden, tmp_path):
    if full_golden is None:
        pytest.skip("the full recording is not beside the checkout")
    script = runpy.run_path(str(carried_golden.parent / "slim_golden.py"))
    script["slim_golden"](full_golden, tmp_path / "slim")
    made = {path.relative_to(tmp_path / "slim") for path in (tmp_path / "slim").rglob("*")}
    assert made == {path.relative_to(carried_golden) for path in carried_golden.rglob("*")}
    for name in sorted(made):
        path, carried = tmp_path / "slim" / name, carried_golden / name
        if path.suffix == ".npz":
            arrays, expected = np.load(path), np.load(carried)
            assert arrays.files == expected.files
            assert all(np.array_equal(arrays[key], expected[key]) for key in arrays.files)
        elif path.is_file():
            assert path.read_bytes() == carried.read_bytes(), name
