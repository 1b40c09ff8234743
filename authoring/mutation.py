"""Small changes to a function's source: the operators of mutation testing.

Works on the syntax tree. A mutant's text is what `ast.unparse` writes, so that neither comments nor line
breaks of the source change how a mutant is listed.
"""

import ast
import copy
import dataclasses
import difflib
import textwrap
from collections.abc import Callable, Iterable, Iterator
from types import CodeType

Changes = Iterator[ast.AST]

OPERATORS = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult, ast.FloorDiv],
    ast.FloorDiv: [ast.Div], ast.Mod: [ast.FloorDiv], ast.Pow: [ast.Mult], ast.MatMult: [ast.Mult],
    ast.LShift: [ast.RShift], ast.RShift: [ast.LShift], ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd],
}  # fmt: skip
COMPARISONS = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt], ast.Eq: [ast.NotEq, ast.LtE, ast.GtE], ast.NotEq: [ast.Eq, ast.Lt, ast.Gt],
    ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}  # fmt: skip
NAMES = {  # of functions and methods -> their neighbours
    "add_": "sub_", "all": "any", "amax": "amin", "amin": "amax", "any": "all", "argmax": "argmin",
    "argmin": "argmax", "ceil": "floor", "cos": "sin", "deepcopy": "copy", "div_": "mul_", "double": "float",
    "endswith": "startswith", "exp2": "exp", "float": "double", "floor": "ceil trunc", "int": "round",
    "log": "log2", "log_softmax": "softmax", "long": "int", "max": "min", "maximum": "minimum", "mean": "sum",
    "min": "max", "minimum": "maximum", "mul_": "div_", "ones": "zeros", "ones_like": "zeros_like",
    "removeprefix": "removesuffix", "removesuffix": "removeprefix", "repeat_interleave": "repeat",
    "reshape": "view", "round": "floor trunc", "sin": "cos", "softmax": "log_softmax",
    "startswith": "endswith", "sub_": "add_", "sum": "mean", "trunc": "round", "zeros": "ones",
    "zeros_like": "ones_like",
}  # fmt: skip
DTYPES = {
    "bool": "uint8", "uint8": "int8 int32", "int8": "uint8 int32", "int16": "int32", "int32": "int64",
    "int64": "int32", "float16": "bfloat16 float32", "bfloat16": "float16 float32",
    "float32": "float64 float16", "float64": "float32",
}  # fmt: skip
SYMMETRIC = {"transpose", "dot", "promote_types", "max", "min", "maximum", "minimum"}
MODULES = {"torch", "F", "nn", "np", "math", "affine"}  # `torch.f(x)` is a function of x, `x.f()` a method
BUILTINS = {"all", "any", "float", "int", "max", "min", "round", "sum"}
DTYPE_METHODS = ["double", "int"]
AXES = {"dim", "axis"}
IN_PLACE = {ast.Add: "add_", ast.Sub: "sub_", ast.Mult: "mul_", ast.Div: "div_"}
NEAR_ZERO = 1e-6  # stands in for the zero that something is compared with


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A definition with one small change.

    Attributes:
        operator: the kind of change, such as "comparison".
        source: the whole changed text.
        before: the changed lines as they were, without their common indent.
        after: what stands in their place; "" when they were dropped.
    """

    operator: str
    source: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a node stands: itself, what holds it, the function around it, its line (0 of the whole)."""

    node: ast.AST
    above: "Place | None" = None
    function: ast.FunctionDef | None = None
    line: int = 0

    @property
    def parent(self) -> ast.AST | None:
        """The node that holds this one."""
        return self.above and self.above.node

    def inside(self, *calls: str) -> bool:
        """Whether it is a part of a call of a function or method with one of these names."""
        return self.above is not None and (_called(self.above.node) in calls or self.above.inside(*calls))

    def hints(self) -> dict[str, str]:
        """Type hints of the function's arguments, by name."""
        nodes = ast.walk(self.function.args) if self.function else ()
        return {node.arg: ast.unparse(node.annotation) for node in nodes
                if isinstance(node, ast.arg) and node.annotation}


