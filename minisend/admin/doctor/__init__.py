"""minisend doctor: is this machine as it must be for mail to be taken and to leave?

    report      which looks are taken, and how it is told; the exit code
    check       what one look has found
    system      one queue for all users: account, directories, socket, drop, what systemd was told
    queue       any queue: is it well, is there room, is it served
    secrets     what the delivery has to show to servers: passwords, tokens, credentials
    systemd     what it tells of the services
    machine     name, DNS, clock, whose sendmail programs call, set-id bits

In a queue of one's own it is that queue; where there is one for all users also the account, each directory of
minisend.spool.layout, the socket and what systemd was told.  What belongs to the account is looked at as the account, in
a process that has become it: root opens nothing in a directory that somebody else controls.

Changes nothing but what minisend.admin.check writes and removes, runs no password command, asks no server.

Source: DESIGN section 3; PEERS section 4.3 (attacks), A6 for the two sysctls.
"""
