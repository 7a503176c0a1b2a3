"""What a server of the tests shows over TLS: a certificate for names and addresses, from a CA of its own."""

from datetime import datetime
from pathlib import Path

import trustme


class Certificate:
    """PEM files in ``directory``.

    ``names``       DNS names and IP addresses that the certificate is for.
    ``expires``     its end; in the past for a certificate that must be refused.
    ``key_type``    of its key.
    ``ca_file``     what a client has to trust.
    ``chain_file``  certificate and intermediates, as a server sends them.
    ``key_file``    the private key of it.
    """

    def __init__(
        self,
        directory: Path,
        *names: str,
        expires: datetime | None = None,
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
    ) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert(*names, not_after=expires, key_type=key_type)
        self.names = names
        self.ca_file = directory / "ca.pem"
        self.chain_file = directory / "chain.pem"
        self.key_file = directory / "key.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        issued.private_key_pem.write_to_path(self.key_file)
        self.chain_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
