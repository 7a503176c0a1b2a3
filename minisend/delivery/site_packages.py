"""What distributions and pip install beside the standard library: dnspython, cryptography.  Packages start this program by
``python3 -S``, which leaves it out, since looking for it takes as long as a submission.
"""


def reach() -> None:
    """From here on it can be imported."""
    import sys

    if sys.flags.no_site and "site" not in sys.modules:
        import site

        site.main()
