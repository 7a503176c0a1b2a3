"""The machine, whatever the queue: its name, the DNS, the clock, whose sendmail programs call, set-id bits."""

import os
import shutil
import stat
import time

import minisend
from minisend.admin.doctor import secrets
from minisend.admin.doctor.check import FAIL, OK, WARN, Check, Checks
from minisend.config.sections import Config
from minisend.delivery import site_packages

_CALLED = ("/usr/sbin/sendmail", "/usr/lib/sendmail")


def look() -> Checks:
    yield _clock()
    yield from _sendmail()
    yield _set_id()


def check_hostname(config: Config) -> Check:
    name = config.hostname
    if name.partition(".")[0] == "localhost":
        text = f"{name}: servers refuse it, and so is every other machine called"
        return Check(FAIL, "hostname", text, "hostnamectl set-hostname host.example.org")
    if "." not in name:
        text = f"{name}: servers may refuse a name without a domain"
        return Check(WARN, "hostname", text, f"hostnamectl set-hostname {name}.example.org")
    return Check(OK, "hostname", name)


def check_dnspython(config: Config) -> Checks:
    """The DNS is asked for MX hosts and for SRV records, and for nothing else."""
    from importlib.util import find_spec

    needed = any(smarthost.srv for _, smarthost in secrets.smarthosts(config))
    needed |= config.smarthost is None or any(route.via == "mx" for route in config.routes)
    if not needed:
        return
    site_packages.reach()
    if find_spec("dns") is None:
        text = "dnspython is not installed: the MX hosts of recipients cannot be found"
        debian = shutil.which("apt-get") is not None
        command = (
            "apt-get install python3-dnspython" if debian else "python3 -m pip install dnspython"
        )
        yield Check(FAIL, "dns", text, command)
    else:
        yield Check(OK, "dns", "dnspython is installed")


def _clock() -> Check:
    """It cannot be before this program was made."""
    made = os.stat(minisend.__file__).st_mtime
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now))
    if now < made - 86400:
        text = f"{shown}: before this program was made; mail waits or expires at the wrong time"
        return Check(FAIL, "clock", text, "timedatectl set-ntp true")
    return Check(OK, "clock", shown)


def _sendmail() -> Checks:
    found = dict.fromkeys(path for path in (shutil.which("sendmail"), *_CALLED) if path)
    for path in found:
        if not os.path.exists(path):
            if path == _CALLED[0]:
                yield Check(WARN, path, *_missing(path))
        elif _is_ours(path):
            yield Check(OK, path, "is minisend's")
        else:
            yield Check(WARN, path, f"is not minisend's: {os.path.realpath(path)}")


def _missing(path: str) -> tuple[str, str]:
    """What is said of a name that programs call and that leads nowhere, and what repairs it."""
    text = "there is none, and most programs call it"
    directory = os.path.dirname(shutil.which("minisend") or "/usr/local/bin/minisend")
    ours = f"{directory}/sendmail"
    try:
        owner = os.stat(ours).st_uid
    except OSError:
        install = os.path.dirname(os.path.dirname(minisend.__file__)) + "/packaging/install"
        return text, f"sh {install}" if os.path.exists(install) else ""
    if owner:
        # All programs of the machine would run what one user may replace.
        return f"{text}: tell those of yours to call {ours}", ""
    return text, f"ln -s {ours} {path}"


def _is_ours(path: str) -> bool:
    """The launcher, or the script that pip makes."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!" and b"minisend" in file.read(4096)
    except OSError:
        return False


def _set_id() -> Check:
    """Nothing of ours has a set-user-id or set-group-id bit, nor needs one."""
    programs = [shutil.which(name) for name in ("sendmail", "mailq", "newaliases", "minisend")]
    files = [path for path in programs if path and _is_ours(path)]
    for directory, _, names in os.walk(os.path.dirname(minisend.__file__)):
        files += [os.path.join(directory, name) for name in names]
    found = [path for path in files if os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID)]
    if found:
        text = f"{', '.join(found)}: nothing of minisend needs one"
        return Check(FAIL, "set-id bits", text, f"chmod ug-s {' '.join(found)}")
    return Check(OK, "set-id bits", "none on a file of minisend")
