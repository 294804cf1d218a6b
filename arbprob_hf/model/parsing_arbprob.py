"""The text form of a mask, read by a walk over a syntax tree of five node kinds; nothing is evaluated."""

import ast
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

# hostile text is refused before it reaches the parser
MAX_TEXT = 2_000
MAX_DEPTH = 50
# deeper trees would exhaust the stack where they are printed and evaluated
MAX_OPERATORS = 100
MAX_INTEGER = 2**31 - 1


def parse_mask(text: str, patterns: Mapping[str, type[Any]]) -> Any:
    """Build the mask that `text` describes out of the classes in `patterns`, by name.

    A class whose `takes_tensors` is true has no text form. Masks are combined with their own `& | ~`.

    Raises:
        TypeError: not a text. ValueError: anything but known names, `& | ~`, calls with integers and masks; one line.
    """
    if not isinstance(text, str):
        raise TypeError(f"mask: expected the text of a mask, got {type(text).__name__}")
    _refuse_hostile(text)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"mask: cannot read {_quote(text)}: {error.args[0]}; write e.g. 'causal & window(256)'"
        ) from None
    return _build(tree.body, text, patterns)


def _refuse_hostile(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError(f"mask: expected at most {MAX_TEXT} characters, got {len(text)}")
    if not text.isascii():
        raise ValueError(f"mask: expected ASCII text, got {_quote(text)}")
    if "<tensor" in text:
        raise ValueError(f"mask: {_quote(text)} holds a tensor, which has no text form; pass it to forward as mask=")
    depth = 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if depth > MAX_DEPTH:
            raise ValueError(f"mask: expected at most {MAX_DEPTH} nested brackets in {_quote(text)}")
    # the parser warns of stray escapes and of letters after a digit: they are refused before it
    odd = re.search(r"[^\w\s&|~(),=]|\b\d+[A-Za-z]\w*", text)
    if odd:
        raise ValueError(
            f"mask: unexpected {odd.group()!r:.40} in {_quote(text)}; only patterns, integers and & | ~ ( ) are read"
        )
    if len(re.findall(r"[&|~]", text)) > MAX_OPERATORS:
        raise ValueError(f"mask: expected at most {MAX_OPERATORS} operators & | ~ in {_quote(text)}")
    if re.search(r"\d{11}", text):
        raise ValueError(f"mask: too large an integer in {_quote(text)}; integers go up to {MAX_INTEGER}")


def _build(node: ast.expr, text: str, patterns: Mapping[str, type[Any]]) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        left, right = _build(node.left, text, patterns), _build(node.right, text, patterns)
        return left & right if isinstance(node.op, ast.BitAnd) else left | right
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_build(node.operand, text, patterns)
    if isinstance(node, ast.Name):
        return _leaf(node.id, ([], {}), text, patterns)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        positional = [_argument(value, text, patterns) for value in node.args]
        named = {str(keyword.arg): _argument(keyword.value, text, patterns) for keyword in node.keywords}
        if len(named) < len(node.keywords):
            raise ValueError(f"mask: cannot read {_quote(text)}: an argument is given twice")
        return _leaf(node.func.id, (positional, named), text, patterns)
    raise ValueError(
        f"mask: {_quote(text)} holds {type(node).__name__}; only patterns, integers and & | ~ ( ) are read"
    )


def _argument(node: ast.expr, text: str, patterns: Mapping[str, type[Any]]) -> Any:
    if not isinstance(node, ast.Constant):
        return _build(node, text, patterns)
    if type(node.value) is not int or node.value > MAX_INTEGER:
        raise ValueError(f"mask: expected an integer up to {MAX_INTEGER} in {_quote(text)}, got {node.value!r:.40}")
    return node.value


def _leaf(name: str, arguments: tuple[list[Any], dict[str, Any]], text: str, patterns: Mapping[str, type[Any]]) -> Any:
    if name not in patterns:
        raise ValueError(f"mask: unknown pattern {name!r:.40} in {_quote(text)}; known: {', '.join(sorted(patterns))}")
    kind = patterns[name]
    if kind.takes_tensors:
        raise ValueError(f"mask: {name} needs a tensor, which has no text form; pass {name}(...) to forward as mask=")
    try:
        positional, named = arguments
        return kind(*positional, **named)
    except TypeError as error:
        wanted = ", ".join(field.name for field in fields(kind))
        detail = str(error) if str(error).startswith(name) else f"expected {name}({wanted})"
        raise ValueError(f"mask: cannot read {_quote(text)}: {detail}") from None


def _quote(text: str) -> str:
    # cut after quoting: an escaped character takes up to ten
    quoted = repr(text)
    return quoted if len(quoted) <= 62 else f"{quoted[:58]}...{quoted[-1]}"
