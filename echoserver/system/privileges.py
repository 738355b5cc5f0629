"""Becoming an ordinary user, for good, once what needs privileges is done."""

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
    """A user and groups."""

    user: int
    group: int
    groups: tuple[int, ...]
    """All of them."""

    @classmethod
    def of(cls, user: str | None, group: str | None, source: Callable[[str], str]) -> Self | None:
        """Return whom a server is to become; None: nobody else.

        Args:
            user: A name or a number.
            group: Likewise; None: that user's.
            source: Tells what ``user`` and ``group`` were read from, to stand in a sentence.

        Raises:
            ConfigError: There is no such user or group, or it is root.
        """
        if user is None and group is None:
            return None
        known = _entry(user, pwd.getpwnam, pwd.getpwuid, source("user")) if user else None
        number = known.pw_uid if known else int(user or os.geteuid())
        read_from = source("group" if group is not None else "user")
        if group is not None:
            found = _entry(group, grp.getgrnam, grp.getgrgid, read_from)
            group_number = found.gr_gid if found else int(group)
        elif known is not None:
            group_number = known.pw_gid
        else:
            raise ConfigError(f"{read_from}: the user {number} has no entry; add --group")
        if number == 0 and user is None:
            raise ConfigError(f"{read_from} alone leaves root in place; add --user")
        if number == 0:
            raise ConfigError(f"{read_from}: root is what is to be given up; name an ordinary user")
        groups = os.getgrouplist(known.pw_name, group_number) if known else [group_number]
        return cls(number, group_number, tuple(sorted(set(groups))))

    def assume(self) -> None:
        """Become it: this process, and all that it starts from now on.

        What is imported later must be readable for that user. What can be needed at any time is
        imported before.

        Raises:
            BootError: This process may not, or could come back.
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
                    f"cannot become user {self.user} and group {self.group}: that takes root"
                ) from None
        set_no_new_privs()
        self._verify()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Do something as it, and come back: what it may not do, is not done for it.

        Of a process that may not become it, nothing changes; only the main thread of a process that
        has no others may ask for this.
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
            raise BootError("privileges were given up, and could be taken back")
        status = Path("/proc/self/status").read_bytes()
        held = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
        if any(int(held.get(name, b"0"), 16) for name in _CAPABILITIES):
            raise BootError("the user was changed, and capabilities are left (capabilities(7))")


def set_no_new_privs() -> None:
    """Forbid programs started from here to gain privileges (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    libc: Any = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise BootError("this kernel cannot forbid gaining privileges (no_new_privs)")


def _entry(name: str, by_name: Any, by_number: Any, source: str) -> Any:
    """Return what the system knows of a user or group; None: it has a number and no entry."""
    try:
        return by_number(int(name)) if name.isdecimal() else by_name(name)
    except KeyError:
        if name.isdecimal():
            return None
        raise ConfigError(f"{source}: this system knows no {name!r}") from None
    except OverflowError:
        raise ConfigError(f"{source}: {name} is too large a number") from None
