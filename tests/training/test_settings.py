"""Invalid settings are refused in one line, before anything is loaded."""

import pytest

from streamingvlm.errors import ConfigError
from streamingvlm.training.settings import FitSettings

GIVEN = {"num_steps": 10, "batch_size": 4, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"num_steps": 0}, "num_steps=0 is below 1"),
        ({"num_steps": None}, "neither num_steps nor num_epochs"),
        ({"num_steps": None, "num_epochs": 0}, "num_epochs=0 is below"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "8"}, "batch_size='8' is not a number"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5"),
        ({"adam_beta2": 1.0}, "adam_beta2=1.0"),
        ({"silence_weight": -1}, "silence_weight=-1"),
        ({"pack_tokens": 100, "accumulation_steps": 2}, "accumulation_steps=2 with pack_tokens=100"),
        ({"fsdp": "shard"}, "choose one of off, full_shard"),
        ({"attention": "eager"}, "choose one of null, sdpa, flash_attention_2"),
        ({"deepspeed": "nowhere.json"}, "nowhere.json is not a file"),
        ({"deepspeed": "configs/deepspeed/zero3.json", "fsdp": "full_shard"}, "give one of them"),
        ({"save_every_steps": -1}, "save_every_steps=-1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_named(wrong, part):
    with pytest.raises(ConfigError) as error:
        FitSettings(**GIVEN | wrong)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_epochs_become_steps_and_a_ratio_becomes_a_warm_up():
    paper = FitSettings(num_epochs=1, batch_size=512, learning_rate=1e-5, warmup_ratio=0.03)
    assert paper.steps_for(14_786) == 29
    assert paper.warmup_of(29) == 1
    assert FitSettings(**GIVEN, warmup_steps=3).warmup_of(10) == 3
    assert FitSettings(**GIVEN).steps_for(3) == 10


def test_steps_that_are_given_replace_the_epochs():
    settings = FitSettings(num_steps=4, num_epochs=1, batch_size=2, learning_rate=1e-5)
    assert settings.steps_for(1000) == 4


@pytest.mark.parametrize(("num_examples", "batch_size"), [(1, 1), (28, 1), (512, 16), (190_000, 512)])
def test_without_a_batch_size_it_follows_the_data(num_examples, batch_size, caplog):
    settings = FitSettings(num_epochs=1, learning_rate=1e-5)
    assert settings.batch_size_for(num_examples) == batch_size
    assert (settings.steps_for(num_examples) >= 20) == (num_examples >= 20)


def test_a_run_of_few_steps_is_warned_of_with_its_arithmetic(caplog):
    assert FitSettings(num_epochs=1, batch_size=512, learning_rate=1e-5).steps_for(28) == 1
    assert "28 examples at batch_size=512, num_epochs=1 are 1 optimizer steps" in caplog.text
