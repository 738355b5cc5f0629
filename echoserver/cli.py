"""The command `echoserver`."""

from typing import Any

import click

from echoserver import __version__
from echoserver.config import (
    ENVIRONMENT_PREFIX,
    Reload,
    load_config,
    settings,
)

# The marks that --help puts before settings that SIGHUP changes.
_RELOAD_MARKS = {None: "", Reload.IN_PLACE: "* ", Reload.IN_WORKERS: "** "}


def _options(command: Any) -> Any:
    """Add an option for every setting; the values stay text until `load_config` checks them."""
    for setting in reversed(settings()):
        default = setting.default_text or setting.default
        if default == ():
            default = "none"
        if setting.flag:
            default = "off"
        if isinstance(default, float):
            default = f"{default:g}"
        names = [name for name in (setting.short, setting.option) if name]
        switch: dict[str, Any] = {"is_flag": True, "default": None} if setting.flag else {}
        command = click.option(
            *names,
            setting.name,
            metavar=None if switch else setting.metavar,
            help=f"{_RELOAD_MARKS[setting.reload]}{setting.help}  [default: {default}]",
            hidden=setting.hidden,
            multiple=setting.multiple,
            **switch,
        )(command)
    return command


class _GroupedCommand(click.Command):
    """A command whose --help shows options under the headings of the settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each under the heading of its setting."""
        headings = {one.name: one.heading for one in settings() if one.heading}
        setting_names = {setting.name for setting in settings()}
        groups: dict[str, list[tuple[str, str]]] = {}
        heading = ""
        for parameter in self.get_params(ctx):
            name = parameter.name or ""
            heading = headings.get(name, heading) if name in setting_names else "This command"
            if (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@click.command(
    name="echoserver", cls=_GroupedCommand, context_settings={"help_option_names": ["-h", "--help"]}
)
@_options
@click.option(
    "--config",
    "config_file",
    metavar="FILE.toml",
    help="Read settings from a TOML file, named as the options are.",
)
@click.option("--list-backends", is_flag=True, help="Show the concurrency models and exit.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def command(*, config_file: str | None, list_backends: bool, **options: str | None) -> int:
    """Serve TCP echo, in the concurrency model of your choice, until SIGTERM or SIGINT.

    Every option is also read from the environment, as ECHOSERVER_<OPTION>, and from the file
    that --config names: option before environment before file before default. Timeouts are in
    seconds (500ms, 2m work too); 0 turns one off.

    SIGHUP reads that file again, and the TLS files; an option or a variable keeps its value. What
    is marked * takes effect at once, for new connections; with --workers, what is marked ** too,
    as each worker is replaced without losing anything.

    Exit codes: 0 stopped clean; 2 bad configuration; 3 could not listen or start; 4 peers were
    still owed output when the drain's time was over; 128+n a second signal.
    """
    if list_backends:
        return _list_backends()
    from echoserver.runtime.server import serve

    return serve(load_config(options, file=config_file))


def _list_backends() -> int:
    from echoserver.registry import available_backends

    rows = [("backend", "available", "a connection costs", "model")]
    for backend in available_backends():
        if backend.available:
            rows.append((backend.name, "yes", backend.cost, backend.summary))
        else:
            rows.append((backend.name, "no", "", backend.hint))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    return 0


assert ENVIRONMENT_PREFIX == "ECHOSERVER_"  # noqa: S101 - the help text above spells it out
