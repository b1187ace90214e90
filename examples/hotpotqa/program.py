"""Questions that need two paragraphs out of ten: think of a search, choose the paragraphs, answer from them.

    vitrify compile examples/hotpotqa/program.py:TwoHop \\
        --data "${VITRIFY_DATA:-../shared/data}/tasks/hotpotqa100.jsonl" \\
        --metric f1:answer --lm openai/gpt-4o-mini -o hotpotqa.json

Between the second predictor and the third stands ordinary Python, with a loop. A program like that is compiled like any
other, but it can't be sealed: the result needs this class to run. From this folder:

    from program import TwoHop
    hop = vitrify.load("hotpotqa.json", program=TwoHop())
    hop(question="...", paragraphs=[{"title": "...", "sentences": ["...", "..."]}, ...]).answer
"""

from typing import Any

import dspy


class Query(dspy.Signature):
    """Write a short search query that would find what the question needs."""

    question: str = dspy.InputField()
    search_query: str = dspy.OutputField()


class Select(dspy.Signature):
    """Choose the two paragraphs that together answer the question. Give their titles."""

    question: str = dspy.InputField()
    search_query: str = dspy.InputField()
    paragraphs: list[str] = dspy.InputField(desc="each one is a title, a colon, and its first sentence")
    titles: list[str] = dspy.OutputField(desc="two titles, as they are written above")


class Answer(dspy.Signature):
    """Answer the question from the context, in as few words as possible."""

    question: str = dspy.InputField()
    context: list[str] = dspy.InputField()
    answer: str = dspy.OutputField()


def pick(paragraphs: list[dict[str, Any]], titles: list[str], query: str, count: int = 2) -> list[dict[str, Any]]:
    """Return the `count` paragraphs named by `titles`; where a title fits none, the one closest to the query."""
    rest = list(paragraphs)
    picked: list[dict[str, Any]] = []
    for title in titles:
        wanted = str(title).strip().strip("\"'").casefold()
        found = next((p for p in rest if p["title"].casefold() == wanted), None)
        if found is not None and len(picked) < count:
            picked.append(found)
            rest.remove(found)
    words = set(query.casefold().split())
    # sorted() keeps the given order among equals, so the choice is the same every time
    rest = sorted(rest, key=lambda p: -len(words & set(f"{p['title']} {''.join(p['sentences'])}".casefold().split())))
    return picked + rest[: count - len(picked)]


class TwoHop(dspy.Module):
    """A question and its paragraphs in, a short answer out."""

    def __init__(self) -> None:
        super().__init__()
        self.query = dspy.Predict(Query)
        self.select = dspy.Predict(Select)
        self.answer = dspy.Predict(Answer)

    def forward(self, question: str, paragraphs: list[dict[str, Any]]) -> dspy.Prediction:
        """Search, select, answer."""
        search_query = self.query(question=question).search_query
        summaries = [f"{p['title']}: {''.join(p['sentences'][:1])}" for p in paragraphs]
        titles = self.select(question=question, search_query=search_query, paragraphs=summaries).titles
        chosen = pick(paragraphs, titles or [], f"{question} {search_query or ''}")
        context = [f"{p['title']}: {''.join(p['sentences'])}" for p in chosen]
        answer = self.answer(question=question, context=context).answer
        return dspy.Prediction(answer=answer, titles=[p["title"] for p in chosen])
