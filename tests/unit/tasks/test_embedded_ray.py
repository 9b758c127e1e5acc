import os
import stat
import sys
from pathlib import Path

import pytest

from ssl_backdoor.errors import UserError
from tasks import embedded_ray, ray_settings


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder for temporary files; short, as a test's own may not be."""
    monkeypatch.setattr(ray_settings, "_MAX_FOLDER_BYTES", 200)
    monkeypatch.setattr(ray_settings.tempfile, "gettempdir", lambda: str(tmp_path))
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
    monkeypatch.setattr(ray_settings.tempfile, "gettempdir", lambda: "/" + "long" * 30)
    folder, lock = embedded_ray._make_folder()
    assert folder.parent == Path("/tmp")
    embedded_ray._remove(folder, lock)
    monkeypatch.setattr(ray_settings, "_MAX_FOLDER_BYTES", 20)
    with pytest.raises(UserError, match=r"too long a name .* set TMPDIR to a folder of at most 3 bytes"):
        embedded_ray._make_folder()


def test_workers_look_for_modules_where_the_driver_does(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path / "of-the-driver"), *sys.path])
    config = embedded_ray.OwnModules()
    config._py_driver_sys_path.extend([str(tmp_path / "of-the-driver"), str(tmp_path)])  # as ray.init does
    assert list(config._get_proto_job_config().py_driver_sys_path) == [str(tmp_path / "of-the-driver")]
