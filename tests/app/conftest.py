import os
import shutil
import tempfile
from pathlib import Path

import pytest

NOBODY = 65534


class AsNobody:
    """A context in which the process may not do everything, also where the tests run as root.

    Attributes:
        folder: an empty folder that everybody may enter; pytest's own are closed to others.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp())
        self.folder.chmod(0o755)

    def __enter__(self):
        self.user = os.geteuid()
        if self.user == 0:
            os.setresuid(NOBODY, NOBODY, 0)
        return self

    def __exit__(self, *_):
        os.setresuid(self.user, self.user, self.user)


@pytest.fixture
def as_nobody():
    """``with as_nobody:`` takes the rights of root away; ``as_nobody.folder`` is a folder to try it in."""
    nobody = AsNobody()
    yield nobody
    for path in nobody.folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(nobody.folder)
