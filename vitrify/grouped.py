"""How commands are declared: options under headings in plain text, and data types whose fields are options."""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
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


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with a parameter for every field of the models that `command` takes.

    `def compile(request: CompileRequest, debug: Debug = False)` has the options that CompileRequest's fields declare
    and `--debug`; it is called with the request made of them. A field says its option as a parameter would:
    `Annotated[int, typer.Option("--seed")]`.
    """
    hints = get_type_hints(command, include_extras=True)
    models: dict[str, type[BaseModel]] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not (isinstance(hint, type) and issubclass(hint, BaseModel)):
            parameters[parameter.name] = parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hint)
            continue
        models[parameter.name] = hint
        declared = get_type_hints(hint, include_extras=True)
        for name, info in hint.model_fields.items():
            default = inspect.Parameter.empty if info.is_required() else info.default
            parameters[name] = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=declared[name]
            )

    def called(**given: Any) -> None:
        made = {}
        for name, model in models.items():
            try:
                made[name] = model(**{key: given.pop(key) for key in model.model_fields})
            except ValidationError as error:  # a text that no UTF-8 is
                first = error.errors(include_url=False)[0]
                raise typer.BadParameter(f"{first['loc'][0]}: {first['msg']}") from None
        command(**made, **given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    called.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]  # PEP 362
    return called
