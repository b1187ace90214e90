"""seal_program(): the data flow of forward(), read from its source, where it is only data flow.

Sealing reads the syntax tree against a closed grammar and never decides by running the program. What isn't in the
grammar refuses, with file and line: a program that can't be sealed still ships, and needs its class to run.
"""

import ast
import inspect
import linecache
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..signatures.grammar import LiteralType, ModelType, Scalar, TypeSpec
from .flow import Expr, Flow, Parameter
from .program import DECODING, PredictorSpec, ProgramSpec, walk

Kind = Mapping[str, TypeSpec | None] | TypeSpec | None
"""What is known of a value: the fields of a prediction, the type of an output, or nothing."""


PLAIN = ("str", "int", "float", "bool")
"""Types whose values format alike everywhere."""


@dataclass(frozen=True)
class Unsealed:
    """Why a program's data flow can't be in the file."""

    reason: str


class Refusal(Exception):
    """A construct outside the grammar."""


def seal_program(program: Any, spec: ProgramSpec) -> Flow | Unsealed:
    """Return the data flow of `program`, or why it can't be sealed."""
    for predictor in spec.predictors:
        if predictor.reason is not None:
            return Unsealed(f"predictor {predictor.path} runs through DSPy: {predictor.reason}")
    for item in walk(program):
        if item.predictor.lm is not None:
            return Unsealed(f"predictor {item.path} has a language model of its own")
        foreign = sorted(set(item.predictor.config) - DECODING)
        if foreign:
            return Unsealed(f"predictor {item.path} has the setting {foreign[0]!r}, which isn't written to a file")
    try:
        flow, _ = _Sealer(program, spec).module(program, "")
    except Refusal as refusal:
        return Unsealed(str(refusal))
    return flow


class _Sealer:
    """Seals one program; predictors are known by the identity of their objects."""

    def __init__(self, program: Any, spec: ProgramSpec) -> None:
        self.specs: dict[int, PredictorSpec] = {id(item.predictor): spec.predictor(item.path) for item in walk(program)}

    def module(self, module: Any, path: str) -> tuple[Flow, Kind]:
        """Return the flow of a module's forward and what it returns."""
        import dspy

        if isinstance(module, dspy.Predict) or type(module) is dspy.ChainOfThought:
            return self._single(module)
        function = _plain_forward(module)
        tree = _tree(function)
        return _Body(self, module, function, tree).read()

    def _single(self, module: Any) -> tuple[Flow, Kind]:
        """Return the flow of a bare predictor: its inputs in, its outputs out."""
        path, kind = self.predictor(module)
        signature = self.specs[id(self._predict(module))].signature
        assert signature is not None
        # A missing input is left out of the prompt, which a flow can't say: only what has no default is asked for.
        parameters = tuple(Parameter(field.name, field.default is None) for field in signature.inputs)
        optional = [field.name for field in signature.inputs if field.default is not None]
        if optional:
            raise Refusal(f"the input {optional[0]!r} of the bare predictor has a default")
        inputs = {field.name: {"name": field.name} for field in signature.inputs}
        return Flow(parameters, (), {"call": {"path": path, "inputs": inputs}}), kind

    def _predict(self, module: Any) -> Any:
        import dspy

        return module.predict if type(module) is dspy.ChainOfThought else module

    def predictor(self, module: Any) -> tuple[str, Kind]:
        """Return a predictor's path and the types of its outputs."""
        spec = self.specs.get(id(self._predict(module)))
        if spec is None or spec.signature is None:
            raise Refusal("a predictor is called that isn't an attribute of the program")
        return spec.path, {field.name: field.type for field in spec.signature.outputs}


