"""/docs: Swagger UI from the package `fastapi-swagger`, served by the API itself; no CDN."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.staticfiles import StaticFiles

ASSETS = "/docs/assets"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    root = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Sluice API",
        swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{root}{ASSETS}/favicon-32x32.png",
        # Without this the page shows a badge of a public validator, fetched from its host.
        swagger_ui_parameters={"validatorUrl": None, "docExpansion": "list"},
    )


def swagger_files() -> StaticFiles:
    spec = find_spec("fastapi_swagger")
    assert spec is not None, "the package fastapi-swagger is missing (extra `api`)"
    assert spec.origin is not None
    return StaticFiles(directory=Path(spec.origin).parent / "resources")
