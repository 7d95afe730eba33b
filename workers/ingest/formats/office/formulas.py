"""Formulas on one line, with parentheses that keep their meaning: `(a+b)/2`, `x^2`, `√(x)`.

For Office Math (ECMA-376 part 1, 22.1) and MathML, which name the same elements differently. The
notation is about that of Unicode Technical Note 28.
"""

from typing import Final

from lxml import etree

from workers.ingest.formats.office.package import attribute, child, children, local, text_within

_TEXTS: Final = frozenset({"t", "mi", "mn", "mo", "mtext", "ms"})
_LEFT_OUT: Final = frozenset({"annotation", "annotation-xml", "rPr", "ctrlPr", "mphantom", "phant"})
_ABOVE: Final = {
    "sSup": "e^sup", "sSub": "e_sub", "sSubSup": "e_sub^sup", "sPre": "_sub^sup e",
    "limLow": "e_lim", "limUpp": "e^lim",
}  # fmt: skip
"""The elements of Office Math, and the names of their parts."""
_SCRIPTS: Final = {
    "msup": "^", "msub": "_", "msubsup": "_^", "mover": "^", "munder": "_", "munderover": "_^",
}  # fmt: skip
_ACCENTS: Final = frozenset("\u0302\u0303\u0304\u0305\u0307\u0308\u20d7^~¯˙¨→‾")
_NARY: Final = "∫"


def formula(node: etree._Element) -> str:
    """The text of a formula, or of a part of one."""
    name = local(node)
    if name in _TEXTS:
        return text_within(node)
    if name in _LEFT_OUT or name.endswith("Pr"):
        return ""
    if name in _ABOVE:
        return _scripts(node, _ABOVE[name])
    if name in _SCRIPTS:
        base, *scripts = [formula(part) for part in node] or [""]
        if name in ("mover", "munder") and scripts and scripts[0] in _ACCENTS:
            return base + scripts[0]
        pairs = zip(_SCRIPTS[name], scripts, strict=False)
        return base + "".join(f"{sign}{_group(script)}" for sign, script in pairs if script)
    if name in ("f", "mfrac"):
        parts = _parts(node, "num", "den") if name == "f" else [formula(part) for part in node]
        return "/".join(_group(part) for part in parts)
    if name in ("rad", "mroot"):
        degree, base = (
            _parts(node, "deg", "e")
            if name == "rad"
            else [formula(part) for part in reversed(list(node)[:2])]
        )
        return f"√[{degree}]({base})" if degree else f"√({base})"
    if name == "msqrt":
        return f"√({_joined(node)})"
    if name == "nary":
        sign = _sign(node, "naryPr", "chr", _NARY)
        return sign + _scripts(node, "_sub^sup e")
    if name == "d":
        begin, separator, end = (
            _sign(node, "dPr", name, default)
            for name, default in (("begChr", "("), ("sepChr", "|"), ("endChr", ")"))
        )
        return begin + separator.join(formula(part) for part in children(node, "e")) + end
    if name == "mfenced":
        begin, end = node.get("open", "("), node.get("close", ")")
        return begin + ", ".join(formula(part) for part in node) + end
    if name == "func":
        function, argument = _parts(node, "fName", "e")
        return f"{function} {argument}"
    if name in ("m", "mtable") and (name == "mtable" or child(node, "mr") is not None):
        rows = [[formula(cell) for cell in row] for row in children(node, "mr", "mtr")]
        return "[" + "; ".join(", ".join(filter(None, row)) for row in rows) + "]"
    if name == "eqArr":
        return "; ".join(formula(part) for part in children(node, "e"))
    if name in ("acc", "groupChr"):
        accent = _sign(node, f"{name}Pr", "chr", "\u0302" if name == "acc" else "⏟")
        return "".join(_parts(node, "e")) + accent
    return _joined(node)


def _joined(node: etree._Element) -> str:
    return "".join(formula(part) for part in node if isinstance(part.tag, str))


def _parts(node: etree._Element, *names: str) -> list[str]:
    """The texts of the parts with these names; empty for missing ones."""
    return ["" if (part := child(node, name)) is None else _joined(part) for name in names]


def _scripts(node: etree._Element, form: str) -> str:
    """`form` has the names of the parts, each preceded by its sign."""
    written: list[str] = []
    sign = name = ""
    for char in f"{form} ":
        if char.isalpha():
            name += char
            continue
        if name:
            [part] = _parts(node, name)
            written.append(sign + (_group(part) if sign in ("^", "_") else part) if part else "")
        sign, name = char, ""
    return "".join(written).lstrip()


def _sign(node: etree._Element, of: str, name: str, default: str) -> str:
    """The character that an attribute sets; empty if the attribute has no value."""
    noted = child(node, of, name)
    return default if noted is None else attribute(noted, "val") or ""


def _group(text: str) -> str:
    return text if len(text) <= 1 or text.isalnum() or _is_grouped(text) else f"({text})"


def _is_grouped(text: str) -> bool:
    """Whether one pair of parentheses encloses all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth and at < len(text) - 1:
            return False
    return True
