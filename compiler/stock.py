"""The stock metrics: exact, f1, numeric and contains, each on one field that label and prediction share.

Text is normalised as DSPy's metrics do it (dspy/evaluate/metrics.py, after SQuAD's official script): NFD, lower case,
punctuation and articles removed, white space collapsed.
"""

import enum
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pydantic

from ..signatures.errors import MetricError, nearest
from .data import Example

StockName = Literal["exact", "f1", "numeric", "contains"]
STOCK: tuple[StockName, ...] = ("exact", "f1", "numeric", "contains")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TRUE, _FALSE = frozenset({"true", "yes", "y", "t", "1"}), frozenset({"false", "no", "n", "f", "0"})

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    # A digit behind a letter or ^ belongs to a name or an exponent: x2, CO2, m^2.
    rf"(?<![\w^])(?<!\^\{{)(?P<sign>-\s?(?:[$€£¥]\s?)?|[$€£¥]-)?(?P<number>{_DIGITS})"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w))?"
    r"(?:(?:\s+(?P<top>\d+))?\s?/\s?(?P<bottom>\d+(?:\.\d+)?)(?![\d/]))?"
)
_SUBTRACTION = re.compile(r"(?<=[\d)\]%])[ \t]*-[ \t]*(?=[\d.$])")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)(\d))")


@dataclass(frozen=True)
class StockMetric:
    """A metric on one field, called as DSPy calls metrics: `(example, pred, trace=None)`.

    A label that is a list holds the acceptable answers. Raises MetricError where label or prediction lack the field.

    Attributes:
        kind: which of the stock metrics.
        field: the field of label and prediction.
        tolerance: for `numeric`, how far apart two numbers may be, relative to the label where that is beyond 1.
    """

    kind: StockName
    field: str
    tolerance: float = 1e-6

    @property
    def name(self) -> str:
        """The spec that resolves to this metric, such as "exact:team"."""
        return f"{self.kind}:{self.field}"

    def __call__(self, example: Any, pred: Any, trace: Any = None) -> bool | float:
        """Return the score of one prediction, in [0, 1]."""
        label = _simple(_read(example, self.field, self.name, "label"))
        found = _simple(_read(pred, self.field, self.name, "prediction"))
        if self.kind == "exact":
            return any(_same(answer, found) for answer in _answers(label, found))
        if self.kind == "f1":
            return max((token_f1(_text(found), _text(answer)) for answer in _answers(label, found)), default=0.0)
        if self.kind == "contains":
            return any(_contains(_text(found), _text(answer)) for answer in _answers(label, None))
        return self._numeric(label, found)

    def _numeric(self, label: Any, found: Any) -> bool:
        wanted = [_value(answer) for answer in _answers(label, None)]
        if not wanted or any(number is None for number in wanted):
            raise MetricError(
                f"The metric `{self.name}` breaks `the label holds a number`: found {label!r:.80}; "
                f"use `exact:{self.field}`, or mend the label."
            )
        got = _value(found)
        return got is not None and any(
            abs(got - number) <= self.tolerance * max(1.0, abs(number)) for number in wanted if number is not None
        )


def exact(field: str) -> StockMetric:
    """Return the metric that is 1 where the prediction equals the label: text as DSPy normalises it, else by value."""
    return StockMetric("exact", _field(field, "exact"))


def f1(field: str) -> StockMetric:
    """Return the token F1 of SQuAD and DSPy between prediction and label."""
    return StockMetric("f1", _field(field, "f1"))


def numeric(field: str, tolerance: float = 1e-6) -> StockMetric:
    r"""Return the metric that is 1 where the last number in the prediction is the last one in the label.

    As GSM8K is scored: thousands separators, currency, percent signs, `\boxed{}` and fractions are understood.
    """
    if not (isinstance(tolerance, (int, float)) and 0 <= tolerance < math.inf):
        raise MetricError(f"The metric `numeric:{field}` breaks `tolerance is a number >= 0`: found {tolerance!r}.")
    return StockMetric("numeric", _field(field, "numeric"), float(tolerance))


def contains(field: str) -> StockMetric:
    """Return the metric that is 1 where the label's words stand in the prediction, in this order and adjacent."""
    return StockMetric("contains", _field(field, "contains"))


