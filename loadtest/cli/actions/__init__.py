"""What the commands of `echoload` do; `--help` imports none of it.

The options are declared in `loadtest.cli`. Here, each module is named after its command, and has a
function of the same name.
"""

from importlib import import_module
from typing import Any


def act(command: str, **options: Any) -> int:
    """Import the function of a command, call it, and return its exit code.

    Args:
        command: The name of the command, with underscores.
        options: What was typed, by the names of the options.
    """
    module = import_module(f"{__name__}.{command}")
    code: int = getattr(module, command)(**options)
    return code
