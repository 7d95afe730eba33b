"""Which packages each part needs, by the names of their modules. They are looked for, never
imported: some of them take seconds."""

PACKAGES = {
    "api": ("fastapi", "multipart", "fastapi_swagger", "uvicorn"),
    "worker": (
        *("charset_normalizer", "chromadb", "jsonschema", "langchain", "langchain_chroma"),
        *("langchain_community", "langchain_text_splitters", "lxml", "ollama", "openai"),
        *("sentence_transformers", "torch", "transformers"),
    ),
}


def how_to_install(extra: str) -> str:
    """Sluice is on no package index (the name there is another project's): it comes as source."""
    return f"run `pip install '.[{extra}]'` in the folder of Sluice's source"
