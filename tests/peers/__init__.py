"""Real servers for the tests: each started on loopback as processes of the test's own, and stopped with it.

``unpacked`` says where a server's files are and what happens where they are not; ``process`` starts, awaits and stops
one; ``namespace`` shows it a file system of its own; ``certificate`` is what it shows over TLS; ``postfix``, ``exim``,
``opensmtpd``, ``dovecot`` and ``nameserver`` are the servers.  The fixtures over some of them are in ``conftest``; elsewhere
use the classes themselves, they are context managers.

Nothing here knows minisend.
"""
