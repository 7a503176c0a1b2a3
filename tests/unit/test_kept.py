"""What is kept is made once, and never more of it than was asked for."""

from minisend.kept import Kept


def test_made_once_and_no_more_than_so_many():
    asked = []

    def make(a: int, b: str) -> str:
        asked.append((a, b))
        return b * a

    kept = Kept(make, 2)
    assert [kept[2, "x"], kept[2, "x"], kept[3, "y"]] == ["xx", "xx", "yyy"]
    assert asked == [(2, "x"), (3, "y")]
    assert kept[1, "z"] == "z"
    assert dict(kept) == {(1, "z"): "z"}
    assert kept[2, "x"] == "xx"
    assert asked == [(2, "x"), (3, "y"), (1, "z"), (2, "x")]
