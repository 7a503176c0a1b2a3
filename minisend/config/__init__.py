"""The configuration: TOML files -> ``Config``, or -> the few facts that a submission needs.

    keys        ``KEYS``: the one table of every key
    load        ``load``: the reader that checks everything
    sections    what it returns: ``Config``, with a class for each table
    submission  ``submission_facts``: the reader of every ``sendmail``, and ``SubmissionFacts``
    files       which files are read, and whose they must be
    toml        their text into tables, plain text without tomllib
    forms       what each kind of value is, and the form it gets
    checks      what ``load`` checks: each key, and one beside another
    mistakes    the words for what is wrong
    machine     the names of this machine, where no key says them

Never asks DNS, never reads a secret, never writes.
"""
