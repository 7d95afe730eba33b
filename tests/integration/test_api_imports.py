"""An API host has no torch, no LangChain, no Chroma: importing the API must not ask for them."""

import subprocess
import sys

FORBIDDEN = [
    "torch", "transformers", "sentence_transformers", "chromadb", "langchain", "langchain_core",
    "langchain_community", "langchain_chroma", "langchain_text_splitters", "workers", "cli",
]  # fmt: skip


def test_importing_the_api_imports_no_model_library() -> None:
    program = (
        "import sys, api.app, api.__main__\n"
        f"print([name for name in sys.modules if name.partition('.')[0] in {FORBIDDEN!r}])"
    )

    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert process.stdout.strip() == "[]"
