"""Mail addresses as octets: lists parsed, one address checked, split, qualified, quoted, put in ASCII.

An *address* here is an addr-spec without angle brackets: ``local@domain``, or a bare ``local``
that nobody has qualified yet.  What leaves ``parse_*`` has one form: comments, folding and source
routes gone, the local part in the least quoting it can have (RFC 5321 section 4.1.2 asks that of
senders), so ``"joe"@x`` is ``joe@x`` and ``"odd name"@x`` stays.  Case is kept.

Never: no look-up, no alias, no judgement whether a mailbox exists, and no IDNA but in ``to_ascii``.

    read as                     octets
    white space                 SP, HT, and a line end that SP or HT follows (folding)
    words                       atoms, "quoted strings", \\x for x, every octet above 127
    separators                  "," and ";" with empty members ignored; "name:" opens a group
    name                        any words, dots and @ before "<", else the last (comment)
    dropped                     (nested (comments)), <@route,@b:...>, the dot after a domain
    refused                     line ends that do not fold, two words without a dot between them,
                                open quotes, brackets and comments, an empty local part or domain

Source: RFC 5322 sections 3.4 and 4.4 (obsolete forms are read, never written), RFC 5321 section
4.1.2, RFC 6531 (UTF-8), RFC 5891 (IDNA), RFC 2047.  Where the grammar says no and Postfix, Exim and
Sendmail all say yes (dots at odd places of a local part, "joe@x <joe@x>", ";" between addresses) so
do we.
"""

from minisend.errors import DataError

# Servers must take 256 octets (RFC 5321 section 4.5.3.1.3) and local parts beyond 64 are common
# (VERP), but a path longer than a whole command line of section 4.5.3.1.4 arrives nowhere.
ADDRESS_LIMIT = 512
_TOO_LONG = f"longer than {ADDRESS_LIMIT} octets"

# RFC 2047 allows 75 octets a word and 76 a line; 60 leaves room for "Resent-From: " before it.
_ENCODED_WORD_LIMIT = 60
# A quoted name longer than this is cut into encoded words: a line ends at 998 (RFC 5322 2.1.1).
_QUOTED_NAME_LIMIT = 200

_ALNUM = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ATEXT = _ALNUM + b"!#$%&'*+-/=?^_`{|}~" + bytes(range(128, 256))
_DOT_ATEXT = _ATEXT + b"."
_CONTROLS = bytes(range(32)) + b"\x7f"
_CONTROLS_TO_SPACE = bytes(32 if octet in _CONTROLS else octet for octet in range(256))
_LITERAL_TEXT = bytes(octet for octet in range(33, 127) if octet not in b"[\\]<>")

_LABEL_TEXT = _ALNUM + b"-_"
_LABEL_LIMIT = 63
# Full stops of East Asian keyboards: they separate labels too (RFC 3490 section 3.1).
_FULL_STOPS = {0x3002: ".", 0xFF0E: ".", 0xFF61: "."}
# Sharp s, final sigma and the zero-width joiners: letters of their own since RFC 5891.  The older rules (RFC 3490), which
# the standard library has, make "ss", another sigma and nothing of them: the domain of somebody else.
_DEVIATIONS = "\u00df\u03c2\u200c\u200d"

# Classes of octets for the tokenizer; a control character is text here and refused by check().
_TEXT, _WHITE, _SPECIAL = b"aw!"
_CLASSES = bytes(
    _WHITE if octet in b" \t\r\n" else _SPECIAL if octet in b'()<>[]:;@,."\\' else _TEXT
    for octet in range(256)
)

# A token is (kind, start, end, text): offsets into the input, text with quoting undone.  The kinds
# below have text of their own; every other kind is the special octet itself.
_ATOM, _QUOTED, _LITERAL, _COMMENT = range(4)
_Token = tuple[int, int, int, bytes]

# Where a member of a list stands towards its "<...>".
_NONE, _INSIDE, _AFTER = range(3)

