"""The decode step: prefill the last token of each stream and sample the next one, as one step of fixed shape.

All that changes from step to step is copied into two small buffers, so that the host waits for nothing but the sampled
tokens. On CUDA the step is captured as a graph for each number of rows and each set of sampling features; on a CPU the
same code runs eagerly. Batch rows without a stream are padding: they write to a row of the pool that no stream owns.

Shapes: B rows, the first of which are streams, V tokens of the vocabulary.
"""

from collections.abc import Sequence

import torch

from streamingvlm.cache.kv_cache import PADDING_SLOT, KVPool
from streamingvlm.inference.batch import DecodeItem, StaticDecodeInputs
from streamingvlm.inference.sampling import PenaltyMask, SampleTokens, SamplingFeatures, draw_noise_, settings_of
from streamingvlm.model.attention_metadata import SequenceSlice
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.text_forward import forward_text

_NUM_WARM_UPS = 3
# Token, pool row written, first pool row of the stream, sequence length; position, penalty, temperature, top_p.
_PADDING = ([0, PADDING_SLOT, PADDING_SLOT, 1], [0.0, 1.0, 0.0, 1.0])


class DecodeGraph:
    """The decode step of ``num_rows`` rows and one set of sampling features.

    max_seqlen_k: the longest sequence there may be; noise: float32 [B, V] for random numbers, None if no stream draws.
    """

    def __init__(
        self,
        model: StreamingModel,
        pool: KVPool,
        penalty_mask: PenaltyMask,
        *,
        num_rows: int,
        features: SamplingFeatures,
        max_seqlen_k: int,
        noise: torch.Tensor | None,
        sample: SampleTokens,
    ):
        self.model, self.penalty_mask, self.features = model, penalty_mask, features
        self.noise, self.sample = noise, sample
        is_cuda = model.device.type == "cuda"
        numbers = [[*_PADDING[0], penalty_mask.num_slots] for _ in range(num_rows)]
        self._host_numbers = torch.tensor(numbers, pin_memory=is_cuda)
        self._host_settings = torch.tensor([_PADDING[1]] * num_rows, pin_memory=is_cuda)
        self._numbers, self._settings = self._host_numbers.to(model.device), self._host_settings.to(model.device)
        self._inputs = StaticDecodeInputs(pool, self._numbers, max_seqlen_k)
        self._tokens: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture_(self, memory_pool):
        """Capture the step as a CUDA graph. All rows are padding at this time, so only the padding row is written.

        memory_pool: the handle of the memory that all graphs of an engine share.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_NUM_WARM_UPS):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that encodes video may go on meanwhile.
        with torch.cuda.graph(graph, pool=memory_pool, capture_error_mode="thread_local"):
            self._tokens = self._forward()
        self._graph = graph

    def run(self, items: Sequence[DecodeItem]) -> list[int]:
        """Run the step and return the next token of each stream. The host waits here, once a token."""
        self._load_(items)
        if self._graph is None:
            self._tokens = self._forward()
        else:
            self._graph.replay()
        return self._tokens[: len(items)].tolist()

    def _load_(self, items: Sequence[DecodeItem]):
        sequences, samplers = [item.sequence for item in items], [item.sampler for item in items]
        numbers = [[*seq.decode_inputs(), sampler.slot] for seq, sampler in zip(sequences, samplers, strict=True)]
        settings = [[seq.decode_position, *s] for seq, s in zip(sequences, settings_of(samplers), strict=True)]
        num_padding = len(self._numbers) - len(items)
        padding = [[*_PADDING[0], self.penalty_mask.num_slots]] * num_padding
        self._host_numbers.copy_(torch.tensor(numbers + padding))
        self._host_settings.copy_(torch.tensor(settings + [_PADDING[1]] * num_padding))
        self._numbers.copy_(self._host_numbers, non_blocking=True)
        self._settings.copy_(self._host_settings, non_blocking=True)
        if self.noise is not None:
            draw_noise_(self.noise, samplers)
        slices = [SequenceSlice(row=first, first=length - 1, stop=length) for _, _, first, length, _ in numbers]
        self._inputs.slices = slices + [SequenceSlice(PADDING_SLOT, 0, 1)] * num_padding

    def _forward(self) -> torch.Tensor:
        metadata = self._inputs.rotated_by(*self.model.rotation.of_text(self._settings[:, 0]))
        text_model = self.model.text_model
        hidden = forward_text(text_model, text_model.embed_tokens(self._numbers[:, 0]), metadata)
        return self.sample(
            self.model.logits(hidden),
            self.features,
            settings=self._settings[:, 1:],
            slots=self._numbers[:, 4],
            penalty_mask=self.penalty_mask,
            noise=self.noise,
        )
