"""A question -> the pattern that a sentence holding its answer is likely to show.

"How many" and 몇 expect a number, "when" and 언제 a date, "who" and 누구 a name, "where" and 어디
a place, "why" and 왜 a reason. Only a preference: a sentence without the pattern may still be the
answer, and most questions expect nothing in particular.
"""

import re
from typing import Final

_NUMBER: Final = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|"
    r"million|billion|dozen|half|third|quarter|once|twice|first|second)\b|"
    r"(?:한|두|세|네|다섯|여섯|일곱|여덟|아홉|열|스무|서른|하루|이틀|사흘|나흘|열흘)\s?[가-힣]",
    re.IGNORECASE,
)
_DATE: Final = re.compile(
    r"\b1\d{3}\b|\b20\d\d\b|\b\d{1,2}:\d\d\b|\b\d{2,4}s\b|\bcentur(?:y|ies)\b|"
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    r"Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)\b|"
    r"\d+\s?(?:년|월|일|시|분|세기|주)|오전|오후|새벽|정오|자정|매(?:일|주|달|월|년)|[월화수목금토일]요일"
)
_NAME: Final = re.compile(
    r"(?<=[a-z,;)] )[A-Z][\w.'’-]+|^[A-Z][\w'’-]+ [A-Z]|"
    r"[가-힣]{2,4}\s?(?:씨|님|교수|박사|대표|팀장|과장|부장|사장|감독|장관|대통령|담당자|관리자|대왕)|"
    r"[가-힣]{2,4}(?:이|가|은|는)\s"
)
_PLACE: Final = re.compile(
    r"\b(?:in|at|on|near|from|to|of) (?:the )?[A-Z]|"
    r"[가-힣](?:에서|에 있|층|역|시|도|군|구|동|읍|면)(?![가-힣])|메뉴|위치|저장"
)
_REASON: Final = re.compile(
    r"\b(?:because|due to|since|in order|so that|therefore|result|reason|caused?)\b|"
    r"때문|위해|위하여|덕분|므로|까닭|이유",
    re.IGNORECASE,
)
# The later of two that fit says more: "몇 년" asks for a date, not for any number.
_ASKED: Final = tuple(
    (re.compile(question, re.IGNORECASE), answer)
    for question, answer in (
        (
            r"\bhow\s(?!(?:do|does|did|to|can|is|are|was|were|would|should)\b)\w+|몇|얼마|며칠",
            _NUMBER,
        ),
        (r"\bwhat (?:percent\w*|number|amount|age)\b", _NUMBER),
        (r"\b(?:when|(?:what|which) (?:year|date|day|month|time|century|decade))\b", _DATE),
        (r"언제|몇\s?(?:년|월|일|시(?!간)|요일)", _DATE),
        (r"\b(?:who|whom|whose)\b|누구|누가", _NAME),
        (r"\b(?:where|(?:what|which) (?:city|country|place|location|town|state|region))\b", _PLACE),
        (r"어디|어느 (?:곳|도시|나라|지역)", _PLACE),
        (r"\bwhy\b|왜|이유|까닭", _REASON),
    )
)


def answer_pattern(question: str) -> re.Pattern[str] | None:
    """What to look for in a sentence; None where the question expects nothing in particular."""
    fitting = [answer for asked, answer in _ASKED if asked.search(question)]
    return fitting[-1] if fitting else None