def mutants(source: str, lines: Iterable[int]) -> Iterator[Mutant]:
    """All mutants of a source, each once, without those that compile to the same code as the original.

    Args:
        source: one or more definitions.
        lines: numbers, from 1, of the lines that may change. Docstrings, type hints and the texts of errors
            are left alone in any case.

    Yields:
        The mutants, the same ones in the same order each time.
    """
    tree, lines = ast.parse(source), set(lines)
    original = ast.unparse(tree)
    seen = {_fingerprint(compile(original, "", "exec"))}
    for place in _places(Place(tree)):
        if place.line not in lines:
            continue
        for operator in ALL:
            for replacement in operator(place):
                changed = ast.unparse(copy.deepcopy(tree, {id(place.node): replacement}))
                try:
                    code = _fingerprint(compile(changed, "", "exec"))
                except SyntaxError:  # such as a `return` without a function
                    continue
                if code not in seen:
                    seen.add(code)
                    yield Mutant(operator.__name__.strip("_"), changed, *_changed_lines(original, changed))


def _places(place: Place) -> Iterator[Place]:
    """The nodes in the order of the source, without type hints and what is raised."""
    yield place
    node = place.node
    if isinstance(node, ast.Raise) or _number(node) is not None:
        return
    function = node if isinstance(node, ast.FunctionDef) else place.function
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "msg"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                # A function counts as the end of its body, which is below the docstring.
                last = child.body[-1] if isinstance(child, ast.FunctionDef) else child
                line = getattr(last, "lineno", place.line)
                yield from _places(Place(child, place, function, line))


def _fingerprint(code: CodeType) -> tuple:
    """What a code object does, without names of files and numbers of lines."""
    constants = [_fingerprint(c) if isinstance(c, CodeType) else (type(c), repr(c)) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, tuple(constants)


def _changed_lines(before: str, after: str) -> tuple[str, str]:
    """From the first to the last line in which two texts differ, of each."""
    one, other = before.splitlines(), after.splitlines()
    steps = [step for step in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
             if step[0] != "equal"]
    (_, begin, _, start, _), (_, _, end, _, stop) = steps[0], steps[-1]
    return tuple(textwrap.dedent("\n".join(part)).strip() for part in (one[begin:end], other[start:stop]))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """The same node with other fields."""
    return ast.copy_location(type(node)(**{**dict(ast.iter_fields(node)), **fields}), node)


def _number(node: ast.AST) -> int | float | None:
    """Value of a literal number, a minus before it included."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
    return value if type(value) in (int, float) else None


def _called(node: ast.AST) -> str:
    """Name of the function or method that a call calls."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


def _is_method(call: ast.Call) -> bool:
    """Whether a call is one of a value's methods, not of a module's functions."""
    if not isinstance(call.func, ast.Attribute):
        return False
    root = call.func.value
    while isinstance(root, ast.Attribute):  # torch.nn.functional
        root = root.value
    return not (isinstance(root, ast.Name) and root.id in MODULES)


# --- operators: each yields what may stand in a node's place ----------------------------------------------


def _operator(place: Place) -> Changes:
    node = place.node
    if isinstance(node, ast.BinOp | ast.AugAssign):
        for other in OPERATORS.get(type(node.op), ()):
            yield _with(node, op=other())
    if isinstance(node, ast.AugAssign):
        yield ast.Assign([node.target], node.value, lineno=node.lineno)


def _operand(place: Place) -> Changes:
    """One side of an operation alone: a term or a factor is forgotten, a sign, a condition."""
    node = place.node
    if isinstance(node, ast.BinOp):
        yield from (node.left, node.right)
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.BoolOp):
        for n in range(len(node.values)):
            rest = node.values[:n] + node.values[n + 1 :]
            yield _with(node, values=rest) if len(rest) > 1 else rest[0]
        yield _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    if isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)


def _comparison(place: Place) -> Changes:
    node = place.node
    if not isinstance(node, ast.Compare):
        return
    for n, op in enumerate(node.ops):
        texts = any(isinstance(side, ast.Constant) and isinstance(side.value, str)
                    for side in (node.left, *node.comparators))
        for other in COMPARISONS[type(op)][: 1 if texts else None]:
            yield _with(node, ops=[*node.ops[:n], other(), *node.ops[n + 1 :]])
    if len(node.ops) == 2:  # a <= b <= c
        yield ast.Compare(node.left, node.ops[:1], node.comparators[:1])
        yield ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])


