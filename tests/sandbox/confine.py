"""Runs a command that may not make sockets of the unix kind, as under systemd's RestrictAddressFamilies=.

    python3 -IS confine.py COMMAND [ARGUMENT ...]

A seccomp filter: seccomp(2), socket(AF_UNIX, ...) fails with EAFNOSUPPORT; all else is allowed.
"""

import ctypes
import errno
import os
import socket
import struct
import sys

_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of linux/bpf_common.h, 32 bits each
_NUMBER, _FIRST_ARGUMENT = 0, 16  # in struct seccomp_data
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2


def main() -> None:
    steps = [
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 3, _SOCKET_CALL[os.uname().machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 1, socket.AF_UNIX),
        (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    octets = b"".join(struct.pack("=HBBI", *step) for step in steps)
    code = ctypes.create_string_buffer(octets, len(octets))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in [(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, program, 0, 0)]:
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
