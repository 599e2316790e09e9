"""Fine-tuning of a checkpoint on prepared data; both are checked before training begins."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from streamingvlm.config import CacheConfig, VideoConfig, resolve
from streamingvlm.data.chunks import CachedTokenizer
from streamingvlm.data.manifest import read_manifest
from streamingvlm.data.prepared import PreparedData
from streamingvlm.errors import ConfigError
from streamingvlm.model.attention import has_flash_attn
from streamingvlm.model.checkpoint import find_checkpoint
from streamingvlm.model.loading import StreamingModel, device_named, load_model
from streamingvlm.model.stream_settings import stream_settings
from streamingvlm.training.adapters import base_fingerprint, lora_shape
from streamingvlm.training.checkpoints import check_free_space, check_run_folder
from streamingvlm.training.collate import Collate, EncodeVision, with_pixels
from streamingvlm.training.feature_store import FeatureStore
from streamingvlm.training.prepared_chunks import ChunkDataset, ChunkSettings, check_videos_exist
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.throughput import ThroughputMeter
from streamingvlm.training.trainer import fit_
from streamingvlm.training.vision_cache import CachedVision, VisionReader
from streamingvlm.turns import TurnFormat

log = logging.getLogger(__name__)

_ADAM_BYTES_PER_WEIGHT = 8
_DECIDING_VIDEO = ("fps", "turn_s", "min_pixels", "max_pixels", "resize", "turn_format")
_DECIDING_TEXT = ("text_sink_tokens", "text_window_tokens", "text_step_tokens")
_PAD = "<|endoftext|>"
_TRAINED_TOWER = "trained tower"  # replaces the digest of its weights, which change with every step


@dataclass(frozen=True)
class VisionSettings:
    """Training of the vision tower, or else the cache of its features.

    cache_folder: on disk, shared by runs and processes; None caches up to ``memory_gb`` in memory only.
    """

    train: bool = False
    cache_folder: str | None = None
    cache_gb: float = 100.0
    memory_gb: float = 0.0

    def __post_init__(self):
        for name in ("cache_gb", "memory_gb"):
            if getattr(self, name) < 0:
                raise ConfigError(f"vision.{name}={getattr(self, name)} is below 0; give 0 or more")

    def store(self) -> FeatureStore:
        """Open the feature store."""
        sizes = {"max_bytes": int(self.cache_gb * 1e9), "max_memory_bytes": int(self.memory_gb * 1e9)}
        return FeatureStore(self.cache_folder, **sizes)


@dataclass(frozen=True, kw_only=True)
class FineTuningSettings:
    """Settings of a fine-tuning run.

    data: a folder of prepared data; video_root: base folder of its videos, None: as when they were prepared.
    model: the checkpoint to fine-tune. weights_dtype: of the weights during training; None: float32, but bfloat16 for
        LoRA on a GPU.
    folder: for checkpoints, and for the trained model unless ``target`` is given.
    resume: continue from the latest complete checkpoint in the folder.
    video: settings of `VideoConfig` that override those of the checkpoint.
    text_sink_tokens, text_window_tokens, text_step_tokens: limits of the previous text; None: those of the checkpoint.
    has_previous_text: False trains without the text before a chunk.
    max_held_out: most chunks used for the held-out loss.
    """

    data: str | Path | None
    model: str | Path
    folder: str | Path
    fit: FitSettings
    vision: VisionSettings = field(default_factory=VisionSettings)
    video: Mapping[str, Any] = field(default_factory=dict)
    video_root: str | Path | None = None
    text_sink_tokens: int | None = None
    text_window_tokens: int | None = None
    text_step_tokens: int | None = None
    has_previous_text: bool = True
    target: str | Path | None = None
    resume: bool = False
    seed: int = 0
    device: str | None = None
    weights_dtype: str | None = None
    max_held_out: int = 256


class FineTuning:
    """A fine-tuning run. The constructor checks all that can be checked without loading the model.

    adapt: inserts adapters into the loaded model and returns the model to save, as `with_lora_` does; None trains all
        weights of the language model.
    load: loads a checkpoint like ``model.loading.load_model``; QLoRA gives one that quantizes.

    Raises ConfigError, DataError and CheckpointError.
    """

    def __init__(
        self,
        settings: FineTuningSettings,
        *,
        adapt: Callable[[StreamingModel], nn.Module] | None = None,
        load: Callable[..., StreamingModel] = load_model,
    ):
        read_manifest(settings.data)
        self.settings = settings
        self.adapt = adapt
        self.load = load
        self.device = _process_device(device_named(settings.device))
        self.folder = Path(settings.folder)
        self.target = Path(settings.target or self.folder / "model")
        check_run_folder(self.folder, resume=settings.resume)
        find_checkpoint(settings.model)
        self.prepared = PreparedData.open(settings.data)
        self.video_root = Path(settings.video_root or self.prepared.video_root)
        check_videos_exist(self.prepared, self.video_root, settings.fit.max_bad_fraction)

    @cached_property
    def model(self) -> StreamingModel:
        """The loaded checkpoint, on its device; if its weights will be sharded, only the tower is moved there."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # Trainer uses the current device
        device = torch.device("cpu") if self._is_sharded else self.device
        model = self.load(self.settings.model, device=device, dtype=self._dtype, attention=self._attention)
        model.hf.model.visual.to(self.device)
        return model

    @property
    def _is_sharded(self) -> bool:
        return self.settings.fit.fsdp != "off" or self.settings.fit.deepspeed is not None

    @property
    def _dtype(self) -> str:
        """Trained weights are kept in float32; the frozen weights under adapters may be in bfloat16."""
        trains_adapters_alone = self.adapt is not None and not self.settings.vision.train
        is_frozen = trains_adapters_alone and self.device.type == "cuda" and self.settings.fit.bf16
        return self.settings.weights_dtype or ("bfloat16" if is_frozen else "float32")

    @property
    def _attention(self) -> str:
        fit = self.settings.fit
        return fit.attention or ("flash_attention_2" if self._has_fast_attention else "sdpa")

    @property
    def _has_fast_attention(self) -> bool:
        return self.device.type == "cuda" and self.settings.fit.bf16 and has_flash_attn()

    @cached_property
    def video(self) -> VideoConfig:
        """The video settings of the model."""
        return resolve(VideoConfig, self.settings.video, self.model.stream_defaults)

    @cached_property
    def cache(self) -> CacheConfig:
        """The text limits of the model's cache."""
        given = {name: getattr(self.settings, name) for name in _DECIDING_TEXT}
        return resolve(CacheConfig, given, self.model.stream_defaults)

    @cached_property
    def turn_format(self) -> TurnFormat:
        """The turn format of the model."""
        return TurnFormat.of(CachedTokenizer(self.model.tokenizer), self.model.family, self.video)

    @cached_property
    def module(self) -> SFTModel:
        """The module to train; its config carries the stream settings that inference has to use."""
        settings = stream_settings(self.cache, self.video, turn_format=self.turn_format.name)
        self.model.hf.config.streamingvlm = {**self.model.stream_defaults, **settings}
        full_model = self.adapt(self.model) if self.adapt else self.model.hf
        return SFTModel(full_model, train_vision=self.settings.vision.train)

    @cached_property
    def vision(self) -> CachedVision | None:
        """The frozen tower with its feature cache; None if the tower is trained."""
        if self.settings.vision.train:
            return None
        self.model.hf.model.visual.requires_grad_(False)
        store = self.settings.vision.store()
        tower = self.model.hf.model.visual
        return CachedVision(tower, self.model.family, self.video, store, video_root=self.video_root)

    def dataset(self, split: str, max_chunks: int | None = None) -> ChunkDataset:
        """Return the examples of a split."""
        settings = ChunkSettings(
            text_sink_tokens=self.cache.text_sink_tokens,
            text_window_tokens=self.cache.text_window_tokens,
            text_step_tokens=self.cache.text_step_tokens,
            has_previous_text=self.settings.has_previous_text,
        )
        video = {"family": self.model.family, "video": self.video, "split": split, "max_chunks": max_chunks}
        return ChunkDataset(self.prepared, self.turn_format, self._reader, settings, **video)

    @property
    def _reader(self) -> VisionReader:
        if self.vision is not None:
            return self.vision.reader
        tower = self.model.hf.model.visual
        return VisionReader(
            FeatureStore(None, max_bytes=0),
            video=self.video,
            family=self.model.family,
            tower_digest=_TRAINED_TOWER,
            dtype=tower.dtype,
            video_root=self.video_root,
        )

    @cached_property
    def held_out(self) -> ChunkDataset | None:
        """Chunks of the held-out loss; None if it is disabled or nothing is held out."""
        every, limit = self.settings.fit.evaluate_every_steps, self.settings.max_held_out
        if not (every and limit):
            return None
        if "held_out" not in self.prepared.chunks.unique("split"):
            log.warning("%s has no held-out chunk: training runs without a held-out loss", self.prepared.folder)
            return None
        return self.dataset("held_out", limit)

    def fit(
        self, *, callbacks: Sequence[TrainerCallback] = (), meter: ThroughputMeter | None = None
    ) -> list[dict[str, float]]:
        """Train, write the model to ``target`` and return the loss curve of `trainer.fit_`."""
        settings, fit = self.settings, self.settings.fit
        examples, held_out, module = self.dataset("train"), self.held_out, self.module
        check_free_space(self.folder, self._num_bytes(module))
        for chunks in (examples, held_out):
            if fit.pack_tokens and chunks is not None:
                chunks.check_fits(fit.pack_tokens)
        collate = Collate(
            self.model.tokenizer.convert_tokens_to_ids(_PAD),
            packed=fit.pack_tokens > 0,
            silence_weight=fit.silence_weight,
        )
        return fit_(
            module,
            examples,
            collate,
            fit,
            seed=settings.seed,
            folder=self.folder,
            device=str(self.device),
            callbacks=callbacks,
            resume=settings.resume,
            held_out=held_out,
            batch_transform=with_pixels if self.vision is None else EncodeVision(self.vision.encode),
            resume_invariants=self._resume_invariants,
            meter=meter,
            tokenizer=self.model.tokenizer,
            model_folder=self.target,
        )

    @property
    def _resume_invariants(self) -> dict[str, Any]:
        """What decides the run, beside the settings of `FitSettings`."""
        adapted, hf = getattr(self.module.full_model, "peft_config", None), self.model.hf
        return {
            "architecture": self.model.family.model_type,
            "vision.train": self.settings.vision.train,
            "lora": adapted and lora_shape(adapted["default"]),
            "digest of the base model": adapted and base_fingerprint(hf),
            "digest of the data": self.prepared.digest,
            "has_previous_text": self.settings.has_previous_text,
            **{f"video.{name}": getattr(self.video, name) for name in _DECIDING_VIDEO},
            **{name: getattr(self.cache, name) for name in _DECIDING_TEXT},
        }

    def _num_bytes(self, module: SFTModel) -> int:
        """Return the most bytes that checkpoints and trained model take on disk at once."""
        fit = self.settings.fit
        weights = module.num_saved_bytes
        num_trained = sum(w.numel() for w in module.parameters() if w.requires_grad)
        # A new checkpoint is complete before the oldest is removed.
        num_checkpoints = fit.keep_checkpoints + 1 if fit.save_every_steps else 0
        return weights + num_checkpoints * (weights + _ADAM_BYTES_PER_WEIGHT * num_trained)


def _process_device(device: torch.device) -> torch.device:
    """Return the GPU of this process: each process of a machine has its own."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if device == torch.device("cuda") else device
