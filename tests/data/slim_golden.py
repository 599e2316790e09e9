"""Make the small copy of the recorded reference runs that the repository contains.

    python tests/data/slim_golden.py ../shared/golden tests/data/golden

The full recording is a folder of runs (X.json and X.npz), the video frames, and the tiny model with its vocabulary of
151936 tokens, of which a few thousand occur. The copy has the same format and the same tests read it:

* The tokens that occur are renumbered from 0, in the order of their old ids: those of prompts and replies, those among
  the recorded best logits, and every 997th (their logits are recorded too). Every file has the new ids only.
* The model keeps those rows of its (tied) embedding, and its tokenizer those tokens and the merges among them, so that
  the recorded prompts are tokenized alike. Greedy choices do not change: each was the best of the full vocabulary.
* `vocabulary.npz` holds `full_ids` (new id -> old id) and `strided_ids`, the new ids of the old ids 0, 997, 1994, ...
  to which `prefill_logits_strided` refers; in a full folder these are `arange(0, vocabulary, 997)`.
* Norms and origins of the cached tokens are kept for a few rounds of each run; full keys and values are not.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

RUNS = ("A_default", "B_small", "E_append", "F_recompute", "H_no_evict")
FULL_PASS = "hf_full_pass_A"
ID_ARRAYS = ("input_ids", "prefix_ids", "generated_ids", "prefill_top_ids", "step_top_ids", "top_ids")
DROPPED_ARRAYS = ("kv_full", "kv_stats", "cache_position", "prefill_logits_stats", "step_chosen_logit")
CACHE_ARRAYS = ("k_norm", "v_norm", "kv_meta")
CACHE_ROUNDS = (1, 2, 4, 5, 12, 16, 17, 23, 39, 59)
META_ID_COLUMN = 2
LOGIT_STRIDE = 997
NUM_BYTE_TOKENS = 256
SILENCE = "Ġ..."
EMBEDDING = "model.embed_tokens.weight"

Arrays = dict[str, np.ndarray]
Merges = list[tuple[str, ...]]


def slim_golden(full: Path, slim: Path):
    """Write the slim copy of the recording ``full`` to the folder ``slim``, replacing it."""
    shutil.rmtree(slim, ignore_errors=True)
    (slim / "model").mkdir(parents=True)
    runs = {name: dict(np.load(full / f"{name}.npz")) for name in (*RUNS, FULL_PASS)}
    vocab = read_json(full / "model" / "vocab.json")
    header, *lines = (full / "model" / "merges.txt").read_text("utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines]
    special = [
        int(token_id) for token_id in read_json(full / "model" / "tokenizer_config.json")["added_tokens_decoder"]
    ]
    num_full_ids = read_json(full / "model" / "config.json")["vocab_size"]

    strided = np.arange(0, num_full_ids, LOGIT_STRIDE)
    full_ids = np.union1d([*special, *strided], kept_ids(runs, vocab, merges))
    slim_ids = np.full(num_full_ids, -1, dtype=np.int64)
    slim_ids[full_ids] = np.arange(len(full_ids))

    for name, arrays in runs.items():
        np.savez_compressed(slim / f"{name}.npz", **slim_arrays(arrays, slim_ids))
    for name in RUNS:
        write_json(slim / f"{name}.json", renumber_json(read_json(full / f"{name}.json"), slim_ids))
    np.savez_compressed(
        slim / "vocabulary.npz",
        full_ids=full_ids.astype(np.int32),
        strided_ids=slim_ids[strided].astype(np.int32),
    )
    slim_model(full / "model", slim / "model", full_ids, slim_ids)
    slim_tokenizer(slim / "model", vocab, header, merges, slim_ids)
    for name in ("frames.npz", "preprocess.npz"):
        shutil.copyfile(full / name, slim / name)


def kept_ids(runs: dict[str, Arrays], vocab: dict[str, int], merges: Merges) -> np.ndarray:
    """Return the ids that occur, and those that the tokenizer needs to build the recorded prompts."""
    occurring = [values for arrays in runs.values() for key, values in arrays.items() if last_name(key) in ID_ARRAYS]
    tokens = {token_id: token for token, token_id in vocab.items()}
    prompted = np.unique(np.concatenate([ids for name in RUNS for ids in prompts(runs[name])]))
    spelled = {tokens[token_id] for token_id in prompted if token_id in tokens} | {SILENCE}
    built = [vocab[part] for part in merge_closure(spelled, merges)]
    return np.unique(np.concatenate([range(NUM_BYTE_TOKENS), built, *map(np.ravel, occurring)])).astype(np.int64)


def prompts(arrays: Arrays) -> Iterable[np.ndarray]:
    """Yield the input ids of each round, without those kept from earlier rounds."""
    for key in (key for key in arrays if last_name(key) == "input_ids"):
        yield arrays[key][len(arrays[key.replace("input_ids", "prefix_ids")]) :]


def merge_closure(tokens: Iterable[str], merges: Merges) -> set[str]:
    """Return the tokens and all intermediate tokens of byte-pair encoding."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    closure = set()
    for token in tokens:
        parts = list(token)
        while len(parts) > 1:
            best = min(range(len(parts) - 1), key=lambda i: ranks.get((parts[i], parts[i + 1]), len(ranks)))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
            closure.add(parts[best])
        closure.add(token)
    return closure


