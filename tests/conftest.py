"""Fixtures that many tests share: tiny random checkpoints of each family, and recorded runs of the released code."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# A machine that has other work to do stalls for seconds: how long an example takes says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ROOT = Path(__file__).resolve().parents[1]
CARRIED_GOLDEN = ROOT / "tests" / "data" / "golden"
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
NUM_TOKENS = 320
TOKENIZER_TEXT = (
    "system user assistant previous text You are a helpful assistant. Time=0.0-1.0s says the ball is in ..."
)

_TEXT = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
_VISION = {"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
_QWEN2_VISION = {"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
_QWEN3_ROPE = {**_TEXT["rope_parameters"], "mrope_interleaved": True}
TINY = {
    "qwen2_vl": {"text_config": _TEXT, "vision_config": _QWEN2_VISION},
    "qwen2_5_vl": {
        "text_config": _TEXT,
        "vision_config": {**_VISION, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2},
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "num_hidden_layers": 3, "rope_parameters": _QWEN3_ROPE},
        "vision_config": {**_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
    },
}


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Build a byte-level tokenizer of a few tokens, with the chat and vision markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TOKENIZER_TEXT], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    return fast


def save_tiny_checkpoint(folder: Path, model_type: str) -> Path:
    """Write a random checkpoint of a family, about 100,000 parameters, in the layout of Hugging Face."""
    tokenizer = tiny_tokenizer()
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }
    text_config = {**TINY[model_type]["text_config"], "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    parts = {**TINY[model_type], "text_config": text_config}
    config = transformers.AutoConfig.for_model(model_type, **parts, **ids, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def frames(seed: int, num_frames: int = 2, height: int = 56, width: int = 84) -> torch.Tensor:
    """Draw random frames, uint8 [F, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny random checkpoint by its model type; it is shared, so tests must not write there."""
    folders: dict[str, Path] = {}

    def checkpoint(model_type: str = "qwen2_5_vl") -> Path:
        if model_type not in folders:
            folders[model_type] = save_tiny_checkpoint(tmp_path_factory.mktemp(model_type), model_type)
        return folders[model_type]

    return checkpoint


@pytest.fixture
def mean_loss() -> Callable[[torch.nn.Module, dict], torch.Tensor]:
    """Give the mean loss of a commentator over a collated batch; the trainer's bookkeeping is none of its business."""

    def loss(module, batch):
        inputs = {name: value for name, value in batch.items() if name not in ("names", "num_asked", "weights")}
        return module(**inputs)["losses"].mean()

    return loss


def full_golden_folder() -> Path | None:
    """Return the full recording where it is beside the checkout."""
    beside = (ROOT / "shared" / "golden", ROOT.parent / "shared" / "golden")
    return next((folder for folder in beside if folder.is_dir()), None)


def golden_folders() -> list[Path]:
    """List the folders of recorded runs: the carried one, and another if it is named or the full one is at hand."""
    named = os.environ.get("STREAMINGVLM_GOLDEN")
    other = Path(named) if named else full_golden_folder()
    return [CARRIED_GOLDEN, other] if other else [CARRIED_GOLDEN]


@pytest.fixture(scope="session", params=golden_folders(), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def golden(request: pytest.FixtureRequest) -> Path:
    """Give each folder of recorded runs in turn."""
    return request.param


@pytest.fixture(scope="session")
def carried_golden() -> Path:
    """Give the recorded runs that the tests carry with them."""
    return CARRIED_GOLDEN


@pytest.fixture(scope="session")
def full_golden() -> Path | None:
    """Give the full recording where it is beside the checkout, else None."""
    return full_golden_folder()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to run in; Hydra's switch for errors is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    return tmp_path


@pytest.fixture
def run_script(folder, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a script, given as its module, in this process; returns exit code, standard output and standard error."""

    def run_with(script: ModuleType, *words):
        import command_line

        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *map(str, words)])
        code = 0
        try:
            command_line.run(script.main, script.COMMAND_LINE)
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run_with
