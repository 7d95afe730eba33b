"""Formulas of documents on one line, as Word, PowerPoint and LibreOffice write them."""

import io
from typing import Any

import docx
import pptx
import pytest
from docx.oxml import parse_xml
from lxml import etree

from tests.unit.documents import read
from workers.ingest.formats.office.formulas import formula
from workers.ingest.formats.office.package import archive_of

M = "http://schemas.openxmlformats.org/officeDocument/2006/math"
MATHML = "http://www.w3.org/1998/Math/MathML"


def run(text: str) -> str:
    return f"<r><t>{text}</t></r>"


FRACTION = f"<f><num>{run('a')}{run('+b')}</num><den>{run('2')}</den></f>"
SQUARE = f"<sSup><e>{run('c')}</e><sup>{run('2')}</sup></sSup>"
SUM = (
    '<nary><naryPr><chr val="∑"/></naryPr>'
    f"<sub>{run('i=1')}</sub><sup>{run('n')}</sup><e>{run('x')}</e></nary>"
)
BRACES = (
    '<d><dPr><begChr val="{"/><endChr val=""/></dPr>'
    f"<e><eqArr><e>{run('x, x&gt;0')}</e><e>{run('0')}</e></eqArr></e></d>"
)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"{run('E=m')}{SQUARE}", "E=mc^2"),
        (FRACTION, "(a+b)/2"),
        (f"<rad><deg/><e>{FRACTION}</e></rad>", "√((a+b)/2)"),
        (f"<rad><deg>{run('3')}</deg><e>{run('x')}</e></rad>", "√[3](x)"),
        (SUM, "∑_(i=1)^n x"),
        (f"<sSubSup><e>{run('x')}</e><sub>{run('10')}</sub><sup>{run('-1')}</sup></sSubSup>",
         "x_10^(-1)"),
        (f"<d><e>{run('a')}</e></d>", "(a)"),
        (BRACES, "{x, x>0; 0"),
        (f"<func><fName>{run('sin')}</fName><e>{run('x')}</e></func>", "sin x"),
        (f"<m><mr><e>{run('1')}</e><e>{run('0')}</e></mr><mr><e>{run('0')}</e><e>{run('1')}</e></mr></m>",
         "[1, 0; 0, 1]"),
        (f"<acc><e>{run('x')}</e></acc>", "x\u0302"),
        ("", ""),
    ],
)  # fmt: skip
def test_office_math(written: str, shown: str) -> None:
    assert formula(etree.fromstring(f'<oMath xmlns="{M}">{written}</oMath>')) == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("<mi>E</mi><mo>=</mo><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup>", "E=mc^2"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>2</mn></mfrac>", "(a+b)/2"),
        ("<mroot><mi>x</mi><mn>3</mn></mroot><msqrt><mi>y</mi></msqrt>", "√[3](x)√(y)"),
        ("<munderover><mo>∑</mo><mi>i</mi><mi>n</mi></munderover>", "∑_i^n"),
        ("<mover><mi>x</mi><mo>¯</mo></mover>", "x¯"),
        ("<semantics><mi>x</mi><annotation>x over y</annotation></semantics>", "x"),
        ("<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr></mtable>", "[a, b]"),
        ("<mfenced open='['><mi>a</mi><mi>b</mi></mfenced>", "[a, b)"),
    ],
)
def test_mathml(written: str, shown: str) -> None:
    assert formula(etree.fromstring(f'<math xmlns="{MATHML}">{written}</math>')) == shown


def test_word_has_formulas_and_ticks_in_its_text() -> None:
    w = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    document: Any = docx.Document()
    paragraph = document.add_paragraph("Mean: ")
    math = parse_xml(f'<m:oMath xmlns:m="{M}"/>')
    math.extend(etree.fromstring(f'<x xmlns="{M}">{FRACTION}</x>'))
    paragraph._p.append(math)
    paragraph.add_run(", agreed ")
    box = "<w:ffData><w:checkBox><w:default w:val='0'/><w:checked/></w:checkBox></w:ffData>"
    field = f'<w:r xmlns:w="{w}"><w:fldChar w:fldCharType="begin">{box}</w:fldChar></w:r>'
    paragraph._p.append(parse_xml(field))
    stream = io.BytesIO()
    document.save(stream)
    assert read(stream.getvalue(), "a.docx").text == "Mean: (a+b)/2, agreed ☒"


def test_powerpoint_has_formulas_once() -> None:
    deck: Any = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Mean"
    paragraph = slide.placeholders[1].text_frame.paragraphs[0]
    mc = "http://schemas.openxmlformats.org/markup-compatibility/2006"
    a14 = "http://schemas.microsoft.com/office/drawing/2010/main"
    a = "http://schemas.openxmlformats.org/drawingml/2006/main"
    both = (
        f'<mc:AlternateContent xmlns:mc="{mc}"><mc:Choice xmlns:a14="{a14}" Requires="a14"><a14:m>'
        f'<oMath xmlns="{M}">{FRACTION}</oMath></a14:m></mc:Choice><mc:Fallback>'
        f'<a:r xmlns:a="{a}"><a:t>a+b over 2</a:t></a:r></mc:Fallback></mc:AlternateContent>'
    )
    paragraph._p.append(etree.fromstring(both))
    stream = io.BytesIO()
    deck.save(stream)
    assert read(stream.getvalue(), "a.pptx").text == "Mean\n\n(a+b)/2"


def test_opendocument_has_the_formulas_of_its_objects() -> None:
    data = archive_of(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": (
                '<o xmlns:x="http://www.w3.org/1999/xlink"><body><text><p>Mean: <frame>'
                '<object x:href="./Object 1"/></frame> holds.</p></text></body></o>'
            ),
            "Object 1/content.xml": (
                f'<math xmlns="{MATHML}"><semantics><mfrac><mi>a</mi><mi>b</mi></mfrac>'
                '<annotation encoding="StarMath 5.0">a over b</annotation></semantics></math>'
            ),
        }
    )
    assert read(data, "a.odt").text == "Mean: a/b holds."
