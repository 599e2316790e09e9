"""LoRA for another style: a few steps lower the loss; the full experiment, merged, comments in the style."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from streamingvlm import StreamingSession
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.pitch.match import evaluate_pitch
from streamingvlm.pitch.styles import RADIO
from streamingvlm.training.adapters import merge
from streamingvlm.training.pitch.recipe import FootagePlan
from streamingvlm.training.pitch.restyling import restyle, restyling_from

EXPERIMENT = Path(__file__).parents[3] / "configs" / "experiment" / "pitch_lora.yaml"
UNSEEN_SEED = 1007


def options():
    return yaml.safe_load(EXPERIMENT.read_text(encoding="utf-8"))["restyling"]


def test_a_few_steps_lower_the_loss_and_the_adapter_merges(tmp_path):
    plan = restyling_from(options())
    few = dataclasses.replace(plan.fit, num_steps=6, batch_size=2, warmup_steps=1, log_every_steps=1, bf16=False)
    short = dataclasses.replace(plan.clips, clip_turns=6)
    little = dataclasses.replace(plan, fit=few, clips=short, footage=FootagePlan(400000, 1, 30))
    losses = [point["loss"] for point in restyle(little, tmp_path / "adapter")]
    assert min(losses[-2:]) < 0.8 * losses[0]
    session = StreamingSession.from_pretrained(merge(tmp_path / "adapter", tmp_path / "merged"), device="cpu")
    assert session.sampling_config.temperature == 0 and session.cache_config.text_window_tokens == 160


def test_an_unknown_style_is_refused():
    with pytest.raises(ConfigError, match="style=poem"):
        restyling_from(options() | {"style": "poem"})
    with pytest.raises(ConfigError, match="cannot be read"):
        restyling_from(options() | {"lora": {"rang": 3}})


@pytest.mark.slow
def test_the_experiment_teaches_the_style_and_the_merged_checkpoint_streams(tmp_path):
    restyle(restyling_from(options()), tmp_path / "adapter")
    session = StreamingSession.from_pretrained(merge(tmp_path / "adapter", tmp_path / "merged"), device="cpu")
    result = evaluate_pitch(session, seed=UNSEEN_SEED, duration_s=300, style=RADIO)
    assert result.report.accuracy >= 0.9
    assert result.report.side_accuracy >= 0.9
