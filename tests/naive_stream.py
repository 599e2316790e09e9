"""The oracle of a cached stream: plain Python lists, one token at a time, dense softmax, float32.

It shares the turn format and the weights with the library, and nothing of the cache: eviction, positions, rotation and
attention are implemented a second time here, token by token.
"""

import math
from copy import copy
from dataclasses import dataclass, field, replace

import torch

from streamingvlm.cache.layout import PROLOGUE_TURN, SegmentKind
from streamingvlm.turns import Tokens, Turn, TurnFormat

VISION = (SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END)
REPLY = (SegmentKind.REPLY_OPEN, SegmentKind.SPEECH, SegmentKind.TAIL, SegmentKind.REPLY_END, SegmentKind.LINE_FEED)


@dataclass
class Token:
    id: int
    kind: SegmentKind
    turn: int
    start_s: float
    embedding: torch.Tensor
    cell: tuple[float, int, int] | None
    deepstack: tuple[torch.Tensor, ...] = ()
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    is_numbered: bool = False
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


class NaiveStream:
    """A stream with the `streaming` policy, greedy, without repetition penalty."""

    def __init__(self, model, cache, video, *, max_new_tokens, query="", previous_text=""):
        self.text, self.head, self.cache, self.video = model.text_model, model.lm_head, cache, video
        self.vision = model.vision_encoder(min_pixels=video.min_pixels, max_pixels=video.max_pixels)
        self.format = TurnFormat.of(model.tokenizer, model.family, video)
        self.max_new_tokens, self.query = max_new_tokens, query
        self.has_query = False
        self.tokens: list[Token] = []
        self.turn, self.next = 0, -1.0
        self.append(self.format.prologue(previous_text))

    def step(self, frames, question="") -> tuple[list[int], list[torch.Tensor]]:
        """Process one turn; return the ids of the reply and the logits before each."""
        vision = self.vision.features(frames)
        grid = vision.grid
        turn = Turn(self.turn, self.turn * self.video.turn_s, (self.turn + 1) * self.video.turn_s, grid)
        self.evict(turn.end_s)
        if self.tokens[-1].kind is SegmentKind.REPLY_END:
            self.append(self.format.line_feed(Turn(self.turn - 1, turn.start_s - self.video.turn_s, 0, grid)))
        self.append(self.format.open_turn(turn, "" if self.has_query else self.query, question), vision)
        self.has_query = True
        reply, all_logits = self.decode(turn)
        computed = self.tokens[len(self.tokens) - (len(reply) - 1) :] if len(reply) > 1 else []
        del self.tokens[len(self.tokens) - len(computed) :]
        self.append(self.format.close_turn(turn, reply))
        for token, other in zip(self.tokens[-len(self.format.close_turn(turn, reply)) :], computed, strict=False):
            token.keys, token.values = other.keys, other.values
            token.position, token.is_numbered = other.position, True
        self.turn += 1
        return reply, all_logits

    def decode(self, turn: Turn) -> tuple[list[int], list[torch.Tensor]]:
        self.number()
        logits, reply, all_logits = self.prefill(), [], []
        while True:
            all_logits.append(logits)
            reply.append(int(logits.argmax()))
            if reply[-1] in self.format.stop_ids or len(reply) == self.max_new_tokens:
                return reply, all_logits
            self.append(Tokens((reply[-1],), ()), loose=turn)
            self.number()
            logits = self.prefill()

    def instruct(self, query: str):
        """Replace the standing query; the new one joins the next turn."""
        self.tokens = [token for token in self.tokens if token.kind is not SegmentKind.QUERY]
        self.query, self.has_query = query, False

    def ask(self, question: str) -> list[torch.Tensor]:
        """Answer on a full copy of the stream; return the logits before each token. This stream is not changed."""
        fork = copy(self)
        fork.tokens = [replace(token, keys=list(token.keys), values=list(token.values)) for token in self.tokens]
        turn = Turn(self.turn, 0.0, 0.0, (0, 0, 0))
        fork.append(self.format.line_feed(turn) + self.format.message(turn, question))
        return fork.decode(turn)[1]

    def append(self, tokens: Tokens, vision=None, loose: Turn | None = None):
        kinds = [s for s in tokens.segments for _ in range(s.num_tokens)]
        cells = [c for s in tokens.segments for c in self.cells(s)]
        rows = iter(zip(vision.embeddings, *vision.deepstack, strict=True) if vision is not None else ())
        for i, token_id in enumerate(tokens.ids):
            kind = SegmentKind.SPEECH if loose else kinds[i].kind
            where = (loose.index, loose.start_s) if loose else (kinds[i].turn, kinds[i].start_s)
            row = next(rows) if kind is SegmentKind.VISION else [self.text.embed_tokens(torch.tensor(token_id))]
            self.tokens.append(Token(token_id, kind, *where, row[0], None if loose else cells[i], tuple(row[1:])))

    @staticmethod
    def cells(segment):
        if segment.grid is None:
            return [None] * segment.num_tokens
        t, h, w = map(range, segment.grid)
        return [(i * segment.temporal_step, j, k) for i in t for j in h for k in w]

    def evict(self, end_s: float):
        after = self.survivors(end_s)
        pending = [not token.keys for token in after]
        if any(pending) and pending != sorted(pending):
            self.number()
            self.prefill()
            after = self.survivors(end_s)
        if self.cache.recompute_text:
            self.forget_changed_prologue(after)
        self.tokens = after

    def forget_changed_prologue(self, after: list[Token]):
        def prologue(tokens):
            return [token for token in tokens if token.kind is SegmentKind.PREVIOUS or token.turn == PROLOGUE_TURN]

        # A token that has just moved is `previous` in the old list as well; only its index distinguishes it.
        if self.tokens[: len(prologue(after))] != prologue(after):
            for token in prologue(after):
                token.keys, token.values = [], []

    def survivors(self, end_s: float) -> list[Token]:
        query_turns = {token.turn for token in self.tokens if token.kind is SegmentKind.QUERY}
        head, previous, tail, moved = [], [], [], []
        for token in self.tokens:
            age_s = end_s - token.start_s - 1e-6
            in_turns, in_vision = age_s <= self.cache.turn_window_s, age_s <= self.cache.vision_window_s
            if token.kind is SegmentKind.PREVIOUS:
                previous.append(token)
            elif token.kind in (SegmentKind.SYSTEM, SegmentKind.PREVIOUS_OPEN):
                head.append(token)
            elif token.turn == PROLOGUE_TURN:
                tail.append(token)
            elif token.kind in REPLY:
                if in_turns:
                    tail.append(token)
                elif token.kind is SegmentKind.SPEECH:
                    moved.append(token)
            elif token.kind in VISION:
                tail += [token] if in_vision else []
            elif (
                in_turns
                or in_vision
                or (token.turn in query_turns and token.kind not in (SegmentKind.TIME, SegmentKind.QUESTION))
            ):
                tail.append(token)
        text = previous + moved
        sink, window = self.cache.text_sink_tokens, self.cache.text_window_tokens
        while len(text) > sink + window:
            del text[sink : sink + max(1, min(self.cache.text_step_tokens, window))]
        for token in moved:
            token.kind = SegmentKind.PREVIOUS
        return head + text + tail

    def number(self):
        if self.cache.positions == "native":
            todo = [token for token in self.tokens if not token.is_numbered]
        else:
            self.next, todo = -1.0, self.tokens
        origin = None
        for token in todo:
            if token.cell is None:
                origin = None
                self.next += 1
                token.position = (self.next,) * 3
            else:
                origin = self.next + 1 if token.cell == (0, 0, 0) else origin
                token.position = tuple(origin + c for c in token.cell)
                self.next = max(self.next, *token.position)
            token.is_numbered = True

    def prefill(self) -> torch.Tensor:
        """Run every token without keys through the layers; return the logits after the last."""
        for index, token in enumerate(self.tokens):
            if not token.keys:
                hidden = self.layers(token, self.tokens[: index + 1])
        return self.head(self.text.norm(hidden))

    def layers(self, token: Token, context: list[Token]) -> torch.Tensor:
        hidden = token.embedding[None]
        angles = torch.stack([self.angles(other.position) for other in context])
        for index, layer in enumerate(self.text.layers):
            attention = layer.self_attn
            x = layer.input_layernorm(hidden)
            token.keys.append(normalised(attention, "k_norm", attention.k_proj(x)[0].view(-1, attention.head_dim)))
            token.values.append(attention.v_proj(x)[0].view(-1, attention.head_dim))
            query = normalised(attention, "q_norm", attention.q_proj(x)[0].view(-1, attention.head_dim))
            query = rotate(query, angles[-1])
            keys = rotate(torch.stack([t.keys[index] for t in context]).transpose(0, 1), angles)
            values = torch.stack([t.values[index] for t in context]).transpose(0, 1)
            group_size = len(query) // len(keys)
            heads = [attend(query[h], keys[h // group_size], values[h // group_size]) for h in range(len(query))]
            hidden = hidden + attention.o_proj(torch.cat(heads)[None])
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if index < len(token.deepstack):
                hidden = hidden + token.deepstack[index]
        return hidden[0]

    def angles(self, position) -> torch.Tensor:
        rope = self.text.config.rope_parameters
        sizes = rope["mrope_section"]
        axes = [axis for axis, size in enumerate(sizes) for _ in range(size)]
        if rope.get("mrope_interleaved"):
            axes = [i % 3 if i < 3 * sizes[i % 3] else 0 for i in range(len(axes))]
        return torch.tensor([position[axis] * rope["rope_theta"] ** (-i / len(axes)) for i, axis in enumerate(axes)])


def normalised(attention, name, heads):
    norm = getattr(attention, name, None)
    return heads if norm is None else norm(heads)


def attend(query, keys, values):
    return (keys @ query / math.sqrt(len(query))).softmax(0) @ values


def rotate(x, angles):
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
