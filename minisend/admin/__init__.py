"""What people see: mailq, the minisend command and its demo."""
