"""Whatever happens to a store's files, a run ends with the records of one to which nothing did.

What is damaged is named in one line and kept; what is somebody else's is left as it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_study
from damage import flip, flipped, same_records
from hypothesis import given
from hypothesis import strategies as st
from toy_study import Walk

from undertow import lab
from undertow.lab._files import write_atomically

STUDY = toy_study.walks(*(Walk(seed) for seed in range(4)), Walk(9, fate="returns"), size=2)
IDENTITIES = STUDY.identities["walks"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store: four trials with records, one that fails."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    run(folder)
    store = lab.Store(folder)
    store.write_json("verdict.json", {"verdict": "supported"})
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the finished store."""
    return Path(shutil.copytree(sound, tmp_path / "run"))


def run(folder: Path) -> lab.Results:
    return lab.run(STUDY, lab.Store(folder), engine="inline", progress=False)


with tempfile.TemporaryDirectory() as _folder:
    EXPECTED = run(Path(_folder))


def record(folder: Path, index: int = 0) -> Path:
    return folder / "trials" / f"{IDENTITIES[index]}.parquet"


@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed_and_mended(sound: Path, data: st.DataObject) -> None:
    files = sorted(path for path in sound.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    bit = data.draw(st.integers(0, 8 * path.stat().st_size - 1))
    with flipped(sound, path, bit) as copy:
        results = run(copy.folder)
        same_records(results, EXPECTED)
        assert len(results.failures) == 1
        verdict = lab.Store(copy.folder).read_json("verdict.json")
        assert verdict in (None, {"verdict": "supported"})
        tried_again = path.parent.name == "failures"
        assert tried_again or path.name in copy.said()
        assert copy.said().count("\n") <= 1


def test_each_bit_of_a_record_counts(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, store = record(folder), lab.Store(folder)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 37):
        path.write_bytes(flip(whole, bit))
        assert store.load(IDENTITIES[:1]).trials == {}, bit
        assert not path.exists()
        error = capfd.readouterr().err
        assert error.count("\n") == 1
        assert path.name in error
    kept = list((folder / "damaged").iterdir())
    assert len(kept) == len(range(0, 8 * len(whole), 37))


@pytest.mark.parametrize("kind", ["json", "record"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: content[:5],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-4],
        lambda content: content + b"\n",
        lambda content: content + content,
        lambda content: content[: len(content) // 2] + b"x" + content[len(content) // 2 :],
        lambda content: b"[]\n",
        lambda content: b"{}\n",
        lambda content: b'{"format": 1, "study": null, "config": {}}',
    ],
)  # fmt: skip
def test_what_is_not_the_file_is_set_aside(
    folder: Path, sound: Path, change: Callable[[bytes], bytes], kind: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = record(folder) if kind == "record" else folder / "environment.json"
    changed = change(path.read_bytes())
    path.write_bytes(changed)
    same_records(run(folder), EXPECTED)
    assert (folder / "damaged" / path.name).read_bytes() == changed
    assert f"{path.name} " in capfd.readouterr().err
    same_records(run(folder), EXPECTED)
    assert capfd.readouterr().err == ""


def test_a_record_belongs_to_its_name(folder: Path, sound: Path) -> None:
    """Swapped, or one copied over another, or from another trial's place."""
    one, two, three = (record(folder, index) for index in range(3))
    here, there = one.read_bytes(), two.read_bytes()
    one.write_bytes(there)
    two.write_bytes(here)
    three.write_bytes(there)
    results = run(folder)
    same_records(results, EXPECTED)
    assert results.computed == 4  # the trial that failed is tried again


def test_failures_belong_to_their_names(folder: Path) -> None:
    failed = folder / "failures" / f"{IDENTITIES[4]}.json"
    failed.rename(failed.with_name(f"{IDENTITIES[0]}.json"))
    assert lab.Store(folder).failures() == ()
    found = lab.stored(STUDY, lab.Store(folder))
    assert (len(found.failures), found.missing) == (0, 1)


def full_folder(path: Path) -> None:
    (path / "within").mkdir(parents=True)


STRANGERS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a full folder": full_folder,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a file": lambda path: path.symlink_to(__file__),
}


@pytest.mark.parametrize("what", STRANGERS)
@pytest.mark.parametrize(
    "name",
    ["config.json", "environment.json", "verdict.json", ".lock", "record", "failure", "trials",
     "failures", "damaged"],
)  # fmt: skip
def test_what_is_no_file_heals_or_is_named(
    folder: Path, sound: Path, name: str, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    named = {"record": record(folder), "failure": folder / "failures" / f"{IDENTITIES[4]}.json"}
    path = named.get(name, folder / name)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    STRANGERS[what](path)
    for _ in range(2):  # not for ever
        said = ""
        try:
            results = run(folder)
            lab.Store(folder).write_json("verdict.json", {"verdict": "supported"})
            same_records(results, EXPECTED)
        except lab.StoreError as error:
            said = str(error)
        assert path.name in said or not said
        assert capfd.readouterr().err.count("\n") <= 1


def test_somebody_elses_files_stay_as_they_were(folder: Path, tmp_path: Path) -> None:
    """Under links, hard links and names like ours."""
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").symlink_to(mine)
    (folder / "environment.json").unlink()
    (folder / "environment.json").symlink_to(mine)
    record(folder, 1).unlink()
    record(folder, 1).symlink_to(mine)
    run(folder)
    assert mine.read_text() == "years of work"
    (folder / ".lock").unlink()
    os.link(mine, folder / ".lock")
    run(folder)
    assert mine.read_text() == "years of work"
    beside = [folder / "trials" / "notes.parquet", folder / "failures" / "notes.json"]
    for path in beside:
        path.write_text("not of a trial")
    run(folder)
    assert [path.read_text() for path in beside] == ["not of a trial"] * 2


def test_a_lost_config_is_written_anew_for_who_knows_the_run(folder: Path, sound: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(lab.StoreError, match=r"config.json is not there.*start the same run again"):
        lab.Store(folder, create=False)
    results = run(folder)
    same_records(results, EXPECTED)
    assert results.computed == 1
    assert lab.Store(folder, create=False).study == "walks"


def test_a_config_of_somebody_else_is_left(tmp_path: Path) -> None:
    """As of a Hugging Face model."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for others in ((), ("model.safetensors",)):
        for name in others:
            (tmp_path / name).write_text("x")
        with pytest.raises(
            lab.StoreError, match=r"not an Undertow store: config.json has no digest"
        ):
            lab.Store(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


READ_ONLY = """
import os, sys, tempfile
import toy_study
from undertow import lab

def run(store):
    return lab.run(study, store, engine="inline", progress=False)

study = toy_study.walks(*(toy_study.Walk(seed) for seed in range(4)), size=2)
run(lab.Store(tempfile.mkdtemp()))  # loads what must be loaded by who may read it
lab.stored(study, lab.Store(sys.argv[1]))
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
store = lab.Store(sys.argv[1], create=False)
results = run(store)
print(results.computed, len(results.records["walks"]), len(store.records()))
try:
    store.write_text("x", "x")
except lab.StoreError as error:
    print(error.read_only)
"""


def test_a_finished_store_may_be_read_only(tmp_path: Path) -> None:
    study = toy_study.walks(*(Walk(seed) for seed in range(4)), size=2)
    with tempfile.TemporaryDirectory() as place:  # that of a test is closed to others
        Path(place).chmod(0o755)
        folder = Path(place) / "run"
        lab.run(study, lab.Store(folder), engine="inline", progress=False)
        (folder / ".lock").unlink()
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder)],
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            check=False,
        )
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
    assert (done.stdout, done.stderr) == ("0 12 12\nTrue\n", "")


def test_pipes_and_devices_are_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    before = os.stat("/dev/null")
    write_atomically(Path("/dev/null"), b"gone")
    assert os.path.samestat(before, os.stat("/dev/null"))


def test_a_file_that_cannot_be_written_promises_no_store(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(lab.StoreError, match="is a folder; move it away") as raised:
        lab.write_page(lab.Document("x"), tmp_path / "page.html")
    assert "stored" not in str(raised.value)
