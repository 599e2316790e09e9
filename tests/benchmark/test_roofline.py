"""Bytes and operations, against what torch counts and what the published sizes come to."""

import pytest
import torch
from architectures import architecture_named
from tiny_inputs import frames
from torch.utils.flop_counter import FlopCounterMode

from streamingvlm.benchmark.modes import ModeRun
from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.benchmark.roofline import Ceilings, Costs, Floor, measure_ceilings, roofline_figures
from streamingvlm.benchmark.timed_turn import TurnFigures
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model

CPU = torch.device("cpu")


def turn(**changed) -> TurnFigures:
    figures = {
        "start_s": 0.0,
        "latency_s": 0.2,
        "stages": {},
        "between_tokens_s": (0.01,) * 7,
        "num_tokens": 8,
        "num_fed": 750,
        "num_seen": 13_100,
        "grid": (1, 20, 36),
        "resident_mb": 1.0,
    }
    return TurnFigures(**{**figures, **changed})


def test_the_floor_of_seven_billion_weights_is_that_of_the_published_sizes():
    model = random_model(architecture_named("7b"), device=torch.device("meta"), dtype=torch.bfloat16)
    costs = Costs.of(model)
    assert costs.weight_bytes == pytest.approx(14.1e9, rel=0.01)
    assert costs.kv_bytes == 57_344
    flop = costs.vision_flop((1, 20, 36)) + costs.prefill_flop(750, 13_100)
    assert flop == pytest.approx(17.5e12, rel=0.02)
    floor = Floor.of(turn(), costs, Ceilings(flop_per_s=600e12, bytes_per_s=3e12))
    assert floor.token_s == pytest.approx(4.96e-3, rel=0.01)
    assert floor.turn_s == pytest.approx(floor.vision_s + floor.prefill_s + 7 * floor.token_s)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_operations_of_the_vision_tower_are_those_that_torch_counts(tiny_checkpoint, model_type):
    model = load_model(tiny_checkpoint(model_type), device="cpu")
    model.hf.model.visual.set_attn_implementation("eager")
    encoder = model.vision_encoder(min_pixels=1, max_pixels=56 * 56)
    with FlopCounterMode(display=False) as counter:
        features = encoder.features(frames(0, num_frames=2, height=56, width=56))
    assert Costs.of(model).vision_flop(features.grid) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_operations_of_prefill_are_those_that_torch_counts(tiny_checkpoint):
    model = load_model(tiny_checkpoint(), device="cpu", attention="eager")
    num_tokens = 40
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        states = model.text_model(input_ids=torch.arange(num_tokens)[None]).last_hidden_state
        model.lm_head(states[:, -1])
    costs = Costs.of(model)
    # torch counts both halves of the causal square
    unseen = num_tokens * (num_tokens - 1) // 2 * costs.pair_flop
    assert costs.prefill_flop(num_tokens, num_tokens) + unseen == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_what_was_already_in_the_cache_is_seen_but_not_fed():
    model = random_model(architecture_named("tiny"), device=CPU, dtype=torch.float32)
    costs = Costs.of(model)
    one_by_one = sum(costs.prefill_flop(1, seen) - costs.head_flop for seen in range(11, 21))
    assert costs.prefill_flop(10, 20) - costs.head_flop == one_by_one


def test_the_share_is_that_of_the_floor_in_the_last_minute():
    model = random_model(architecture_named("tiny"), device=CPU, dtype=torch.float32)
    costs, ceilings = Costs.of(model), Ceilings(1e9, 1e9)
    turns = (turn(start_s=0.0, latency_s=1e9), *(turn(start_s=100.0 + second) for second in range(5)))
    figures = roofline_figures(ModeRun(turns, turns, "", None), costs, ceilings)
    floor = Floor.of(turns[-1], costs, ceilings)
    assert figures["turn_share"] == pytest.approx(floor.turn_s / 0.2, rel=1e-3)
    assert figures["token_share"] == pytest.approx(floor.token_s / 0.01, rel=1e-3)


def test_ceilings_are_measured():
    ceilings = measure_ceilings(CPU, torch.float32)
    assert ceilings.flop_per_s > 1e8 and ceilings.bytes_per_s > 1e7
