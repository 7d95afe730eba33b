"""PDF as reportlab writes it: pages, columns, hyphens, Korean, and what cannot be read."""

import io
import shutil
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw, ImageFont
from pypdf import PdfReader, PdfWriter
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader, simpleSplit
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from shared.kinds.ingest import LoadOptions, OcrOptions
from tests.unit.documents import read, refusal

KOREAN = "HYSMyeongJo-Medium"


@pytest.fixture(scope="module", autouse=True)
def font() -> None:
    pdfmetrics.registerFont(UnicodeCIDFont(KOREAN))


def drawn(*pages: Callable[[Canvas], object], title: str = "") -> bytes:
    stream = io.BytesIO()
    canvas = Canvas(stream, pagesize=A4)
    canvas.setTitle(title)
    canvas.setAuthor("김하나")
    for page in pages:
        page(canvas)
        canvas.showPage()
    canvas.save()
    return stream.getvalue()


def lines(
    *texts: str, font: str = "Helvetica", x: int = 60, y: int = 760
) -> Callable[[Canvas], None]:
    def draw(canvas: Canvas) -> None:
        canvas.setFont(font, 10)
        for at, text in enumerate(texts):
            canvas.drawString(x, y - 14 * at, text)

    return draw


def test_each_page_is_a_passage_with_its_number() -> None:
    loaded = read(
        drawn(
            lines("We open at nine."),
            lines(),
            lines("문은 여섯 시에 닫습니다.", font=KOREAN),
            title="안내",
        ),
        "a.pdf",
    )
    assert [(p.text, p.metadata) for p in loaded.passages] == [
        ("We open at nine.", {"page": 1}),
        ("문은 여섯 시에 닫습니다.", {"page": 3}),
    ]
    assert loaded.metadata["title"] == "안내"
    assert loaded.metadata["author"] == "김하나"
    assert str(loaded.metadata["date"]).startswith("20")


LEFT = (
    "The queue only rings a doorbell; the state of each single job is kept in the database, so "
    "that nothing is ever lost when messages do disappear. Workers look at it again soon."
)
RIGHT = (
    "Workers claim steps with one single statement. They then extend a lease while they are "
    "running, and what has expired is put back by the sweeper."
)


def test_columns_that_are_drawn_across_are_read_one_behind_the_other() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 10)
        columns = [simpleSplit(text, "Helvetica", 10, 200) for text in (LEFT, RIGHT)]
        assert len(columns[0]) == len(columns[1])
        for at, (left, right) in enumerate(zip(*columns, strict=True)):
            canvas.drawString(60, 700 - 14 * at, left)
            canvas.drawString(320, 700 - 14 * at, right)

    assert read(drawn(draw), "a.pdf").text == f"{LEFT}\n\n{RIGHT}"


def test_wrapped_lines_are_paragraphs_and_divided_words_whole() -> None:
    page = lines(
        "The queue only rings a doorbell, and the state of every job is kept in the data-",
        "base, so that nothing is lost when a message disappears from Redis.",
        "- One item of a list",
        "- Another one",
        "A short line",
    )
    assert read(drawn(page), "a.pdf").text == (
        "The queue only rings a doorbell, and the state of every job is kept in the database, so "
        "that nothing is lost when a message disappears from Redis.\n- One item of a list\n"
        "- Another one\nA short line"
    )


def test_rows_of_a_table_stay_rows() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 10)
        for at, row in enumerate(
            [("Item", "Price", "Days"), ("Lamp", "12", "3"), ("Fan", "7", "5")]
        ):
            for column, cell in enumerate(row):
                canvas.drawString(60 + 120 * column, 700 - 14 * at, cell)

    assert read(drawn(draw), "a.pdf").text == "Item | Price | Days\nLamp | 12 | 3\nFan | 7 | 5"


def test_wrapped_korean_is_joined_where_the_page_shows_its_spaces() -> None:
    page = lines(
        "작업 큐는 알림만 보내고 작업의 상태는 모두 데이터베이스에 저장합니다. 그래서 ",
        "알림이 사라져도 작업은 잃지 않습니다. 정리 프로그램이 밀린 작업을 다시 알립",
        "니다. 작업자는 하나씩 가져갑니다.",
        font=KOREAN,
    )
    assert read(drawn(page), "a.pdf").text == (
        "작업 큐는 알림만 보내고 작업의 상태는 모두 데이터베이스에 저장합니다. 그래서 알림이 "
        "사라져도 작업은 잃지 않습니다. 정리 프로그램이 밀린 작업을 다시 알립니다. 작업자는 "
        "하나씩 가져갑니다."
    )


