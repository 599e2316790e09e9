"""Endpoints for operators: health, readiness, metrics, models and settings."""

import asyncio

from fastapi import APIRouter, Request, Response

from streamingvlm.serving.access_policy import list_videos
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.metrics import CONTENT_TYPE
from streamingvlm.serving.routes import manager_of
from streamingvlm.serving.session_manager import SessionManager, operator_settings

router = APIRouter()
health_router = APIRouter()


@health_router.api_route("/health", methods=["GET", "HEAD"])
async def health() -> dict[str, str]:
    """Succeeds while the process responds."""
    return {"status": "ok"}


@health_router.api_route("/ready", methods=["GET", "HEAD"])
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
    return {"object": "list", "data": [_model(manager_of(request))]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict:
    """The served model, by its name."""
    served = _model(manager_of(request))
    if name != served["id"]:
        raise ApiError(404, f"there is no model {name[:100]!r} here; use {served['id']!r}")
    return served


def _model(manager: SessionManager) -> dict:
    name = manager.pool.model.name
    return {"id": name, "object": "model", "created": manager.started_at, "owned_by": "streamingvlm"}


@router.get("/v1/videos")
async def videos(request: Request) -> dict:
    """The videos of the operator's folder, by the names that a session may give as ``file``."""
    folder = manager_of(request).config.allowed.folder
    names = [] if folder is None else await asyncio.to_thread(list_videos, folder)
    return {"object": "list", "data": [{"id": name, "object": "video"} for name in names]}


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
