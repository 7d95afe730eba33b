"""Loading as tests see it: a document that must be read, or refused with a message."""

import pytest

from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.kinds.ingest import CsvOptions, LoadOptions
from workers.ingest.load import LoadedText, load

KOREAN = (
    "작업 큐는 알림만 보내고 작업의 상태는 모두 데이터베이스에 저장합니다. 그래서 알림이 사라져도 "
    "작업은 잃지 않습니다. 정리 프로그램이 밀린 작업을 다시 알립니다."
)
LIMIT_CHARS = 1_000_000


def read(
    data: bytes | str,
    name: str = "note.txt",
    *,
    content_type: str | None = None,
    csv: CsvOptions | None = None,
    options: LoadOptions | None = None,
    max_chars: int = LIMIT_CHARS,
    settings: IngestSettings | None = None,
) -> LoadedText:
    if options is None:
        options = LoadOptions(csv=csv or CsvOptions())
    loaded = load(
        data,
        name=name,
        content_type=content_type,
        options=options,
        settings=settings or IngestSettings.model_construct(max_document_chars=max_chars),
    )
    for passage in loaded.passages:
        end = passage.start + len(passage.text)
        assert loaded.text[passage.start : end] == passage.text
    return loaded


def refusal(data: bytes | str, name: str = "note.txt", **options: object) -> str:
    with pytest.raises(DocumentError) as caught:
        read(data, name, **options)  # type: ignore[arg-type]  # passed through as they are
    assert name in caught.value.message
    return caught.value.message