def _plain_forward(module: Any) -> types.FunctionType:
    """Return a module's forward where nothing stands between it and its callers."""
    import dspy

    cls = type(module)
    for name in ("__call__", "acall", "__getattribute__", "batch"):
        if getattr(cls, name) is not getattr(dspy.Module, name):
            raise Refusal(f"{cls.__name__} overrides {name}()")
    if "__getattr__" in dir(cls):
        raise Refusal(f"{cls.__name__} defines __getattr__()")
    if "aforward" in dir(cls):
        raise Refusal(f"{cls.__name__} defines aforward() besides forward()")
    function = inspect.getattr_static(cls, "forward", None)
    if "forward" in vars(module) or not isinstance(function, types.FunctionType):
        raise Refusal(f"{cls.__name__}.forward isn't a plain method")
    return function


def _tree(function: types.FunctionType) -> ast.FunctionDef:
    """Return the syntax tree of a function, checked to be the one that runs.

    The whole file is compiled, since Python 3.11 compiles calls on a name differently where the file imports it.
    """
    try:
        file = inspect.getsourcefile(function) or ""
        lines = linecache.getlines(file, function.__globals__)
        parsed = ast.parse("".join(lines))
        whole = compile(parsed, file, "exec", dont_inherit=True)
    except (OSError, TypeError, ValueError, SyntaxError) as error:
        raise Refusal(f"the source of {function.__qualname__} can't be read") from error
    live = function.__code__
    found = [code for code in _codes(whole) if code.co_qualname == live.co_qualname]
    again = [code for code in found if code.co_firstlineno == live.co_firstlineno]
    if not again or _shape(again[0]) != _shape(live):
        raise Refusal(f"the source of {function.__qualname__} isn't what runs: it was changed after it was loaded")
    first = live.co_firstlineno
    for node in ast.walk(parsed):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            if node.lineno == first:
                return node
            if node.decorator_list and node.decorator_list[0].lineno == first:
                raise Refusal(f"{function.__qualname__} is decorated")
    raise Refusal(f"{function.__qualname__} is no plain function")


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            yield item
            yield from _codes(item)


