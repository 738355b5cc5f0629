"""Pages from templates: everything that is put into one is escaped, and nothing may be missing."""

from pathlib import Path

import jinja2


def page_template(file: Path) -> jinja2.Template:
    """Return the template of a page.

    Raises:
        jinja2.TemplateError: It cannot be read, or is not a template.
    """
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(file.parent),
    )
    return environment.get_template(file.name)
