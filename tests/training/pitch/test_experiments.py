"""Every recipe of the embedded model can be read, and ends with chunks of the paper's length."""

from pathlib import Path

import pytest
import yaml

from streamingvlm.model.checkpoint import EMBEDDED, read_config_json
from streamingvlm.training.pitch.recipe import recipe_from, stream_defaults

FOLDER = Path(__file__).parents[3] / "configs" / "experiment"
RECIPES = {path: yaml.safe_load(path.read_text(encoding="utf-8")).get("recipe") for path in FOLDER.glob("pitch*.yaml")}
EXPERIMENTS = sorted(path for path, recipe in RECIPES.items() if recipe and "base" not in recipe)
CONTINUED = sorted(path for path, recipe in RECIPES.items() if recipe and "base" in recipe)


def seeds(stages):
    return {s.footage.first_seed + n for s in stages if s.footage for n in range(s.footage.num_matches)}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_is_a_recipe(path):
    recipe = recipe_from(yaml.safe_load(path.read_text(encoding="utf-8"))["recipe"])
    assert recipe.stages[0].trains_tower_alone
    assert max(stage.clips.clip_turns for stage in recipe.stages if stage.clips) == 24
    assert stream_defaults(recipe)["text_window_tokens"] == recipe.stages[-1].clips.text_window_tokens


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_language_model_is_trained_on_matches_that_the_tower_has_not_seen(path):
    recipe = recipe_from(yaml.safe_load(path.read_text(encoding="utf-8"))["recipe"])

    tower = seeds(stage for stage in recipe.stages if stage.trains_tower_alone)
    assert not tower & seeds(stage for stage in recipe.stages if stage.clips)


def test_the_embedded_model_has_the_stream_settings_of_its_recipe():
    recipe = recipe_from(yaml.safe_load((FOLDER / "pitch.yaml").read_text(encoding="utf-8"))["recipe"])
    packaged = read_config_json(EMBEDDED["pitch"])["streamingvlm"]
    assert {name: packaged.get(name) for name in stream_defaults(recipe)} == stream_defaults(recipe)


@pytest.mark.parametrize("path", CONTINUED, ids=lambda path: path.stem)
def test_a_further_stage_trains_on_matches_of_its_own(path):
    own = seeds(recipe_from(RECIPES[path]).stages)
    others = [seeds(recipe_from(RECIPES[other]).stages) for other in EXPERIMENTS]
    assert own and not any(own & other for other in others)
