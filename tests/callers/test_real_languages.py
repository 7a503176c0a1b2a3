"""What programs in PHP, Perl and JavaScript send with, run for real."""

import json

import pytest

from callers.machine import NO_SPOOL, Machine, body, values

TEXT = "Grüße\n.\n..two dots\nend\n"

# Each sends TEXT from from@here.test to ARGV[0] and, unseen, to hidden-ARGV[0]; the exit code says whether it was told
# that this went well.
PHP = r"""
$to = $argv[1];
$header = "From: from@here.test\r\nBcc: hidden-$to\r\nContent-Type: text/plain; charset=utf-8";
exit(mail($to, "php", TEXT, $header, "-fbounce@here.test") ? 0 : 1);
"""
EMAIL_SENDER = r"""
use Email::Simple; use Email::Sender::Simple qw(sendmail); use Email::Sender::Transport::Sendmail;
my $to = shift;
my $mail = Email::Simple->create(header => [From => 'from@here.test', To => $to], body => TEXT);
sendmail($mail, {from => 'bounce@here.test', to => [$to, "hidden-$to"],
    transport => Email::Sender::Transport::Sendmail->new});
"""
MIME_LITE = r"""
use MIME::Lite;
my $to = shift;
MIME::Lite->send('sendmail', FromSender => 'bounce@here.test', SetSender => 1);
MIME::Lite->new(From => 'from@here.test', To => $to, Bcc => "hidden-$to", Data => TEXT,
    Encoding => '8bit')->send;
"""
MAIL_SEND = r"""
use Mail::Send;
my $to = shift;
# It calls sendmail without -i and escapes nothing, so that there is no dot in its text.
my $mail = Mail::Send->new(To => $to, Bcc => "hidden-$to");
$mail->set('From', 'from@here.test');
my $out = $mail->open('sendmail');
print $out TEXT =~ s/^\.+/-/gmr;
$out->close or exit 1;
"""
NODEMAILER = r"""
const to = process.argv[1];
require('/usr/share/nodejs/nodemailer').createTransport({sendmail: true}).sendMail(
    {envelope: {from: 'bounce@here.test', to: [to, 'hidden-' + to]},
     from: 'from@here.test', to: to, bcc: 'hidden-' + to, text: TEXT},
    (error) => { if (error) { console.log(error.message); process.exit(1); } });
"""

PERL_TEXT = "qq{Gr\\xc3\\xbc\\xc3\\x9fe\\n.\\n..two dots\\nend\\n}"


def perl(script: str) -> list[str]:
    return ["perl", "-we", "use strict; use constant TEXT => " + PERL_TEXT + ";" + script]


PROGRAMS = [
    pytest.param(
        [
            *("php", "-d", "sendmail_path=/usr/sbin/sendmail -t -i", "-r"),
            "const TEXT = " + json.dumps(TEXT, ensure_ascii=False) + ";" + PHP,
            "--",
        ],
        "bounce@here.test",
        TEXT,
        b"",
        id="php",
    ),
    pytest.param(
        perl(EMAIL_SENDER), "bounce@here.test", TEXT, b"error when closing pipe", id="email-sender"
    ),
    pytest.param(perl(MIME_LITE), "bounce@here.test", TEXT, b"", id="mime-lite"),
    pytest.param(
        perl(MAIL_SEND),
        "alice@here.test",
        TEXT.replace("..two", "-two").replace("\n.\n", "\n-\n"),
        b"",
        id="mail-send",
    ),
    pytest.param(
        ["node", "-e", "const TEXT = " + json.dumps(TEXT) + ";" + NODEMAILER],
        "bounce@here.test",
        TEXT,
        b"Sendmail exited with code 75",
        id="nodemailer",
    ),
]


@pytest.mark.parametrize(("command", "sender", "text", "said"), PROGRAMS)
def test_program(
    machine: Machine, command: list[str], sender: str, text: str, said: bytes, request
) -> None:
    """Both recipients have the text octet for octet, one of them unseen; a sendmail that fails is noticed."""
    to = f"{request.node.callspec.id}@mail.test"
    done = machine.run(*command, to)
    assert (done.returncode, done.stdout) == (0, b"")
    mail = machine.mail_for(to)
    assert (mail.sender, sorted(mail.recipients)) == (
        sender.encode(),
        sorted([to.encode(), b"hidden-" + to.encode()]),
    )
    assert body(mail).rstrip(b"\n") == text.encode().rstrip(b"\n")
    assert values(mail, "From") == ["from@here.test"]
    assert values(mail, "To") == [to]
    assert [len(values(mail, name)) for name in ("Date", "Message-ID", "Bcc")] == [1, 1, 0]
    assert b"hidden" not in mail.octets

    refused = machine.run(*command, f"refused-{to}", environment=NO_SPOOL)
    assert refused.returncode != 0
    assert said in refused.stdout
