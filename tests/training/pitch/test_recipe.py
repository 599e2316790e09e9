"""A tiny recipe: it trains, is reproducible, resumes, and its model streams."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from streamingvlm import StreamingSession
from streamingvlm.errors import ConfigError
from streamingvlm.pitch import Match, render
from streamingvlm.training.pitch.drills import DrillSettings
from streamingvlm.training.pitch.loss_curves import write_loss_curves
from streamingvlm.training.pitch.pitch_footage import NUM_MIRRORINGS, encode_footage, render_match
from streamingvlm.training.pitch.recipe import FootagePlan, RecipeRun, export_model, recipe_from
from streamingvlm.training.pitch.tower import Tower

EXPERIMENTS = Path(__file__).parents[3] / "configs"


def options():
    return yaml.safe_load((EXPERIMENTS / "debug" / "train.yaml").read_text(encoding="utf-8"))["recipe"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = RecipeRun(recipe_from(options()), tmp_path_factory.mktemp("run"))
    return run, run.train()


@pytest.fixture(scope="module")
def base(finished, tmp_path_factory):
    """The exported model of the finished run."""
    folder = tmp_path_factory.mktemp("base")
    export_model(finished[0], folder)
    return str(folder)


def test_every_stage_leaves_a_model_and_a_loss_that_falls(tmp_path):
    recipe = recipe_from(options())
    tower, clips, _ = recipe.stages
    longer = dataclasses.replace(clips, fit=dataclasses.replace(clips.fit, num_steps=30))
    run = RecipeRun(dataclasses.replace(recipe, stages=[tower, longer]), tmp_path)
    run.train()
    losses = [point["loss"] for point in run.loss_curves()["clips"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-tower", "1-clips"]


def test_the_same_seed_trains_the_same_model(finished, tmp_path):
    run, last = finished
    again = RecipeRun(run.recipe, tmp_path).train()
    mine, other = (load_file(folder / "model.safetensors") for folder in (last, again))
    assert all(torch.equal(weights, other[name]) for name, weights in mine.items())


def test_the_tower_stays_frozen_while_the_language_model_is_trained(finished):
    run, last = finished
    before, after = (load_file(folder / "model.safetensors") for folder in (run.folder / "0-tower", last))
    changed = [name for name, weights in before.items() if not torch.equal(weights, after[name])]
    assert any("visual" in name for name in before)
    assert changed
    assert not any("visual" in name for name in changed)


def test_a_stage_can_train_the_tower_too(finished, tmp_path):
    run, _ = finished
    stage = dataclasses.replace(
        run.recipe.stages[1], name="together", train_tower=True, drills=DrillSettings(num_lines=8), drills_percent=50
    )
    (tmp_path / "0-tower").symlink_to(run.folder / "0-tower")
    recipe = dataclasses.replace(run.recipe, stages=[run.recipe.stages[0], stage])
    last = RecipeRun(recipe, tmp_path).train()
    before, after = (load_file(folder / "model.safetensors") for folder in (run.folder / "0-tower", last))
    still = {name for name, weights in before.items() if torch.equal(weights, after[name])}
    assert not any("visual" in name and name.endswith("weight") for name in still)
    assert not any("mlp" in name for name in still)


def test_distillation_changes_the_tower_alone_and_keeps_the_settings_of_the_base(finished, base, tmp_path):
    run, _ = finished
    filmed = FootagePlan(1, 2, 6, camera_percent=100)
    distil = dataclasses.replace(run.recipe.stages[0], name="distil", footage=filmed, distil_tower=True)
    further = RecipeRun(dataclasses.replace(run.recipe, base=base, stages=[distil]), tmp_path / "further")
    further.train()
    export_model(further, tmp_path / "model")
    folders = (Path(base), tmp_path / "model")
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    assert {"visual" in name for name in before if not torch.equal(before[name], after[name])} == {True}
    before, after = (json.loads((folder / "config.json").read_text())["streamingvlm"] for folder in folders)
    assert {*before.pop("training")["stages"], "distil"} == {*after.pop("training")["stages"]}
    assert before == after


def test_distillation_of_a_stage_with_clips_is_refused():
    with pytest.raises(ConfigError, match="stage clips has distil_tower and clips"):
        dataclasses.replace(recipe_from(options()).stages[1], distil_tower=True)


def test_distillation_needs_a_base():
    recipe = options()
    recipe["stages"][0]["distil_tower"] = True
    with pytest.raises(ConfigError, match="stage tower has distil_tower, but the recipe has no base"):
        recipe_from(recipe)


def test_footage_gives_frames_until_it_is_encoded(finished):
    run, _ = finished
    footage = render_match(7, 12)
    seconds = [3, 9]
    assert footage.num_mirrorings == NUM_MIRRORINGS
    assert torch.equal(footage.vision_of(seconds, 1), footage.frames[seconds].flip(-1))
    encode_footage([footage], Tower(run._model_before(1)), num_mirrorings=2)
    assert footage.num_mirrorings == 2
    assert footage.vision_of(seconds, 1).shape == (2 * 16, 64)


def test_a_run_resumes_after_its_last_complete_stage(finished, tmp_path):
    run, last = finished
    broken = RecipeRun(run.recipe, tmp_path)
    (tmp_path / "1-clips").symlink_to(run.folder / "1-clips")
    (tmp_path / "0-tower").symlink_to(run.folder / "0-tower")
    resumed = load_file(broken.train() / "model.safetensors")
    assert all(torch.equal(weights, resumed[name]) for name, weights in load_file(last / "model.safetensors").items())
    assert json.loads((tmp_path / "2-chunks" / "training.json").read_text())["minutes"] > 0


class Interruption(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{}, {"train_tower": True}, {"clips": None, "distil_tower": True}], ids=str)
def test_a_stage_resumes_from_its_newest_checkpoint(finished, base, tmp_path, changes):
    run, _ = finished
    tower, stage, _ = run.recipe.stages
    for every, folder, callbacks in ((0, "whole", []), (2, "resumed", [Interruption()]), (2, "resumed", [])):
        fit = dataclasses.replace(stage.fit, save_every_steps=every)
        stages = [tower, dataclasses.replace(stage, fit=fit, **changes)]
        (tmp_path / folder).mkdir(exist_ok=True)
        if not (tmp_path / folder / "0-tower").exists():
            (tmp_path / folder / "0-tower").symlink_to(run.folder / "0-tower")
        recipe = dataclasses.replace(run.recipe, stages=stages, base=base)
        recipe_run = RecipeRun(recipe, tmp_path / folder, callbacks=callbacks)
        with pytest.raises(KeyboardInterrupt) if callbacks else contextlib.nullcontext():
            recipe_run.train()
    resumed, whole = (load_file(tmp_path / folder / "1-clips/model.safetensors") for folder in ("resumed", "whole"))
    assert all(torch.equal(weights, resumed[name]) for name, weights in whole.items())


def test_the_exported_model_streams_with_its_own_settings(finished, tmp_path):
    run, _ = finished
    export_model(run, tmp_path)
    match = Match(5)
    session = StreamingSession.from_pretrained(tmp_path, previous_text=match.intro)
    assert session.cache_config.text_sink_tokens == run.recipe.stages[-1].clips.text_sink_tokens
    assert session.sampling_config.temperature == 0
    assert session.step(render(next(match.seconds()))).num_tokens > 0
    assert session.model.hf.config.streamingvlm["training"]["stages"]["clips"]["steps"] == 4


def test_the_exported_weights_are_the_mean_of_the_last_stages(finished, tmp_path):
    run, last = finished
    averaging = RecipeRun(dataclasses.replace(run.recipe, num_averaged=2), run.folder)
    export_model(averaging, tmp_path)
    published, *after = (load_file(folder / "model.safetensors") for folder in (tmp_path, run.folder / "1-clips", last))
    assert published.keys() == after[0].keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert {part["dtype"] for part in (config, config["text_config"], config["vision_config"])} == {"bfloat16"}
    for name, weights in published.items():
        assert torch.equal(weights, ((after[0][name] + after[1][name]) / 2).bfloat16())


def test_a_stage_starts_from_the_stage_that_it_names(finished, tmp_path):
    run, _ = finished
    tower, clips, _ = run.recipe.stages
    again = dataclasses.replace(clips, name="again", after="tower")
    branching = RecipeRun(dataclasses.replace(run.recipe, stages=[tower, clips, again]), tmp_path)
    for name in ("0-tower", "1-clips"):
        (tmp_path / name).symlink_to(run.folder / name)
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "1-clips", branching.train()))
    assert all(torch.equal(weights, second[name]) for name, weights in first.items())


def test_a_recipe_continues_from_a_checkpoint_on_filmed_matches(finished, base, tmp_path):
    run, _ = finished
    stage = dataclasses.replace(
        run.recipe.stages[1],
        name="cameras",
        fit=dataclasses.replace(run.recipe.stages[1].fit, learning_rate=1e-9),
        footage=dataclasses.replace(run.recipe.stages[1].footage, camera_percent=100),
    )
    further = RecipeRun(dataclasses.replace(run.recipe, base=base, stages=[stage]), tmp_path / "further")
    further.train()
    export_model(further, tmp_path / "model")
    before, after = (load_file(folder / "model.safetensors") for folder in (Path(base), tmp_path / "model"))
    assert all(torch.allclose(weights.float(), after[name].float(), atol=1e-3) for name, weights in before.items())
    stages = json.loads((tmp_path / "model" / "config.json").read_text())["streamingvlm"]["training"]["stages"]
    assert set(stages) == {"tower", "clips", "chunks", "cameras"}


def test_a_share_of_the_matches_is_filmed():
    plan = FootagePlan(first_seed=1, num_matches=6, duration_s=4, camera_percent=50)
    filmed = [not torch.equal(match.frames, render_match(1 + n, 4).frames) for n, match in enumerate(plan.render())]
    assert 0 < sum(filmed) < 6


def test_a_stage_starts_from_earlier_stages_only():
    recipe = options()
    recipe["stages"][1]["after"] = recipe["stages"][2]["name"]
    with pytest.raises(ConfigError, match="stage clips has after=chunks, which is not an earlier stage"):
        recipe_from(recipe)


@pytest.mark.parametrize("number", [0, 4])
def test_more_stages_than_there_are_cannot_be_averaged(number):
    with pytest.raises(ConfigError, match=f"num_averaged={number}"):
        recipe_from(options() | {"num_averaged": number})


def test_loss_curves_are_written_as_json_and_as_a_plot(finished, tmp_path):
    run, _ = finished
    write_loss_curves(run, tmp_path / "curves.json")
    curves = json.loads((tmp_path / "curves.json").read_text())["loss_curves"]
    assert [len(curve) for curve in curves.values()] == [4, 4, 4]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_recipe_with_an_unknown_name_is_refused_in_one_line():
    wrong = options()
    wrong["stages"][0]["fit"] = {"steps": 3}
    with pytest.raises(ConfigError, match="steps"):
        recipe_from(wrong)


def test_clips_beside_the_stages_override_those_of_each_stage():
    recipe = recipe_from(options() | {"clips": {"overlap_turns": 0}})
    assert [stage.clips.overlap_turns for stage in recipe.stages if stage.clips] == [0, 0]
    assert recipe.stages[-1].clips.clip_turns == 24
