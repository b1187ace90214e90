"""What OpenAI-compatible servers say and hear: bodies, replies, errors, and what OpenAI's own models can do."""

import functools
import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

from ..signatures.canonical import JsonValue
from ..signatures.prompt import Messages
from .lm import Capabilities, Cause, LMError, Reply, Request, Usage

# Names that LiteLLM and DSPy put before a model's own name; the server must not see them. Anything else before a
# slash is part of the name (`Qwen/Qwen2.5-7B-Instruct`).
PREFIXES: Final = ("openai/", "hosted_vllm/", "vllm/", "lm_studio/", "llamafile/", "litellm_proxy/")

# The same expression as dspy.clients.lm._is_openai_reasoning_model, so that both send the same body.
_REASONING: Final = re.compile(
    r"(?:o[1345](?:-(?:mini|nano|pro))?(?:-\d{4}-\d{2}-\d{2})?|gpt-5(?:\.\d+)*(?!-chat)(?:-.*)?)$"
)

# What DSPy's model table says of OpenAI's chat models, as expressions; a test compares them with it.
_CAPABLE: Final = (
    (r"o1-mini(-2024-09-12)?|o[34](-mini)?-deep-research(-.+)?", (False, False, False, True)),
    (r"gpt-5(\.\d+)?-chat(-latest)?|chat-latest", (True, True, True, True)),
    (r"gpt-5\.[45]-pro(-.+)?", (True, False, True, True)),
    (r"gpt-5(\.\d+)?(-(mini|nano|pro|codex|codex-max|codex-mini))?(-\d{4}-\d{2}-\d{2})?", (True, True, True, True)),
    (r"o1(-pro)?(-.+)?|o3(-mini|-pro)?(-\d{4}-.+)?|o4-mini(-\d{4}-.+)?", (True, True, True, True)),
    (r"gpt-4\.1(-mini|-nano)?(-2025-04-14)?", (True, True, True, False)),
    (r"gpt-4o(-mini)?(-2024-(07-18|08-06|11-20))?", (True, True, True, False)),
    (r"gpt-4o-2024-05-13|gpt-4(-0613|-1106-preview|-turbo(-2024-04-09)?)?", (True, False, True, False)),
    (r"gpt-3\.5-turbo(-0125|-1106)?", (True, False, True, False)),
)

_OVERFLOW: Final = re.compile(
    r"context[ _]?length|context[ _]window|maximum context|available context size|context size|prompt is too long"
    r"|too many (?:input )?tokens|reduce the length",
    re.IGNORECASE,
)

# `json.dumps` makes one of these for every call.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=dict)


def wire_name(name: str) -> str:
    """Return the model's name as the server knows it, without the provider prefix."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


@functools.lru_cache(maxsize=64)  # asked for every request
def is_reasoning_model(model: str) -> bool:
    """Whether `model` is one of OpenAI's reasoning families, which name max_tokens and temperature otherwise."""
    return _REASONING.match(model.rsplit("/", 1)[-1].lower()) is not None


@functools.lru_cache(maxsize=64)
def known_capabilities(model: str) -> Capabilities | None:
    """Return what one of OpenAI's own chat models can do; None for a name that isn't theirs."""
    for pattern, (response_format, response_schema, function_calling, reasoning) in _CAPABLE:
        if re.fullmatch(pattern, model):
            return Capabilities(
                response_format=response_format,
                response_schema=response_schema,
                function_calling=function_calling,
                reasoning=reasoning,
            )
    return None


def encode(request: Request, model: str) -> bytes:
    """Return the body to post: what DSPy sends for the same request.

    OpenAI's own models get `max_completion_tokens`, as from DSPy; other servers get `max_tokens`, since old ones ignore
    the newer name and would write without a limit. Raises LMError for what one Reply can't hold.
    """
    params: dict[str, JsonValue] = {key: value for key, value in request.params.items() if value is not None}
    extra = params.pop("extra_body", None)
    if isinstance(extra, dict):
        params.update(extra)
    if params.get("n", 1) != 1 or params.get("stream"):
        raise LMError(
            f"{request.model}: `n` must be 1 and `stream` off in a Request, but got n={params.get('n', 1)!r}, "
            f"stream={params.get('stream', False)!r}; ask once per sample, with another `replicate`.",
            cause="bad_request",
        )
    reasoning = is_reasoning_model(model)
    if "max_tokens" in params and (reasoning or known_capabilities(model) is not None):
        params.setdefault("max_completion_tokens", params.pop("max_tokens"))
    if reasoning and params.get("temperature", 1) != 1:
        # They answer 400 to any other temperature.
        del params["temperature"]
    messages = request.messages
    if type(messages) is Messages and "model" not in params and "messages" not in params:
        rest = f",{_ENCODER.encode(params)[1:]}" if params else "}"
        text = f'{{"model":{_ENCODER.encode(model)},"messages":{messages.json}{rest}'
    else:
        text = _ENCODER.encode({"model": model, "messages": messages, **params})
    return text.encode("utf-8", "surrogatepass")


