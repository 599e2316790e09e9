"""The web page and its sample video."""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "static"
SAMPLE = Path(__file__).parents[2] / "assets" / "pitch"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)
static = StaticFiles(directory=FOLDER)


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> FileResponse:
    """The web page."""
    return FileResponse(FOLDER / "index.html", headers=_HEADERS)


@router.api_route("/favicon.ico", methods=["GET", "HEAD"])
async def icon() -> FileResponse:
    """The icon of the page."""
    return FileResponse(FOLDER / "icon.svg", headers={"cache-control": "max-age=86400"})


@router.get("/sample/match.mp4")
async def sample() -> FileResponse:
    """The sample match."""
    return FileResponse(SAMPLE / "match.mp4", headers={"cache-control": "max-age=86400"})


@router.get("/sample/match.txt")
async def sample_text() -> Response:
    """The previous text of the sample match."""
    return FileResponse(SAMPLE / "match.txt")
