"""Submissions by other accounts, by confined processes, and by many at a time, against the service as it is installed."""