def decode(body: bytes, model: str) -> Reply:
    """Return the Reply in a 200's body; ValueError says what is wrong with any other body."""
    try:
        data = json.loads(body)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"it is a JSON {type(data).__name__}, not an object")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        error = error_text(data)
        raise ValueError(f"it says {error!r}" if error else "it has no `choices`")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("its first choice has no `message`")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError("its `tool_calls` are no list")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    said = data.get("model")
    finish = choices[0].get("finish_reason")
    return Reply(
        text=_text(message),
        usage=_usage(data.get("usage")),
        model=said if isinstance(said, str) and said else model,
        finish_reason=finish if isinstance(finish, str) and finish else "stop",
        tool_calls=tuple(cast(list[JsonValue], calls)),
        reasoning=reasoning if isinstance(reasoning, str) else None,
    )


def _text(message: dict[str, Any]) -> str | None:
    """Return a message's text; a refusal is its text, so that whoever parses it sees why."""
    content = message.get("content")
    if isinstance(content, list):  # some gateways answer in blocks
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is None:
        content = message.get("refusal")
    if content is None and not message.get("tool_calls"):
        # Reasoning models that spend max_tokens before they write answer null.
        return None
    if content is not None and not isinstance(content, str):
        raise ValueError(f"its `content` is a {type(content).__name__}, not a text")
    return content


def _usage(data: object) -> Usage:
    """Return the tokens that a reply reports; zero for what it doesn't say."""
    if not isinstance(data, dict):
        return Usage()
    details = data.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(_count(data.get("prompt_tokens")), _count(data.get("completion_tokens")), _count(cached))


def _count(value: object) -> int:
    """Return a token count, zero where the server wrote something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def error_text(data: object) -> str:
    """Return the message in an error body, whatever its form; empty if there is none."""
    for key in ("error", "message", "detail"):
        if isinstance(data, dict) and data.get(key):
            data = data[key]
    return data if isinstance(data, str) else ""


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that `Retry-After` (or `retry-after-ms`) asks for; None if absent or nonsense.

    `headers` have their names in small letters; `now` is the time in seconds since 1970, for the header's date form.
    """
    millis, value = headers.get("retry-after-ms"), headers.get("retry-after", "")
    try:
        seconds = float((millis or value).split(",")[0]) / (1000 if millis else 1)
    except ValueError:
        try:
            seconds = max(0.0, parsedate_to_datetime(value).timestamp() - now)
        except (TypeError, ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < 1e9 else None


def status_error(name: str, host: str, status: int, body: bytes, wait: float | None) -> LMError:
    """Return the LMError for an HTTP status other than 200; `host` and the server's words go into the message."""
    code, said = _error_body(body)
    quoted = f' It says: "{said[:300]}".' if said else ""
    retryable: bool | None = None
    cause: Cause
    if status in (401, 403):
        # The server's own words are left out: they may repeat the key.
        cause, text = (
            "auth",
            (
                f"{name}: {host} refused the key (HTTP {status}); set OPENAI_API_KEY or pass `api_key` with one "
                "that may use this model."
            ),
        )
    elif status == 404:
        cause, text = (
            "unknown_model",
            (
                f"{name}: {host} doesn't know the model or the path (HTTP 404); check the model's name, and that "
                f"`api_base` ends where `/chat/completions` begins (mostly in `/v1`).{quoted}"
            ),
        )
    elif status == 429 and code == "insufficient_quota":
        cause, retryable = "rate_limited", False
        text = f"{name}: the account's quota at {host} is used up (HTTP 429); add credit or use another key."
    elif status == 429:
        until = f" and asks to wait {wait:g} s" if wait is not None else ""
        cause, text = "rate_limited", f"{name}: {host} limits the rate (HTTP 429){until}; lower the concurrency."
    elif status in (408, 504):
        cause, text = "timeout", f"{name}: {host} gave up waiting (HTTP {status}); try again later.{quoted}"
    elif status >= 500:
        cause, text = "server", f"{name}: {host} failed (HTTP {status}); try again later.{quoted}"
    elif code == "context_length_exceeded" or _OVERFLOW.search(said):
        cause, text = (
            "context_overflow",
            (
                f"{name}: the prompt doesn't fit the model's context (HTTP {status}); use fewer or shorter "
                f"demonstrations or inputs.{quoted}"
            ),
        )
    elif 300 <= status < 400:
        cause, text = "bad_request", f"{name}: {host} redirects (HTTP {status}); set `api_base` to the final address."
    else:
        cause, text = "bad_request", f"{name}: {host} refused the request (HTTP {status}).{quoted}"
    return LMError(text, cause=cause, retryable=retryable, retry_after=wait, status=status)


def _error_body(body: bytes) -> tuple[str, str]:
    """Return the code and the message of an error's body."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    error = data.get("error") if isinstance(data, dict) else None
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    return (code if isinstance(code, str) else ""), error_text(data)
