"""The weights of checks, as an instructor sets them."""

import tomllib

from loadtest.check.catalogue import every

_MOST = 1_000_000


def read(path: str) -> dict[str, float]:
    """Return the weights that a TOML file gives: ``C7 = 10``, in a table [weights] or not.

    Raises:
        ValueError: The file gives no valid weights; the message is a sentence.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a message names it as it was typed
            document = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"--weights: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--weights: {path} is not TOML: {error}") from None
    table = document.get("weights", document)
    if not isinstance(table, dict):
        raise ValueError(  # noqa: TRY004 - of the file's content
            f"--weights: {path}: weights is to be a table, as [weights]"
        )
    ids = {one.id for one in every()}
    for name, weight in table.items():
        if name not in ids:
            raise ValueError(f"--weights: {path}: there is no check {name}; see --list")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight <= _MOST:
            weight_text = str(weight)[:40]
            raise ValueError(
                f"--weights: {path}: {name} = {weight_text} is not a number from 0 to {_MOST:,}"
            )
    return {name: float(weight) for name, weight in table.items()}
