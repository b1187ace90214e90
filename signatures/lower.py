"""dspy.Signature -> SignatureSpec, or the reason why not. The only file of this package that imports dspy."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic.fields import FieldInfo

from .annotations import Refused, default_of
from .canonical import NotCanonical
from .grammar import Unsupported
from .prompt import NeedsAdapter, PromptPlan
from .signature import FieldSpec, SignatureSpec
from .types import lower_type

# Inputs that dspy.Predict takes for itself, so that they never reach the prompt.
_RESERVED = frozenset({"signature", "demos", "config", "lm", "new_signature", "_trace", "completions", "self"})


def lower(signature: Any) -> SignatureSpec | Unsupported:
    """Return a dspy.Signature class, or a signature string, as data; or the reason why DSPy itself must render it.

    What is returned has been checked: both prompt formats, and the schema of the reply, come out the same from the
    data alone as from the user's classes.
    """
    declared = _declared(signature)
    fields = []
    for name, info in declared.fields.items():
        field = _field(name, info)
        if isinstance(field, Unsupported):
            return field
        fields.append(field)
    spec = SignatureSpec(declared.__name__, declared.instructions, tuple(fields))
    return _checked(spec, annotations(declared))


def annotations(signature: Any) -> dict[str, Any]:
    """Return the user's own Python annotations by field name, inputs first."""
    return {name: info.annotation for name, info in _declared(signature).fields.items()}


def _declared(signature: Any) -> Any:
    if not isinstance(signature, str):
        return signature
    import dspy

    make: Any = dspy.Signature
    return make(signature)


def _field(name: str, info: FieldInfo) -> FieldSpec | Unsupported:
    extra = cast("Mapping[str, Any]", info.json_schema_extra)
    role = extra["__dspy_field_type"]
    if role == "input" and name in _RESERVED:
        return Unsupported(f"input field `{name}` has a name that dspy.Predict takes for itself.")
    if any(_from_dspy(item) for item in info.metadata):
        return Unsupported(f"field `{name}` is annotated with a type of DSPy's own.")
    spec = lower_type(info.annotation)
    if isinstance(spec, Unsupported):
        return Unsupported(f"field `{name}`: {spec.reason}")
    texts = (extra.get("desc", ""), extra.get("constraints") or "")
    if not all(text is None or isinstance(text, (str, int, float)) for text in texts):
        return Unsupported(f"field `{name}` has a description that is no text.")
    # DSPy writes `${name}` for no description, and prints whatever else it finds there.
    description = "" if texts[0] == f"${{{name}}}" else f"{texts[0]}"
    try:
        # A factory of an input is never called, by DSPy or here.
        inert = role == "input" and info.default_factory is not None
        default = None if inert else default_of(info, info.annotation, f"field `{name}`")
    except Refused as refusal:
        return Unsupported(f"{refusal}.")
    return FieldSpec(name, role, spec, description, f"{texts[1]}", default)


def _from_dspy(item: Any) -> bool:
    kind = item if isinstance(item, type) else type(item)
    return any(base.__module__.partition(".")[0] == "dspy" for base in kind.__mro__)


def _checked(spec: SignatureSpec, types: Mapping[str, Any]) -> SignatureSpec | Unsupported:
    try:
        _ = spec.fingerprint
        for format in ("chat", "json"):
            if PromptPlan.build(spec, format=format, types=types) != PromptPlan.build(spec, format=format):
                return Unsupported(f"its {format} prompt comes out differently when its types are rebuilt.")
    except NotCanonical as error:
        return Unsupported(f"it can't be written down: {error}.")
    except NeedsAdapter as error:
        return Unsupported(f"{error}")
    except Exception as error:  # noqa: BLE001 - what can't be rendered here is DSPy's to render, or to fail on
        return Unsupported(f"its prompt can't be rendered: {type(error).__name__}: {error!s:.120}.")
    return spec
