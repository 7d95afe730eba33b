"""The formats of files that can be ingested, one record each. How to add one: CONTRIBUTING.md.

A binary file is recognized by its content; a text by the suffix of its name, else by its media
type, else by its beginning, else it is plain text (`workers/ingest/formats/sniffing.py`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Format:
    """A format for all parts of Sluice; only workers import its loader."""

    name: str
    """The name for users."""
    suffixes: Sequence[str]
    """In lower case. Folders are searched for files with one of them."""
    media_types: Sequence[str]
    """The first is written into the metadata of each document of the format."""
    loader: str
    """A `Loader` (`workers/ingest/formats/loader.py`) as `module:name`."""
    is_text: bool = True
    """Whether its documents are text in some encoding. Binary files are never read as such a
    format, and texts never as a binary one."""
    is_text_too: bool = False
    """For a binary format: whether programs also write texts with its suffix, which its loader
    recognizes."""
    signatures: Sequence[bytes] = ()
    """The first bytes of its documents, if no library knows them. For texts they count only if name
    and media type are unknown; upper and lower case are the same there."""
    zip_members: Sequence[str] = ()
    """For a ZIP archive without a member `mimetype`: the beginning of a member's name, such as
    `word/`."""
    ole_streams: Sequence[str] = ()
    """For an OLE compound file: the name of a stream that no other format has."""
    extra: str = ""
    """The extra of the distribution that has its library; empty if all workers have it."""
    holds_documents: bool = False
    """Whether its documents may contain others, which become documents of their own: archives, mail
    with attachments."""
    option: str = ""
    """For a format that is read only if a job asks for it: the field of `LoadOptions`
    (`shared/kinds/ingest.py`) that does so, such as `ocr`. Folders are searched for its files only
    then."""
    is_document: bool = True
    """False for an archive: only the files in it are documents."""
    is_isolated: bool = False
    """Whether it is read in a process of its own with limits of time and memory. True for every
    format that needs a third-party library, which may hang or crash."""


FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format("text", [".txt", ".text"], ["text/plain"], "workers.ingest.formats.texts.text:TEXT"),
        Format(
            "Markdown",
            [".md", ".markdown"],
            ["text/markdown", "text/x-markdown"],
            "workers.ingest.formats.texts.markdown:MARKDOWN",
        ),
        Format(
            "HTML",
            [".html", ".htm", ".xhtml", ".xht"],
            ["text/html", "application/xhtml+xml"],
            "workers.ingest.formats.texts.html:HTML",
            signatures=[b"<!doctype html", b"<html"],
            is_isolated=True,
        ),
        Format(
            "CSV",
            [".csv"],
            ["text/csv", "application/csv"],
            "workers.ingest.formats.texts.tables:CSV",
        ),
        Format(
            "TSV",
            [".tsv"],
            ["text/tab-separated-values"],
            "workers.ingest.formats.texts.tables:TSV",
        ),
        Format(
            "JSON", [".json"], ["application/json"], "workers.ingest.formats.texts.records:JSON"
        ),
        Format(
            "JSON Lines",
            [".jsonl", ".ndjson"],
            [
                "application/jsonl",
                "application/x-jsonlines",
                "application/x-ndjson",
                "application/ndjson",
            ],
            "workers.ingest.formats.texts.records:JSON_LINES",
        ),
        Format(
            "reStructuredText",
            [".rst", ".rest"],
            ["text/x-rst", "text/prs.fallenstein.rst"],
            "workers.ingest.formats.texts.rst:RST",
            is_isolated=True,
        ),
        Format(
            "XML",
            [".xml"],
            ["application/xml", "text/xml"],
            "workers.ingest.formats.texts.xml:XML",
            signatures=[b"<?xml"],
        ),
        Format(
            "YAML",
            [".yaml", ".yml"],
            ["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"],
            "workers.ingest.formats.texts.settings_files:YAML",
        ),
        Format(
            "TOML",
            [".toml"],
            ["application/toml"],
            "workers.ingest.formats.texts.settings_files:TOML",
        ),
        Format(
            "INI",
            [".ini", ".cfg", ".conf", ".properties"],
            ["text/x-ini"],
            "workers.ingest.formats.texts.settings_files:INI",
        ),
        Format("log", [".log"], ["text/x-log"], "workers.ingest.formats.texts.logs:LOG"),
        Format(
            "SubRip",
            [".srt"],
            ["application/x-subrip", "text/srt"],
            "workers.ingest.formats.texts.subtitles:SUBRIP",
        ),
        Format(
            "WebVTT",
            [".vtt"],
            ["text/vtt"],
            "workers.ingest.formats.texts.subtitles:WEBVTT",
            signatures=[b"WEBVTT"],
        ),
        Format(
            "SubStation Alpha",
            [".ass", ".ssa"],
            ["text/x-ssa", "text/x-ass"],
            "workers.ingest.formats.texts.subtitles:SUBSTATION",
            signatures=[b"[script info]"],
        ),
        Format(
            "source code",
            [
                ".py",
                ".pyi",
                ".js",
                ".mjs",
                ".cjs",
                ".jsx",
                ".ts",
                ".tsx",
                ".java",
                ".kt",
                ".kts",
                ".scala",
                ".c",
                ".h",
                ".cc",
                ".cpp",
                ".cxx",
                ".hpp",
                ".cs",
                ".go",
                ".rs",
                ".rb",
                ".php",
                ".swift",
                ".lua",
                ".hs",
                ".ex",
                ".exs",
                ".r",
                ".ps1",
                ".proto",
                ".sol",
                ".cob",
                ".tex",
                ".sh",
                ".bash",
                ".sql",
                ".pl",
                ".css",
                ".vue",
                ".svelte",
                ".dart",
                ".groovy",
                ".jl",
                ".zig",
                ".hh",
                ".hxx",
                ".cu",
                ".clj",
                ".erl",
                ".fs",
                ".ml",
                ".vb",
                ".f90",
                ".pm",
                ".psm1",
                ".cbl",
                ".bat",
                ".scss",
                ".less",
                ".graphql",
                ".gradle",
                ".tf",
            ],
            [
                "text/x-source",
                "text/x-python",
                "text/x-java",
                "text/x-csrc",
                "text/x-c++src",
                "text/x-go",
                "text/x-rust",
                "text/x-shellscript",
                "text/javascript",
                "application/javascript",
                "application/x-sh",
                "application/sql",
                "text/css",
            ],
            "workers.ingest.formats.texts.code:CODE",
        ),
        Format(
            "PDF",
            [".pdf"],
            ["application/pdf"],
            "workers.ingest.formats.office.pdf:PDF",
            is_text=False,
            signatures=[b"%PDF-"],
            is_isolated=True,
        ),
        Format(
            "Word",
            [".docx", ".docm", ".dotx", ".dotm"],
            [
                "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
                "application/vnd.ms-word.document.macroenabled.12",
                "application/vnd.openxmlformats-officedocument.wordprocessingml.template",
                "application/vnd.ms-word.template.macroenabled.12",
            ],
            "workers.ingest.formats.office.word:WORD",
            is_text=False,
            zip_members=["word/"],
            is_isolated=True,
        ),
        Format(
            "Excel",
            [".xlsx", ".xlsm", ".xltx", ".xltm"],
            [
                "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
                "application/vnd.ms-excel.sheet.macroenabled.12",
                "application/vnd.openxmlformats-officedocument.spreadsheetml.template",
                "application/vnd.ms-excel.template.macroenabled.12",
            ],
            "workers.ingest.formats.office.workbook:WORKBOOK",
            is_text=False,
            zip_members=["xl/"],
            is_isolated=True,
        ),
        Format(
            "PowerPoint",
            [".pptx", ".pptm", ".ppsx", ".ppsm", ".potx", ".potm"],
            [
                "application/vnd.openxmlformats-officedocument.presentationml.presentation",
                "application/vnd.ms-powerpoint.presentation.macroenabled.12",
                "application/vnd.openxmlformats-officedocument.presentationml.slideshow",
                "application/vnd.ms-powerpoint.slideshow.macroenabled.12",
                "application/vnd.openxmlformats-officedocument.presentationml.template",
                "application/vnd.ms-powerpoint.template.macroenabled.12",
            ],
            "workers.ingest.formats.office.slides:SLIDES",
            is_text=False,
            zip_members=["ppt/"],
            is_isolated=True,
        ),
        Format(
            "Excel 97",
            [".xls", ".xlt"],
            ["application/vnd.ms-excel"],
            "workers.ingest.formats.office.xls:XLS",
            is_text=False,
            is_text_too=True,
            ole_streams=["Workbook"],
            is_isolated=True,
        ),
        Format(
            "OpenDocument text",
            [".odt", ".ott"],
            [
                "application/vnd.oasis.opendocument.text",
                "application/vnd.oasis.opendocument.text-template",
            ],
            "workers.ingest.formats.office.opendocument:TEXT",
            is_text=False,
            is_isolated=True,
        ),
        Format(
            "OpenDocument spreadsheet",
            [".ods", ".ots"],
            [
                "application/vnd.oasis.opendocument.spreadsheet",
                "application/vnd.oasis.opendocument.spreadsheet-template",
            ],
            "workers.ingest.formats.office.opendocument:SHEETS",
            is_text=False,
            is_isolated=True,
        ),
        Format(
            "OpenDocument presentation",
            [".odp", ".otp"],
            [
                "application/vnd.oasis.opendocument.presentation",
                "application/vnd.oasis.opendocument.presentation-template",
            ],
            "workers.ingest.formats.office.opendocument:SLIDES",
            is_text=False,
            is_isolated=True,
        ),
        Format(
            "HWPX",
            [".hwpx"],
            ["application/hwp+zip", "application/vnd.hancom.hwpx"],
            "workers.ingest.formats.office.hwpx:HWPX",
            is_text=False,
            zip_members=["Contents/section"],
            is_isolated=True,
        ),
        Format(
            "HWP 5",
            [".hwp"],
            ["application/x-hwp", "application/vnd.hancom.hwp", "application/haansofthwp"],
            "workers.ingest.formats.office.hwp:HWP",
            is_text=False,
            signatures=[b"HWP Document File"],
            ole_streams=["BodyText"],
            extra="hwp",
            is_isolated=True,
        ),
        Format(
            "EPUB",
            [".epub"],
            ["application/epub+zip"],
            "workers.ingest.formats.office.epub:EPUB",
            is_text=False,
            is_isolated=True,
        ),
        Format(
            "RTF",
            [".rtf"],
            ["application/rtf", "text/rtf"],
            "workers.ingest.formats.office.rtf:RTF",
            is_text=False,
            signatures=[b"{\\rtf"],
        ),
        *(
            Format(
                name,
                suffixes,
                media_types,
                f"workers.ingest.formats.media.pictures:{loader}",
                is_text=False,
                signatures=signatures,
                option="ocr",
                is_isolated=True,
            )
            for name, suffixes, media_types, loader, signatures in (
                ("PNG", [".png"], ["image/png"], "PNG", [b"\x89PNG\r\n\x1a\n"]),
                ("JPEG", [".jpg", ".jpeg"], ["image/jpeg"], "JPEG", [b"\xff\xd8\xff"]),
                ("TIFF", [".tif", ".tiff"], ["image/tiff"], "TIFF", [b"II*\0", b"MM\0*"]),
                ("WebP", [".webp"], ["image/webp"], "WEBP", []),
            )
        ),
        *(
            Format(
                name,
                suffixes,
                media_types,
                f"workers.ingest.formats.media.recordings:{loader}",
                is_text=False,
                signatures=signatures,
                option="speech",
            )
            for name, suffixes, media_types, loader, signatures in (
                (
                    "WAV",
                    [".wav"],
                    ["audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"],
                    "WAV",
                    [],
                ),
                (
                    "FLAC",
                    [".flac"],
                    ["audio/flac", "audio/x-flac"],
                    "FLAC",
                    [b"fLaC\0", b"fLaC\x80"],
                ),
                ("MP3", [".mp3"], ["audio/mpeg", "audio/mp3", "audio/x-mp3"], "MP3", []),
                (
                    "Ogg",
                    [".ogg", ".oga", ".opus"],
                    ["audio/ogg", "audio/opus", "application/ogg"],
                    "OGG",
                    [b"OggS\0"],
                ),
            )
        ),
        *(
            Format(
                name,
                suffixes,
                media_types,
                f"workers.ingest.formats.containers.archives:{loader}",
                is_text=False,
                extra=extra,
                holds_documents=True,
                is_document=False,
                is_isolated=True,
            )
            for name, suffixes, media_types, loader, extra in (
                ("ZIP", [".zip"], ["application/zip", "application/x-zip-compressed"], "ZIP", ""),
                ("TAR", [".tar"], ["application/x-tar"], "TAR", ""),
                (
                    "gzip",
                    [".gz", ".tgz"],
                    ["application/gzip", "application/x-gzip"],
                    "GZIP",
                    "",
                ),
                (
                    "bzip2",
                    [".bz2", ".tbz2", ".tbz"],
                    ["application/x-bzip2", "application/bzip2"],
                    "BZIP2",
                    "",
                ),
                ("xz", [".xz", ".txz"], ["application/x-xz"], "XZ", ""),
                ("Zstandard", [".zst", ".tzst"], ["application/zstd"], "ZSTANDARD", ""),
                (
                    "7-Zip",
                    [".7z"],
                    ["application/x-7z-compressed"],
                    "SEVENZIP",
                    "sevenzip",
                ),
            )
        ),
        Format(
            "EML",
            [".eml", ".mht", ".mhtml"],
            ["message/rfc822", "application/x-mimearchive"],
            "workers.ingest.formats.containers.mail:EML",
            signatures=[b"return-path:", b"delivered-to:", b"received: ", b"mime-version: "],
            holds_documents=True,
            is_isolated=True,
        ),
        Format(
            "MSG",
            [".msg"],
            ["application/vnd.ms-outlook"],
            "workers.ingest.formats.containers.mail:MSG",
            is_text=False,
            ole_streams=["__properties_version1.0"],
            holds_documents=True,
            is_isolated=True,
        ),
    )
}
PLAIN_TEXT = FORMATS["text"]


def suffixes(options: Collection[str] = ()) -> frozenset[str]:
    """The suffixes of the formats that are always read, and of those that are read with these
    options of a job."""
    return frozenset(
        suffix
        for format_ in FORMATS.values()
        if not format_.option or format_.option in options
        for suffix in format_.suffixes
    )
