"""SASLprep: one form for user names and passwords that can be typed in several.

Pure: text in, text out.  ASCII is its own prepared form, so only other text comes here.

    mapped      C.1.2 (spaces) to U+0020, B.1 (soft hyphen, joiners, ...) to nothing; then NFKC of Unicode 3.2
    prohibited  controls, private use, surrogates, tags, ...: tables C.1.2 to C.9
    direction   text with a right-to-left letter has no left-to-right one, and one at both ends

Code points that Unicode 3.2 did not have yet go through, as in a "query" of RFC 3454 section 7: emoji are in passwords.

Source: RFC 4013, RFC 3454; the tables are Python's ``stringprep``.
"""

import stringprep

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def prepare(text: str) -> str:
    """The prepared form.  Raises ``ValueError``, without the text, for what has none."""
    # The tables are of that version, and so must be the normalisation.
    from unicodedata import ucd_3_2_0

    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c)
    )
    prepared = ucd_3_2_0.normalize("NFKC", mapped)
    if any(prohibited(c) for c in prepared for prohibited in _PROHIBITED):
        raise ValueError("prohibited character")
    if any(map(stringprep.in_table_d1, prepared)) and not (
        stringprep.in_table_d1(prepared[0])
        and stringprep.in_table_d1(prepared[-1])
        and not any(map(stringprep.in_table_d2, prepared))
    ):
        raise ValueError("mixed direction")
    return prepared


def prepared_octets(octets: bytes) -> bytes:
    """UTF-8 prepared; as it is when it is not UTF-8 or has no prepared form.

    RFC 5802 would have that fail.  A server that took such a password took its octets, so they may well be right, and
    the server can still say no; PostgreSQL does the same.
    """
    try:
        return prepare(octets.decode()).encode()
    except ValueError:
        return octets