@pytest.mark.parametrize("cells", [["배", "900원"], ["갑", "을"], ["가", "나", "다"]])
def test_single_characters_of_a_font_that_is_not_embedded_are_not_lost(cells: list[str]) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont(KOREAN, 10)
        for at, cell in enumerate(cells):
            canvas.drawString(60 + 150 * at, 700, cell)

    assert read(drawn(draw), "a.pdf").text.split() == cells


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_page_that_is_shown_turned_is_read_in_its_lines(turn: int) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setPageRotation(turn)
        canvas.translate(300, 400)
        canvas.rotate(turn)
        canvas.drawString(0, 28, "We open at nine and close")
        canvas.drawString(0, 14, "at six on every day.")

    assert read(drawn(draw), "a.pdf").text == "We open at nine and close\nat six on every day."


def test_a_form_is_read_with_what_is_filled_in() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.drawString(60, 700, "Name:")
        canvas.acroForm.textfield(name="name", value="Mina Kim", x=120, y=690, width=200, height=20)

    assert "Mina Kim" in read(drawn(draw), "a.pdf").text


def encrypted(user: str) -> bytes:
    writer = PdfWriter(PdfReader(io.BytesIO(drawn(lines("We open at nine.")))))
    writer.encrypt(user_password=user, owner_password="owner", algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def test_an_encrypted_document_is_read_if_it_opens_without_a_password() -> None:
    assert read(encrypted(""), "a.pdf").text == "We open at nine."
    assert "encrypted with a password" in refusal(encrypted("secret"), "a.pdf")


def test_what_is_damaged_or_no_pdf_is_refused() -> None:
    assert "damaged" in refusal(b"%PDF-1.7 and nothing else", "a.pdf")
    # A document that is cut off is read as far as it can be mended.
    assert refusal(drawn(lines("x"))[:400], "a.pdf")


def test_a_scan_is_refused_with_what_to_do() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.drawImage(ImageReader(Image.new("L", (200, 80), 255)), 60, 600)

    assert "ocr" in refusal(drawn(draw), "a.pdf")
    assert "has no text" in refusal(drawn(lines()), "a.pdf")


def test_pages_that_are_not_read_are_named() -> None:
    picture = ImageReader(Image.new("L", (200, 80), 255))
    data = drawn(lines("We open at nine."), lambda canvas: canvas.drawImage(picture, 60, 600))
    loaded = read(data, "a.pdf")
    assert loaded.text == "We open at nine."
    (warning,) = loaded.warnings
    assert warning.startswith("a.pdf: pages that are pictures were not read (2).")


def scan(text: str) -> bytes:
    picture = Image.new("L", (1200, 200), 255)
    ImageDraw.Draw(picture).text((40, 60), text, fill=0, font=ImageFont.load_default(48))
    return drawn(lambda canvas: canvas.drawImage(ImageReader(picture), 40, 600, 500, 84))


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="there is no tesseract here")
def test_a_scan_is_read_where_the_job_asks_for_it() -> None:
    data = scan("We open at nine.")
    english = LoadOptions(ocr=OcrOptions(languages=["eng"]))
    loaded = read(data, "a.pdf", options=english)
    assert loaded.text == "We open at nine."
    assert loaded.passages[0].metadata == {"page": 1}
    unknown = LoadOptions(ocr=OcrOptions(languages=["xyz"]))
    assert "the data of these languages" in refusal(data, "a.pdf", options=unknown)


@pytest.mark.parametrize("language", ["../eng", "-c", "eng kor"])
def test_only_names_of_languages_reach_the_program(language: str) -> None:
    options = LoadOptions(ocr=OcrOptions(languages=[language]))
    message = refusal(scan("x"), "a.pdf", options=options)
    assert "names no languages" in message


def test_a_machine_without_the_program_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    message = refusal(scan("x"), "a.pdf", options=LoadOptions(ocr=OcrOptions()))
    assert "tesseract-ocr-kor" in message
