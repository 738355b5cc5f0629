"""What on this machine skews the results, and the command that fixes it."""

import os
import resource
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from echoserver.system.sockets import somaxconn
from loadtest.machine.descriptors import RESERVED_DESCRIPTORS
from loadtest.machine.ports import local_ports, time_wait

_DESCRIPTORS = 1024
_BACKLOG = 4096
_PORTS = 20_000
_TIME_WAIT = 0.5  # of the ports
_LOAD = 0.25  # per CPU
_ASK_ADMIN = "ask the administrator of this machine for"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of this machine."""

    subject: str
    value: str
    problem: str = ""
    """Its effect on the results; empty: it is fine."""
    remedy: str = ""
    """The command that fixes it, or what else to do."""


def _by_root(command: str, otherwise: str) -> str:
    """Return advice that needs root, in a form that this user can follow.

    Args:
        command: What root types.
        otherwise: What to ask the administrator for, if this user cannot become root.
    """
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo"):
        return " && ".join(f"sudo {one}" for one in command.split(" && "))
    return f"{_ASK_ADMIN} {otherwise}"


def examine(capacities: Mapping[str, float]) -> list[Finding]:
    """Check everything that skews results; what cannot be read is left out.

    Args:
        capacities: Messages per second that load clients can reach, by engine; empty: not known.
    """
    checks = (
        _descriptors,
        _backlog,
        _ports,
        _time_wait,
        _cpus,
        _quota,
        _frequency,
        _swap,
        _load,
        _compiler,
        lambda: _calibration(capacities),
    )
    return [finding for check in checks if (finding := check()) is not None]


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    value = f"{_limit(soft)} (at most {_limit(hard)})"
    if hard == resource.RLIM_INFINITY or hard >= _DESCRIPTORS:
        return Finding("open files", value)
    return Finding(
        "open files",
        value,
        f"no more than {max(0, hard - RESERVED_DESCRIPTORS)} connections at a time",
        _by_root(
            f"prlimit --pid $$ --nofile={_DESCRIPTORS * 20}   # as ulimit -Hn",
            f"a higher limit (ulimit -Hn {_DESCRIPTORS * 20})",
        ),
    )


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _backlog() -> Finding | None:
    value = somaxconn()
    if value is None:
        return None
    if value >= _BACKLOG:
        return Finding("somaxconn", str(value))
    return Finding(
        "somaxconn",
        str(value),
        f"more than {value} clients that connect at once wait for a second, or three, or seven",
        _by_root(
            f"sysctl -w net.core.somaxconn={_BACKLOG}", f"net.core.somaxconn of at least {_BACKLOG}"
        ),
    )


def _ports() -> Finding:
    first, last = local_ports()
    value = f"{first} - {last}"
    if last - first >= _PORTS:
        return Finding("local ports", value)
    return Finding(
        "local ports",
        value,
        f"{last - first} connections to one server, those in TIME_WAIT included",
        _by_root(
            'sysctl -w net.ipv4.ip_local_port_range="10240 65535"',
            "net.ipv4.ip_local_port_range from 10240 to 65535",
        ),
    )


def _time_wait() -> Finding:
    first, last = local_ports()
    count = time_wait()
    if count < _TIME_WAIT * (last - first):
        return Finding("TIME_WAIT", str(count))
    return Finding(
        "TIME_WAIT",
        str(count),
        "new connections may find no port",
        "wait a minute, or "
        + _by_root("sysctl -w net.ipv4.tcp_tw_reuse=1", "net.ipv4.tcp_tw_reuse=1"),
    )


def _cpus() -> Finding:
    usable = len(os.sched_getaffinity(0))
    if usable > 1:
        return Finding("CPUs", str(usable))
    return Finding(
        "CPUs",
        str(usable),
        "server and client take turns on one core: compare CPU per message, not rates",
        "use a machine with two or more",
    )


def _quota() -> Finding | None:
    """Look at the CPU quota of this cgroup, version 2 or 1."""
    quota, period = "max", "0"
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    with suppress(OSError):
        folder = Path("/sys/fs/cgroup/cpu")
        quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
        period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    if quota in {"max", "-1"} or not period.isdigit() or not int(period):
        return Finding("CPU quota", "none")
    cores = int(quota) / int(period)
    return Finding(
        "CPU quota",
        f"{cores:g} cores",
        "a group that has used it up is stopped until the next tenth of a second",
        "start the container without --cpus",
    )


def _frequency() -> Finding | None:
    with suppress(OSError):
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        governor = path.read_text(encoding="ascii").strip()
        if governor == "performance":
            return Finding("CPU frequency", governor)
        return Finding(
            "CPU frequency",
            governor,
            "the clock follows the load, and figures with it",
            _by_root("cpupower frequency-set -g performance", "the CPU governor 'performance'"),
        )
    return None


def _swap() -> Finding | None:
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        used = sizes["SwapTotal"] - sizes["SwapFree"]
        if used < sizes["MemTotal"] // 20:
            return Finding("swap", f"{used // 1024} MiB in use")
        return Finding(
            "swap",
            f"{used // 1024} MiB in use",
            "what was swapped out comes back in the middle of a measurement",
            _by_root("swapoff -a && swapon -a", "empty swap (swapoff -a, swapon -a)"),
        )
    return None


def _load() -> Finding:
    average = os.getloadavg()[0]
    cpus = len(os.sched_getaffinity(0))
    if average <= _LOAD * cpus:
        return Finding("load average", f"{average:.2f}")
    return Finding(
        "load average",
        f"{average:.2f} on {cpus} CPUs",
        "something else is running, and takes its share",
        "see what: top   # and wait until it is done",
    )


def _compiler() -> Finding:
    if shutil.which("cc"):
        return Finding("C compiler", "cc")
    return Finding(
        "C compiler",
        "none",
        "no comparison with C, and the calibration is against the fastest backend instead",
        _how_to_get_a_compiler(),
    )


def _how_to_get_a_compiler() -> str:
    what = "a C compiler and the headers of the C library"
    if shutil.which("apt-get"):
        return _by_root("apt-get install gcc libc6-dev", what)
    return f"install {what}" if os.geteuid() == 0 else f"{_ASK_ADMIN} {what}"


def _calibration(capacities: Mapping[str, float]) -> Finding:
    if capacities:
        value = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in sorted(capacities.items()))
        return Finding("calibration", value)
    return Finding(
        "calibration",
        "none",
        "whether the client is the limit is judged by its CPU alone",
        "echoload calibrate",
    )
