"""Runs the model for an engine: batched prefill, which may include decode tokens, and batched decode.

The runner has no scheduling logic. It holds what all streams share: the pool of keys and values, the penalty mask, and
the decode graphs.
"""

from collections.abc import Callable, Sequence

import torch

from streamingvlm.cache.kv_cache import KVPool
from streamingvlm.device import on_device
from streamingvlm.inference.batch import DecodeItem, PrefillInputs, PrefillSlice
from streamingvlm.inference.decode_graph import DecodeGraph
from streamingvlm.inference.sampling import (
    PenaltyMask,
    Sampler,
    SampleTokens,
    SamplingFeatures,
    draw_noise_,
    sample_tokens,
    settings_of,
)
from streamingvlm.inference.sequence import TokenSequence
from streamingvlm.model.attention import supports_varlen
from streamingvlm.model.cpu_kernels.linear_layers import forget_copies
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.text_forward import forward_text

OnProgress = Callable[[int, int], None]

# Batch sizes of static decode; a batch is padded to the next size.
_SMALL_NUM_ROWS = (1, 2, 4)
_ROWS_STEP = 8


class ModelRunner:
    """Prefills tokens and samples the next ones.

    pool: the keys and values of all streams; num_slots: maximum number of streams.
    static_decode: pad decode batches to fixed sizes; graphs: capture a CUDA graph for each size.
    sample: sampling function, `sample_tokens` by default.
    """

    def __init__(
        self,
        model: StreamingModel,
        pool: KVPool,
        *,
        num_slots: int,
        static_decode: bool = False,
        graphs: bool = False,
        sample: SampleTokens | None = None,
    ):
        forget_copies()  # of reordered weights: the weights may have changed since the last engine
        self.model = model
        self.pool = pool
        self.num_slots = num_slots
        self.static_decode = static_decode or graphs
        self.graphs = graphs
        self.sample = sample or sample_tokens
        num_ids = model.text_model.config.vocab_size
        self.penalty_mask = PenaltyMask(num_slots, num_ids, model.device)
        self._noise = torch.empty(0, num_ids, device=model.device)
        self._features = SamplingFeatures()
        self._decode_graphs: dict[tuple[int, SamplingFeatures], DecodeGraph] = {}
        # Address of the pool and longest sequence that the decode graphs are valid for.
        self._graph_key: tuple[int, int] | None = None
        self._graph_memory = torch.cuda.graph_pool_handle() if graphs else None

    def prefill(self, batch: Sequence[PrefillSlice]) -> torch.Tensor:
        """Run slices of several streams in one pass; return the logits [N, V] after the last token of each stream."""
        inputs = PrefillInputs.of(self.model, self.pool, batch)
        hidden = forward_text(
            self.model.text_model,
            inputs.hidden,
            inputs.metadata,
            logits_indices=inputs.logits_indices,
            deepstack=inputs.deepstack,
        )
        for item in batch:
            item.sequence.mark_computed(item.slices)
        return self.model.logits(hidden)

    def prefill_pending(self, sequence: TokenSequence):
        """Prefill all pending tokens of one stream in a pass of its own."""
        sequence.prepare_positions()
        if slices := sequence.pending():
            self.prefill([PrefillSlice(sequence, slices)])

    def score_tokens(self, logits: torch.Tensor, groups: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Return, for each row of ``logits`` [N, V], the softmax probability of each group of token ids.

        groups: the groups of ids of each row. Penalty and temperature are not applied.
        """
        pairs = [(row, token) for row, row_groups in enumerate(groups) for ids in row_groups for token in ids]
        rows, ids = on_device(pairs, torch.long, self.model.device).unbind(1)
        probabilities = iter(logits.float().softmax(-1)[rows, ids].tolist())
        return [[sum(next(probabilities) for _ in ids) for ids in row_groups] for row_groups in groups]

    def sample_next(self, samplers: Sequence[Sampler], logits: torch.Tensor) -> list[int]:
        """Sample the next token of several streams from ``logits`` [N, V]."""
        features = SamplingFeatures.of(samplers)
        noise = self._noise_for(len(samplers), features)
        if noise is not None:
            draw_noise_(noise, samplers)
        tokens = self.sample(
            logits,
            features,
            settings=on_device(settings_of(samplers), torch.float32, self.model.device),
            slots=on_device([sampler.slot for sampler in samplers], torch.long, self.model.device),
            penalty_mask=self.penalty_mask,
            noise=noise,
        )
        return tokens.tolist()

    def decode(self, items: Sequence[DecodeItem]) -> list[int]:
        """Run the decode graph on the appended token of each stream; return the sampled tokens."""
        features = SamplingFeatures.of([item.sampler for item in items])
        return self._decode_graph(len(items), features).run(items)

    def capture_graphs(self, num_streams: int, sampler: Sampler, on_progress: OnProgress | None = None):
        """Build, and with ``graphs`` capture, the decode graphs for up to ``num_streams`` streams.

        All streams share them, so they include every sampling feature that any stream has used. The largest is captured
        first, because the smaller ones then fit in its memory. on_progress: called with (done, total).
        """
        if not self.static_decode:
            return
        self._features = self._features.union(SamplingFeatures.of([sampler]))
        sizes = sorted({padded_rows(number) for number in range(1, num_streams + 1)}, reverse=True)
        for num_done, size in enumerate(sizes, start=1):
            self._decode_graph(size, self._features)
            if on_progress is not None:
                on_progress(num_done, len(sizes))

    def _decode_graph(self, num_items: int, features: SamplingFeatures) -> DecodeGraph:
        num_rows = padded_rows(num_items) if self.static_decode else num_items
        features = self._features.union(features) if self.static_decode else features
        # A decode graph is valid for one address of the pool and one longest sequence.
        graph_key = (self.pool.keys.data_ptr(), self.pool.max_seqlen)
        if graph_key != self._graph_key or not self.static_decode:
            kept = self._decode_graphs.get((num_rows, features)) if graph_key == self._graph_key else None
            self._decode_graphs = {} if kept is None else {(num_rows, features): kept}
            self._graph_key = graph_key
        if (num_rows, features) not in self._decode_graphs:
            self._decode_graphs[num_rows, features] = self._new_decode_graph(num_rows, features)
        return self._decode_graphs[num_rows, features]

    def _new_decode_graph(self, num_rows: int, features: SamplingFeatures) -> DecodeGraph:
        graph = DecodeGraph(
            self.model,
            self.pool,
            self.penalty_mask,
            num_rows=num_rows,
            features=features,
            max_seqlen_k=self.pool.max_seqlen,
            noise=self._noise_for(num_rows, features),
            sample=lambda *args, **kwargs: self.sample(*args, **kwargs),  # looked up at each call: it may be replaced
        )
        if self.graphs:
            graph.capture_(self._graph_memory)
        return graph

    def _noise_for(self, num_rows: int, features: SamplingFeatures) -> torch.Tensor | None:
        if not features.is_random:
            return None
        if len(self._noise) < num_rows:
            # Static: allocate once at full size, because captured graphs hold the address.
            max_rows = padded_rows(self.num_slots) if self.static_decode else num_rows
            self._noise = torch.ones(max(max_rows, num_rows), self._noise.shape[1], device=self._noise.device)
        return self._noise[:num_rows]


def padded_rows(num_streams: int) -> int:
    """Return the batch size that ``num_streams`` are padded to: 1, 2, 4, then multiples of 8."""
    return next((rows for rows in _SMALL_NUM_ROWS if rows >= num_streams), -(-num_streams // _ROWS_STEP) * _ROWS_STEP)


def can_capture(model: StreamingModel) -> bool:
    """Return True if decoding can be captured as a CUDA graph, which needs a variable-length attention kernel."""
    head_size = model.text_model.layers[0].self_attn.head_dim
    return supports_varlen(torch.empty(0, head_size, dtype=model.dtype, device=model.device))
