"""Ordinary generation, for comparison: frames spread over a clip, a chat template, transformers' own generate.

This is how the paper's figures of video question answering were taken. It neither streams nor remembers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from streamingvlm.config import VideoConfig, at_least, resolve
from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.evaluation.candidates.clips import Clip, evenly
from streamingvlm.inference.commentary import Commentary
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.model.vision import preprocess
from streamingvlm.turns import Turn, TurnFormat

# As the processors of transformers mark tokens of a video.
_VIDEO_TOKEN_TYPE = 2


class OrdinaryGeneration:
    """A checkpoint that is shown a whole clip at once, in a few frames, and answers greedily.

    model: as it was loaded with an attention of transformers' own, or a name for `load_model`.
    num_frames: spread evenly over the clip, the newest among them; video.fps bounds them in short clips.
    max_new_tokens: of an answer, where it is not said with the question.
    """

    path = "ordinary generation"
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
                f"{self.model.name} has no chat template, which ordinary generation needs; give an instruct checkpoint"
            )

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Raise ConfigError: commentary is a stream's."""
        raise ConfigError(f"{self.name} answers questions and does not comment; choose candidate=session")

    @torch.inference_mode()
    def answer(self, clip: Clip, question: str, *, max_new_tokens: int | None = None) -> str:
        """Answer about the clip as a whole. Raises VideoError where it cannot be watched."""
        inputs = self._inputs(*self._watch(clip), "\n".join(filter(None, [clip.previous_text, clip.query, question])))
        output = self.model.hf.generate(
            **{name: tensor.to(self.model.device) for name, tensor in inputs.items()},
            max_new_tokens=max_new_tokens or self.max_new_tokens,
            do_sample=False,
        )
        said = output[0, inputs["input_ids"].shape[1] :]
        return self.model.tokenizer.decode(said, skip_special_tokens=True).strip()

    def _watch(self, clip: Clip) -> tuple[torch.Tensor, float, float]:
        """Frames, uint8 [F, 3, H, W], and the times from which and to which they are spread."""
        seen_s = clip.start_s

        def frames() -> Iterator[torch.Tensor]:
            nonlocal seen_s
            for second in clip.seconds_to_the_end(self.video_config):
                seen_s = second.end_s
                yield from second.frames

        # Whole frames are held until they are chosen: few more than will be.
        kept = evenly(frames(), self.num_frames, lambda frame: frame, num_kept_for_one=2)
        return torch.stack(kept), clip.start_s, seen_s

    def _inputs(self, frames: torch.Tensor, start_s: float, end_s: float, text: str) -> dict[str, torch.Tensor]:
        """What the model's class takes: the chat with the place of the video filled in, and the video's pixels."""
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
