"""Is a size that is written as a formula arithmetic, and nothing else? PyTorch evaluates it as Python.

Standard library only.
"""

from __future__ import annotations

import ast
import re

__all__ = ["is_arithmetic"]

#: what may be called: how sympy prints sizes
_FUNCTIONS = frozenset((
    "Symbol", "Integer", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "Eq", "Ne",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan",
    "And", "Or", "Not", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv",
    "CeilToInt", "FloorToInt", "CeilDiv", "FloatTrueDiv", "IntTrueDiv", "TruncToInt", "RoundToInt",
    "ToFloat", "Identity",
))  # fmt: skip
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_LARGEST_POWER = 16
_SYMBOL = re.compile(r"[a-z]{1,3}\d{1,9}")
_LONGEST = 5000


def is_arithmetic(text: str) -> bool:
    """Return whether a formula is arithmetic on symbols, of bounded size."""
    if len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_harmless(node) for node in ast.walk(tree))


def _harmless(node: ast.AST) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
            return False
        named = [k.value for k in node.keywords]
        texts = [
            a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
        ]
        if any(not isinstance(v, ast.Constant) or not isinstance(v.value, bool) for v in named):
            return False
        if node.func.id == "Symbol":
            return len(node.args) == len(texts) == 1 and bool(_SYMBOL.fullmatch(texts[0]))
        return not texts and (node.func.id != "Pow" or _small_power(node))
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        # texts only as the names of symbols; the call above has looked at them
        return isinstance(node.value, (bool, int, float)) or bool(
            _SYMBOL.fullmatch(str(node.value))
        )
    return True


def _small_power(node: ast.Call) -> bool:
    last = node.args[-1] if len(node.args) == 2 else None
    if isinstance(last, ast.Call) and len(last.args) == 1:  # Integer(2)
        last = last.args[0]
    if isinstance(last, ast.UnaryOp):
        last = last.operand
    value = last.value if isinstance(last, ast.Constant) else None
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST_POWER
