"""`sluice doctor` on a machine where nothing runs yet."""

import subprocess
import sys
from pathlib import Path

from pydantic import SecretStr

from cli.checks import Check
from cli.doctor import check
from cli.ports import free_ports
from shared.config import Settings


def checks(home: Path, **changes: object) -> dict[str, Check]:
    settings = Settings(_env_file=None, home=home).model_copy(update=changes)
    found = check(settings)
    assert all(one.fix for one in found if not one.ok), "each failed check says what to do"
    return {one.name: one for one in found}


def test_a_machine_that_is_ready_for_up_lacks_only_the_stack(tmp_path: Path) -> None:
    found = checks(tmp_path / "not made yet")
    assert [name for name, one in found.items() if not one.ok] == ["local stack"]
    assert not (tmp_path / "not made yet").exists()


def test_what_is_wrong_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = checks(
        tmp_path / "file" / "home",
        embedding_model="nobody/has-this",
        generation_model="ollama/tiny",
        ollama_url="http://127.0.0.1:1",
        api_host="0.0.0.0",
        api_port=free_ports(1)[0],
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        chroma_url="http://127.0.0.1:1",
        database_url=SecretStr("postgresql+psycopg://u:p@127.0.0.1:1/d"),
    )
    for name, setting in {
        "home": "SLUICE_HOME",
        "embedding model": "SLUICE_EMBEDDING_MODEL",
        "generation model": "SLUICE_OLLAMA_URL",
        "API keys": "SLUICE_API_KEYS",
        "redis": "SLUICE_REDIS_URL",
        "chroma": "SLUICE_CHROMA_URL",
        "database": "SLUICE_DATABASE_URL",
        "API": "SLUICE_URL",
    }.items():
        assert not found[name].ok, name
        assert setting in found[name].fix


def test_a_model_in_a_folder_is_found(tmp_path: Path) -> None:
    assert checks(tmp_path, embedding_model=str(tmp_path))["embedding model"].ok


def test_the_doctor_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from cli.doctor import check\n"
        "from shared.config import Settings\n"
        "check(Settings(_env_file=None, home=sys.argv[1]))\n"
        "print({'torch', 'transformers', 'chromadb', 'langchain'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