def _shape(code: types.CodeType) -> tuple[Any, ...]:
    consts = tuple(_shape(c) if isinstance(c, types.CodeType) else (type(c), c) for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, consts


class _Body:
    """Reads the body of one forward()."""

    def __init__(self, sealer: _Sealer, module: Any, function: types.FunctionType, tree: ast.FunctionDef) -> None:
        self.sealer = sealer
        self.module = module
        self.function = function
        self.tree = tree
        self.kinds: dict[str, Kind] = {}
        self.file = getattr(sys.modules.get(type(module).__module__), "__file__", None) or type(module).__name__

    def refuse(self, node: ast.AST, what: str) -> Refusal:
        """Return a refusal that says where."""
        name = self.file.replace("\\", "/").rpartition("/")[2]
        return Refusal(f"{what} ({name}, line {getattr(node, 'lineno', self.tree.lineno)})")

    def read(self) -> tuple[Flow, Kind]:
        """Return the flow and the kind of what is returned."""
        parameters = self._parameters()
        steps: list[tuple[str, Expr]] = []
        body = list(self.tree.body)
        if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:]
        for position, statement in enumerate(body):
            if isinstance(statement, ast.Return) and position == len(body) - 1 and statement.value is not None:
                returns, kind = self.expression(statement.value)
                if not isinstance(kind, Mapping):
                    raise self.refuse(statement, "forward() returns something else than a prediction")
                return Flow(parameters, tuple(steps), returns), kind
            target, value = self._assignment(statement)
            expr, kind = self.expression(value)
            self.kinds[target] = kind
            steps.append((target, expr))
        raise self.refuse(self.tree, "forward() has no return at its end")

    def _parameters(self) -> tuple[Parameter, ...]:
        found = []
        signature = list(inspect.signature(self.function).parameters.values())
        if not signature or self.tree.args.posonlyargs:
            raise self.refuse(self.tree, "forward() has positional-only parameters, or no self")
        self.self_name = signature[0].name
        for parameter in signature[1:]:
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise self.refuse(self.tree, f"forward() takes {parameter.kind.description} arguments")
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            if not isinstance(default, str | int | float | bool | None):
                raise self.refuse(self.tree, f"the default of {parameter.name!r} is no constant")
            found.append(Parameter(parameter.name, required, default))
            named = getattr(parameter.annotation, "__name__", parameter.annotation)
            self.kinds[parameter.name] = Scalar(named) if named in PLAIN else None
        return tuple(found)

    def _assignment(self, statement: ast.stmt) -> tuple[str, ast.expr]:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            raise self.refuse(statement, f"forward() holds a statement that is no assignment: {_said(statement)}")
        if not isinstance(target, ast.Name):
            raise self.refuse(statement, f"forward() assigns to {_said(target)}, which is no local name")
        if target.id in self.kinds or target.id == self.self_name:
            raise self.refuse(statement, f"forward() binds {target.id!r} twice")
        return target.id, value

    def expression(self, node: ast.expr) -> tuple[Expr, Kind]:
        """Return an expression as data, and what is known of its value."""
        if isinstance(node, ast.Constant):
            if not isinstance(node.value, str | int | float | bool | None):
                raise self.refuse(node, f"the constant {_said(node)} is no JSON value")
            return {"const": node.value}, None
        if isinstance(node, ast.Name):
            if node.id not in self.kinds:
                raise self.refuse(node, f"{node.id!r} is neither an input nor a local name")
            return {"name": node.id}, self.kinds[node.id]
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            return self._item(node)
        if isinstance(node, ast.List | ast.Tuple):
            kind = "list" if isinstance(node, ast.List) else "tuple"
            return {kind: tuple(self.expression(item)[0] for item in node.elts)}, None
        if isinstance(node, ast.Dict):
            pairs = []
            for key, value in zip(node.keys, node.values, strict=True):
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                    raise self.refuse(node, "a key of a dict display is no text constant")
                pairs.append((key.value, self.expression(value)[0]))
            return {"dict": tuple(pairs)}, None
        if isinstance(node, ast.JoinedStr):
            return {"text": tuple(self._text(part) for part in node.values)}, None
        raise self.refuse(node, f"forward() holds {_said(node)}, which is more than data flow")

    def _text(self, part: ast.expr) -> Expr:
        if isinstance(part, ast.Constant):
            return {"const": part.value}
        if not isinstance(part, ast.FormattedValue) or part.conversion != -1 or part.format_spec is not None:
            raise self.refuse(part, "an f-string has a conversion or a format")
        expr, kind = self.expression(part.value)
        if isinstance(kind, Mapping):
            raise self.refuse(part, "an f-string holds a whole prediction")
        if "const" not in expr and not _formats_alike(kind):
            raise self.refuse(part, f"an f-string holds {_said(part.value)}, which isn't known to be text or a number")
        return expr

    def _attribute(self, node: ast.Attribute) -> tuple[Expr, Kind]:
        if isinstance(node.value, ast.Name) and node.value.id == self.self_name:
            value = inspect.getattr_static(self.module, node.attr, _MISSING)
            if isinstance(value, str | int | float | bool) or value is None or _frozen(value):
                return _constant(value), Scalar(type(value).__name__) if type(value).__name__ in PLAIN else None
            raise self.refuse(node, f"self.{node.attr} is no constant that a file can hold")
        owner, kind = self.expression(node.value)
        if isinstance(kind, Mapping) and node.attr in kind:
            return {"field": (owner, node.attr)}, kind[node.attr]
        if isinstance(kind, ModelType):
            for field in kind.fields:
                if field.name == node.attr:
                    return {"field": (owner, node.attr)}, field.type
        raise self.refuse(node, f"{_said(node)} is no output field")

    def _item(self, node: ast.Subscript) -> tuple[Expr, Kind]:
        index = node.slice
        if (
            isinstance(index, ast.UnaryOp)
            and isinstance(index.op, ast.USub)
            and isinstance(index.operand, ast.Constant)
        ):
            index = ast.Constant(-index.operand.value if isinstance(index.operand.value, int) else None)
        if (
            not isinstance(index, ast.Constant)
            or isinstance(index.value, bool)
            or not isinstance(index.value, int | str)
        ):
            raise self.refuse(node, f"the index in {_said(node)} is no constant")
        owner, kind = self.expression(node.value)
        if isinstance(kind, Mapping):
            if not isinstance(index.value, str) or index.value not in kind:
                raise self.refuse(node, f"{_said(node)} is no output field")
            return {"field": (owner, index.value)}, kind[index.value]
        return {"item": (owner, index.value)}, None

    def _call(self, node: ast.Call) -> tuple[Expr, Kind]:
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise self.refuse(node, f"{_said(node)} passes positional or unpacked arguments")
        if self._is_prediction_class(node.func):
            parts = {str(k.arg): self.expression(k.value) for k in node.keywords}
            fields = {name: kind if isinstance(kind, TypeSpec) else None for name, (_, kind) in parts.items()}
            return {"prediction": {name: expr for name, (expr, _) in parts.items()}}, fields
        module = self._resolve(node.func)
        inputs = {str(k.arg): self.expression(k.value)[0] for k in node.keywords}
        privileged = {"signature", "demos", "config", "lm", "new_signature", "prediction", "_trace"} & set(inputs)
        if privileged:
            raise self.refuse(node, f"{_said(node.func)} is called with {sorted(privileged)[0]}=")
        return self._module_call(node, module, inputs)

    def _module_call(self, node: ast.Call, module: Any, inputs: dict[str, Expr]) -> tuple[Expr, Kind]:
        import dspy

        if isinstance(module, dspy.Predict) or type(module) is dspy.ChainOfThought:
            path, kind = self.sealer.predictor(module)
            return {"call": {"path": path, "inputs": inputs}}, kind
        flow, kind = self.sealer.module(module, _said(node.func))
        names = {p.name for p in flow.parameters}
        missing = [p.name for p in flow.parameters if p.required and p.name not in inputs]
        if missing or set(inputs) - names:
            raise self.refuse(node, f"{_said(node)} doesn't fit {type(module).__name__}.forward")
        return {"flow": {"flow": flow, "inputs": inputs}}, kind

    def _resolve(self, node: ast.expr) -> Any:
        """Return the module that `self.a.b[0]` is, read without running any code."""
        import dspy

        if isinstance(node, ast.Name) and node.id == self.self_name:
            return self.module
        if isinstance(node, ast.Attribute):
            owner = self._resolve(node.value)
            found = vars(owner).get(node.attr, _MISSING) if isinstance(owner, dspy.Module) else _MISSING
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner = self._resolve(node.value)
            try:
                found = owner[node.slice.value] if type(owner) in (list, tuple, dict) else _MISSING
            except (LookupError, TypeError):
                found = _MISSING
        else:
            found = _MISSING
        if not isinstance(found, dspy.Module | list | tuple | dict):
            raise self.refuse(node, f"{_said(node)} is no predictor or module of the program")
        return found

    def _is_prediction_class(self, node: ast.expr) -> bool:
        import dspy

        scope = self.function.__globals__
        if isinstance(node, ast.Name) and node.id not in self.kinds:
            return scope.get(node.id) is dspy.Prediction
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in self.kinds:
            return scope.get(node.value.id) is dspy and node.attr == "Prediction"
        return False


_MISSING = object()


def _frozen(value: Any) -> bool:
    return type(value) is tuple and all(isinstance(v, str | int | float | bool | None) or _frozen(v) for v in value)


def _constant(value: Any) -> Expr:
    return {"tuple": tuple(_constant(item) for item in value)} if isinstance(value, tuple) else {"const": value}


def _formats_alike(kind: TypeSpec | None) -> bool:
    return isinstance(kind, LiteralType) or (isinstance(kind, Scalar) and kind.name in (*PLAIN, "date"))


def _said(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:80]


__all__ = ["Flow", "Unsealed", "seal_program"]
