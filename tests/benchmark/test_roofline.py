"""Bytes and operations, compared with the counts of torch and with the published sizes."""

import pytest
import torch
from tiny_inputs import frames
from torch.utils.flop_counter import FlopCounterMode

from streamingvlm.benchmark.modes import ModeRun
from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.benchmark.roofline import Ceilings, Costs, LowerBound, measure_ceilings, summarize_roofline
from streamingvlm.benchmark.timed_turn import TurnMetrics
from streamingvlm.cli.architectures import architecture_named
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model

CPU = torch.device("cpu")


def turn(**changed) -> TurnMetrics:
    figures = {
        "start_s": 0.0,
        "latency_s": 0.2,
        "stages": {},
        "inter_token_s": (0.01,) * 7,
        "num_tokens": 8,
        "num_prefill_tokens": 750,
        "num_context_tokens": 13_100,
        "grid": (1, 20, 36),
        "resident_mb": 1.0,
    }
    return TurnMetrics(**{**figures, **changed})


def test_the_lower_bound_of_7b_follows_from_its_published_sizes():
    model = random_model(architecture_named("7b"), device=torch.device("meta"), dtype=torch.bfloat16)
    costs = Costs.of(model)
    assert costs.weight_bytes == pytest.approx(14.1e9, rel=0.01)
    assert costs.kv_bytes == 57_344
    flop = costs.vision_flop((1, 20, 36)) + costs.prefill_flop(750, 13_100)
    assert flop == pytest.approx(17.5e12, rel=0.02)
    bound = LowerBound.of(turn(), costs, Ceilings(flop_per_s=600e12, bytes_per_s=3e12))
    assert bound.token_s == pytest.approx(4.96e-3, rel=0.01)
    assert bound.turn_s == pytest.approx(bound.vision_s + bound.prefill_s + 7 * bound.token_s)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_operations_of_the_vision_tower_equal_the_count_of_torch(tiny_checkpoint, model_type):
    model = load_model(tiny_checkpoint(model_type), device="cpu")
    model.hf.model.visual.set_attn_implementation("eager")
    encoder = model.vision_encoder(min_pixels=1, max_pixels=56 * 56)
    with FlopCounterMode(display=False) as counter:
        features = encoder.features(frames(0, num_frames=2, height=56, width=56))
    assert Costs.of(model).vision_flop(features.grid) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_operations_of_prefill_equal_the_count_of_torch(tiny_checkpoint):
    model = load_model(tiny_checkpoint(), device="cpu", attention="eager")
    num_tokens = 40
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        states = model.text_model(input_ids=torch.arange(num_tokens)[None]).last_hidden_state
        model.lm_head(states[:, -1])
    costs = Costs.of(model)
    # torch counts both halves of the causal square
    masked = num_tokens * (num_tokens - 1) // 2 * costs.pair_flop
    assert costs.prefill_flop(num_tokens, num_tokens) + masked == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_cached_tokens_are_attended_to_but_not_prefilled():
    model = random_model(architecture_named("tiny"), device=CPU, dtype=torch.float32)
    costs = Costs.of(model)
    one_by_one = sum(costs.prefill_flop(1, num_context) - costs.head_flop for num_context in range(11, 21))
    assert costs.prefill_flop(10, 20) - costs.head_flop == one_by_one


def test_the_share_is_of_the_last_minute():
    model = random_model(architecture_named("tiny"), device=CPU, dtype=torch.float32)
    costs, ceilings = Costs.of(model), Ceilings(1e9, 1e9)
    turns = (turn(start_s=0.0, latency_s=1e9), *(turn(start_s=100.0 + second) for second in range(5)))
    figures = summarize_roofline(ModeRun(turns, turns, "", None), costs, ceilings)
    bound = LowerBound.of(turns[-1], costs, ceilings)
    assert figures["turn_share"] == pytest.approx(bound.turn_s / 0.2, rel=1e-3)
    assert figures["token_share"] == pytest.approx(bound.token_s / 0.01, rel=1e-3)


def test_ceilings_are_measured():
    ceilings = measure_ceilings(CPU, torch.float32)
    assert ceilings.flop_per_s > 1e8 and ceilings.bytes_per_s > 1e7
