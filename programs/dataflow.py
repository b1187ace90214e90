"""seal_program(): the data flow of forward(), read from its source, where it is only data flow.

Sealing reads the syntax tree against a closed grammar and never decides by running the program. What isn't in the
grammar refuses, with file and line: a program that can't be sealed still ships, and needs its class to run.
"""

import ast
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..signatures.errors import ArtifactError
from ..signatures.grammar import ModelType, Scalar, TypeSpec
from .flow import Expr, Flow, Parameter
from .kinds import (
    MISSING,
    PLAIN,
    Kind,
    bare,
    constant_of,
    formats_alike,
    is_constant,
    is_frozen,
    item_kind,
    kind_of,
    written,
)
from .program import DECODING, PredictorSpec, ProgramSpec, walk
from .source import Refusal, forward_of

MOST_DEPTH = 100
"""Of a flow's nesting in the file, which holds at most a few levels more."""
MOST_MODULES = 256
"""Of modules that a program calls, each counted as often as it is called: they are written out one inside the other."""

PRIVILEGED = frozenset(
    {"signature", "demos", "config", "lm", "new_signature", "prediction", "_trace", "self", "instance"}
)
"""Arguments of a call that DSPy takes for itself."""


@dataclass(frozen=True)
class Unsealed:
    """Why a program's data flow can't be in the file."""

    reason: str


def seal_program(program: Any, spec: ProgramSpec) -> Flow | Unsealed:
    """Return the data flow of `program`, or why it can't be sealed."""
    for predictor in spec.predictors:
        if predictor.reason is not None:
            return Unsealed(f"predictor {predictor.path} runs through DSPy: {predictor.reason}")
    for item in walk(program):
        why = _own_settings(item.predictor)
        if why is not None:
            return Unsealed(f"predictor {item.path} has {why}")
    try:
        flow, _ = _Sealer(program, spec).module(program, None)
    except Refusal as refusal:
        return Unsealed(str(refusal))
    if _depth(flow.to_json()) > MOST_DEPTH:
        return Unsealed("its modules and expressions nest too deep for a file")
    try:
        flow.check_size()
    except ArtifactError:
        return Unsealed("its steps repeat their values too often for a file")
    return flow


def _own_settings(predictor: Any) -> str | None:
    """Return what a predictor carries that a sealed program couldn't honour."""
    if predictor.lm is not None:
        return "a language model of its own"
    if predictor.callbacks:
        return "callbacks"
    foreign = sorted(set(predictor.config) - DECODING)
    if foreign:
        return f"the setting {foreign[0]!r}, which isn't written to a file"
    if (predictor.config.get("n") or 1) != 1:
        return "more than one completion (n)"
    return None


class _Sealer:
    """Seals one program; predictors are known by the identity of their objects."""

    def __init__(self, program: Any, spec: ProgramSpec) -> None:
        self.specs: dict[int, PredictorSpec] = {id(item.predictor): spec.predictor(item.path) for item in walk(program)}
        self.above: list[Any] = []
        self.read = 0

    def module(self, module: Any, given: Mapping[str, Kind] | None) -> tuple[Flow, Kind]:
        """Return the flow of a module's forward and what it returns; `given` is known of what its caller passes."""
        if is_predictor(module):
            return self._single(module)
        if any(module is item for item in self.above):
            raise Refusal(f"{type(module).__name__} calls itself")
        self.read += 1
        if self.read > MOST_MODULES:
            raise Refusal(f"the program calls more than {MOST_MODULES} modules")
        function, tree = forward_of(module)
        self.above.append(module)
        flow, kind = _Body(self, module, function, tree, given).read()
        self.above.pop()
        return flow, kind

    def _single(self, module: Any) -> tuple[Flow, Kind]:
        """Return the flow of a bare predictor: its inputs in, its outputs out."""
        path, kind = self.predictor(module)
        signature = self.specs[id(_predict(module))].signature
        assert signature is not None
        # A missing input is left out of the prompt, which a flow can't say: only what has no default is asked for.
        optional = [field.name for field in signature.inputs if field.default is not None]
        if optional:
            raise Refusal(f"the input {optional[0]!r} of the bare predictor has a default")
        inputs = {field.name: {"name": field.name} for field in signature.inputs}
        parameters = tuple(Parameter(field.name, True) for field in signature.inputs)
        return Flow(parameters, (), {"call": {"path": path, "inputs": inputs}}), kind

    def predictor(self, module: Any) -> tuple[str, Kind]:
        """Return a predictor's path and the types of its outputs."""
        spec = self.specs.get(id(_predict(module)))
        if spec is None or spec.signature is None:
            raise Refusal("a predictor is called that isn't an attribute of the program")
        if module.callbacks or {"forward", "aforward"} & set(vars(module)):
            raise Refusal(f"predictor {spec.path} has callbacks, or a forward() of its own")
        return spec.path, {field.name: field.type for field in spec.signature.outputs}


