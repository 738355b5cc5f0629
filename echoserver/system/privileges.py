"""Switching to an unprivileged user for good, once all that needs privileges is done."""

import ctypes
import grp
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from echoserver.errors import BootError, ConfigError

_PR_SET_NO_NEW_PRIVS = 38
_NEEDED_LATER = ("encodings.ascii", "encodings.idna", "encodings.latin_1", "tomllib", "traceback")
_CAPABILITIES = (b"CapInh", b"CapPrm", b"CapEff", b"CapAmb")


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and its groups, by number."""

    user: int
    group: int
    groups: tuple[int, ...]
    """The supplementary groups, with `group` among them."""

    @classmethod
    def of(cls, user: str | None, group: str | None, source: Callable[[str], str]) -> Self | None:
        """Return the identity that a server switches to, or None if it keeps its own.

        Args:
            user: A user name or number.
            group: A group name or number; None: the user's primary group.
            source: Returns what ``user`` or ``group`` was read from, for error messages.

        Raises:
            ConfigError: There is no such user or group, or it is root.
        """
        if user is None and group is None:
            return None
        account = _entry(user, pwd.getpwnam, pwd.getpwuid, source("user")) if user else None
        number = account.pw_uid if account else int(user or os.geteuid())
        read_from = source("group" if group is not None else "user")
        if group is not None:
            entry = _entry(group, grp.getgrnam, grp.getgrgid, read_from)
            group_number = entry.gr_gid if entry else int(group)
        elif account is not None:
            group_number = account.pw_gid
        else:
            raise ConfigError(f"{read_from}: the user {number} has no entry; add --group")
        if number == 0 and user is None:
            raise ConfigError(f"{read_from} alone leaves root in place; add --user")
        if number == 0:
            raise ConfigError(f"{read_from}: a server must not stay root; name an ordinary user")
        groups = os.getgrouplist(account.pw_name, group_number) if account else [group_number]
        return cls(number, group_number, tuple(sorted(set(groups))))

    def assume(self) -> None:
        """Switch this process, and all that it starts from now on, to this identity for good.

        Modules that are imported later must be readable for that user, so those that may be needed
        at any time are imported first.

        Raises:
            BootError: This process may not switch, or could switch back.
        """
        for module in _NEEDED_LATER:
            import_module(module)
        if os.getresuid() != (self.user,) * 3 or os.getresgid() != (self.group,) * 3:
            try:
                os.setgroups(self.groups)
                os.setresgid(self.group, self.group, self.group)
                os.setresuid(self.user, self.user, self.user)
            except PermissionError:
                raise BootError(
                    f"cannot become user {self.user} and group {self.group}: that requires root"
                ) from None
        set_no_new_privs()
        self._verify()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Act as this identity within a ``with`` block, so that its permissions apply.

        In a process that may not switch, nothing changes. Only the main thread of a process that
        has no other threads may use this.
        """
        user, group, groups = os.geteuid(), os.getegid(), os.getgroups()
        if user != 0:
            yield
            return
        os.setgroups(self.groups)
        os.setegid(self.group)
        os.seteuid(self.user)
        try:
            yield
        finally:
            os.seteuid(user)
            os.setegid(group)
            os.setgroups(groups)

    def _verify(self) -> None:
        for become in (os.setuid, os.seteuid, os.setgid, os.setegid):
            try:
                become(0)
            except PermissionError:
                continue
            raise BootError("privileges were dropped, but could be regained")
        status = Path("/proc/self/status").read_bytes()
        fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
        if any(int(fields.get(name, b"0"), 16) for name in _CAPABILITIES):
            raise BootError("the user was changed, but capabilities remain (capabilities(7))")


def set_no_new_privs() -> None:
    """Forbid programs started from here to gain privileges (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    libc: Any = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise BootError("this kernel cannot forbid gaining privileges (no_new_privs)")


def _entry(name: str, by_name: Any, by_number: Any, source: str) -> Any:
    """Return the system's entry for a user or group, or None for a number that has no entry."""
    try:
        return by_number(int(name)) if name.isdecimal() else by_name(name)
    except KeyError:
        if name.isdecimal():
            return None
        raise ConfigError(f"{source}: there is no {name!r} on this system") from None
    except OverflowError:
        raise ConfigError(f"{source}: {name} is too large a number") from None
