"""What `nni-gumbel init` writes."""

from pathlib import Path

import pytest

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.starter import STARTER_FILES, write_starter

REPOSITORY = Path(__file__).parents[2]


def test_the_files_of_the_clone_are_written(tmp_path):
    written = write_starter(tmp_path / "new" / "folder")
    assert [str(path.relative_to(tmp_path / "new" / "folder")) for path in written] == list(STARTER_FILES)
    for path, name in zip(written, STARTER_FILES):
        assert path.read_bytes() == (REPOSITORY / name).read_bytes()


def test_the_files_written_are_those_that_the_package_carries():
    declared = (REPOSITORY / "setup.cfg").read_text()
    section = declared.split("[options.data_files]")[1].split("[options")[0]
    assert all(f"    {name}\n" in section for name in STARTER_FILES)


def test_nothing_is_overwritten_and_nothing_is_written_beside_it(tmp_path):
    (tmp_path / "experiment.yml").write_text("mine")
    with pytest.raises(UsageError, match=r"experiment.yml exists and is not overwritten"):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yml"]
    assert (tmp_path / "experiment.yml").read_text() == "mine"


def test_a_file_in_the_place_of_the_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"DIR: .*cannot be written"):
        write_starter(tmp_path / "file")
