"""LongVideoBench, VideoMME, MVBench and the like: an adapter by which lmms-eval runs its tasks on our candidates.

lmms-eval finds it by its entry point (lmms_manifest.py) and imports it when it is asked for:

    python -m lmms_eval --model streamingvlm --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct --tasks videomme

``candidate=offline_generate`` answers by ordinary generation, as the paper's figures were taken; the default watches
the video second by second through the session.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.evaluation.candidates.candidates import Candidate, Clip, LastFrames, SessionCandidate, candidate_from
from streamingvlm.evaluation.candidates.offline_generate import OrdinaryGeneration

log = logging.getLogger(__name__)

_CANDIDATES = {"session": SessionCandidate, "last_frames": LastFrames, "offline_generate": OrdinaryGeneration}
_GROUPS = ("cache", "video", "sampling")
_LIKELIHOOD = "a stream answers in words and gives no likelihoods; choose a task of output_type generate_until"
_ROUNDS = "one question is answered at a time; choose a task of output_type generate_until"


def __getattr__(name: str):
    if name != "StreamingLMM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _model_class()


@cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    return type("StreamingLMM", (VideoAnswers, lmms), {"is_simple": True, "__module__": __name__})


class VideoAnswers:
    """What lmms-eval asks of a model, answered by a candidate.

    pretrained: packaged name, folder or hub name of a checkpoint. candidate: session, last_frames or offline_generate.
    device: of the model. batch_size, max_batch_size: 1, as one video is watched at a time.
    settings: options of the candidate; those of a group by their dotted names, ``cache.policy=window`` for instance.
        Answers are greedy unless ``sampling.temperature`` says otherwise.

    Raises ConfigError for an unknown option, and what loading a model raises.
    """

    def __init__(
        self,
        pretrained: str = "pitch",
        candidate: str = "session",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **settings: Any,
    ):
        super().__init__()
        if str(batch_size) != "1" or max_batch_size not in (None, 1):
            raise ConfigError(f"batch_size={batch_size}: one video is watched at a time; give batch_size=1")
        self.candidate = _candidate(pretrained, candidate, device, settings)
        log.info("answers come by way of: %s", self.candidate.path)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each request, whose task gives one video; one that cannot be watched is answered with nothing.

        Raises ConfigError for a task that gives anything but one video.
        """
        return [self._answer(*request.args) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise ConfigError."""
        raise ConfigError(_LIKELIHOOD)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise ConfigError."""
        raise ConfigError(_ROUNDS)

    def _answer(
        self, context: str, generation: Mapping[str, Any], doc_to_visual, doc_id: int, task: str, split: str
    ) -> str:
        video = _one_video(doc_to_visual(self.task_dict[task][split][doc_id]), task)
        try:
            answer = self.candidate.answer(Clip(video), context, max_new_tokens=generation.get("max_new_tokens"))
        except VideoError as error:
            log.warning("%s, question %s is answered with nothing: %s", task, doc_id, error)
            return ""
        answer = _cut(answer, generation.get("until") or ())
        self.cache_hook.add_partial("generate_until", (context, generation), answer)
        return answer


def _candidate(pretrained: str, kind: str, device: str | None, settings: Mapping[str, Any]) -> Candidate:
    if kind not in _CANDIDATES:
        raise ConfigError(f"candidate={kind} is unknown; choose one of {', '.join(_CANDIDATES)}")
    options: dict[str, Any] = {"kind": kind, "model": {"name": pretrained, "device": device}}
    if kind != "offline_generate":
        options["sampling"] = {"temperature": 0.0}
    for name, value in settings.items():
        group, _, setting = name.rpartition(".")
        if group and group not in _GROUPS:
            raise ConfigError(f"{name} is unknown; groups of options are {', '.join(_GROUPS)}")
        (options.setdefault(group, {}) if group else options)[setting] = value
    known = set(signature(_CANDIDATES[kind]).parameters) | {"kind"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"candidate={kind} has no option {unknown[0]}; it has {', '.join(sorted(known - {'kind'}))}")
    return candidate_from(options)


def _one_video(visuals: Sequence[Any], task: str) -> Path:
    if len(visuals) != 1 or not isinstance(visuals[0], str | Path):
        kinds = ", ".join(type(visual).__name__ for visual in visuals[:3]) or "nothing"
        raise ConfigError(
            f"{task} shows {len(visuals)} of {kinds}, expected the path of one video; choose a video task"
        )
    return Path(visuals[0])


def _cut(answer: str, until: str | Sequence[str]) -> str:
    """The answer up to the first of the strings that end it."""
    for end in (until,) if isinstance(until, str) else until:
        answer = answer.split(end)[0] if end else answer
    return answer.strip()
