"""The machine, whatever the queue: its name, the DNS, the clock, whose sendmail programs call, set-id bits."""

import os
import shutil
import stat
import time
from collections.abc import Iterator

import minisend
from minisend.admin.doctor import secrets
from minisend.admin.doctor.check import FAIL, OK, WARN, Check, Checks
from minisend.config.sections import Config
from minisend.delivery import site_packages
from minisend.delivery.oauth.client import SERVICE_ACCOUNT

# Who installs packages, and how it calls them.
_DISTRIBUTIONS = {
    "apt-get": {"dnspython": "python3-dnspython", "cryptography": "python3-cryptography"},
    "dnf": {"dnspython": "python3-dns", "cryptography": "python3-cryptography"},
}
_CALLED = ("/usr/sbin/sendmail", "/usr/lib/sendmail")


def look() -> Checks:
    yield _clock()
    yield from _sendmail()
    yield _set_id()


def check_hostname(config: Config) -> Check:
    name = config.hostname
    if name.partition(".")[0] == "localhost":
        text = f"{name}: servers refuse it; hostname in the configuration counts before it"
        return Check(FAIL, "hostname", text, "hostnamectl set-hostname host.example.org")
    if "." not in name:
        text = f"{name}: servers may refuse a name without a domain; hostname in the configuration counts before it"
        return Check(WARN, "hostname", text, f"hostnamectl set-hostname {name}.example.org")
    return Check(OK, "hostname", name)


def check_packages(config: Config) -> Checks:
    """What the configuration needs of Python beside its standard library."""
    from importlib.util import find_spec

    site_packages.reach()
    for what, module, package, use in _needed(config):
        if find_spec(module) is None:
            text = f"{package} is not installed: {use}"
            yield Check(FAIL, what, text, _installation(package))
        else:
            yield Check(OK, what, f"{package} is installed")


def _needed(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """What for, module, package, and what is not possible without it."""
    hosts = [smarthost for _, smarthost in secrets.smarthosts(config)]
    # The DNS is asked for MX hosts and for SRV records, and for nothing else.
    if (
        config.smarthost is None
        or any(route.via == "mx" for route in config.routes)
        or any(host.srv for host in hosts)
    ):
        yield "dns", "dns", "dnspython", "the MX hosts of recipients cannot be found"
    if any(host.uses_oauth2 and host.oauth2_grant == SERVICE_ACCOUNT for host in hosts):
        yield "oauth2", "cryptography", "cryptography", "a service account cannot sign"


def _installation(package: str) -> str:
    for program, names in _DISTRIBUTIONS.items():
        if shutil.which(program) is not None:
            return f"{program} install {names[package]}"
    return f"python3 -m pip install {package}"


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