_DQUOTE, _BACKSLASH = b'"\\'
_OPEN, _CLOSE, _COMMA, _DOT, _COLON, _SEMICOLON, _LESS, _GREATER, _AT = b"(),.:;<>@"


class AddressError(DataError):
    """An address that cannot be used: one line that names it and says why.

    ``address``  the octets refused, as they came
    """

    status = "5.1.3"

    def __init__(self, address: bytes, why: str) -> None:
        super().__init__(f'"{_shown(address)}": {why}')
        self.address = address


class Mailbox:
    """One address of a list.

    ``address``  as ``parse_list`` leaves it: no brackets, no comments, qualified or not
    ``name``     display name with quoting undone, or the comment; encoded words stay encoded
    ``start``, ``end``  where the addr-spec stands in the input, brackets and route excluded
    """

    __slots__ = ("address", "end", "name", "start")

    def __init__(self, address: bytes, name: bytes, start: int, end: int) -> None:
        self.address = address
        self.name = name
        self.start = start
        self.end = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mailbox) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Mailbox({self.address!r}, {self.name!r}, {self.start}, {self.end})"


def parse_list(value: bytes) -> list[Mailbox]:
    """The mailboxes of a header field's value or of one argument, in order, groups opened.

    Nothing but white space, commas, comments and empty groups is an empty list.  Every address
    returned has passed ``check``.  Raises ``AddressError`` that names the first bad member.
    RFC 5322 sections 3.4 and 4.4.
    """
    _refuse_bare_line_ends(value)
    mailboxes: list[Mailbox] = []
    words: list[_Token] = []  # of this member, before "<" or without it
    path: list[_Token] = []  # what its "<...>" holds
    comments: list[_Token] = []  # of this member, outside "<...>"
    bracket = _NONE
    member = 0  # where it starts in the input

    for token in _tokens(value):
        kind = token[0]
        if bracket == _INSIDE:
            if kind == _GREATER:
                bracket = _AFTER
            elif kind == _LESS:
                raise AddressError(value[member : token[2]], "a < stands inside < and >")
            else:
                path.append(token)
        elif kind == _COMMENT:
            comments.append(token)
        elif kind in (_COMMA, _SEMICOLON):
            if words or bracket:
                text = value[member : token[1]]
                mailboxes.append(_mailbox(text, words, path if bracket else None, comments))
            words, path, comments, bracket, member = [], [], [], _NONE, token[2]
        elif bracket == _AFTER:
            raise AddressError(
                value[member : token[2]], "something other than a comma follows the >"
            )
        elif kind == _LESS:
            bracket = _INSIDE
        elif kind == _COLON:
            if not words:
                raise AddressError(value[member : token[2]], "a group has no name")
            words, comments, member = [], [], token[2]
        elif kind == _GREATER:
            raise AddressError(value[member : token[2]], "a > closes nothing")
        else:
            words.append(token)
    if bracket == _INSIDE:
        raise AddressError(value[member:], "a < is not closed")
    if words or bracket:
        mailboxes.append(_mailbox(value[member:], words, path if bracket else None, comments))
    return mailboxes


def parse_recipients(argument: bytes) -> list[bytes]:
    """The addresses that one command-line argument names, in order; never none.

    ``a@b``, ``<a@b>``, ``Name <a@b>``, ``a, b``: all that ``parse_list`` reads, and the ``<a@b,c@d>`` of
    rmail, which puts its brackets around whatever UUCP gave it.  Raises ``AddressError``, also when the
    argument names nobody.
    """
    text = argument.strip()
    inner = text[1:-1]
    # No source route, no literal, nothing quoted, no comment, no other brackets: a plain list.
    plain = inner.translate(None, b'<>()[]:"\\') == inner
    if plain and b"," in inner and text == b"<%b>" % inner:
        argument = inner
    mailboxes = parse_list(argument)
    if not mailboxes:
        raise AddressError(argument, "no address")
    return [mailbox.address for mailbox in mailboxes]


