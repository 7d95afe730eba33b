"""Which workers `sluice up` starts, with which models and on which devices."""

from pathlib import Path
from typing import Any

import pytest

from cli.stack.programs import ServerAddresses, WorkerCounts, cuda_devices, program_parts
from cli.stack.stackfile import Part
from shared.config import Settings

PLACES = ServerAddresses(
    database_url="postgresql://u@127.0.0.1:1/d",
    redis_url="redis://127.0.0.1:1/0",
    vectors_url="chroma://127.0.0.1:1",
    api_host="127.0.0.1",
    api_port=1,
)
TWO_GPUS = """#!/bin/sh
[ "$1" = -L ] || exit 1
echo 'GPU 0: NVIDIA H100 (UUID: GPU-a)'
echo 'GPU 1: NVIDIA H100 (UUID: GPU-b)'
echo '  MIG 1g.10gb Device 0: (UUID: MIG-c)'
"""


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose PATH holds nothing, and so no driver."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def driver(path: Path, text: str) -> None:
    program = path / "nvidia-smi"
    program.write_text(text)
    program.chmod(0o755)


def parts(workers: WorkerCounts, **changes: Any) -> list[Part]:
    settings = Settings(_env_file=None, **changes)
    return program_parts(settings, PLACES, workers)


def arguments(workers: WorkerCounts, **changes: Any) -> list[tuple[str, ...]]:
    """The command line of each generation worker, after its name."""
    generators = [part for part in parts(workers, **changes) if part.name.startswith("generate")]
    return [part.argv[part.argv.index("--name") + 2 :] for part in generators]


def test_without_models_workers_get_no_arguments() -> None:
    assert arguments(WorkerCounts(gpu_workers=2)) == [(), ()]
    assert [part.name for part in parts(WorkerCounts(gpu_workers=0, cpu_workers=2))] == [
        "api", "cpu-1", "cpu-2", "beat",
    ]  # fmt: skip


def test_models_and_device_are_passed_on() -> None:
    workers = WorkerCounts(models=("hf/a/b", "ollama"), device="cuda:1")
    assert arguments(workers) == [("--model", "hf/a/b", "--model", "ollama", "--device", "cuda:1")]


def test_the_first_model_becomes_the_default_unless_one_is_set() -> None:
    workers = WorkerCounts(models=("ollama", "hf/a/b", "hf/c/d"))
    envs = [part.env.get("SLUICE_GENERATION_MODEL") for part in parts(workers)]
    assert set(envs) == {"hf/a/b"}
    for kept in (
        parts(workers, generation_model="extractive"),
        parts(WorkerCounts(models=("ollama",))),
    ):
        assert all("SLUICE_GENERATION_MODEL" not in part.env for part in kept)


def test_several_workers_share_out_the_gpus(path: Path) -> None:
    driver(path, TWO_GPUS)
    pinned = [("--device", f"cuda:{n}") for n in (0, 1, 0)]
    assert arguments(WorkerCounts(gpu_workers=3)) == pinned
    assert arguments(WorkerCounts(gpu_workers=3, device="auto")) == pinned
    # One may spread its model over all of them, and whoever names a device is obeyed.
    assert arguments(WorkerCounts(gpu_workers=1)) == [()]
    assert arguments(WorkerCounts(gpu_workers=2, device="cpu")) == [("--device", "cpu")] * 2
    assert arguments(WorkerCounts(gpu_workers=2), generation_device="cuda:1") == [(), ()]


def test_devices_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_devices() == 0
    driver(path, "#!/bin/sh\necho 'GPU 0: but the driver is broken'\nexit 9\n")
    assert cuda_devices() == 0
    driver(path, TWO_GPUS)
    assert cuda_devices() == 2
    for visible, count in {"3": 1, "0,2,3": 3, "": 0, "-1": 0}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert cuda_devices() == count
