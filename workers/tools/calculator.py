"""The tool `calculator`: arithmetic in Python's notation, computed without ever running code.

Numbers, `+ - * / // % ** ^`, parentheses, the functions and constants below. Length, powers and
results are limited, so that no expression takes noticeable time or memory.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Final

from shared.errors import InvalidInput

LONGEST_CHARS: Final = 500
LARGEST_BITS: Final = 10_000
_DIGITS: Final = 15
_LARGEST_FACTORIAL: Final = 1000
_MOST_DECIMALS: Final = 100

Number = int | float


def calculate(expression: str) -> str:
    """Raises InvalidInput, with a message for the model, where there is no result."""
    if len(expression) > LONGEST_CHARS:
        raise InvalidInput(f"The expression has more than {LONGEST_CHARS} characters.")
    # Models write powers and signs also in these ways; Python's own `^` binds otherwise.
    notation = expression.strip().translate(_SIGNS).replace("^", "**")
    try:
        value = _value(ast.parse(notation, mode="eval").body)
    except OverflowError as error:
        raise InvalidInput(f"{expression!r} cannot be computed: a number is too large.") from error
    except (SyntaxError, ValueError, TypeError, ArithmeticError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InvalidInput(f"{expression!r} cannot be computed: {reason}.") from error
    except (RecursionError, MemoryError) as error:
        raise InvalidInput("The expression is nested too deep.") from error
    return _written(value)


_SIGNS: Final = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "π": "pi"})


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _checked(number)
        case ast.Name(id=name):
            if name not in _CONSTANTS:
                raise ValueError(f"there is no {name!r}; known are {', '.join(_CONSTANTS)}")
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _checked(_OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in _FUNCTIONS:
                raise ValueError(f"there is no function {name!r}; known are {KNOWN_FUNCTIONS}")
            return _checked(_FUNCTIONS[name](*map(_value, args)))
    raise ValueError("only numbers, + - * / // % ** and known functions can be used")


def _checked(value: Number) -> Number:
    if not isinstance(value, int | float):
        raise ValueError("the result is not a real number")
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise OverflowError
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    return value


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        least_bits = (base.bit_length() - 1) * exponent
        if least_bits > LARGEST_BITS:
            raise OverflowError
    return base**exponent


def _round(value: Number, decimals: Number = 0) -> Number:
    if not isinstance(decimals, int) or abs(decimals) > _MOST_DECIMALS:
        raise ValueError(f"places must be a whole number of at most {_MOST_DECIMALS}")
    return round(value, decimals)


def _factorial(value: Number) -> Number:
    if not isinstance(value, int) or value > _LARGEST_FACTORIAL:
        raise ValueError(f"factorial takes whole numbers up to {_LARGEST_FACTORIAL}")
    return math.factorial(value)


def _written(value: Number) -> str:
    """Without the noise of binary fractions: 0.1 + 0.2 is 0.3."""
    if isinstance(value, int):
        return str(value)
    short = f"{value:.{_DIGITS}g}"
    return "0" if short == "-0" else short


_OPERATORS: Final[dict[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_CONSTANTS: Final[dict[str, Number]] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FROM_MATH: Final = (
    "sqrt cbrt exp log log2 log10 sin cos tan asin acos atan atan2 sinh cosh tanh degrees radians "
    "hypot floor ceil trunc gcd lcm"
)
_FUNCTIONS: Final[dict[str, Callable[..., Number]]] = {
    **{name: getattr(math, name) for name in _FROM_MATH.split()},
    "ln": math.log,
    "pow": _power,
    "abs": abs,
    "min": min,
    "max": max,
    "sum": lambda *values: sum(values),
    "round": _round,
    "factorial": _factorial,
}
KNOWN_FUNCTIONS: Final = ", ".join(_FUNCTIONS)