def parse_sender(argument: bytes) -> bytes:
    """The reverse-path that ``-f`` or ``-r`` names: ``b""`` (null) for an empty argument and ``<>``.

    Raises ``AddressError`` unless the argument names exactly one address.
    """
    if b"".join(argument.split()) in (b"", b"<>"):
        return b""
    mailboxes = parse_list(argument)
    if len(mailboxes) != 1:
        raise AddressError(argument, "one sender address expected")
    return mailboxes[0].address


def check(address: bytes) -> None:
    """Raise ``AddressError`` unless ``address`` is fit to stand between ``<`` and ``>`` in SMTP.

    What passes is dot-separated atoms or one quoted string, then nothing or ``@`` and a domain or
    an address literal, in printable ASCII or UTF-8: it holds no control character and, outside its
    quotes, none of ``<>()[]:;,\\"`` or space, so it cannot end the path or the command it stands
    in.  Dots in a local part and its length (64 in RFC 5321 section 4.5.3.1.1) are the server's
    judgement; ``ADDRESS_LIMIT`` is ours.
    """
    if not address:
        raise AddressError(address, "no address")
    if len(address) > ADDRESS_LIMIT:
        raise AddressError(address, _TOO_LONG)
    if address.translate(None, _CONTROLS) != address:
        raise AddressError(address, "a control character")
    if not address.isascii():
        try:
            address.decode()
        except UnicodeDecodeError:
            raise AddressError(address, "neither ASCII nor UTF-8") from None

    if address.startswith(b'"'):
        end = _quoted_end(address, 0)
        if end <= 2:
            raise AddressError(
                address, "the quoted name is empty" if end else "a quote is not closed"
            )
        local, rest = address[:end], address[end:]
    else:
        local, at, domain = address.partition(b"@")
        rest = at + domain
        if not local:
            raise AddressError(address, "nothing stands before the @")
        if local.translate(None, _DOT_ATEXT):
            raise AddressError(address, "a name with such characters needs quotes")
    if not rest:
        return
    if not rest.startswith(b"@"):
        raise AddressError(address, "something other than @ follows the quotes")
    domain = rest[1:]
    if not domain:
        raise AddressError(address, "nothing follows the @")
    if domain.startswith(b"["):
        literal = domain[1:-1]
        if not domain.endswith(b"]") or not literal or literal.translate(None, _LITERAL_TEXT):
            raise AddressError(address, "not an address literal")
    elif domain.translate(None, _DOT_ATEXT):
        raise AddressError(address, "a character that no domain has")
    elif b"" in domain.split(b"."):
        raise AddressError(address, "the domain has an empty part")


def split(address: bytes) -> tuple[bytes, bytes]:
    """Local part (quotes kept) and domain, cut at the first ``@`` outside quotes; a bare name has ``b""``."""
    # Unquoted, a local part holds no @; an address literal may hold both @ and a quote.
    at = address.find(b"@", _quoted_end(address, 0) if address.startswith(b'"') else 0)
    return (address[:at], address[at + 1 :]) if at >= 0 else (address, b"")


def qualify(address: bytes, domain: bytes) -> bytes:
    """``address`` with ``@domain`` if it has none; the null reverse-path stays ``b""``."""
    if not address or split(address)[1]:
        return address
    return address + b"@" + domain


def to_ascii(address: bytes) -> bytes:
    """``address`` with its domain in A-labels ("xn--..."), as DNS and servers without SMTPUTF8 want it.

    The local part stays as it is, ASCII or not; so does all of an address without domain or with one
    in ASCII.  Any other domain is taken in lower case and NFC, and what else is another spelling of a
    letter (full width) becomes that letter, as browsers and Postfix do it.  Raises ``AddressError`` when
    the domain is not UTF-8 or one of its labels has no A-label.  RFC 5891 section 4, RFC 3491.

    Limits: the standard library maps by Unicode 3.2, so a right-to-left label with a letter newer than
    that is refused.
    """
    local, domain = split(address)
    if domain.isascii():
        return address
    import unicodedata

    try:
        # Letter by letter: of a whole word, lower() makes the last sigma a final one.
        lower = "".join(letter.lower() for letter in domain.decode())
        text = unicodedata.normalize("NFC", lower).translate(_FULL_STOPS)
        labels = [_a_label(label) for label in text.split(".")]
    except UnicodeError:
        raise AddressError(address, "the domain has no form in ASCII") from None
    return local + b"@" + b".".join(labels)


