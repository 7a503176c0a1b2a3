"""The one table of every key of minisend.toml(5): where it stands, what it takes, its default, its meaning.

Validation, error texts and the check of the manual come from it.  Reads nothing and checks nothing.
"""

# table ("" = top level), key, kind (a tuple = one of these words), default, meaning.
# The default stands as a file would have it; None = worked out, see the manual.
KEYS: "tuple[tuple[str, str, str | tuple[str, ...], object, str], ...]" = (
    ("", "hostname", "domain", None, "The name of this machine in EHLO, Received and Message-ID."),
    ("", "mail_domain", "domain", None, "Appended to an address that has no domain."),
    ("", "admin", "address", "", "Gets mail for root, and what can be told to nobody else."),
    ("spool", "path", "path", None, "The directory that holds the queue."),
    ("spool", "lifetime", "duration", "5d", "A message that waited this long goes back to its sender."),
    ("spool", "warn_after", "duration", "4h", "A message that waited this long causes one delay warning."),
    ("spool", "retry_min", "duration", "5m", "The wait after the first attempt; it doubles with each further one."),
    ("spool", "retry_max", "duration", "4h", "The longest wait between two attempts."),
    ("spool", "max_message_size", "size", "50M", "A larger message is refused at submission."),
    ("spool", "min_free", "size or 0", "16M", "The room that a submission must leave on the queue's file system."),
    ("spool", "min_free_inodes", "count or 0", 100, "The inodes that must be free there for a submission."),
    ("spool", "sync", ("group", "each"), "group", "How the record of deliveries reaches the disk."),
    ("submission", "socket", "path or false", "/run/minisend/submit.sock", "The socket on which the service takes messages."),
    ("submission", "drop", "path or false", "/var/spool/minisend/drop", "The directory that takes messages while nobody listens on the socket."),
    ("submission", "senders", "senders", {}, "Under which addresses each account may send; without it, under any."),
    ("smarthost", "host", "hosts", None, "The server that gets all mail, or a list of servers that are tried in order."),
    ("smarthost", "srv", "domain", "", "A domain whose SRV records name the servers, in place of host."),
    ("smarthost", "port", "port", None, "The TCP port of the server."),
    ("smarthost", "rate", "rate", None, "The most messages that the server is given in a time."),
    ("smarthost", "tls", ("starttls", "implicit", "opportunistic", "none"), None, "How the connection is encrypted."),
    ("smarthost", "tls_ca_file", "path", "", "A PEM file of the authorities to trust in place of the system's."),
    ("smarthost", "tls_fingerprint", "fingerprints", (), "The certificate or key that the server must show, or a list of them."),
    ("smarthost", "tls_cert_file", "path", "", "A PEM file of the certificate to show to the server."),
    ("smarthost", "tls_key_file", "path", "", "A PEM file of the private key of tls_cert_file."),
    ("smarthost", "tls_min_version", ("1.2", "1.3"), "1.2", "The oldest TLS version to accept."),
    ("smarthost", "tls_verify", "boolean", True, "Whether the server's certificate must hold."),
    ("smarthost", "username", "string", "", "The login name at the server."),
    ("smarthost", "password_file", "path", "", "A file that holds the password."),
    ("smarthost", "password_command", "strings", (), "A program and its arguments; the first line it prints is the password."),
    ("smarthost", "credential", "string", "", "The name of a systemd credential that holds the password."),
    ("smarthost", "secret_mode_check", "boolean", True, "Whether a password file that others can read is refused."),
    ("smarthost", "auth", ("auto", "plain", "login", "cram-md5", "scram-sha-1", "scram-sha-1-plus", "scram-sha-256", "scram-sha-256-plus", "oauthbearer", "xoauth2", "external", "none"), "auto", "The SASL mechanism."),
    ("smarthost", "oauth2_provider", ("microsoft365", "google"), "", "Whose OAuth2 service gives the access tokens; it sets the endpoints and the scope."),
    ("smarthost", "oauth2_grant", ("refresh", "client_credentials", "service_account"), "refresh", "What an access token is asked for with."),
    ("smarthost", "oauth2_client_id", "string", "", "The name under which the service knows this program."),
    ("smarthost", "oauth2_client_secret_file", "path", "", "A file that holds the client's secret."),
    ("smarthost", "oauth2_client_auth", ("post", "basic"), "post", "How the service is shown the client's secret."),
    ("smarthost", "oauth2_service_account_file", "path", "", "A file that holds the private key of a service account."),
    ("smarthost", "oauth2_tenant", "domain", "common", "The Microsoft 365 tenant: its identifier or one of its domains."),
    ("smarthost", "oauth2_scope", "string", "", "What the token must allow, in place of what the provider needs for sending mail."),
    ("smarthost", "oauth2_token_endpoint", "endpoint", "", "The URL that gives tokens."),
    ("smarthost", "oauth2_device_endpoint", "endpoint", "", "The URL that gives a code to log in with on another device."),
    ("smarthost", "oauth2_auth_endpoint", "endpoint", "", "The URL of the page on which a user logs in."),
    ("smarthost", "oauth2_ca_file", "path", "", "A PEM file of the authorities to trust for these URLs in place of the system's."),
    ("smarthost", "oauth2_token_file", "path", "", "Where the tokens are kept."),
    ("route", "sender", "sender patterns", (), "Whose messages take this route."),
    ("route", "recipient", "patterns", (), "To whom messages take this route."),
    ("route", "via", "via", None, "Where these messages go."),
    ("delivery", "mx_port", "port", 25, "The TCP port of MX hosts."),
    ("delivery", "tls", ("none", "opportunistic"), "opportunistic", "How a connection to an MX host is encrypted."),
    ("delivery", "connections_per_host", "count", 20, "The most connections to one destination at a time."),
    ("delivery", "connections", "count", 100, "The most connections in all."),
    ("delivery", "source_address", "addresses", (), "The addresses of this machine that connections are made from."),
    ("dns", "nameservers", "addresses", (), "The addresses of the DNS servers to ask."),
    ("dns", "port", "port", 53, "The UDP and TCP port of the DNS servers."),
    ("limits", "messages_per_uid", "count or 0", 0, "The most messages of one user that may wait at a time."),
    ("limits", "octets_per_uid", "size or 0", 0, "The most octets that the waiting messages of one user may have."),
    ("limits", "rate_per_uid", "count or 0", 0, "The most messages that are taken from one user within an hour."),
    ("limits", "flood", "repeats", 0, "A message that one user sends more often than this within an hour is held."),
)  # fmt: skip

# The tables of KEYS of which there are several have names of their own in what is read: "smarthosts.NAME", "route 1".
NAMED = "smarthosts."
NUMBERED = "route "


def smarthost_table(name: str) -> str:
    """What the table of a smarthost is called, brackets and all; ``name`` is "" for [smarthost]."""
    return f"[{NAMED}{name}]" if name else "[smarthost]"
