import os
import stat
from pathlib import Path

import pytest

from ssl_backdoor.errors import UserError
from tasks import embedded_ray


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder for temporary files; short, as a test's own may not be."""
    monkeypatch.setattr(embedded_ray, "_MAX_FOLDER_BYTES", 200)
    monkeypatch.setattr(embedded_ray.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_new(place):
    kept = [embedded_ray._make_folder() for _ in range(2)]
    assert len({folder for folder, _ in kept}) == 2
    for folder, lock in kept:
        assert folder.parent == place
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        embedded_ray._remove(folder, lock)
        assert not folder.exists()


def test_folders_of_killed_runs_go_and_those_in_use_stay(place):
    (used, lock), (killed, other) = (embedded_ray._make_folder() for _ in range(2))
    other.close()  # as a process that is killed does
    (killed / "session").mkdir()
    _, third = embedded_ray._make_folder()
    assert not killed.exists()
    assert used.exists()
    for each in (lock, third):
        each.close()


def test_what_somebody_else_put_there_is_left_alone_and_not_followed(place):
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (place / "ssl-ray-link").symlink_to(elsewhere)
    (place / "ssl-ray-file").touch()
    (place / "ssl-ray-bare").mkdir()
    target = place / "target"
    target.touch()
    (place / "ssl-ray-bare" / "lock").symlink_to(target)
    _, lock = embedded_ray._make_folder()
    lock.close()
    assert {"elsewhere", "ssl-ray-link", "ssl-ray-file", "ssl-ray-bare", "target"} <= {
        one.name for one in place.iterdir()
    }
    assert (elsewhere / "lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_stays(place):
    folder, lock = embedded_ray._make_folder()
    lock.close()
    os.chown(folder, 65534, 65534)
    embedded_ray._make_folder()[1].close()
    assert folder.exists()


def test_a_long_name_gives_way_to_a_short_one_or_is_told(monkeypatch):
    monkeypatch.setattr(embedded_ray.tempfile, "gettempdir", lambda: "/" + "long" * 30)
    folder, lock = embedded_ray._make_folder()
    assert folder.parent == Path("/tmp")
    embedded_ray._remove(folder, lock)
    monkeypatch.setattr(embedded_ray, "_MAX_FOLDER_BYTES", 10)
    with pytest.raises(UserError, match=r"too long a name .* set TMPDIR to a shorter one"):
        embedded_ray._make_folder()
