"""Who may import whom: every import in the package is one that the layers allow.

errors, address, envelope, config, kept, log, value    base: each other
message    → base                spool     → base
submit     → base, message, spool          nobody imports submit or admin
submit.smtp → also smtp.server: sendmail -bs, and no other module of submit
smtp       → errors, address, envelope, log, value
delivery   → base, message, spool, smtp
admin      → everything but submit
__main__   exempt: it picks the face
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "minisend"

BASE = frozenset({"errors", "address", "envelope", "config", "kept", "log", "value"})
MAY_IMPORT = {
    "": frozenset(),  # minisend/__init__.py
    **dict.fromkeys(BASE, BASE),
    "message": BASE | {"message"},
    "spool": BASE | {"spool"},
    "submit": BASE | {"message", "spool", "submit"},
    "smtp": frozenset({"errors", "address", "envelope", "log", "value", "smtp"}),
    "delivery": BASE | {"message", "spool", "smtp", "delivery"},
    "admin": BASE | {"message", "spool", "smtp", "delivery", "admin"},
}
# minisend/__init__.py itself, which imports nothing, is for all.
ANYBODY = ("", "__version__")


# module → what it alone may import, beside what its room may
EXCEPTIONS = {"submit/smtp.py": {"smtp.server"}}


def imports(source: str) -> set[str]:
    """What of minisend a source imports, as ``room.module``: also in functions and for type checking.

    ``from minisend.room import name`` counts as ``room.name``, whether ``name`` is a module or not.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
            in ("__import__", "import_module")
        ):
            names = [
                argument.value
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "minisend" and rest not in ANYBODY:
                found.add(".".join(rest.split(".")[:2]))
    return found


def room(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_allowed(path):
    allowed = MAY_IMPORT[room(path)]
    own = EXCEPTIONS.get(str(path.relative_to(PACKAGE)), set())
    found = {name for name in imports(path.read_text()) if name.partition(".")[0] not in allowed}
    assert found - own == set()


def test_every_room_is_known():
    assert {room(path) for path in MODULES} == set(MAY_IMPORT)


def test_submit_reaches_no_delivery_at_second_hand():
    """Nothing that submit may import may import what submit may not, message's and spool's being the base alone."""
    reached = set(MAY_IMPORT["submit"])
    for name in list(reached):
        reached |= MAY_IMPORT[name]
    assert reached == MAY_IMPORT["submit"]


@pytest.mark.parametrize(
    "source",
    [
        "from minisend.delivery.flush import flush",
        "import minisend.delivery.flush",
        "import minisend.delivery.flush as f",
        "from minisend import delivery",
        "def f():\n    from minisend.delivery import flush",
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from minisend.delivery import flush",
        "import importlib\nimportlib.import_module('minisend.delivery.flush')",
        "__import__('minisend.delivery')",
        "try:\n    import minisend.delivery\nexcept ImportError:\n    pass",
    ],
)
def test_no_form_of_import_is_overlooked(source):
    assert {name.partition(".")[0] for name in imports(source)} == {"delivery"}


def test_the_exceptions_are_needed():
    """Each is used by the module that has it; one that is not goes."""
    used = {name: imports((PACKAGE / name).read_text()) for name in EXCEPTIONS}
    assert {name: found & EXCEPTIONS[name] for name, found in used.items()} == EXCEPTIONS


@pytest.mark.parametrize("source", ["import minisend", "from minisend import __version__"])
def test_the_package_itself_is_for_all(source):
    assert imports(source) == set()
