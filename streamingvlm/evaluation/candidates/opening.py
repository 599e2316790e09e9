"""Candidates from the options of ``configs/candidate/``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.candidates.candidate import Candidate
from streamingvlm.evaluation.candidates.endpoint_candidate import EndpointCandidate, EndpointView
from streamingvlm.evaluation.candidates.last_frames import LastFrames
from streamingvlm.evaluation.candidates.offline_generate import OfflineGeneration
from streamingvlm.evaluation.candidates.session_candidate import SessionCandidate
from streamingvlm.model.loading import load_model

LOCAL_CANDIDATES = {"session": SessionCandidate, "last_frames": LastFrames, "offline_generate": OfflineGeneration}
"""Candidates that load a model here, by ``candidate.kind``."""


def candidate_from(options: Mapping[str, Any], *, work_folder: str | Path = ".") -> Candidate:
    """Open the candidate that options of ``configs/candidate/`` describe.

    kind: session, last_frames, offline_generate or endpoint; the other options are the arguments of its class.
    work_folder: where the answers of an endpoint are stored.

    Raises ConfigError for an unknown kind or a missing key, and the errors of `load_model`.
    """
    options = dict(options)
    kind = options.pop("kind", None)
    if kind == "endpoint":
        endpoint = ChatEndpoint(EndpointConfig(**options.pop("endpoint")), Path(work_folder) / "answers")
        return EndpointCandidate(endpoint, name=options.pop("name", None), view=EndpointView(**options))
    if kind not in LOCAL_CANDIDATES:
        kinds = ", ".join([*LOCAL_CANDIDATES, "endpoint"])
        raise ConfigError(f"candidate.kind={kind} is unknown; choose one of {kinds}")
    return LOCAL_CANDIDATES[kind](load_model(**options.pop("model")), **options)