def _constant(place: Place) -> Changes:
    node, number = place.node, _number(place.node)
    if isinstance(number, int):
        yield from (ast.Constant(number + step) for step in (1, -1))
    elif number is not None:
        yield from (ast.Constant(value) for value in ((number * 2, number / 2) if number else (1.0,)))
    if number == 0 and isinstance(place.parent, ast.Compare):
        yield ast.Constant(NEAR_ZERO)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and not isinstance(
            place.parent, ast.Expr | ast.JoinedStr | ast.FormattedValue):
        yield ast.Constant(node.value + "_")


def _axis(place: Place) -> Changes:
    node = place.node
    if isinstance(node, ast.keyword) and node.arg in AXES and isinstance(_number(node.value), int):
        yield from (_with(node, value=ast.Constant(axis)) for axis in (0, 1, -1))
    sizes = isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "shape"
    if sizes and isinstance(_number(node.slice), int):
        # Of a matrix, 1 and -1 are the same axis.
        yield from (_with(node, slice=ast.Constant(axis)) for axis in (0, 1, -1)
                    if (_number(node.slice), axis) != (1, -1))


def _call(place: Place) -> Changes:
    """A call is forgotten (a clamp, a copy, a rounding): its argument, or the value itself, stays."""
    node = place.node
    if isinstance(node, ast.Call) and not isinstance(place.parent, ast.Expr):
        if _is_method(node):
            yield node.func.value
        elif node.args and not isinstance(node.args[0], ast.Starred):
            yield node.args[0]
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT", "mH"):
        yield node.value


def _argument(place: Place) -> Changes:
    """An argument is dropped, or two are exchanged."""
    node = place.node
    if not isinstance(node, ast.Call):
        return
    for n in range(len(node.keywords)):
        yield _with(node, keywords=node.keywords[:n] + node.keywords[n + 1 :])
    if len(node.args) > 1:
        yield _with(node, args=node.args[:-1])
        for n in range(len(node.args) - 1) if _called(node) not in SYMMETRIC else ():
            a, b = node.args[n : n + 2]
            yield _with(node, args=[*node.args[:n], b, a, *node.args[n + 2 :]])
    if _called(node) in ("clamp", "clip"):
        yield from (_with(node, args=[*node.args[:n], ast.Constant(None), *node.args[n + 1 :]])
                    for n in range(len(node.args) - 1))


def _name(place: Place) -> Changes:
    """Another function, method or dtype of a similar name."""
    node = place.node
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute):
            fresh = isinstance(function.value, ast.Call) and not _is_method(function.value)
            yield from (_with(node, func=_with(function, attr=name))
                        for name in NAMES.get(function.attr, "").split()
                        if not (name == "view" and fresh))  # torch.arange(8) can always be viewed
        elif isinstance(function, ast.Name) and function.id in BUILTINS:
            yield from (_with(node, func=_with(function, id=name))
                        for name in NAMES.get(function.id, "").split() if name in BUILTINS)
        if _called(node) == "pop" and not node.args:
            yield _with(node, args=[ast.Constant(0)])
    is_type = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("torch", "np")
    if is_type and not isinstance(place.parent, ast.Call | ast.Attribute) or (
            is_type and isinstance(place.parent, ast.Call) and node is not place.parent.func):
        yield from (_with(node, attr=name) for name in DTYPES.get(node.attr, "").split())


def _slice(place: Place) -> Changes:
    node = place.node
    if isinstance(node, ast.Slice):
        yield from (_with(node, **{side: None}) for side in ("lower", "upper", "step") if getattr(node, side))
    if isinstance(node, ast.comprehension) and node.ifs:
        yield _with(node, ifs=[])


def _branch(place: Place) -> Changes:
    """A guard is dropped, a condition turned round, a branch always or never taken."""
    node = place.node
    if not isinstance(node, ast.If):
        return
    if not (isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)):  # see `_operand`
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if not (isinstance(node.body[0], ast.Raise) and not node.orelse):  # there the `raise` itself is dropped
        yield _with(node, test=ast.Constant(False))
    if node.orelse:
        yield _with(node, test=ast.Constant(True))


