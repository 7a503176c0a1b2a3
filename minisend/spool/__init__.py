"""The Maildir-style queue: record format, the writer of new messages, the store.  Format and states: minisend-spool(5)."""
