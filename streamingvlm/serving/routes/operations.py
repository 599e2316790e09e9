"""For operators and their machines: health, readiness, figures, and what this server offers."""

from fastapi import APIRouter, Request, Response

from streamingvlm.serving import metrics
from streamingvlm.serving.hub import settings_of
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.routes import hub_of

router = APIRouter()
liveness = APIRouter()


@liveness.get("/health")
async def health() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "ok"}


@liveness.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Whether a session could be opened now; not while the server drains."""
    if not hub_of(request).is_ready:
        raise Refusal(503, "the server takes no new sessions; ask another")
    return {"status": "ready"}


@router.get("/metrics")
async def figures(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(hub_of(request).metrics.exposition(), media_type=metrics.CONTENT_TYPE)


@router.get("/v1/models")
async def models(request: Request) -> dict:
    """The one model that is served, as OpenAI lists models."""
    hub = hub_of(request)
    entry = {"id": hub.streams.model.name, "object": "model", "created": hub.started_at, "owned_by": "streamingvlm"}
    return {"object": "list", "data": [entry]}


@router.get("/v1/settings")
async def settings(request: Request) -> dict:
    """What a session gets where it asks for nothing, and the most that it may ask for."""
    hub = hub_of(request)
    allowed = hub.config.allowed
    return {
        "object": "settings",
        "model": hub.streams.model.name,
        **settings_of(hub),
        "files": allowed.folder is not None,
        "addresses": bool(allowed.hosts),
        "ice_servers": list(hub.config.ice_servers),
        "max_frame_bytes": hub.config.limits.max_frame_bytes,
        "max_frames_per_s": hub.config.limits.max_frames_per_s,
    }


router.include_router(liveness)
