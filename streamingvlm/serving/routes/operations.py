"""Endpoints for operators: health, readiness, metrics, models and settings."""

from fastapi import APIRouter, Request, Response

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.metrics import CONTENT_TYPE
from streamingvlm.serving.routes import manager_of
from streamingvlm.serving.session_manager import operator_settings

router = APIRouter()
health_router = APIRouter()


@health_router.get("/health")
async def health() -> dict[str, str]:
    """Succeeds while the process responds."""
    return {"status": "ok"}


@health_router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Succeeds while new sessions are accepted, so not while the server drains."""
    if not manager_of(request).is_ready:
        raise ApiError(503, "the server accepts no new sessions; use another")
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(manager_of(request).metrics.exposition(), media_type=CONTENT_TYPE)


@router.get("/v1/models")
async def models(request: Request) -> dict:
    """The served model, in OpenAI's format."""
    manager = manager_of(request)
    entry = {
        "id": manager.pool.model.name,
        "object": "model",
        "created": manager.started_at,
        "owned_by": "streamingvlm",
    }
    return {"object": "list", "data": [entry]}


@router.get("/v1/settings")
async def settings(request: Request) -> dict:
    """The default settings of a session, which are also the most that it may ask for."""
    manager = manager_of(request)
    allowed = manager.config.allowed
    return {
        "object": "settings",
        "model": manager.pool.model.name,
        **operator_settings(manager),
        "files": allowed.folder is not None,
        "addresses": bool(allowed.hosts),
        "ice_servers": list(manager.config.ice_servers),
        "max_frame_bytes": manager.config.limits.max_frame_bytes,
        "max_frames_per_s": manager.config.limits.max_frames_per_s,
    }


router.include_router(health_router)