def slim_arrays(arrays: Arrays, slim_ids: np.ndarray) -> Arrays:
    """Return the arrays that the tests read, with new ids."""
    kept = {}
    for key, values in arrays.items():
        name = last_name(key)
        if name in DROPPED_ARRAYS or (name in CACHE_ARRAYS and int(key[1:4]) not in CACHE_ROUNDS):
            continue
        if name in ID_ARRAYS:
            values = renumber(values, slim_ids)
        elif name == "kv_meta":
            values = values.copy()
            values[:, META_ID_COLUMN] = renumber(values[:, META_ID_COLUMN].astype(np.int64), slim_ids)
        kept[key] = values
    return kept


def slim_model(full: Path, slim: Path, full_ids: np.ndarray, slim_ids: np.ndarray):
    """Write the weights with the kept rows of the embedding, and the configuration with the new ids."""
    weights = load_file(full / "model.safetensors")
    weights[EMBEDDING] = np.ascontiguousarray(weights[EMBEDDING][full_ids])
    save_file(weights, slim / "model.safetensors", metadata={"format": "pt"})
    config = renumber_json(read_json(full / "config.json"), slim_ids)
    write_json(slim / "config.json", {**config, "vocab_size": len(full_ids)})
    write_json(slim / "generation_config.json", renumber_json(read_json(full / "generation_config.json"), slim_ids))
    tokenizer_config = read_json(full / "tokenizer_config.json")
    tokenizer_config["added_tokens_decoder"] = {
        str(slim_ids[int(token_id)]): token for token_id, token in tokenizer_config["added_tokens_decoder"].items()
    }
    write_json(slim / "tokenizer_config.json", tokenizer_config)
    for name in ("preprocessor_config.json", "chat_template.json"):
        shutil.copyfile(full / name, slim / name)


def slim_tokenizer(slim: Path, vocab: dict[str, int], header: str, merges: Merges, slim_ids: np.ndarray):
    """Write the vocabulary of the kept tokens and the merges among them."""
    kept = {token: int(slim_ids[token_id]) for token, token_id in vocab.items() if slim_ids[token_id] >= 0}
    write_json(slim / "vocab.json", kept)
    lines = [" ".join(pair) for pair in merges if {*pair, "".join(pair)} <= kept.keys()]
    (slim / "merges.txt").write_text("\n".join([header, *lines]) + "\n", "utf-8")


def renumber_json(value: Any, slim_ids: np.ndarray) -> Any:
    """Return a JSON value with new ids under every key that names ids."""
    if isinstance(value, list):
        return [renumber_json(item, slim_ids) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: renumber(np.asarray(item), slim_ids).tolist() if names_ids(key) else renumber_json(item, slim_ids)
        for key, item in value.items()
    }


def names_ids(key: str) -> bool:
    """Return True if the values of a JSON key are token ids."""
    return key.endswith("token_id") or key == "generated_ids"


def renumber(full: np.ndarray, slim_ids: np.ndarray) -> np.ndarray:
    """Return the new ids of old ones; all of them must be kept."""
    slim = slim_ids[full].astype(np.int32)
    assert (slim >= 0).all(), "an id occurs that is not kept"
    return slim


def last_name(key: str) -> str:
    """Return the name of an array without the prefix of its round."""
    return key.split("/")[-1]


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, value: Any):
    """Write a JSON file without whitespace."""
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", type=Path, help="folder of the full recording")
    parser.add_argument("slim", type=Path, help="folder to write")
    slim_golden(**vars(parser.parse_args()))