def is_predictor(module: Any) -> bool:
    """Say whether a module is a predictor, or the ChainOfThought around one."""
    import dspy

    return type(module) in (dspy.Predict, dspy.ChainOfThought)


def _predict(module: Any) -> Any:
    import dspy

    return vars(module).get("predict") if type(module) is dspy.ChainOfThought else module


class _Body:
    """Reads the body of one forward()."""

    def __init__(
        self,
        sealer: _Sealer,
        module: Any,
        function: types.FunctionType,
        tree: ast.FunctionDef,
        given: Mapping[str, Kind] | None,
    ) -> None:
        self.sealer = sealer
        self.module = module
        self.function = function
        self.tree = tree
        self.given = given
        self.kinds: dict[str, Kind] = {}
        self.self_name = ""

    def refuse(self, node: ast.AST, what: str) -> Refusal:
        """Return a refusal that says where."""
        name = PurePath(self.function.__code__.co_filename).name
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
        signature = list(inspect.signature(self.function).parameters.values())
        if not signature or signature[0].kind is not signature[0].POSITIONAL_OR_KEYWORD:
            raise self.refuse(self.tree, "forward() has positional-only parameters, or no self")
        self.self_name = signature[0].name
        found = []
        for parameter in signature[1:]:
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise self.refuse(self.tree, f"forward() takes {parameter.kind.description} arguments")
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            if not is_constant(default):
                raise self.refuse(self.tree, f"the default of {parameter.name!r} is no constant")
            found.append(Parameter(parameter.name, required, default))
            if self.given is None:
                self.kinds[parameter.name] = self._declared(parameter.annotation)
            else:
                self.kinds[parameter.name] = self.given.get(parameter.name, kind_of(default))
        return tuple(found)

    def _declared(self, annotation: Any) -> Kind:
        """Return the kind of a plain annotation, also where it is text (`from __future__ import annotations`)."""
        if isinstance(annotation, str) and annotation in PLAIN:
            annotation = self.function.__globals__.get(annotation, PLAIN[annotation])
        return next((Scalar(name) for name, kind in PLAIN.items() if annotation is kind), None)

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

    def value(self, node: ast.expr) -> tuple[Expr, TypeSpec | None]:
        """Return an expression that is no whole prediction, which only DSPy knows how to show."""
        expr, kind = self.expression(node)
        if isinstance(kind, Mapping):
            raise self.refuse(node, f"{_said(node)} is a whole prediction: name one of its fields")
        return expr, kind

    def expression(self, node: ast.expr) -> tuple[Expr, Kind]:
        """Return an expression as data, and what is known of its value."""
        if isinstance(node, ast.Constant | ast.UnaryOp):
            constant = constant_of(node)
            if not is_constant(constant):
                raise self.refuse(node, f"{_said(node)} is no constant that a file can hold")
            return {"const": constant}, kind_of(constant)
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
            return {kind: tuple(self.value(item)[0] for item in node.elts)}, None
        if isinstance(node, ast.Dict):
            return {"dict": tuple(self._pair(node, *pair) for pair in zip(node.keys, node.values, strict=True))}, None
        if isinstance(node, ast.JoinedStr):
            return {"text": tuple(self._text(part) for part in node.values)}, Scalar("str")
        raise self.refuse(node, f"forward() holds {_said(node)}, which is more than data flow")

    def _pair(self, node: ast.Dict, key: ast.expr | None, value: ast.expr) -> tuple[str, Expr]:
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str) or not is_constant(key.value):
            raise self.refuse(node, "a key of a dict display is no text constant")
        return key.value, self.value(value)[0]

    def _text(self, part: ast.expr) -> Expr:
        if isinstance(part, ast.Constant):
            return self.expression(part)[0]
        if not isinstance(part, ast.FormattedValue) or part.conversion != -1 or part.format_spec is not None:
            raise self.refuse(part, "an f-string has a conversion or a format")
        expr, kind = self.value(part.value)
        if "const" not in expr and not formats_alike(kind):
            raise self.refuse(part, f"an f-string holds {_said(part.value)}, which isn't known to be text or a number")
        return expr

    def _attribute(self, node: ast.Attribute) -> tuple[Expr, Kind]:
        import dspy

        if isinstance(node.value, ast.Name) and node.value.id == self.self_name:
            value = inspect.getattr_static(self.module, node.attr, MISSING)
            if not is_constant(value) and not is_frozen(value):
                raise self.refuse(node, f"self.{node.attr} is no constant that a file can hold")
            return written(value), kind_of(value)
        owner, kind = self.expression(node.value)
        if isinstance(kind, Mapping) and node.attr in kind:
            if hasattr(dspy.Prediction, node.attr) or node.attr.startswith("_"):
                raise self.refuse(node, f"{_said(node)} is a method of every prediction: write [{node.attr!r}]")
            return {"field": (owner, node.attr)}, kind[node.attr]
        model = None if isinstance(kind, Mapping) else bare(kind)
        if isinstance(model, ModelType):
            for field in model.fields:
                if field.name == node.attr:
                    return {"field": (owner, node.attr)}, field.type
        raise self.refuse(node, f"{_said(node)} is no output field")

    def _item(self, node: ast.Subscript) -> tuple[Expr, Kind]:
        index = constant_of(node.slice)
        if type(index) not in (int, str) or not is_constant(index):
            raise self.refuse(node, f"the index in {_said(node)} is no constant")
        owner, kind = self.expression(node.value)
        if isinstance(kind, Mapping):
            if index not in kind:
                raise self.refuse(node, f"{_said(node)} is no output field")
            return {"field": (owner, index)}, kind[index]
        return {"item": (owner, index)}, item_kind(bare(kind), index)

    def _call(self, node: ast.Call) -> tuple[Expr, Kind]:
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise self.refuse(node, f"{_said(node)} passes positional or unpacked arguments")
        if self._is_prediction_class(node.func):
            return self._prediction(node)
        module = self._resolve(node.func)
        parts = {str(k.arg): self.value(k.value) for k in node.keywords}
        privileged = sorted(PRIVILEGED & set(parts))
        if privileged:
            raise self.refuse(node, f"{_said(node.func)} is called with {privileged[0]}=")
        inputs = {name: expr for name, (expr, _) in parts.items()}
        if is_predictor(module):
            path, kind = self.sealer.predictor(module)
            return {"call": {"path": path, "inputs": inputs}}, kind
        flow, kind = self.sealer.module(module, {name: kind for name, (_, kind) in parts.items()})
        missing = [p.name for p in flow.parameters if p.required and p.name not in inputs]
        if missing or set(inputs) - {p.name for p in flow.parameters}:
            raise self.refuse(node, f"{_said(node)} doesn't fit {type(module).__name__}.forward")
        return {"flow": {"flow": flow, "inputs": inputs}}, kind

    def _prediction(self, node: ast.Call) -> tuple[Expr, Kind]:
        parts = {str(k.arg): self.value(k.value) for k in node.keywords}
        for name in parts:
            if name in ("base", "self") or name.startswith(("_", "dspy_")):
                raise self.refuse(node, f"dspy.Prediction takes {name}= for itself")
        return (
            {"prediction": {name: expr for name, (expr, _) in parts.items()}},
            {name: kind for name, (_, kind) in parts.items()},
        )

    def _resolve(self, node: ast.expr) -> Any:
        """Return the module that `self.a.b[0]` is, read without running any code."""
        import dspy

        if isinstance(node, ast.Name) and node.id == self.self_name:
            return self.module
        found: Any = MISSING
        if isinstance(node, ast.Attribute):
            owner = self._resolve(node.value)
            # In the instance, and not behind a property, a slot or a __getattribute__ of its class.
            if isinstance(owner, dspy.Module) and type(owner).__getattribute__ is dspy.Module.__getattribute__:
                found = vars(owner).get(node.attr, MISSING)
                found = found if inspect.getattr_static(owner, node.attr, None) is found else MISSING
        elif isinstance(node, ast.Subscript):
            owner = self._resolve(node.value)
            index = constant_of(node.slice)
            try:
                found = owner[index] if type(owner) in (list, tuple, dict) else MISSING
            except (LookupError, TypeError):
                found = MISSING
        if not isinstance(found, dspy.Module | list | tuple | dict):
            raise self.refuse(node, f"{_said(node)} is no predictor or module of the program")
        return found

    def _is_prediction_class(self, node: ast.expr) -> bool:
        import dspy

        root = node.value if isinstance(node, ast.Attribute) else node
        # A name that the function assigns anywhere is local everywhere in it.
        if not isinstance(root, ast.Name) or root.id in self.function.__code__.co_varnames:
            return False
        found = self.function.__globals__.get(root.id)
        if isinstance(node, ast.Attribute):
            return found is dspy and node.attr == "Prediction"
        return found is dspy.Prediction


def _depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def _said(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:80]


__all__ = ["Flow", "Unsealed", "seal_program"]
