"""opentelemetry_hook(): a span for every call of a frozen program, under OpenTelemetry's GenAI names.

Source: OpenTelemetry's semantic conventions for generative AI, spans of inference (`gen_ai.*`, version 1.37).
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from ..signatures.errors import RequestError
from .hooks import Hook, LMCall

_PROVIDERS: Final[Mapping[str, str]] = {
    "embedded": "vitrify",
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""The conventions' names, where they aren't the prefixes of models; a server of one's own counts as `openai`."""

_REQUESTED: Final[Mapping[str, str]] = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}


def opentelemetry_hook(tracer: Any = None, *, content: bool = False) -> Hook:
    """Return a hook that records each call as a span `chat <model>`, a child of whatever span the caller is in.

    Args:
        tracer: An OpenTelemetry tracer; by default the one of the provider that the application has set.
        content: Whether spans hold the messages and replies, which may be private.

    Raises:
        RequestError: If `opentelemetry-api` isn't installed.
    """
    try:
        from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer
    except ModuleNotFoundError as error:
        raise RequestError(
            "the OpenTelemetry hook needs opentelemetry-api, which isn't installed: run `pip install 'vitrify[otel]'`."
        ) from error
    chosen = tracer or get_tracer("vitrify")

    def record(call: LMCall) -> None:
        model = _wire_name(call.request.model)
        span = chosen.start_span(
            f"chat {model}",
            kind=SpanKind.CLIENT,
            start_time=call.began,
            attributes=attributes_of(call, content=content),
        )
        if call.error is not None:
            span.set_status(Status(StatusCode.ERROR, str(call.error)))
        span.end(end_time=call.began + round(call.seconds * 1e9))

    return record


def attributes_of(call: LMCall, *, content: bool) -> dict[str, Any]:
    """Return a call's span attributes."""
    request, reply = call.request, call.reply
    prefix = request.model.partition("/")[0] if "/" in request.model or request.model == "embedded" else "openai"
    found: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(prefix, prefix),
        "gen_ai.request.model": _wire_name(request.model),
        "gen_ai.output.type": "json" if "response_format" in request.params else "text",
        "vitrify.program": call.program,
        "vitrify.artifact.sha256": call.sha256,
    }
    found |= {_REQUESTED[name]: value for name, value in request.params.items() if name in _REQUESTED}
    stop = request.params.get("stop")
    if stop:
        found["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)  # type: ignore[arg-type]  # a list of texts on the wire
    found |= _server(call.endpoint)
    if reply is not None:
        found |= {
            "gen_ai.response.model": reply.model,
            "gen_ai.response.finish_reasons": [reply.finish_reason],
            "gen_ai.usage.input_tokens": reply.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": reply.usage.completion_tokens,
            "vitrify.attempts": reply.attempts,
        }
    if call.error is not None:
        found["error.type"] = getattr(call.error, "cause", type(call.error).__name__)
    return found | _content(call) if content else found


def _server(endpoint: str) -> dict[str, Any]:
    try:
        parts = urlsplit(endpoint)
        address, port = parts.hostname, parts.port
    except ValueError:
        return {}
    found: dict[str, Any] = {} if address is None else {"server.address": address}
    return found if port is None else {**found, "server.port": port}


def _content(call: LMCall) -> dict[str, str]:
    def said(role: Any, text: Any) -> dict[str, Any]:
        parts = [{"type": "text", "content": text}] if isinstance(text, str) else text
        return {"role": role, "parts": parts}

    asked = [said(message.get("role"), message.get("content")) for message in call.request.messages]
    found = {"gen_ai.input.messages": json.dumps(asked, ensure_ascii=False)}
    if call.reply is not None:
        answered = {**said("assistant", call.reply.text or ""), "finish_reason": call.reply.finish_reason}
        found["gen_ai.output.messages"] = json.dumps([answered], ensure_ascii=False)
    return found


def _wire_name(model: str) -> str:
    return model.partition("/")[2] or model
