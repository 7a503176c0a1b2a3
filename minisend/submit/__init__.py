"""The sendmail command: argv and stdin to a queue id.  Reads no secret, logs nothing, opens no network."""
