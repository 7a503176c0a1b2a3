"""The argument vector of sendmail to Options: a hand-written getopt over a table of letters.

Never interprets addresses and never touches a file.  Parsing stops at the first word that is no option, as sendmail(8),
Postfix and Exim do: a recipient that looks like an option cannot become one.

Sources: the option string of sendmail 8.17, Postfix sendmail(1), LSB 5.0.
"""

from minisend.errors import UsageError

FLAG = "flag"
VALUE = "value"  # joined (-fx) or the next word (-f x)
JOINED = "joined"  # joined only, may be empty (-q, -q15m)

# letter: (kind, attribute of Options that takes it; "" for what is taken and ignored)
_LETTERS = {
    "A": (JOINED, ""),  # sendmail: which .cf file; Postfix ignores it
    "B": (VALUE, "body"),
    "C": (VALUE, ""),  # the first -C is ours and was taken before; a later one names a sendmail.cf
    "D": (VALUE, ""),  # debug output
    "E": (FLAG, ""),
    "F": (VALUE, "full_name"),
    "G": (FLAG, ""),  # gateway submission
    "I": (FLAG, "newaliases"),
    "L": (VALUE, ""),  # syslog tag
    "M": (JOINED, ""),  # macro
    "N": (VALUE, "notify"),
    "O": (VALUE, "long_option"),
    "Q": (JOINED, ""),  # quarantine
    "R": (VALUE, "ret"),
    "T": (FLAG, ""),
    "U": (FLAG, ""),  # initial user submission
    "V": (VALUE, "envid"),
    "X": (VALUE, ""),  # traffic log
    "b": (JOINED, "mode"),
    "c": (FLAG, ""),
    "d": (JOINED, ""),  # debug level
    "e": (VALUE, "errors"),
    "f": (VALUE, "sender"),
    "h": (VALUE, ""),  # hop count
    "i": (FLAG, "dot_is_data"),
    "m": (FLAG, ""),  # me too
    "n": (FLAG, ""),  # no aliasing
    "o": (VALUE, "short_option"),
    "p": (VALUE, ""),  # protocol and host the message came by
    "q": (JOINED, "queue_run"),
    "r": (VALUE, "sender"),
    "s": (FLAG, ""),
    "t": (FLAG, "from_headers"),
    "v": (FLAG, "verbose"),
    "x": (FLAG, ""),
}

# -b<x>: what the program is asked to be
MODES = {"m": "submit", "s": "smtp", "p": "mailq", "i": "newaliases"}

# -od<x> and -O DeliveryMode=<x...>; "d" (deferred) postpones even look-ups, which for us is queueing only
DELIVERY = {"b": "background", "i": "interactive", "q": "queue", "d": "queue"}


class Options:
    """What the command line asked for.

    ``mode``        "submit" | "smtp" | "mailq" | "newaliases" | "flush" | "help" | "version"
    ``sender``      value of the last -f or -r, "" for the null reverse-path, None when not given
    ``full_name``   value of -F, None when not given
    ``from_headers``, ``dot_is_data``, ``verbose``  flags -t, -i, -v
    ``delivery``    "background" | "interactive" | "queue"
    ``body``, ``notify``, ``ret``, ``envid``  values of -B, -N, -R, -V, "" when not given
    ``errors``      letter of -e or -oe, "" when not given
    ``words``       what follows the options
    """

    __slots__ = (
        "body",
        "delivery",
        "dot_is_data",
        "envid",
        "errors",
        "from_headers",
        "full_name",
        "mode",
        "notify",
        "ret",
        "sender",
        "verbose",
        "words",
    )

    def __init__(self) -> None:
        self.mode = "submit"
        self.sender: str | None = None
        self.full_name: str | None = None
        self.from_headers = False
        self.dot_is_data = False
        self.verbose = False
        self.delivery = "background"
        self.body = ""
        self.notify = ""
        self.ret = ""
        self.envid = ""
        self.errors = ""
        self.words: list[str] = []


def parse(arguments: list[str]) -> Options:
    """The options in ``arguments`` (without the program's name).  Raises UsageError."""
    options = Options()
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            index += 1
            break
        if word[:1] != "-" or word == "-":
            break
        if word in ("--help", "--version"):
            options.mode = word[2:]
            return options
        index += 1
        position = 1
        while position < len(word):
            letter = word[position]
            position += 1
            kind, attribute = _LETTERS.get(letter, ("", ""))
            if not kind:
                raise UsageError(f"unknown option -{letter!a:.12}".replace("'", ""))
            if kind == FLAG:
                _set(options, attribute, "")
                continue
            value = word[position:]
            if not value and kind == VALUE:
                if index >= len(arguments):
                    raise UsageError(f"option -{letter} needs a value")
                value = arguments[index]
                index += 1
            _set(options, attribute, value)
            break
    options.words = arguments[index:]
    return options


def _set(options: Options, attribute: str, value: str) -> None:
    if attribute in ("from_headers", "dot_is_data", "verbose"):
        setattr(options, attribute, True)
    elif attribute == "mode":
        if value not in MODES:
            raise UsageError(f"option -b{value}: not supported")
        options.mode = MODES[value]
    elif attribute == "newaliases":
        options.mode = "newaliases"
    elif attribute == "queue_run":
        if value:
            raise UsageError(
                f"option -q{value}: only -q, which flushes the queue once, is supported"
            )
        options.mode = "flush"
    elif attribute == "short_option":
        _set_short(options, value)
    elif attribute == "long_option":
        name, _, rest = value.partition("=")
        if name.strip().lower() == "deliverymode":
            options.delivery = DELIVERY.get(rest.strip()[:1].lower(), options.delivery)
    elif attribute:
        setattr(options, attribute, value)


def _set_short(options: Options, value: str) -> None:
    """-o<x>: those of sendmail's one-letter options that mean something here; the others are taken and ignored."""
    if value == "i":
        options.dot_is_data = True
    elif value[:1] == "d":
        options.delivery = DELIVERY.get(value[1:2], options.delivery)
    elif value[:1] == "e":
        options.errors = value[1:2]


USAGE = """\
usage: sendmail [-C FILE] [-t] [-i] [-f SENDER] [-F NAME] [-od b|i|q] [--] [RECIPIENT ...] < message
       sendmail -bs    speak SMTP on standard input and output
       sendmail -bp    list the queue
       sendmail -q     deliver what is queued
       sendmail -bi    for compatibility: there is no alias database to build
See sendmail(8).
"""
