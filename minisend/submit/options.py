"""The argument vector of sendmail to Options: a hand-written getopt over a table of letters.

Never interprets addresses and never touches a file.  Parsing stops at the first word that is no option, as sendmail(8),
Postfix and Exim do: a recipient that looks like an option cannot become one.

Sources: the option string of sendmail 8.17, Postfix sendmail(1), LSB 5.0, and the parsers of Exim, OpenSMTPD, Courier,
dma, nullmailer, msmtp, ssmtp and esmtp: a letter that one of them knows is taken, as sendmail takes it where it knows it.
"""

from minisend.errors import UsageError

FLAG = "flag"
VALUE = "value"  # joined (-fx) or the next word (-f x)
JOINED = "joined"  # joined only, may be empty (-q, -q15m)

# letter: (kind, attribute of Options that takes it; "" for what is taken and ignored)
_LETTERS = {
    "4": (FLAG, ""),  # ssmtp: IPv4 only
    "6": (FLAG, ""),  # ssmtp: IPv6 only
    "A": (VALUE, ""),  # sendmail: which .cf file; Postfix ignores it
    "B": (VALUE, "body"),
    "C": (VALUE, ""),  # the first -C is ours and was taken before; a later one names a sendmail.cf
    "D": (VALUE, ""),  # debug output
    "E": (JOINED, ""),  # OpenSMTPD's; Exim's for its own children
    "F": (VALUE, "full_name"),
    "G": (FLAG, ""),  # gateway submission
    "I": (FLAG, "newaliases"),
    "J": (JOINED, ""),  # OpenSMTPD, as "E"; some sendmails
    "L": (VALUE, ""),  # syslog tag
    "M": (VALUE, ""),  # macro
    "N": (VALUE, "notify"),
    "O": (VALUE, "long_option"),
    "P": (FLAG, "verify"),  # msmtp: send nothing, say how it would be sent
    "Q": (VALUE, ""),  # quarantine
    "R": (VALUE, "ret"),
    "S": (VALUE, ""),  # Courier: transport security; Exim: senders of a queue run, our -qS
    "T": (FLAG, ""),
    "U": (FLAG, ""),  # initial user submission
    "V": (VALUE, "envid"),
    "X": (VALUE, ""),  # traffic log
    "a": (VALUE, ""),  # msmtp: account; ssmtp: -au, -ap, -am
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
    "v": (FLAG, ""),  # verbose
    "x": (FLAG, ""),
    "z": (VALUE, ""),  # Exim: a line for its log
}

# Option and joined value whose own value is the next word: Exim's facts of a message received elsewhere, ssmtp's login.
_NEXT_WORD = frozenset(
    ["oMa", "oMaa", "oMai", "oMas", "oMi", "oMm", "oMr", "oMs", "oMt", "am", "ap", "au"]
)

# -b<x>: what the program is asked to be
MODES = {"m": "submit", "s": "smtp", "v": "verify", "p": "mailq", "i": "newaliases"}

# -q<x>: which part of a message is compared, by its name in delivery.flush.Selection
_PARTS = {"I": "id_part", "R": "recipient_part", "S": "sender_part"}

# -od<x> and -O DeliveryMode=<x...>; "d" (deferred) postpones even look-ups, which for us is queueing only
DELIVERY = {"b": "background", "i": "interactive", "q": "queue", "d": "queue"}

# -O name, in lower case: the same as -o<x>
_LONG = {"deliverymode": "d", "errormode": "e", "ignoredots": "i"}


