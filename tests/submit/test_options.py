"""The argument vector: every form in which callers give options, and where options end."""

import pytest

from minisend.errors import UsageError
from minisend.submit.options import Options, parse

DEFAULTS = {name: getattr(Options(), name) for name in Options.__slots__}


def given(arguments: list[str]) -> dict[str, object]:
    """The attributes that differ from those of an empty command line."""
    options = parse(arguments)
    return {
        name: value
        for name in Options.__slots__
        if (value := getattr(options, name)) != DEFAULTS[name]
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # recipients, and the end of the options
        ([], {}),
        (["a@b"], {"words": ["a@b"]}),
        (["a@b", "c"], {"words": ["a@b", "c"]}),
        (["--", "a@b"], {"words": ["a@b"]}),
        (["--", "-t"], {"words": ["-t"]}),
        (["-t", "--", "-i"], {"from_headers": True, "words": ["-i"]}),
        (["a@b", "-t"], {"words": ["a@b", "-t"]}),
        (["a@b", "--", "c"], {"words": ["a@b", "--", "c"]}),
        (["-"], {"words": ["-"]}),
        (["", "-t"], {"words": ["", "-t"]}),
        # one by one
        (["-t"], {"from_headers": True}),
        (["-i"], {"dot_is_data": True}),
        (["-oi"], {"dot_is_data": True}),
        (["-o", "i"], {"dot_is_data": True}),
        (["-v"], {}),
        (["-f", "a@b"], {"sender": "a@b"}),
        (["-fa@b"], {"sender": "a@b"}),
        (["-f", ""], {"sender": ""}),
        (["-f", "-t"], {"sender": "-t"}),
        (["-f", "--", "x"], {"sender": "--", "words": ["x"]}),
        (["-r", "a@b"], {"sender": "a@b"}),
        (["-f", "a", "-r", "b"], {"sender": "b"}),
        (["-F", "A Name"], {"full_name": "A Name"}),
        (["-FA Name"], {"full_name": "A Name"}),
        (["-F", ""], {"full_name": ""}),
        (["-B8BITMIME"], {"body": "8BITMIME"}),
        (["-B", "7BIT"], {"body": "7BIT"}),
        (["-N", "never"], {"notify": "NEVER"}),
        (["-N", "success,FAILURE,success"], {"notify": "SUCCESS,FAILURE"}),
        (["-R", "hdrs"], {"ret": "HDRS"}),
        (["-B", "8bitmime"], {"body": "8BITMIME"}),
        (["-B", "binary"], {}),
        (["-q"], {"mode": "flush"}),
        (["-qf"], {"mode": "flush"}),
        (
            ["-qIab", "-qRexample.net", "-qSann"],
            {
                "mode": "flush",
                "parts": [
                    ("id_part", "ab"),
                    ("recipient_part", "example.net"),
                    ("sender_part", "ann"),
                ],
            },
        ),
        (["-bv", "ann"], {"mode": "verify", "words": ["ann"]}),
        (["-V", "id"], {"envid": "id"}),
        (["-em"], {"errors": "m"}),
        (["-oem"], {"errors": "m"}),
        # modes
        (["-bm"], {}),
        (["-bp"], {"mode": "mailq"}),
        (["-bs"], {"mode": "smtp"}),
        (["-bi"], {"mode": "newaliases"}),
        (["-I"], {"mode": "newaliases"}),
        (["--help"], {"mode": "help"}),
        (["--version"], {"mode": "version"}),
        # when to deliver
        (["-odq"], {"delivery": "queue"}),
        (["-odd"], {"delivery": "queue"}),
        (["-odi"], {"delivery": "interactive"}),
        (["-odi", "-odb"], {}),
        (["-o", "dq"], {"delivery": "queue"}),
        (["-O", "DeliveryMode=queueonly"], {"delivery": "queue"}),
        (["-ODeliveryMode=i"], {"delivery": "interactive"}),
        (["-O", "deliverymode = q"], {"delivery": "queue"}),
        (["-odx"], {}),
        # sendmail's options by their long names, and in full
        (["-O", "ErrorMode=q"], {"errors": "q"}),
        (["-OErrorMode=mail"], {"errors": "m"}),
        (["-O", "errormode = Print"], {"errors": "p"}),
        (["-O", "ErrorMode=e", "-oew"], {"errors": "w"}),
        (["-O", "IgnoreDots=True"], {"dot_is_data": True}),
        (["-O", "IgnoreDots"], {"dot_is_data": True}),
        (["-OIgnoreDots=yes"], {"dot_is_data": True}),
        (["-O", "IgnoreDots=False"], {}),
        (["-oitrue"], {"dot_is_data": True}),
        (["-i", "-oiFalse"], {}),
        (["-O", "i"], {}),
        (["-O", "=i"], {}),
        # Exim's: the value is always the next word
        (["-oMr", "smtp", "a@b"], {"words": ["a@b"]}),
        (["-oMa", "192.0.2.1", "-oMai", "ann", "-oMt", "-t", "-t"], {"from_headers": True}),
        (["-o", "Ms", "host", "a@b"], {"words": ["a@b"]}),
        (["-oMrsmtp", "a@b"], {"words": ["a@b"]}),
        (["-om", "a@b"], {"words": ["a@b"]}),
        # grouped
        (["-ti"], {"from_headers": True, "dot_is_data": True}),
        (["-tif", "a@b"], {"from_headers": True, "dot_is_data": True, "sender": "a@b"}),
        (["-tfi"], {"from_headers": True, "sender": "i"}),
        (["-tiv", "x"], {"from_headers": True, "dot_is_data": True, "words": ["x"]}),
        (["-tq"], {"from_headers": True, "mode": "flush"}),
        (["-tbp"], {"from_headers": True, "mode": "mailq"}),
        (["-P", "a@b"], {"mode": "verify", "words": ["a@b"]}),
        # taken and ignored
        (["-A", "c", "-M", "x", "-Q", "why", "-S", "STARTTLS", "-a", "account", "-z", "note", "x"], {"words": ["x"]}),
        (["-E", "-J", "-Ex", "-Jx", "-4", "-6", "x"], {"words": ["x"]}),
        (["-auann", "-ap", "secret", "-am", "LOGIN", "x"], {"words": ["x"]}),
        (["-Ac", "-Am", "-G", "-m", "-n", "-om", "-oo", "-s", "-U", "-T", "-E", "-c", "-x"], {}),
        (["-d", "-d0.1", "-Mtag", "-Qreason", "-p", "smtp:host", "-h", "3", "-L", "tag"], {}),
        (["-O", "Timeout.queuereturn=1d", "-X", "/tmp/log", "-D", "log", "-C", "sendmail.cf"], {}),
        # as programs call us
        (
            ["-FCronDaemon", "-i", "-odi", "-oem", "-oi", "-t", "-f", "root"],
            {
                "full_name": "CronDaemon",
                "dot_is_data": True,
                "delivery": "interactive",
                "errors": "m",
                "from_headers": True,
                "sender": "root",
            },
        ),
        (["-oem", "-oi", "-f", "<>", "--", "x"], {"errors": "m", "dot_is_data": True, "sender": "<>", "words": ["x"]}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_given(line, expected):
    assert given(line) == expected


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (["-Z"], "unknown option -Z"),
        (["-tZ"], "unknown option -Z"),
        (["-é"], "unknown option -\\xe9"),
        (["-\udcff"], "unknown option -\\udcff"),
        (["-\n"], "unknown option -\\n"),
        (["--verbose"], "unknown option --"),
        (["-f"], "option -f needs a value"),
        (["-tif"], "option -f needs a value"),
        (["-o"], "option -o needs a value"),
        (["-B"], "option -B needs a value"),
        (
            ["-N", "sometimes"],
            "option -N sometimes: expected never, or some of success, failure, delay",
        ),
        (
            ["-N", "never,delay"],
            "option -N never,delay: expected never, or some of success, failure, delay",
        ),
        (["-R", "some"], "option -R some: expected full or hdrs"),
        (["-V", "a b\x7f"], "option -V: expected at most 100 printable ASCII characters"),
        (["-qI"], "option -qI needs a value"),
        (["-qR", "x"], "option -qR needs a value"),
        (["-qS"], "option -qS needs a value"),
        (["-oMr"], "option -oMr needs a value"),
        (["-o", "Mr"], "option -oMr needs a value"),
        (["-bd"], "option -bd: this program has no such mode"),
        (["-bD"], "option -bD: this program has no such mode"),
        (["-b"], "option -b: this program has no such mode"),
        (["-bpx"], "option -bpx: this program has no such mode"),
        (["-q15m"], "option -q15m: there is no daemon here that would run at intervals"),
    ],
    ids=str,
)
def test_what_is_refused(line, complaint):
    with pytest.raises(UsageError) as raised:
        parse(line)
    assert (str(raised.value), raised.value.exit_code) == (complaint, 64)
