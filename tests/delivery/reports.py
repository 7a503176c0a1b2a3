"""A delivery status notification as a mail program reads it: with Python's ``email``, and nothing of minisend's own."""

import email
import email.policy
from dataclasses import dataclass
from email.message import EmailMessage

_POLICY = email.policy.default.clone(refold_source="none")


@dataclass(frozen=True)
class Told:
    """What a report says.

    ``header``      its own fields but Received and MIME's, name → value
    ``text``        for a person
    ``message``     the fields about the message (RFC 3464 section 2.2), name → value
    ``recipients``  those about each recipient (section 2.3)
    ``kind``        how the message comes back: "message/rfc822" or "text/rfc822-headers"
    ``returned``    that, octet for octet, LF line ends
    """

    header: dict[str, str]
    text: str
    message: dict[str, str]
    recipients: list[dict[str, str]]
    kind: str
    returned: bytes

    def fates(self) -> list[tuple[str, str, str]]:
        """Address, action and status of each recipient it tells of."""
        return [
            (each["Final-Recipient"].removeprefix("rfc822; "), each["Action"], each["Status"])
            for each in self.recipients
        ]


def read_report(octets: bytes) -> Told:
    """The report that these octets are, any line ends; AssertionError if they are none."""
    octets = octets.replace(b"\r\n", b"\n")
    report = email.message_from_bytes(octets, policy=_POLICY)
    assert (report.get_content_type(), report.get_param("report-type")) == (
        "multipart/report",
        "delivery-status",
    )
    text, status, returned = report.iter_parts()
    parts = [report, text, status, returned, *status.get_payload()]
    assert [part.defects for part in parts] == [[]] * len(parts)
    assert (text.get_content_type(), status.get_content_type()) == (
        "text/plain",
        "message/delivery-status",
    )
    message, *recipients = (_fields(group) for group in status.get_payload())
    # The octets themselves and not what ``email`` would write in their place.
    boundary = b"\n--" + report.get_boundary("").encode("ascii")
    _, _, content = octets.split(boundary)[3].partition(b"\n\n")
    return Told(
        {
            name: value
            for name, value in _fields(report).items()
            if name != "Received" and not name.startswith(("MIME-", "Content-"))
        },
        text.get_content(),
        message,
        recipients,
        returned.get_content_type(),
        content,
    )


def _fields(part: EmailMessage) -> dict[str, str]:
    return {name: str(value) for name, value in part.items()}
