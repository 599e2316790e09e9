"""The adapter to lmms-eval, on a stand-in for its documented interface, and on its registry if it is installed."""

import abc
import logging
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.qa import lmms as adapter
from streamingvlm.evaluation.qa.lmms_manifest import manifest
from streamingvlm.pitch import Match, render
from streamingvlm.video.encoder import write_video

ROOT = Path(__file__).parents[3]
QUESTION = "Who has the ball?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
GREEDY = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Model(abc.ABC):
    """lmms_eval.api.model.lmms, as its guide to models describes it."""

    is_simple = True

    def __init__(self):
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


def stand_in(monkeypatch):
    names = ["lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2"]
    modules = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.model"].lmms = Model
    modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=["stand-in", *(["installed"] if find_spec("lmms_eval") else [])])
def lmms_eval(request, monkeypatch):
    """lmms-eval, one way or the other; what the adapter has made of it is forgotten afterwards."""
    if request.param == "stand-in":
        stand_in(monkeypatch)
    adapter._model_class.cache_clear()
    yield request.param
    adapter._model_class.cache_clear()


@pytest.fixture(scope="module")
def match(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "match.mp4"
    pictures = [picture for second in islice(Match(3).seconds(), 4) for picture in render(second, size=112)]
    write_video(path, [picture.permute(1, 2, 0).numpy() for picture in pictures], fps=2)
    return path


def requests_for(model, visuals, *, context=QUESTION, generation=GREEDY):
    """What the evaluator hands over: arguments, and the documents in the model's own table."""
    model.task_dict = {"videomme": {"test": [{"visuals": visuals}]}}
    args = (context, dict(generation), lambda doc: doc["visuals"], 0, "videomme", "test")
    return [SimpleNamespace(args=args)]


def test_the_manifest_names_a_class_that_is_a_model_of_theirs(lmms_eval):
    registered = manifest()
    assert (registered.model_id, registered.chat_class_path) == ("streamingvlm", None)
    module, _, name = registered.simple_class_path.rpartition(".")
    model_class = getattr(sys.modules[module], name)
    assert issubclass(model_class, sys.modules["lmms_eval.api.model"].lmms)
    assert model_class.is_simple is True
    assert not model_class.__abstractmethods__


@pytest.mark.parametrize("candidate", ["session", "last_frames"])
def test_a_question_is_answered_as_the_candidate_answers_it(lmms_eval, match, candidate):
    model = adapter.StreamingLMM(pretrained="pitch", candidate=candidate, device="cpu")
    kept = []
    model.cache_hook.add_partial = lambda *args: kept.append(args)
    answers = model.generate_until(requests_for(model, [str(match)]))
    assert answers == [model.candidate.answer(Clip(match), QUESTION, max_new_tokens=16)]
    assert kept == [("generate_until", (QUESTION, GREEDY), answers[0])]
    assert model.candidate.path == {"session": "streaming cache", "last_frames": "last 4 frames, no cache"}[candidate]
    assert model.candidate.sampling_config.temperature == 0


def test_the_limit_of_tokens_and_the_ends_of_an_answer_are_the_task_s(lmms_eval, match):
    model = adapter.StreamingLMM(device="cpu")
    asked = []

    def answer(clip, question, *, max_new_tokens):
        asked.append((question, max_new_tokens))
        return "B\n\nbecause"

    model.candidate.answer = answer
    generation = {**GREEDY, "max_new_tokens": 7}
    assert model.generate_until(requests_for(model, [str(match)], generation={**generation, "until": ["\n\n"]})) == [
        "B"
    ]
    assert model.generate_until(requests_for(model, [str(match)], generation={**generation, "until": "because"})) == [
        "B"
    ]
    assert asked == [(QUESTION, 7)] * 2


def test_options_reach_the_candidate_by_their_dotted_names(lmms_eval):
    settings = {"cache.vision_window_s": 4.0, "cache.policy": "window", "video.fps": 4.0, "before_question": "comment"}
    model = adapter.StreamingLMM(device="cpu", batch_size="1", **settings)
    assert model.candidate.cache_config.vision_window_s == 4.0
    assert model.candidate.video_config.fps == 4.0
    assert model.candidate.path == "window without overlap"
    assert model.candidate.before_question == "comment"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidate": "oracle"}, "session, last_frames, offline_generate"),
        ({"cache.size": 3}, "cache.size is unknown"),
        ({"kv.size": 3}, "groups of options are cache, video, sampling"),
        ({"colour": "red"}, "no option colour"),
        ({"batch_size": 8}, "batch_size=1"),
        ({"candidate": "offline_generate", "cache.policy": "full"}, "no option cache"),
    ],
)
def test_options_that_there_are_not_are_refused_in_one_line(lmms_eval, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        adapter.StreamingLMM(**{"device": "cpu", **settings})
    assert "\n" not in str(error.value)


def test_likelihoods_rounds_and_pictures_are_refused_in_one_line(lmms_eval, match):
    model = adapter.StreamingLMM(device="cpu")
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(ConfigError, match="generate_until") as error:
            ask([])
        assert "\n" not in str(error.value)
    for visuals in ([], [object()], [str(match), str(match)]):
        with pytest.raises(ConfigError, match="the path of one video"):
            model.generate_until(requests_for(model, visuals))


def test_a_video_that_cannot_be_watched_is_named_and_answered_with_nothing(lmms_eval, tmp_path, match, caplog):
    model = adapter.StreamingLMM(device="cpu")
    with caplog.at_level(logging.WARNING):
        answers = model.generate_until(requests_for(model, [str(tmp_path / "absent.mp4")]))
    assert answers == [""]
    assert "absent.mp4" in caplog.text


def test_there_is_no_other_name_in_the_module():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        adapter.Nothing  # noqa: B018


FIND_BY_ENTRY_POINT = """
from importlib.metadata import entry_points
(entry,) = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "streamingvlm"]
make = entry.load()
import sys
loaded = [name for name in ("lmms_eval", "torch", "transformers") if name in sys.modules]
assert not loaded, f"{loaded}: who runs another model shall not wait for ours"
print(make.__module__, make.__name__)
"""
REGISTRY = """
from lmms_eval.models import get_model
model_class = get_model("streamingvlm")
print(model_class.__module__, model_class.__name__)
"""


def installed_metadata(folder: Path) -> Path:
    """What an installation of this checkout would leave for others to find."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / "streamingvlm-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: streamingvlm\nVersion: 0\n")
    (point,) = project["entry-points"]["lmms_eval.models"].items()
    (info / "entry_points.txt").write_text(f"[lmms_eval.models]\n{point[0]} = {point[1]}\n")
    return folder


@pytest.mark.parametrize("code", [FIND_BY_ENTRY_POINT, *([REGISTRY] if find_spec("lmms_eval") else [])])
def test_an_installed_checkout_is_found_by_its_entry_point(tmp_path, code):
    paths = [str(installed_metadata(tmp_path)), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    expected = {FIND_BY_ENTRY_POINT: "lmms_manifest manifest", REGISTRY: "lmms StreamingLMM"}[code]
    assert result.stdout.strip().endswith(f"streamingvlm.evaluation.qa.{expected}")
