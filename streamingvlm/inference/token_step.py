"""One token of each stream that speaks: fed, and the next one chosen, as one step of fixed shape.

All that changes from step to step lies in two small buffers that the host fills anew, so that nothing is waited for but
the tokens themselves. On CUDA the step is captured as a graph, per number of rows and kind of choice; on the CPU the
same step runs as it is. Rows that no stream has are padding: they feed a token to a row of the pool that is nobody's.

Shapes: B rows, of which the first are streams, V tokens of the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from streamingvlm.cache.kv_cache import PADDING_SLOT, KVPool
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.inference.sampling import Choice, Sampler, SeenTokens, choose, draw_noise_, settings_of
from streamingvlm.model.attention_metadata import AttentionMetadata, SequenceSlice
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.text_forward import forward_text

_NUM_WARM_UPS = 3
# Token, row that is written, first row of the stream, tokens seen; position, penalty, temperature, nucleus.
_PADDING = ([0, PADDING_SLOT, PADDING_SLOT, 1], [0.0, 1.0, 0.0, 1.0])

Chooser = Callable[..., torch.Tensor]


class Speaker(Protocol):
    """A stream that speaks: the last of its decoder's ids is to be fed."""

    decoder: StreamingDecoder
    sampler: Sampler


class FixedTokens(AttentionMetadata):
    """One new token a row, in tensors that stay where they are while their numbers change.

    numbers: int64 [B, 5], of each row its token, the row of the pool that is written, the first row of its stream, how
    many tokens are seen, its slot; longest: the most tokens that may be seen.
    """

    def __init__(self, pool: KVPool, numbers: torch.Tensor, longest: int):
        self.pool = pool
        self.numbers = numbers
        self.runs: list[SequenceSlice] = []
        self.max_seqlen_q, self.max_seqlen_k = 1, longest
        self.cu_seqlens_q = torch.arange(len(numbers) + 1, dtype=torch.int32, device=numbers.device)
        self.masks = [None] * len(numbers)

    def rotated_by(self, cos: torch.Tensor, sin: torch.Tensor) -> "FixedTokens":
        """Take the rotation [B, D] of the tokens, and the numbers as they are now."""
        self.cos, self.sin = cos[:, None], sin[:, None]
        self.rows = self.numbers[:, 1]
        self.row_offsets = torch.nn.functional.pad(self.numbers[:, 2], (0, 1)).to(torch.int32)
        self.seqlens_k = self.numbers[:, 3].to(torch.int32)
        return self


class TokenStep:
    """The step of ``num_rows`` rows and one kind of choice.

    noise: float32 [B, V] for the random numbers, None where no stream draws.
    """

    def __init__(
        self,
        model: StreamingModel,
        pool: KVPool,
        seen: SeenTokens,
        *,
        num_rows: int,
        choice: Choice,
        longest: int,
        noise: torch.Tensor | None,
        chooser: Chooser = choose,
    ):
        self.model, self.seen, self.choice, self.noise, self.chooser = model, seen, choice, noise, chooser
        is_cuda = model.device.type == "cuda"
        rows = [[*_PADDING[0], seen.num_slots] for _ in range(num_rows)]
        self._host_numbers = torch.tensor(rows, pin_memory=is_cuda)
        self._host_settings = torch.tensor([_PADDING[1]] * num_rows, pin_memory=is_cuda)
        self._numbers, self._settings = self._host_numbers.to(model.device), self._host_settings.to(model.device)
        self._packed = FixedTokens(pool, self._numbers, longest)
        self._tokens: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture_(self, memory):
        """Record the step as a CUDA graph; its rows are padding by now, so nothing but the scratch row is written.

        memory: the handle of the memory that all graphs of an engine share.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_NUM_WARM_UPS):
                self._work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile, as the one that encodes video does.
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            self._tokens = self._work()
        self._graph = graph

    def run_(self, speakers: Sequence[Speaker]) -> list[int]:
        """Feed the last token of each stream; return the next one of each. The host waits here, once a token."""
        self._load_(speakers)
        if self._graph is None:
            self._tokens = self._work()
        else:
            self._graph.replay()
        return self._tokens[: len(speakers)].tolist()

    def _load_(self, speakers: Sequence[Speaker]):
        decoders = [speaker.decoder for speaker in speakers]
        samplers = [speaker.sampler for speaker in speakers]
        numbers = [
            [*decoder.token_numbers(), sampler.slot] for decoder, sampler in zip(decoders, samplers, strict=True)
        ]
        settings = [[d.token_position, *s] for d, s in zip(decoders, settings_of(samplers), strict=True)]
        padding = len(self._numbers) - len(speakers)
        self._host_numbers.copy_(torch.tensor(numbers + [[*_PADDING[0], self.seen.num_slots]] * padding))
        self._host_settings.copy_(torch.tensor(settings + [_PADDING[1]] * padding))
        self._numbers.copy_(self._host_numbers, non_blocking=True)
        self._settings.copy_(self._host_settings, non_blocking=True)
        if self.noise is not None:
            draw_noise_(self.noise, samplers)
        ones = [SequenceSlice(row=first, first=seen - 1, stop=seen) for _, _, first, seen, _ in numbers]
        self._packed.runs = ones + [SequenceSlice(PADDING_SLOT, 0, 1)] * padding

    def _work(self) -> torch.Tensor:
        packed = self._packed.rotated_by(*self.model.rotation.of_text(self._settings[:, 0]))
        text_model = self.model.text_model
        hidden = forward_text(text_model, text_model.embed_tokens(self._numbers[:, 0]), packed)
        return self.chooser(
            self.model.logits(hidden),
            self.choice,
            settings=self._settings[:, 1:],
            slots=self._numbers[:, 4],
            seen=self.seen,
            noise=self.noise,
        )