def same(a: bytes, b: bytes) -> bool:
    """Whether two addresses are one: the domain in any case, the local part exactly (RFC 5321 2.4)."""
    if a == b:
        return True
    local_a, domain_a = split(a)
    local_b, domain_b = split(b)
    return local_a == local_b and domain_a.lower() == domain_b.lower()


def quote_local(local: bytes) -> bytes:
    """A local part, or an account name, as it stands in an address: quoted only if it must be."""
    if (
        local.translate(None, _DOT_ATEXT)
        or local.startswith(b".")
        or local.endswith(b".")
        or b".." in local
        or not local
    ):
        return b'"' + local.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return local


def one_line(name: bytes) -> bytes:
    """A display name without line ends: each run of white space and control characters is one space, none at the ends."""
    return b" ".join(name.translate(_CONTROLS_TO_SPACE).split())


def quote_phrase(name: bytes) -> bytes:
    """A display name as it stands before ``<``: plain words, a quoted string, or encoded words.

    Each run of white space and control characters becomes one space, so that a name can never
    add a header line.  A name with octets above 127 becomes RFC 2047 encoded words: UTF-8 if it
    is that, else ISO-8859-1; several are folded with LF SP.  ``b""`` for a name of nothing.
    """
    name = one_line(name)
    if not name.isascii() or len(name) > _QUOTED_NAME_LIMIT:
        return encoded_words(name)
    if name.translate(None, _ATEXT + b" "):
        return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return name


def _a_label(label: str) -> bytes:
    """The label for DNS, from lower case and NFC.  Raises ``UnicodeError``."""
    import re
    from encodings.idna import nameprep

    text = "".join(
        part if part in _DEVIATIONS else nameprep(part)
        for part in re.split(f"([{_DEVIATIONS}])", label)
    )
    octets = text.encode() if text.isascii() else b"xn--" + text.encode("punycode")
    # The mapping may give what is special in a path: a full-width ">" becomes ">".
    if not text or len(octets) > _LABEL_LIMIT or octets.translate(None, _LABEL_TEXT):
        raise UnicodeError("no label")
    if text.startswith("xn--") and not text.isascii():
        raise UnicodeError("an A-label with letters that are not ASCII")
    return octets


def encoded_words(name: bytes) -> bytes:
    """RFC 2047 "Q" words as section 5 rule 3 wants them in a phrase; no character is cut in two."""
    try:
        text, charset = name.decode(), "utf-8"
    except UnicodeDecodeError:
        # Exim's guess too, and right for nearly every account file that is not UTF-8.
        text, charset = name.decode("iso-8859-1"), "iso-8859-1"
    room = _ENCODED_WORD_LIMIT - len("=?" + charset + "?q??=")
    words = [b""]
    for character in text:
        encoded = b"".join(
            b"_" if octet == 32 else b"%c" % octet if octet in _ALNUM else b"=%02X" % octet
            for octet in character.encode(charset)
        )
        if len(words[-1]) + len(encoded) > room:
            words.append(b"")
        words[-1] += encoded
    return b"\n ".join(b"=?%b?q?%b?=" % (charset.encode(), word) for word in words)


def _mailbox(
    member: bytes, words: list[_Token], path: list[_Token] | None, comments: list[_Token]
) -> Mailbox:
    """The mailbox that one member of a list makes; ``member`` is its text, ``path`` None without <>."""
    name = comments[-1][3] if comments else b""
    if path is not None:
        name = _phrase(words) or name
        words = _without_route(path)
    address, start, end = _addr_spec(member, words)
    check(address)
    return Mailbox(address, name, start, end)


