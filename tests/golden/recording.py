"""A recorded run of the released code: what it was given, and a session with the same settings."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel


@dataclass
class Recording:
    """One recorded run: its configuration, a row a round and arrays a round."""

    folder: Path
    name: str

    def __post_init__(self):
        document = json.loads((self.folder / f"{self.name}.json").read_text("utf-8"))
        self.config, self.constants, self.rounds = document["config"], document["constants"], document["rounds"]
        self.arrays = np.load(self.folder / f"{self.name}.npz")
        self.frames = torch.from_numpy(np.load(self.folder / "frames.npz")["frames"])
        vocabulary = self.folder / "vocabulary.npz"
        self.strided_ids = np.load(vocabulary)["strided_ids"] if vocabulary.is_file() else None

    def array(self, index: int, name: str) -> np.ndarray | None:
        return self.arrays.get(f"r{index:03d}/{name}")

    def num_frames(self) -> int:
        return round(self.constants["fps"] * self.constants["chunk_duration"])

    def frames_of(self, index: int) -> torch.Tensor:
        return self.frames[index * self.num_frames() : (index + 1) * self.num_frames()]

    def session(self, model: StreamingModel) -> StreamingSession:
        config, turn_s = self.config, self.constants["chunk_duration"]
        return StreamingSession(
            model,
            cache=CacheConfig(
                policy="reference",
                positions="native" if config.get("pos_mode") == "append" else "contiguous",
                text_sink_tokens=config["text_sink"],
                text_window_tokens=config["text_sliding_window"],
                vision_window_s=config["window_size"] * turn_s,
                turn_window_s=config["text_round"] * turn_s,
                recompute=config.get("recompute", False),
            ),
            video=VideoConfig(fps=self.constants["fps"], turn_s=turn_s, min_pixels=1),
            sampling=SamplingConfig(
                temperature=0,
                repetition_penalty=config["repetition_penalty"],
                max_new_tokens=self.constants["max_new_tokens"],
            ),
            query=config["query"],
            previous_text=config["previous_text"],
        )
