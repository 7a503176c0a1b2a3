"""NSD, an authoritative DNS server, as the only one that a test's resolver asks.

It serves the root zone, so the test's records are all there is: it chases a CNAME to its end, any other name is
NXDOMAIN.  A name that has to fail is a zone without data, for which NSD answers SERVFAIL.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from peers.process import Server, free_port
from peers.unpacked import unpacked


class NameServer(Server):
    """NSD with one zone.

    ``zone``     master file lines (RFC 1035 section 5); names need no final dot, the class IN no mention.
    ``failing``  names that get SERVFAIL, with all below them.
    ``address``  and ``port`` to serve on, UDP and TCP; the port is a free one unless given.
    """

    name = "nsd"

    def __init__(
        self,
        zone: str,
        *,
        failing: Sequence[str] = (),
        address: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        self._programs = unpacked("nsd") / "usr/sbin"
        super().__init__()
        self.address = address
        self.port = port or free_port(address)
        self._zone_file = self.directory / "root.zone"
        self._zone_file.write_text(
            f"$ORIGIN .\n$TTL 60\n@ SOA ns.invalid admin.invalid 1 3600 3600 3600 60\n@ NS ns.invalid\n{zone}\n"
        )
        self._configuration = self.directory / "nsd.conf"
        self._configuration.write_text(
            f"""\
server:
    ip-address: {address}@{self.port}
    server-count: 1
    username: ""
    chroot: ""
    database: ""
    pidfile: ""
    zonesdir: "{self.directory}"
    zonelistfile: "{self.directory}/zone.list"
    xfrdfile: ""
    xfrdir: "{self.directory}"
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: "."
    zonefile: "{self._zone_file.name}"
"""
            + "".join(f'zone:\n    name: "{name}"\n    zonefile: "absent"\n' for name in failing)
        )

    def command(self) -> Sequence[str | Path]:
        return [self._programs / "nsd", "-d", "-c", self._configuration]

    def check(self) -> subprocess.CompletedProcess[str]:
        # With a wrong line NSD would serve the zone without data, which is SERVFAIL for everything.
        return subprocess.run(
            [self._programs / "nsd-checkzone", ".", self._zone_file], capture_output=True, text=True
        )

    def answers(self) -> bool:
        try:
            reply = dns.query.udp(
                dns.message.make_query(".", "SOA"), self.address, timeout=0.1, port=self.port
            )
        except (dns.exception.Timeout, OSError):
            return False
        return bool(reply.answer)