def _without_route(tokens: list[_Token]) -> list[_Token]:
    """What "<...>" holds but for comments and the route (RFC 5321 4.1.2 A-d-l: accepted, ignored)."""
    tokens = [token for token in tokens if token[0] != _COMMENT]
    kinds = [token[0] for token in tokens]
    if kinds and kinds[0] == _AT and _COLON in kinds:
        return tokens[kinds.index(_COLON) + 1 :]
    return tokens


def _addr_spec(member: bytes, tokens: list[_Token]) -> tuple[bytes, int, int]:
    """The address that the tokens spell, and where it stands; ``member`` is for the error text."""
    local: list[bytes] = []
    domain: list[bytes] | None = None
    previous = _DOT
    length = 0
    for kind, _, _, text in tokens:
        if kind == _AT:
            if domain is not None:
                raise AddressError(member, "more than one @")
            domain = []
        elif kind not in ((_ATOM, _QUOTED, _DOT) if domain is None else (_ATOM, _LITERAL, _DOT)):
            raise AddressError(member, "not an address")
        elif kind != _DOT and previous not in (_DOT, _AT):
            raise AddressError(member, "two words with neither a dot nor an @ between them")
        else:
            length += len(text)
            if length > ADDRESS_LIMIT:
                raise AddressError(member, _TOO_LONG)
            (local if domain is None else domain).append(text)
        previous = kind
    name = b"".join(local)
    if not name:
        raise AddressError(member, "no name stands before the @" if domain else "no address")
    address = quote_local(name)
    if domain is not None:
        # One dot at the end only says that the name is complete, as in DNS; SMTP has no such form.
        if len(domain) > 1 and previous == _DOT:
            domain.pop()
        address += b"@" + b"".join(domain)
    return address, tokens[0][1], tokens[-1][2]


def _phrase(words: list[_Token]) -> bytes:
    """The words with quoting undone, one space where the input had white space or a comment."""
    parts: list[bytes] = []
    reached = words[0][1] if words else 0
    for _, start, end, text in words:
        if start > reached:
            parts.append(b" ")
        parts.append(text)
        reached = end
    return b"".join(parts)


def _tokens(value: bytes) -> list[_Token]:
    """Words, literals, comments and special octets of the value; linear in its length.

    Raises ``AddressError`` for a quoted string or comment that does not end.
    """
    tokens: list[_Token] = []
    classes = value.translate(_CLASSES)
    at, size = 0, len(value)
    while at < size:
        start, octet = at, value[at]
        if classes[at] == _WHITE:
            at += 1
            continue
        kind = octet
        if classes[at] == _TEXT or octet == _BACKSLASH:
            kind = _ATOM
            while at < size:
                while at < size and classes[at] == _TEXT:
                    at += 1
                if at < size and value[at] == _BACKSLASH:
                    at += 2
                elif at == size or classes[at] != _TEXT:
                    break
            if at > size:
                raise AddressError(value, "a backslash quotes nothing")
            text = value[start:at]
            if b"\\" in text:
                text = _unquoted(text)
        elif octet == _DQUOTE:
            kind = _QUOTED
            at = _quoted_end(value, start)
            if not at:
                raise AddressError(value[start:], "a quote is not closed")
            text = _unquoted(value[start + 1 : at - 1])
        elif octet == _OPEN:
            kind = _COMMENT
            at = _comment_end(value, start)
            if not at:
                raise AddressError(value[start:], "a comment is not closed")
            text = _unquoted(value[start + 1 : at - 1])
        else:
            at = _literal_end(value, start) if octet == b"["[0] else 0
            if at:
                kind = _LITERAL
                text = b"".join(value[start:at].split())
            else:
                at = start + 1
                text = value[start:at]
        tokens.append((kind, start, at, text))
    return tokens


