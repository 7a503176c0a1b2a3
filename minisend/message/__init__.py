"""Messages as octets: header fields split, found, completed and rewritten.  Pure: no clock, no file, no network."""
