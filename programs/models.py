"""resolve_lm(): what the user named as a language model, as one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ..signatures.canonical import JsonValue
from ..signatures.errors import ModelError, nearest
from .lm import LM, Retry


@dataclass(frozen=True)
class Model:
    """A language model and the sampling parameters that every request to it carries.

    Attributes:
        lm: What answers.
        decoding: `temperature`, `max_tokens`, ... as the user set them on the LM.
    """

    lm: LM
    decoding: Mapping[str, JsonValue] = field(default_factory=dict)


def resolve_lm(
    lm: Any,
    *,
    api_base: str | None = None,
    api_key: str | None = None,
    decoding: Mapping[str, JsonValue] | None = None,
    retry: Retry | None = None,
    timeout: float = 180.0,
) -> Model:
    """Return the language model that `lm` names.

    Args:
        lm: `"embedded"`; `"openai/<model>"` or any name together with `api_base` (our client); any other
            `"provider/model"` (through `dspy.LM`); a `dspy.LM` or `dspy.BaseLM`; or an LM of our own protocol.
        api_base: The server's address, up to and including `/v1`.
        api_key: The key; by default the provider's environment variable.
        decoding: Sampling parameters for every request.
        retry: How our client repeats failed attempts; a caller that repeats them itself asks for one.
        timeout: Seconds that one attempt of our client may take.

    Raises:
        ModelError: If nobody knows the name.
    """
    chosen = dict(decoding or {})
    if isinstance(lm, Model):
        return lm
    if not isinstance(lm, str):
        return _from_object(lm, chosen)
    name = lm.strip()
    # Each is imported where it is named: a program that is loaded needs one of them at most.
    if name == "embedded":
        from .embedded import Embedded

        return Model(Embedded(), chosen)
    provider, _, model = name.partition("/")
    if api_base is not None or (provider == "openai" and model):
        from .openai import OpenAICompatible

        client = OpenAICompatible(name, api_base=api_base, api_key=api_key, retry=retry or Retry(), timeout=timeout)
        return Model(client, chosen)
    if not model:
        known = ["embedded", "openai/gpt-4o-mini", *([f"openai/{provider}"] if provider != "openai" else [])]
        raise ModelError(
            f"`lm` names a provider and a model, or is `embedded`: got {lm!r}; {nearest(name, known)} "
            "A server of your own takes any name together with api_base (--api-base)."
        )
    return _through_dspy(name, api_key, chosen)


def _from_object(lm: Any, decoding: dict[str, JsonValue]) -> Model:
    if isinstance(lm, type):
        raise ModelError(f"`lm` is a language model, got the class {lm.__name__}: pass an instance of it.")
    # A dspy.LM also has `model` and `kwargs`; ours has `endpoint`. dspy is not imported to tell them apart.
    if hasattr(lm, "complete") and hasattr(lm, "endpoint"):
        return Model(cast(LM, lm), decoding)
    if hasattr(lm, "kwargs") and hasattr(lm, "model"):
        from .bridge import DspyLM, EngineLM

        if isinstance(lm, EngineLM):
            return Model(lm.target, {**{k: v for k, v in lm.kwargs.items() if v is not None}, **decoding})
        bridged = DspyLM(lm)
        return Model(bridged, {**bridged.decoding, **decoding})
    raise ModelError(
        f"`lm` is a name, a dspy.LM or an object with complete(Request), got {type(lm).__name__} {lm!r:.80}."
    )


def _through_dspy(name: str, api_key: str | None, decoding: dict[str, JsonValue]) -> Model:
    """Return a `dspy.LM` for any other provider; the compiler's dependencies are needed for that."""
    # Otherwise DSPy fetches a price table from the network at its first call.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    try:
        import dspy
        import litellm

        litellm.suppress_debug_info = True  # it would print a list of providers on stdout
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{name} is reached through DSPy, which isn't installed (no module {error.name}): "
            "install `vitrify[compile]`, or name an OpenAI-compatible server with api_base."
        ) from error
    try:
        litellm.get_llm_provider(name)
    except litellm.exceptions.BadRequestError as error:
        provider = name.partition("/")[0]
        known = [str(getattr(item, "value", item)) for item in litellm.provider_list]
        raise ModelError(
            f"`lm` {name!r}: nobody knows the provider {provider!r}; {nearest(provider, known)}"
        ) from error
    from .bridge import DspyLM

    lm = dspy.LM(name, **({"api_key": api_key} if api_key else {}))
    return Model(DspyLM(lm), decoding)