class Options:
    """What the command line asked for.

    ``mode``        "submit" | "smtp" | "verify" | "mailq" | "newaliases" | "flush" | "help" | "version"
    ``parts``       of -qI, -qR and -qS: (name in ``delivery.flush.Selection``, text)
    ``sender``      value of the last -f or -r, "" for the null reverse-path, None when not given
    ``full_name``   value of -F, None when not given
    ``from_headers``, ``dot_is_data``  flags -t, -i
    ``delivery``    "background" | "interactive" | "queue"
    ``body``, ``notify``, ``ret``, ``envid``  values of -B, -N, -R, -V as SMTP spells them, "" when not given
    ``errors``      value of -e, letter of -oe or -O ErrorMode, "" when not given
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
        "parts",
        "ret",
        "sender",
        "words",
    )

    def __init__(self) -> None:
        self.mode = "submit"
        self.sender: str | None = None
        self.full_name: str | None = None
        self.from_headers = False
        self.dot_is_data = False
        self.delivery = "background"
        self.body = ""
        self.notify = ""
        self.ret = ""
        self.envid = ""
        self.errors = ""
        self.parts: list[tuple[str, str]] = []
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
                value, index = _next(arguments, index, letter)
            if letter + value in _NEXT_WORD:
                _, index = _next(arguments, index, letter + value)
            _set(options, attribute, value)
            break
    options.words = arguments[index:]
    return options


def _next(arguments: list[str], index: int, option: str) -> tuple[str, int]:
    """The word that is the value of an option, and the index behind it."""
    if index >= len(arguments):
        raise UsageError(f"option -{option} needs a value")
    return arguments[index], index + 1


def _set(options: Options, attribute: str, value: str) -> None:
    if attribute in ("from_headers", "dot_is_data"):
        setattr(options, attribute, True)
    elif attribute == "mode":
        if value not in MODES:
            raise UsageError(f"option -b{value}: this program has no such mode")
        options.mode = MODES[value]
    elif attribute in ("newaliases", "verify"):
        options.mode = attribute
    elif attribute == "queue_run":
        options.mode = "flush"
        _set_queue_run(options, value)
    elif attribute in _CHECKED:
        setattr(options, attribute, _CHECKED[attribute](value))
    elif attribute == "short_option":
        _set_short(options, value)
    elif attribute == "long_option":
        name, _, setting = value.partition("=")
        if letter := _LONG.get(name.strip().lower()):
            _set_short(options, letter + setting.strip().lower())
    elif attribute:
        setattr(options, attribute, value)


def _set_queue_run(options: Options, value: str) -> None:
    """-q once, in the foreground or not; with I, R or S only what has this in its id, a recipient or the sender."""
    if value[:1] in _PARTS:
        if not value[1:]:
            raise UsageError(f"option -q{value} needs a value")
        options.parts.append((_PARTS[value[:1]], value[1:]))
    elif value not in ("", "f"):
        raise UsageError(f"option -q{value}: there is no daemon here that would run at intervals")


def _body(value: str) -> str:
    """An unknown -B is no reason to refuse a message: what its octets are is seen."""
    return value.upper() if value.upper() in ("7BIT", "8BITMIME") else ""


def _notify(value: str) -> str:
    words = value.upper().split(",")
    if words != ["NEVER"] and not set(words) <= {"SUCCESS", "FAILURE", "DELAY"}:
        raise UsageError(f"option -N {value}: expected never, or some of success, failure, delay")
    return ",".join(dict.fromkeys(words))


def _ret(value: str) -> str:
    if value.upper() not in ("FULL", "HDRS"):
        raise UsageError(f"option -R {value}: expected full or hdrs")
    return value.upper()


def _envid(value: str) -> str:
    # RFC 3461 section 4.4
    if len(value) > 100 or not (value.isascii() and value.isprintable()):
        raise UsageError("option -V: expected at most 100 printable ASCII characters")
    return value


_CHECKED = {"body": _body, "notify": _notify, "ret": _ret, "envid": _envid}


def _set_short(options: Options, value: str) -> None:
    """-o<x>: those of sendmail's one-letter options that mean something here; the others are taken and ignored."""
    if value[:1] == "i":
        # As sendmail reads a boolean: "", "True" and "yes" are true.
        options.dot_is_data = value[1:2] in ("", "t", "T", "y", "Y")
    elif value[:1] == "d":
        options.delivery = DELIVERY.get(value[1:2], options.delivery)
    elif value[:1] == "e":
        options.errors = value[1:2]


USAGE = """\
usage: sendmail [-C FILE] [-t] [-i] [-f SENDER] [-F NAME] [-od b|i|q] [--] [RECIPIENT ...] < message
       sendmail -bs    speak SMTP on standard input and output
       sendmail -bv    ADDRESS ...: show where mail to them would go
       sendmail -bp    list the queue
       sendmail -q     deliver what is queued; -qI ID, -qR RECIPIENT, -qS SENDER: that only (parts of them do)
       sendmail -bi    for compatibility: there is no alias database to build
See sendmail(8).
"""
