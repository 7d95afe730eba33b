"""Source code -> its text, unchanged, with the name of its language.

The language follows from the suffix of the file's name. Splitters by characters split code at the
definitions and statements of its language, by the separators of LangChain's
`RecursiveCharacterTextSplitter.from_language`; only those that are plain strings count. (Packages
of tree-sitter grammars parse better, but the current one downloads grammars when it runs.)
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Final

from shared.bounds import Metadata
from workers.ingest.formats.loader import DocumentKey, DocumentParts, Loader, RawDocument
from workers.ingest.formats.texts.text import text_of

# Suffix -> the name of the language, and LangChain's name for the language whose separators it has.
_LANGUAGES: Final[dict[str, tuple[str, str]]] = {
    ".py": ("python", "python"),
    ".pyi": ("python", "python"),
    ".js": ("javascript", "js"),
    ".mjs": ("javascript", "js"),
    ".cjs": ("javascript", "js"),
    ".jsx": ("javascript", "js"),
    ".ts": ("typescript", "ts"),
    ".tsx": ("typescript", "ts"),
    ".java": ("java", "java"),
    ".kt": ("kotlin", "kotlin"),
    ".kts": ("kotlin", "kotlin"),
    ".scala": ("scala", "scala"),
    ".c": ("c", "c"),
    ".h": ("c", "c"),
    ".cc": ("cpp", "cpp"),
    ".cpp": ("cpp", "cpp"),
    ".cxx": ("cpp", "cpp"),
    ".hpp": ("cpp", "cpp"),
    ".cs": ("csharp", "csharp"),
    ".go": ("go", "go"),
    ".rs": ("rust", "rust"),
    ".rb": ("ruby", "ruby"),
    ".php": ("php", "php"),
    ".swift": ("swift", "swift"),
    ".lua": ("lua", "lua"),
    ".hs": ("haskell", "haskell"),
    ".ex": ("elixir", "elixir"),
    ".exs": ("elixir", "elixir"),
    ".r": ("r", "r"),
    ".ps1": ("powershell", "powershell"),
    ".proto": ("protobuf", "proto"),
    ".sol": ("solidity", "sol"),
    ".cob": ("cobol", "cobol"),
    ".tex": ("latex", "latex"),
    ".sh": ("shell", ""),
    ".bash": ("shell", ""),
    ".sql": ("sql", ""),
    ".pl": ("perl", ""),
    ".css": ("css", ""),
    ".vue": ("vue", "js"),
    ".svelte": ("svelte", "js"),
    ".dart": ("dart", "java"),
    ".groovy": ("groovy", "java"),
    ".jl": ("julia", ""),
    ".zig": ("zig", "rust"),
    ".hh": ("cpp", "cpp"),
    ".hxx": ("cpp", "cpp"),
    ".cu": ("cuda", "cpp"),
    ".clj": ("clojure", ""),
    ".erl": ("erlang", ""),
    ".fs": ("fsharp", ""),
    ".ml": ("ocaml", ""),
    ".vb": ("visualbasic", "visualbasic6"),
    ".f90": ("fortran", ""),
    ".pm": ("perl", ""),
    ".psm1": ("powershell", "powershell"),
    ".cbl": ("cobol", "cobol"),
    ".bat": ("batch", ""),
    ".scss": ("scss", ""),
    ".less": ("less", ""),
    ".graphql": ("graphql", ""),
    ".gradle": ("groovy", "java"),
    ".tf": ("terraform", ""),
}
_SEPARATORS_OF: Final = dict(_LANGUAGES.values())
_PYTHON_METHODS: Final = ("\n    def ", "\n    async def ")
"""Methods, which LangChain's separators lack; they follow those of the top level."""
_REGULAR: Final = re.compile(r"(?<!\\)[*+?(\[|^$]")


def load(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    language = _language(document.name)
    own: Metadata = {DocumentKey.PROGRAMMING_LANGUAGE: language} if language else {}
    return DocumentParts(passages=[(text, {})], metadata=metadata | own)


CODE = Loader(
    load=load,
    example=b"def f():\n    return 1\n",
    example_text="def f():\n    return 1\n",
)


def _language(name: str) -> str | None:
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    return _LANGUAGES[suffix][0] if suffix in _LANGUAGES else None


@cache
def code_separators(language: object) -> Sequence[str]:
    """The separators at which code of a language is divided, the best first; none if it is not
    code, or LangChain has none."""
    langchain_name = _SEPARATORS_OF.get(language) if isinstance(language, str) else None
    if not langchain_name:
        return ()
    # Imported late: it takes a second, and most documents are not code.
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    patterns = RecursiveCharacterTextSplitter.get_separators_for_language(Language(langchain_name))
    separators = [
        re.sub(r"\\(.)", r"\1", pattern) for pattern in patterns if not _REGULAR.search(pattern)
    ]
    if language == "python":
        separators[2:2] = _PYTHON_METHODS
    return tuple(separators)
