"""The device's side of an engine: many streams seen, fed and heard in one pass each.

The engine decides what is due; a runner obeys, and keeps what is shared by all streams: the pool of keys and values,
which ids each has in sight, the token steps and their CUDA graphs.
"""

from collections.abc import Callable, Sequence

import torch

from streamingvlm.cache.kv_cache import KVPool
from streamingvlm.device import on_device
from streamingvlm.inference.forward import Meal, feed_
from streamingvlm.inference.sampling import Choice, Sampler, SeenTokens, choose, draw_noise_, settings_of
from streamingvlm.inference.token_step import Speaker, TokenStep
from streamingvlm.model.attention import takes_runs_at_once
from streamingvlm.model.linear_layers import forget_copies
from streamingvlm.model.loading import StreamingModel

Progress = Callable[[int, int], None]

# Rows of the captured steps: what lies between is padded.
_FEW_ROWS = (1, 2, 4)
_ROWS_APART = 8


class Runner:
    """Feeds streams and chooses their tokens.

    pool: the keys and values of all streams; num_slots: the most streams at once.
    fixed_shapes: pad the token step to a few numbers of rows; graphs: capture it per number as a CUDA graph, for which
    it must be padded.
    """

    def __init__(
        self, model: StreamingModel, pool: KVPool, *, num_slots: int, fixed_shapes: bool = False, graphs: bool = False
    ):
        forget_copies()  # an engine has the weights as they are when it begins
        self.model = model
        self.pool = pool
        self.num_slots = num_slots
        self.fixed_shapes = fixed_shapes or graphs
        self.graphs = graphs
        num_ids = model.text_model.config.vocab_size
        self.seen = SeenTokens(num_slots, num_ids, model.device)
        self._noise = torch.empty(0, num_ids, device=model.device)
        self._choice = Choice()
        self._steps: dict[tuple[int, Choice], TokenStep] = {}
        self._ground: tuple[int, int] | None = None  # what all steps stand on
        self._memory = torch.cuda.graph_pool_handle() if graphs else None

    def feed_(self, meals: Sequence[Meal]) -> torch.Tensor:
        """Feed what is waiting of several streams; return the logits [streams, V] after the last token of each."""
        return feed_(self.model, self.pool, meals)

    def weigh(self, logits: torch.Tensor, groups: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """How probable each group of tokens is in its row of ``logits`` [N, V], before any penalty or temperature.

        groups: of each row its groups of ids.
        """
        places = [(row, token) for row, several in enumerate(groups) for ids in several for token in ids]
        rows, ids = on_device(places, torch.long, self.model.device).unbind(1)
        found = iter(logits.float().softmax(-1)[rows, ids].tolist())
        return [[sum(next(found) for _ in ids) for ids in several] for several in groups]

    def next_tokens_(self, samplers: Sequence[Sampler], logits: torch.Tensor) -> list[int]:
        """Choose the next token of several replies from ``logits`` [streams, V], as ``feed_`` returns them."""
        choice = Choice.of(samplers)
        noise = self._noise_of(len(samplers), choice)
        if noise is not None:
            draw_noise_(noise, samplers)
        tokens = self.choose(
            logits,
            choice,
            settings=on_device(settings_of(samplers), torch.float32, self.model.device),
            slots=on_device([sampler.slot for sampler in samplers], torch.long, self.model.device),
            seen=self.seen,
            noise=noise,
        )
        return tokens.tolist()

    def speak_(self, speakers: Sequence[Speaker]) -> list[int]:
        """Feed the last token of each reply; return the next one of each."""
        choice = Choice.of([speaker.sampler for speaker in speakers])
        return self._step_of(len(speakers), choice).run_(speakers)

    def choose(self, logits: torch.Tensor, choice: Choice, **rows) -> torch.Tensor:
        """Choose a token of each row of ``logits``: the one place that all tokens come from."""
        return choose(logits, choice, **rows)

    def warm_(self, num_streams: int, sampler: Sampler, progress: Progress | None = None):
        """Make the token steps of up to ``num_streams`` streams before they are needed; ``progress(done, total)``.

        Steps of fixed shape serve all streams alike: what any of them needs of the choice is part of all steps.
        """
        if not self.fixed_shapes:
            return
        self._choice = self._choice.or_(Choice.of([sampler]))
        sizes = sorted({padded_rows(number) for number in range(1, num_streams + 1)}, reverse=True)
        for done, size in enumerate(sizes, start=1):
            self._step_of(size, self._choice)
            if progress is not None:
                progress(done, len(sizes))

    def _step_of(self, num_speakers: int, choice: Choice) -> TokenStep:
        num_rows = padded_rows(num_speakers) if self.fixed_shapes else num_speakers
        choice = self._choice.or_(choice) if self.fixed_shapes else choice
        # A step holds on to the pool's buffers and to the longest stream: should they change, it is made anew.
        ground = (self.pool.keys.data_ptr(), self.pool.longest)
        if ground != self._ground or not self.fixed_shapes:
            kept = self._steps.get((num_rows, choice)) if ground == self._ground else None
            self._steps = {} if kept is None else {(num_rows, choice): kept}
            self._ground = ground
        if (num_rows, choice) not in self._steps:
            self._steps[num_rows, choice] = self._new_step(num_rows, choice)
        return self._steps[num_rows, choice]

    def _new_step(self, num_rows: int, choice: Choice) -> TokenStep:
        step = TokenStep(
            self.model,
            self.pool,
            self.seen,
            num_rows=num_rows,
            choice=choice,
            longest=self.pool.longest,
            noise=self._noise_of(num_rows, choice),
            chooser=lambda *logits, **rows: self.choose(*logits, **rows),
        )
        if self.graphs:
            step.capture_(self._memory)
        return step

    def _noise_of(self, num_rows: int, choice: Choice) -> torch.Tensor | None:
        if not choice.is_random:
            return None
        if len(self._noise) < num_rows:  # once, if the steps are fixed: captured ones hold on to it
            most = padded_rows(self.num_slots) if self.fixed_shapes else num_rows
            self._noise = torch.ones(max(most, num_rows), self._noise.shape[1], device=self._noise.device)
        return self._noise[:num_rows]


def padded_rows(num_streams: int) -> int:
    """Rows of the step that serves ``num_streams`` streams: 1, 2, 4, then multiples of 8."""
    return next((rows for rows in _FEW_ROWS if rows >= num_streams), -(-num_streams // _ROWS_APART) * _ROWS_APART)


def can_capture(model: StreamingModel) -> bool:
    """Whether the token step of a model can be a CUDA graph: its attention must take runs of any length in one call."""
    text = model.text_model
    head_size = text.layers[0].self_attn.head_dim
    return takes_runs_at_once(torch.empty(0, head_size, dtype=model.dtype, device=model.device))
