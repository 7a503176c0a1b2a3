"""A message in the form that SMTP sends: CRLF line ends, dots doubled, the end marked.

Pure generators: chunks in, chunks out, nothing else held, so memory is a small multiple of the largest chunk.
Whole chunks are rewritten with ``bytes.replace``; no code runs a line.

Any line end is understood - LF, CRLF, a lone CR, mixed, cut anywhere - and NULs are removed (RFC 5321 section 4.5.2 does
not allow them).  Line ends are made first and dots doubled after, from a form whose only line end is LF; so no
bare CR or LF can leave and no line that begins with a dot is missed, whatever the message holds.  That is the whole
defence against SMTP smuggling: what is not written cannot be read as an end of data by a lenient server.

Source: RFC 5321 section 2.3.8 (line ends), 4.5.2 (transparency), RFC 3030 (BDAT, which wants ``crlf``).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

END_OF_DATA = b".\r\n"

_CR = 0x0D


def crlf(chunks: "Iterable[bytes]") -> "Iterator[bytes]":
    """The message with CRLF line ends and nothing else changed but NULs, which go; a missing last line end is added."""
    return _lines(chunks, stuffed=False)


def wire(chunks: "Iterable[bytes]") -> "Iterator[bytes]":
    """The message as it follows DATA's 354: CRLF line ends, dots doubled, ``END_OF_DATA`` last and on its own."""
    return _lines(chunks, stuffed=True)


def _lines(chunks: "Iterable[bytes]", *, stuffed: bool) -> "Iterator[bytes]":
    line_start = True
    after_cr = (
        False  # the last octet was a CR: its line end is written, a LF that follows belongs to it
    )
    for chunk in chunks:
        octets = chunk.replace(b"\0", b"")
        if not octets:
            continue
        belongs, after_cr = after_cr and octets.startswith(b"\n"), octets.endswith(b"\r")
        if belongs:
            octets = octets[1:]
        if _CR in octets:
            octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not octets:
            continue
        if stuffed:
            dot_first = line_start and octets.startswith(b".")
            octets = octets.replace(b"\n.", b"\n..")
            if dot_first:
                octets = b"." + octets
        line_start = octets.endswith(b"\n")
        yield octets.replace(b"\n", b"\r\n")
    if not line_start:
        yield b"\r\n"
    if stuffed:
        yield END_OF_DATA
