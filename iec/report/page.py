"""The page: a template with its style and script inside. Values are escaped by the template engine."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from iec.report.explorer import explorer
from iec.report.pictures import Picture
from iec.report.sections import Section


def page(sections: list[Section], figures: list[Picture], date: str, revision: str | None) -> str:
    """One HTML document without any reference to the outside. date: the only part that does not depend on the cells alone."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html")).render(
        sections=sections,
        figures=figures,
        date=date,
        revision=revision,
        own_features=any(name.startswith("efficientnet_lite0") for section in sections for name in section.protocols),
        replaced=list(dict.fromkeys(model for section in sections for model in section.replaced)),
        explorer=explorer(entry for section in sections for entry in section.entries),
        style=_texts("style.css", "explorer.css"),
        script=_texts("script.js", "chart.js", "controls.js", "explorer.js"),
    )


def _texts(*names: str) -> str:
    return "\n".join(map(_text, names))


def _text(name: str) -> str:
    return files("iec.report").joinpath(name).read_text(encoding="utf-8")