def normalize(text: str) -> str:
    """Return text as DSPy's `normalize_text` does."""
    text = unicodedata.normalize("NFD", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def token_f1(found: str, label: str) -> float:
    """Return the F1 of the tokens of two normalised texts, 0 where either is empty (as DSPy's `f1_score`)."""
    tokens, wanted = normalize(found).split(), normalize(label).split()
    common = sum((Counter(tokens) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(tokens), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def last_number(text: str) -> float | None:
    r"""Return the last number that a text states, or None; within the last `\boxed{}` where there is one."""
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[float]:
    text = re.sub("[⁰¹²³⁴-⁹]", "", text)  # exponents, which NFKC would append to their base
    text = re.sub("(?<=[0-9])(?=[¼-¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("⁄", "/").replace("\\$", "$")
    text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    text = _FRACTION.sub(lambda match: f" {match[1] or match[3]}/{match[2] or match[4]} ", _boxed(text))
    text = _SUBTRACTION.sub(" ; ", re.sub(r"\d+(?:/\d+){2,}", lambda match: match[0].replace("/", " "), text))
    found = [number for match in _NUMBER.finditer(text) if (number := _number(match)) is not None]
    # "USD5" and "x2": better a number glued to a name than none.
    return found or [float(digits.replace(",", "")) for digits in re.findall(_DIGITS, text)]


def _boxed(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start < 0:
        return text
    start += len("\\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]


def _number(match: re.Match[str]) -> float | None:
    value = float(f"{match['number'].replace(',', '')}e{match['exponent'] or 0}")
    if match["bottom"] is not None and float(match["bottom"]) != 0:
        bottom = float(match["bottom"])
        value = value / bottom if match["top"] is None else value + float(match["top"]) / bottom
    value = value if match["sign"] is None else -value
    return value if math.isfinite(value) else None


def _value(value: Any) -> float | None:
    return last_number(value) if isinstance(value, str) else _finite(value)


def _finite(value: Any) -> float | None:
    """Return a number as a float, or None for what is none, isn't finite or doesn't fit."""
    if not isinstance(value, (bool, int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _answers(label: Any, found: Any) -> list[Any]:
    """Return the acceptable answers: the items of a list, or the label itself where the prediction is a list too."""
    if not isinstance(label, list):
        return [label]
    if isinstance(found, list):
        return [label, *(item for item in label if isinstance(item, list))]
    return label


def _simple(value: Any) -> Any:
    """Return a value as plain data: an enum's member as its value, a model as a dict, a tuple or set as a list."""
    if isinstance(value, enum.Enum):
        return _simple(value.value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, pydantic.BaseModel):
        return _simple(value.model_dump())
    if isinstance(value, Mapping):
        return {key: _simple(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_simple(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_simple(item) for item in value), key=repr)
    return value


def _same(label: Any, found: Any) -> bool:
    if isinstance(label, str) and isinstance(found, str):
        return _same_text(label, found)
    if isinstance(label, bool) != isinstance(found, bool) and (isinstance(label, str) or isinstance(found, str)):
        truth, word = (label, found) if isinstance(label, bool) else (found, label)
        return normalize(word) in (_TRUE if truth else _FALSE) if normalize(word) else False
    if isinstance(label, list) and isinstance(found, list):
        return len(label) == len(found) and all(map(_same, label, found))
    if isinstance(label, dict) and isinstance(found, dict):
        return label.keys() == found.keys() and all(_same(label[key], found[key]) for key in label)
    numbers = _whole_number(label), _whole_number(found)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    if isinstance(label, str) != isinstance(found, str) and None not in (label, found):
        return _same_text(_text(label), _text(found))
    return bool(label == found)


def _same_text(label: str, found: str) -> bool:
    left, right = normalize(label), normalize(found)
    if not left or not right:
        # Answers such as "(A)" and "the" normalise to nothing: DSPy takes all of them for equal.
        return _bare(label) == _bare(found)
    if left != right:
        return False
    numbers = _whole_number(label), _whole_number(found)
    # Without punctuation "-3" is "3" and "1.5" is "15": DSPy takes them for equal too.
    return None in numbers or numbers[0] == numbers[1]


def _bare(text: str) -> str:
    folded = " ".join(unicodedata.normalize("NFD", text).lower().split())
    return " ".join(folded.translate(_PUNCTUATION).split()) or folded


def _contains(found: str, label: str) -> bool:
    words = normalize(label)
    if not words:
        return f" {_bare(label)} " in f" {_bare(found)} " if _bare(label) else False
    number = _whole_number(label)
    if number is not None:
        return number in _numbers(found)
    return f" {words} " in f" {normalize(found)} "


def _whole_number(value: Any) -> float | None:
    """Return the number that a value is, or that a text consists of."""
    if not isinstance(value, str):
        return _finite(value)
    text = value.strip().removesuffix(".").removesuffix("%").replace("−", "-").replace(",", "").strip()
    text = re.sub(r"^(-?)\s*[$€£¥]\s*", r"\1", text)
    return _finite(float(text)) if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", text) else None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_text(item) for item in value)
    return "" if value is None else str(value)


def _read(source: Any, field: str, metric: str, what: str) -> Any:
    """Return a field of an example or a prediction, by item before attribute: a field may be called `items`."""
    if isinstance(source, Example):
        source = {**source.inputs, **source.labels}
    if source is None:
        raise MetricError(f"The metric `{metric}` breaks `the {what} has a field {field}`: there is no {what}.")
    if hasattr(type(source), "__getitem__"):
        try:
            return source[field]
        except (KeyError, TypeError, IndexError):
            pass
    if hasattr(source, field) and not callable(getattr(source, field)):
        return getattr(source, field)
    names = source.keys() if hasattr(source, "keys") else vars(source) if hasattr(source, "__dict__") else ()
    known = [str(name) for name in names if not str(name).startswith("_")]
    raise MetricError(f"The metric `{metric}` breaks `the {what} has a field {field}`; {nearest(field, known)}")


def _field(name: str, kind: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise MetricError(
            f"The metric `{kind}:{name}` breaks `the field is a name`: write one, such as `{kind}:answer`."
        )
    return name