def _quoted_end(value: bytes, start: int) -> int:
    """The offset after the quoted string that opens at ``start``; 0 when it does not close."""
    at, size = start + 1, len(value)
    while at < size:
        if value[at] == _DQUOTE:
            return at + 1
        at += 2 if value[at] == _BACKSLASH else 1
    return 0


def _comment_end(value: bytes, start: int) -> int:
    """The offset after the comment, with those inside it, that opens at ``start``; 0 if none."""
    at, size, depth = start, len(value), 0
    while at < size:
        octet = value[at]
        at += 2 if octet == _BACKSLASH else 1
        if octet == _OPEN:
            depth += 1
        elif octet == _CLOSE:
            depth -= 1
            if not depth:
                return at
    return 0


def _literal_end(value: bytes, start: int) -> int:
    """The offset after the domain literal that opens at ``start``; 0 when there is none.

    Stops at the next bracket of either kind, so that a row of "[" costs no more than its length.
    """
    at, size = start + 1, len(value)
    while at < size and value[at] not in b"[]\\":
        at += 1
    return at + 1 if at < size and value[at] == b"]"[0] else 0


def _unquoted(text: bytes) -> bytes:
    """What a quoted string or comment means: line ends of folding gone, each \\x an x."""
    text = text.replace(b"\r", b"").replace(b"\n", b"")
    parts: list[bytes] = []
    done = 0
    at = text.find(b"\\")
    while at >= 0:
        parts += (text[done:at], text[at + 1 : at + 2])
        done = at + 2
        at = text.find(b"\\", done)
    parts.append(text[done:])
    return b"".join(parts)


def _refuse_bare_line_ends(value: bytes) -> None:
    """Raise ``AddressError`` for a line end that no white space follows: it would begin a new line."""
    if b"\n" in value or b"\r" in value:
        rest = value.strip().replace(b"\r\n", b"\n").replace(b"\n ", b"").replace(b"\n\t", b"")
        if b"\n" in rest or b"\r" in rest:
            raise AddressError(value, "a line end inside")


def _shown(octets: bytes) -> str:
    """The octets for a person on one line: UTF-8 as it is, all else escaped, long ones cut."""
    text = octets.strip().decode("utf-8", "backslashreplace")
    if len(text) > 100:
        text = text[:100] + "..."
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


# -- patterns: "*@shop.example", "user@shop.example", "shop.example"; "<>" is the null reverse-path ----------


def comparable(address: bytes) -> tuple[bytes, bytes] | None:
    """Local part and domain as patterns are compared with them; None for the null reverse-path."""
    if not address:
        return None
    try:
        address = to_ascii(address)
    except AddressError:
        pass  # no pattern has such a domain, but "*" is for any
    local, domain = split(address)
    return local, domain.lower().removesuffix(b".")


def is_one_of(patterns: "tuple[str, ...]", parts: "tuple[bytes, bytes] | None") -> bool:
    """One of the patterns matches, or there are none.  ``parts``: from ``comparable``."""
    return not patterns or any(_matches(pattern, parts) for pattern in patterns)


def _matches(pattern: str, parts: "tuple[bytes, bytes] | None") -> bool:
    if parts is None or pattern == "<>":
        return parts is None and pattern == "<>"
    local, _, domain = pattern.rpartition("@")
    return _is_like(local or "*", parts[0]) and _is_like(domain.lower().removesuffix("."), parts[1])


def _is_like(pattern: str, octets: bytes) -> bool:
    """Whether it is the pattern, each "*" of which stands for any octets.

    Each piece is taken where it is found first, which leaves the most for the next: no way back is ever needed.
    """
    first, *others = pattern.encode().split(b"*")
    if not others:
        return octets == first
    *middle, last = others
    at = len(first)
    if not octets.startswith(first) or not octets[at:].endswith(last):
        return False
    end = len(octets) - len(last)
    for piece in middle:
        at = octets.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True
