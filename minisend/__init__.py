"""minisend: a Sendmail-compatible local submission agent.

This file imports nothing: every submission loads it.
"""

__version__ = "0.1.0"
