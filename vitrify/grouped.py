"""Grouped: a command whose help lists its options under headings, in plain text."""

from typing import Any

from typer.core import TyperCommand


class Grouped(TyperCommand):
    """A command that puts each option under its `rich_help_panel`, without drawing boxes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, a section for each heading, in the order of declaration."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if param.param_type_name == "argument" else "Options"
                heading = getattr(param, "rich_help_panel", None) or plain
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
