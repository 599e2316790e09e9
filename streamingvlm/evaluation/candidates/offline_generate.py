"""Offline generation, for comparison: evenly spaced frames, the chat template, transformers' own ``generate``.

The paper measured its figures of video question answering this way. There is no stream and no cache between clips.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from streamingvlm.config import VideoConfig, at_least, resolve
from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.evaluation.candidates.video_clip import Clip, sample_evenly
from streamingvlm.inference.commentary import Commentary
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.model.vision import preprocess
from streamingvlm.turns import Turn, TurnFormat

# The value by which the processors of transformers mark video tokens.
_VIDEO_TOKEN_TYPE = 2


class OfflineGeneration:
    """A checkpoint that reads a whole clip at once, in a few frames, and answers greedily.

    model: loaded with an attention of transformers' own, or a name for `load_model`.
    num_frames: evenly spaced over the clip, the newest among them; video.fps limits them in short clips.
    max_new_tokens: of an answer, unless `answer` gives a limit.
    """

    path = "offline generation"
    num_parallel = 1

    def __init__(
        self,
        model: StreamingModel | str | Path,
        *,
        num_frames: int = 64,
        max_new_tokens: int = 32,
        name: str | None = None,
        video: VideoConfig | Mapping[str, Any] | None = None,
    ):
        at_least("candidate.num_frames", num_frames, 1, "frames of a clip")
        at_least("candidate.max_new_tokens", max_new_tokens, 1, "tokens of an answer")
        self.model = model if isinstance(model, StreamingModel) else load_model(model)
        self.num_frames, self.max_new_tokens = num_frames, max_new_tokens
        self.video_config = resolve(VideoConfig, video, self.model.stream_defaults)
        self.name = name or self.model.name
        if not self.model.tokenizer.chat_template:
            raise CheckpointError(
                f"{self.model.name} has no chat template, but candidate=offline_generate needs one; give an instruct "
                "checkpoint"
            )

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Raise ConfigError: commentary needs a stream."""
        raise ConfigError(f"{self.name} answers questions and does not comment; choose candidate=session")

    @torch.inference_mode()
    def answer(self, clip: Clip, question: str, *, max_new_tokens: int | None = None) -> str:
        """Answer about the clip as a whole. Raises VideoError where the file cannot be read."""
        inputs = self._inputs(
            *self._read_frames(clip), "\n".join(filter(None, [clip.previous_text, clip.query, question]))
        )
        output = self.model.hf.generate(
            **{name: tensor.to(self.model.device) for name, tensor in inputs.items()},
            max_new_tokens=max_new_tokens or self.max_new_tokens,
            do_sample=False,
        )
        reply = output[0, inputs["input_ids"].shape[1] :]
        return self.model.tokenizer.decode(reply, skip_special_tokens=True).strip()

    def _read_frames(self, clip: Clip) -> tuple[torch.Tensor, float, float]:
        """Return frames, uint8 [F, 3, H, W], with the start and the end in seconds of the part that they cover."""
        covered_s = clip.start_s

        def frames() -> Iterator[torch.Tensor]:
            nonlocal covered_s
            for turn in clip.turns_to_end(self.video_config):
                covered_s = turn.end_s
                yield from turn.frames

        # Uncompressed frames are held here, so little oversampling.
        kept = sample_evenly(frames(), self.num_frames, lambda frame: frame, oversampling=2)
        return torch.stack(kept), clip.start_s, covered_s

    def _inputs(self, frames: torch.Tensor, start_s: float, end_s: float, text: str) -> dict[str, torch.Tensor]:
        """Return the model's inputs: the chat's ids with its video placeholder expanded, and the pixels."""
        family, video = self.model.family, self.video_config
        limits = {"min_pixels": video.min_pixels, "max_pixels": video.max_pixels}
        pixels, grid = preprocess(frames, family=family, **limits, resize=video.resize)
        patch_s = (end_s - start_s) / grid[0]
        turns = TurnFormat(
            self.model.tokenizer,
            temporal_step=family.temporal_step(patch_s),
            name=family.turn_format,
            fps=len(frames) / (end_s - start_s),
            frames_per_patch=family.temporal_patch_size,
        )
        merged = (grid[0], grid[1] // family.merge_size, grid[2] // family.merge_size)
        ids = torch.tensor([turns.fill_video(self._chat(text), Turn(0, start_s, end_s, merged))])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": _VIDEO_TOKEN_TYPE * (ids == turns.vision_pad_id),
            "pixel_values_videos": pixels,
            "video_grid_thw": torch.tensor([grid]),
            **({"second_per_grid_ts": torch.tensor([patch_s])} if family.tokens_per_second else {}),
        }

    def _chat(self, text: str) -> list[int]:
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        chat = self.model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.model.tokenizer.encode(chat, add_special_tokens=False)