def _statement(place: Place) -> Changes:
    """A statement is dropped, a loop ends after its first round."""
    node = place.node
    if isinstance(node, ast.For | ast.While):
        yield _with(node, body=[*node.body, ast.Break()])
    dropped = isinstance(node, ast.Expr | ast.Raise | ast.AugAssign | ast.Delete | ast.Break | ast.Continue)
    if isinstance(node, ast.Assign):
        bound = _bound_elsewhere(node, place.function)
        names = [n.id for target in node.targets for n in ast.walk(target)
                 if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        dropped = all(name in bound for name in names)
    if dropped:
        yield ast.Pass()


def _bound_elsewhere(node: ast.Assign, function: ast.FunctionDef | None) -> set[str]:
    """Names that have a value without this assignment: dropping it need not end in a NameError."""
    if function is None:
        return set()
    inside = set(map(id, ast.walk(node)))
    arguments = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    return arguments | {n.id for n in ast.walk(function)
                        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in inside}


def _order(place: Place) -> Changes:
    """A guard comes late: after the work that it should stand before."""
    block = getattr(place.node, "body", None)
    for n, statement in enumerate(block if isinstance(block, list) else ()):
        end = len(block) - isinstance(block[-1], ast.Return | ast.Raise)
        if _is_guard(statement) and not all(map(_is_guard, block[n + 1 : end])):
            yield _with(place.node, body=[*block[:n], *block[n + 1 : end], statement, *block[end:]])


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise | ast.Return)


def _type(place: Place) -> Changes:
    """What is returned has another type: a float for an integer, another dtype."""
    node, function = place.node, place.function
    if not isinstance(node, ast.Return) or function is None or _is_none(node.value):
        return
    hint = ast.unparse(function.returns) if function.returns else ""
    if hint == "int":
        yield _with(node, value=ast.Call(ast.Name("float"), [node.value], []))
    if "Tensor" in hint:
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for n, value in enumerate(values):
            for method in DTYPE_METHODS if not ast.unparse(value).endswith("torch.int32)") else ["double"]:
                cast = ast.Call(ast.Attribute(value, method), [], [])
                whole = ast.Tuple([*values[:n], cast, *values[n + 1 :]])
                yield _with(node, value=whole if isinstance(node.value, ast.Tuple) else cast)


def _is_none(value: ast.expr | None) -> bool:
    return value is None or isinstance(value, ast.Constant) and value.value is None


def _detach(place: Place) -> Changes:
    """No gradient reaches an argument, in functions that take care of gradients."""
    node = place.node
    if not isinstance(node, ast.Name) or place.inside("detach", "zeros_like", "ones_like", "isinstance"):
        return
    used = not isinstance(place.parent, ast.Attribute) or _called(place.above.parent) == place.parent.attr
    if used and "Tensor" in place.hints().get(node.id, "") and "detach" in ast.unparse(place.function.body):
        yield ast.Call(ast.Attribute(node, "detach"), [], [])


def _in_place(place: Place) -> Changes:
    """An argument is overwritten: `x.sub_(y)` for `x - y`."""
    node = place.node
    if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Name) and type(node.op) in IN_PLACE:
        if "Tensor" in place.hints().get(node.left.id, ""):
            yield ast.Call(ast.Attribute(node.left, IN_PLACE[type(node.op)]), [node.right], [])
    if isinstance(node, ast.Call) and _called(node) in ("abs", "clamp", "round", "sqrt", "square"):
        if _is_method(node) and "Tensor" in place.hints().get(getattr(node.func.value, "id", ""), ""):
            yield _with(node, func=_with(node.func, attr=node.func.attr + "_"))


def _variable(place: Place) -> Changes:
    """Another argument of the same type, or another setting of the same config, that the function uses."""
    node, hints = place.node, place.hints()
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in hints:
        yield from (ast.Name(other) for other, hint in hints.items() if hint == hints[node.id])
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and "Config" in hints.get(
            node.value.id, ""):
        used = {n.attr for n in ast.walk(place.function) if isinstance(n, ast.Attribute)
                and getattr(n.value, "id", "") == node.value.id}
        yield from (_with(node, attr=other) for other in sorted(used))


ALL: list[Callable[[Place], Changes]] = [
    _operator, _operand, _comparison, _constant, _axis, _call, _argument, _name, _slice, _branch, _statement,
    _order, _type, _detach, _in_place, _variable,
]  # fmt: skip
