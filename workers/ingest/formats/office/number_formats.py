"""Numbers in spreadsheets: a number format code and a value -> the text that people see.

The codes are those of Office Open XML (ISO/IEC 29500-1, 18.8.30 and 18.8.31), which .xls uses, too:
sections for positive, negative, zero and text, conditions, digits with separators and literals,
percentages, scaling, exponents, fractions, dates, times, elapsed times, currencies, and names of a
locale. Formats that depend on the reader's settings become unambiguous ones: the short date
(built-in number 14) is ISO 8601. `General` shows at most ten significant digits, but whole numbers
in full. Widths, colours and fill characters are left out, and hidden values (`;;;`) are empty. An
invalid code counts as `General`.

Own code, because the library xlfmt is in its first version and the port of SSF is not maintained.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final

_MAX_CODE_CHARS: Final = 1000
_MAX_SERIAL: Final = 2_958_466  # the day after 9999-12-31
_EPOCH: Final = datetime(1899, 12, 30)
_EPOCH_1904: Final = datetime(1904, 1, 1)
_LARGEST_SHOWN: Final = 1e300
_LONGEST_DAYS: Final = 1e9

GENERAL: Final = "General"
BUILT_IN: Final = {
    0: GENERAL, 1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 5: "$#,##0;($#,##0)",
    6: "$#,##0;($#,##0)", 7: "$#,##0.00;($#,##0.00)", 8: "$#,##0.00;($#,##0.00)", 9: "0%",
    10: "0.00%", 11: "0.00E+00", 12: "# ?/?", 13: "# ??/??", 14: "yyyy-mm-dd", 15: "d-mmm-yy",
    16: "d-mmm", 17: "mmm-yy", 18: "h:mm AM/PM", 19: "h:mm:ss AM/PM", 20: "h:mm", 21: "h:mm:ss",
    22: "yyyy-mm-dd h:mm", 27: 'yyyy"年" mm"月" dd"日"', 28: "mm-dd", 29: "mm-dd", 30: "mm-dd-yy",
    31: 'yyyy"년" mm"월" dd"일"', 32: 'h"시" mm"분"', 33: 'h"시" mm"분" ss"초"', 34: "yyyy-mm-dd",
    35: "yyyy-mm-dd", 36: 'yyyy"年" mm"月" dd"日"', 37: "#,##0;(#,##0)", 38: "#,##0;(#,##0)",
    39: "#,##0.00;(#,##0.00)", 40: "#,##0.00;(#,##0.00)", 41: "#,##0", 42: "$#,##0",
    43: "#,##0.00", 44: "$#,##0.00", 45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss.0", 48: "##0.0E+0",
    49: "@", 50: 'yyyy"年" mm"月" dd"日"', 51: "mm-dd", 52: "yyyy-mm-dd", 53: "yyyy-mm-dd",
    54: "mm-dd", 55: "yyyy-mm-dd", 56: "yyyy-mm-dd", 57: 'yyyy"年" mm"月" dd"日"', 58: "mm-dd",
}  # fmt: skip

_TOKEN: Final = re.compile(
    r"""
    (?P<quoted>"[^"]*"?)
    | (?P<escaped>\\.)
    | (?P<space>_.)
    | (?P<fill>\*.)
    | (?P<elapsed>\[(?:h+|m+|s+)\])
    | (?P<bracket>\[[^\]]*\])
    | (?P<general>general)
    | (?P<noon>am/pm|a/p|오전/오후|上午/下午)
    | (?P<exponent>e[+-](?=[0#?]))
    | (?P<date>y+|m+|d+|h+|s+|e+|b{2,4}|a{3,4}|g+)
    | (?P<digit>[0#?])
    | (?P<point>\.)
    | (?P<comma>,)
    | (?P<percent>%)
    | (?P<slash>/)
    | (?P<text>@)
    | (?P<end>;)
    | (?P<literal>.)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_CONDITION: Final = re.compile(r"\[(<=|>=|<>|<|>|=)\s*(-?[0-9.]+(?:e[+-]?[0-9]+)?)\]", re.I)
_CURRENCY: Final = re.compile(r"\[\$([^\]-]*)(?:-([0-9a-f]+))?[^\]]*\]", re.IGNORECASE)
_DATE_KINDS: Final = frozenset({"date", "elapsed", "noon"})

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
_DAYS: Final = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_EAST_DAYS: Final = {"ko": "월화수목금토일", "ja": "月火水木金土日", "zh": "一二三四五六日"}
_LOCALES: Final = {0x12: "ko", 0x11: "ja", 0x04: "zh"}  # primary language identifiers of Windows


@dataclass(kw_only=True)
class _Section:
    tokens: list[tuple[str, str]] = field(default_factory=list)
    condition: tuple[str, float] | None = None
    locale: str = "en"

    @property
    def is_date(self) -> bool:
        return any(kind in _DATE_KINDS for kind, _ in self.tokens)

    def fits(self, value: float) -> bool:
        if self.condition is None:
            return True
        sign, bound = self.condition
        return {
            "<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound,
            "=": value == bound, "<>": value != bound,
        }[sign]  # fmt: skip


def is_date(code: str) -> bool:
    """Whether the code shows numbers as dates or times."""
    return _sections(code)[0].is_date


def is_elapsed(code: str) -> bool:
    """Whether the code shows numbers as elapsed times."""
    return any(kind == "elapsed" for kind, _ in _sections(code)[0].tokens)


def shown_text(text: str, code: str) -> str:
    """A text under a format code; most codes leave it as it is."""
    sections = _sections(code)
    section = sections[3] if len(sections) > 3 else sections[-1]
    if not any(kind == "text" for kind, _ in section.tokens):
        return "" if len(sections) > 3 else text
    return "".join(
        text if kind == "text" else _literal(kind, token) for kind, token in section.tokens
    ).strip()


def shown(value: float, code: str, *, is_1904: bool = False) -> str:
    """A number, or the serial number of a date, under a format code."""
    section, is_negative = _section_of(value, _sections(code))
    if not section.tokens:
        return ""
    if section.is_date:
        return _date(value, section, is_1904=is_1904)
    sign = "-" if is_negative else ""
    if abs(value) > _LARGEST_SHOWN or any(kind == "general" for kind, _ in section.tokens):
        return (
            sign
            + "".join(
                general(abs(value)) if kind == "general" else _literal(kind, token)
                for kind, token in section.tokens
            ).strip()
            if abs(value) <= _LARGEST_SHOWN
            else general(value)
        )
    return _number(abs(value), section, sign).strip()


def general(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    if 1e10 <= abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.10g}".upper()


def moment(value: float, *, is_1904: bool = False) -> datetime | None:
    """The date and time of a serial number, to the millisecond; None if it is out of range.

    Excel counts 1900-02-29 (number 60), a day that did not exist: numbers below are one day later.
    """
    if not 0 <= value < _MAX_SERIAL:
        return None
    if is_1904:
        return _EPOCH_1904 + timedelta(milliseconds=round(value * 86_400_000))
    base = _EPOCH + timedelta(days=1) if value < 60 else _EPOCH
    return base + timedelta(milliseconds=round(value * 86_400_000))


@lru_cache(maxsize=4096)
def _sections(code: str) -> Sequence[_Section]:
    sections = [_Section()]
    for match in _TOKEN.finditer(code[:_MAX_CODE_CHARS]):
        kind, token = str(match.lastgroup), match[0]
        section = sections[-1]
        if kind == "end":
            sections.append(_Section())
        elif kind == "bracket":
            if (condition := _CONDITION.fullmatch(token)) is not None:
                section.condition = condition[1], float(condition[2])
            elif (currency := _CURRENCY.fullmatch(token)) is not None:
                if currency[1]:
                    section.tokens.append(("quoted", currency[1]))
                if currency[2]:
                    language = int(currency[2], 16) & 0x3FF
                    section.locale = _LOCALES.get(language & 0xFF, section.locale)
        elif kind == "quoted":
            section.tokens.append((kind, token.strip('"')))
        elif kind == "escaped":
            section.tokens.append(("quoted", token[1]))
        elif kind == "space":
            section.tokens.append(("quoted", " "))
        elif kind != "fill":
            section.tokens.append((kind, token))
    for section in sections:
        _tell_minutes(section)
    return sections


def _tell_minutes(section: _Section) -> None:
    """Decide what `m` means: a minute after hours or before seconds, else a month."""
    dates = [at for at, (kind, _) in enumerate(section.tokens) if kind in ("date", "elapsed")]
    for place, at in enumerate(dates):
        kind, token = section.tokens[at]
        if kind != "date" or token[0] not in "mM" or len(token) > 2:
            continue
        before = section.tokens[dates[place - 1]][1].strip("[").lower() if place else ""
        behind = (
            section.tokens[dates[place + 1]][1].strip("[").lower() if place + 1 < len(dates) else ""
        )
        if before.startswith("h") or behind.startswith("s"):
            section.tokens[at] = kind, "n" * len(token)


def _section_of(value: float, sections: Sequence[_Section]) -> tuple[_Section, bool]:
    """The section of the code for a value, and whether to write a minus sign before it."""
    numeric = sections[:3] if len(sections) > 3 else sections
    if any(section.condition for section in numeric):
        for section in numeric:
            if section.fits(value):
                is_of_negatives = section.condition is not None and section.condition[0][0] == "<"
                hides = is_of_negatives and section.condition and section.condition[1] <= 0
                return section, value < 0 and not hides
        return numeric[-1], value < 0
    if len(numeric) == 1:
        return numeric[0], value < 0
    if value < 0:
        return numeric[1], False
    if value == 0 and len(numeric) > 2:
        return numeric[2], False
    return numeric[0], False


def _literal(kind: str, token: str) -> str:
    return token if kind in ("quoted", "literal", "point", "comma", "percent", "slash") else ""


def _number(value: float, section: _Section, sign: str) -> str:
    tokens = section.tokens
    kinds = [kind for kind, _ in tokens]
    if "digit" not in kinds:
        # A section with literals only is shown instead of the number; `@` alone shows the number.
        return sign + "".join(
            general(value) if kind == "text" else _literal(kind, token) for kind, token in tokens
        )
    if _is_fraction(tokens):
        return sign + _fraction(value, tokens)
    amount = Decimal(f"{value:.15g}")
    amount *= Decimal(100) ** kinds.count("percent")
    exponent_at = kinds.index("exponent") if "exponent" in kinds else len(tokens)
    point_at = kinds.index("point") if "point" in kinds[:exponent_at] else exponent_at
    digits = [at for at, kind in enumerate(kinds) if kind == "digit"]
    whole_digits = [at for at in digits if at < point_at]
    decimals = [at for at in digits if point_at < at < exponent_at]
    # Each comma after the last digit, or before the decimal point, divides by a thousand.
    scale = 0
    for places in (whole_digits, decimals):
        at = places[-1] + 1 if places else len(tokens)
        while at < len(tokens) and kinds[at] == "comma":
            scale, at = scale + 1, at + 1
    if scale:
        amount = amount.scaleb(-3 * scale)
    power = 0
    if exponent_at < len(tokens):
        amount, power = _scientific(amount, len(whole_digits), len(decimals))
    with localcontext() as context:
        context.prec = 400
        amount = amount.quantize(Decimal(1).scaleb(-len(decimals)), rounding=ROUND_HALF_UP)
    if not amount:
        sign = ""  # -0.2 under "0" is 0
    whole, _, fraction = f"{amount:f}".partition(".")
    whole = whole.lstrip("0")
    grouped = any(
        kinds[at] == "comma" and whole_digits and whole_digits[0] < at < whole_digits[-1]
        for at in range(point_at)
    )
    shown_whole = _whole_part(tokens, whole_digits, whole, grouped=grouped)
    shown_decimals = _decimal_part(tokens, decimals, fraction)
    parts: list[str] = []
    is_signed = False
    for at, (kind, token) in enumerate(tokens):
        if kind == "digit":
            if not is_signed:
                parts.append(sign)
                is_signed = True
            if at in shown_whole:
                parts.append(shown_whole[at])
            elif at in shown_decimals:
                parts.append(shown_decimals[at])
        elif kind == "point":
            if not is_signed:
                parts.append(sign)
                is_signed = True
            if at == point_at and not any(shown_decimals.values()) and decimals:
                continue
            parts.append(token)
        elif kind == "exponent":
            width = sum(1 for other in digits if other > at)
            mark = "-" if power < 0 else "+" if token[1] == "+" else ""
            parts.append(f"E{mark}{abs(power):0{width}d}")
        elif kind != "comma":
            parts.append(_literal(kind, token) if kind != "text" else "")
    text = "".join(parts)
    # A currency follows the minus sign: -₩1,200.
    if sign and not text.startswith(sign) and sign in text:
        text = sign + text.replace(sign, "", 1)
    return text


def _whole_part(
    tokens: Sequence[tuple[str, str]], places: Sequence[int], whole: str, *, grouped: bool
) -> dict[int, str]:
    """Placeholder index -> digits; the first placeholder takes all digits that are left."""
    shown_digits: dict[int, str] = {}
    left = whole
    count = 0
    for order, at in enumerate(reversed(places)):
        is_first = order == len(places) - 1
        taken = left if is_first else left[-1:]
        left = left[: len(left) - len(taken)]
        taken = taken or {"0": "0", "?": " "}.get(tokens[at][1], "")
        parts: list[str] = []
        for digit in reversed(taken):
            if grouped and digit.isdigit():
                parts.append("," if count and count % 3 == 0 else "")
                count += 1
            parts.append(digit)
        # From right to left: a separator follows the digit to its left.
        shown_digits[at] = "".join(reversed(parts))
    return shown_digits


def _decimal_part(
    tokens: Sequence[tuple[str, str]], places: Sequence[int], fraction: str
) -> dict[int, str]:
    shown_digits: dict[int, str] = {}
    is_needed = False
    for at, digit in reversed(list(zip(places, fraction.ljust(len(places), "0"), strict=False))):
        placeholder = tokens[at][1]
        is_needed = is_needed or digit != "0" or placeholder == "0"
        shown_digits[at] = digit if is_needed else {"?": " "}.get(placeholder, "")
    return shown_digits


def _scientific(amount: Decimal, whole_places: int, decimals: int) -> tuple[Decimal, int]:
    if not amount:
        return amount, 0
    step = max(1, whole_places)
    power = amount.adjusted()
    power -= power % step
    scaled = amount.scaleb(-power)
    rounded = scaled.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)
    if rounded.adjusted() >= step:
        power += step
        scaled = amount.scaleb(-power)
    return scaled, power


def _is_fraction(tokens: Sequence[tuple[str, str]]) -> bool:
    return any(
        kind == "slash" and at and tokens[at - 1][0] == "digit"
        for at, (kind, _) in enumerate(tokens)
    )


def _fraction(value: float, tokens: Sequence[tuple[str, str]]) -> str:
    """`# ?/?`, `# ??/??`, `?/8`: the nearest fraction with as many digits."""
    slash = next(at for at, (kind, _) in enumerate(tokens) if kind == "slash")
    below = ""
    for kind, token in tokens[slash + 1 :]:
        if kind != "digit" and not (kind == "literal" and token.isdigit()):
            break
        below += token
    first = slash
    while first and tokens[first - 1][0] == "digit":
        first -= 1
    has_whole = any(kind == "digit" for kind, _ in tokens[:first])
    whole, rest = divmod(Fraction(f"{value:.15g}"), 1) if has_whole else (0, Fraction(value))
    if below.isdigit() and int(below):
        denominator = int(below)
        numerator = round(rest * denominator)
    else:
        near = rest.limit_denominator(10 ** min(len(below), 4) - 1 or 9)
        numerator, denominator = near.numerator, near.denominator
    if has_whole and numerator == denominator:
        whole, numerator = whole + 1, 0
    if has_whole and not numerator:
        return str(whole)
    return f"{whole} {numerator}/{denominator}" if whole else f"{numerator}/{denominator}"


def _date(value: float, section: _Section, *, is_1904: bool) -> str:
    tokens = section.tokens
    if abs(value) > _LONGEST_DAYS:
        return general(value)
    is_elapsed_time = any(kind == "elapsed" for kind, _ in tokens)
    decimals = _second_decimals(tokens)
    if is_elapsed_time:
        seconds = Decimal(f"{value:.15g}") * 86_400
        when = None
    else:
        step = Decimal(1).scaleb(-decimals) / 86_400
        rounded = (Decimal(f"{value:.15g}") / step).to_integral_value(ROUND_HALF_UP) * step
        has_seconds = any(kind == "date" and token[0] in "sS" for kind, token in tokens)
        when = moment(float(rounded) if has_seconds else value + 1e-9, is_1904=is_1904)
        if when is None:
            return general(value)
        seconds = Decimal(0)
    sign = "-" if seconds < 0 else ""
    seconds = abs(seconds).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)
    is_half = any(kind == "noon" for kind, _ in tokens)
    parts: list[str] = [sign]
    skip_zeros = False
    for at, (kind, token) in enumerate(tokens):
        if kind == "elapsed":
            unit = token[1].lower()
            total = int(seconds // {"h": 3600, "m": 60, "s": 1}[unit])
            parts.append(f"{total:0{len(token) - 2}d}")
        elif kind == "date" and when is None:
            whole = int(seconds)
            amount = {"h": whole // 3600 % 24, "n": whole // 60 % 60, "m": whole // 60 % 60,
                      "s": whole % 60, "d": whole // 86_400}.get(token[0].lower())  # fmt: skip
            parts.append("" if amount is None else f"{amount:0{min(len(token), 2)}d}")
        elif kind == "date" and when is not None:
            parts.append(_date_part(when, token, section.locale, is_half=is_half))
        elif kind == "noon" and when is not None:
            names = token.split("/")
            if names[0].upper() == "AM" and section.locale == "ko":
                names = ["오전", "오후"]
            parts.append(names[when.hour >= 12])
        elif kind == "point" and at + 1 < len(tokens) and tokens[at + 1] == ("digit", "0"):
            fraction = f"{when.microsecond:06d}" if when is not None else f"{seconds % 1:.6f}"[2:]
            parts.append("." + fraction[:decimals])
            skip_zeros = True
            continue
        elif kind == "digit" and skip_zeros:
            continue
        else:
            parts.append(_literal(kind, token) or (token if kind == "digit" else ""))
        skip_zeros = False
    return "".join(parts).strip()


def _second_decimals(tokens: Sequence[tuple[str, str]]) -> int:
    for at, (kind, _) in enumerate(tokens):
        if kind == "point":
            count = 0
            while at + 1 + count < len(tokens) and tokens[at + 1 + count] == ("digit", "0"):
                count += 1
            return min(count, 6)
    return 0


def _date_part(when: datetime, token: str, locale: str, *, is_half: bool) -> str:
    letter, width = token[0].lower(), len(token)
    if letter == "y":
        return f"{when.year % 100:02d}" if width < 3 else f"{when.year:04d}"
    if letter == "e":
        return str(when.year)
    if letter == "m":
        if width < 3:
            return f"{when.month:0{width}d}"
        if locale in _EAST_DAYS:
            return f"{when.month}월" if locale == "ko" else f"{when.month}月"
        name = _MONTHS[when.month - 1]
        return name[:3] if width == 3 else name[0] if width == 5 else name
    if letter == "d" and width < 3:
        return f"{when.day:0{width}d}"
    if letter == "d" and locale == "en":
        name = _DAYS[when.weekday()]
        return name[:3] if width == 3 else name
    if letter in "da":
        days = locale if locale in _EAST_DAYS else "ko"
        day = _EAST_DAYS[days][when.weekday()]
        if days == "zh":
            return ("周" if width == 3 else "星期") + day
        return day if width == 3 else day + ("요일" if days == "ko" else "曜日")
    if letter == "h":
        hour = (when.hour % 12 or 12) if is_half else when.hour
        return f"{hour:0{min(width, 2)}d}"
    if letter == "n":
        return f"{when.minute:0{min(width, 2)}d}"
    if letter == "s":
        return f"{when.second:0{min(width, 2)}d}"
    return ""  # eras, and years of the Buddhist calendar
