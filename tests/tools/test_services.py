"""`tools/services`: says what is there, installs what is not, never fails a developer."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "services"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH on which there is no service yet, only what the script itself calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "head", "env"):
        found = next(p for d in ("/bin", "/usr/bin") if (p := Path(d) / name).exists())
        (folder / name).symlink_to(found)
    _program(folder, "id", "echo 1000")
    return folder


@pytest.fixture
def run(programs: Path, tmp_path: Path) -> Run:
    # A copy without the line that adds the system's folders, for these have the real services.
    text = SCRIPT.read_text(encoding="utf-8")
    line = 'PATH="$PATH:/usr/sbin:/sbin"'
    assert line in text
    copy = tmp_path / "services"
    copy.write_text(text.replace(line, ":"), encoding="utf-8")

    def run(*arguments: str, ci: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(programs / "bash"), str(copy), *arguments],
            env={
                "PATH": str(programs),
                "CI": "true" if ci else "",
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def _program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!{folder}/bash\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_status_gives_a_line_and_a_version_for_each(run: Run, programs: Path):
    _program(programs, "psql", "echo psql 99.1")
    done = run("status", "psql", "chromium")
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ok", "psql"],
        ["missing", "chromium"],
    ]
    assert "psql 99.1" in done.stdout
    assert "tests/web" in done.stdout


def test_install_does_nothing_where_all_is_there(run: Run, programs: Path):
    _program(programs, "psql", "echo psql 99.1")
    _program(programs, "apt-get", "echo never; exit 9")
    done = run("install", "psql", ci=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_developer_without_rights_is_told_the_one_command(run: Run, programs: Path):
    _program(programs, "apt-get", "exit 9")
    done = run("install")
    assert done.returncode == 0
    assert "sudo apt-get install mariadb-server-core mariadb-client-core chromium" in done.stderr
    assert "these tests are left out: the pages in a browser (tests/web)" in done.stderr


def test_in_continuous_integration_a_missing_service_is_a_failure(run: Run):
    done = run("install", ci=True)
    assert done.returncode == 1
    assert "missing  mariadb" in done.stderr


def test_root_installs_what_is_missing_and_only_that(run: Run, programs: Path):
    _program(programs, "id", "echo 0")
    _program(programs, "psql", "echo psql 99.1")
    made = f"printf '#!{programs}/bash\\necho Chromium 150' > {programs}/chromium"
    chmod = next(p for d in ("/bin", "/usr/bin") if (p := Path(d) / "chmod").exists())
    install = f"{made}; {chmod} +x {programs}/chromium"
    _program(programs, "apt-get", f'echo "apt-get $*"; if [ "$1" = install ]; then {install}; fi')
    done = run("install", "chromium", "psql", ci=True)
    assert done.returncode == 0, done.stderr
    assert "apt-get install -qq -y --no-install-recommends chromium\n" in done.stderr


def test_a_failed_installation_says_so(run: Run, programs: Path):
    _program(programs, "id", "echo 0")
    _program(programs, "apt-get", "echo no network; exit 100")
    done = run("install", "psql", ci=True)
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert "apt-get failed" in done.stderr


def _maven(programs: Path, script: str) -> None:
    for name in ("cat", "mkdir", "mv", "rm", "dirname"):
        found = next(p for d in ("/bin", "/usr/bin") if (p := Path(d) / name).exists())
        (programs / name).symlink_to(found)
    _program(programs, "java", "exit 9")
    _program(programs, "mvn", script)


def test_kafka_is_brought_from_maven_central_whole(run: Run, programs: Path, tmp_path: Path):
    """Its folder is there with all jars or not at all, and then it is not brought again."""
    jars = 'for a in "$@"; do case "$a" in -DoutputDirectory=*) o="${a#*=}" ;; esac; done'
    _maven(programs, f'{jars}; mkdir -p "$o"; echo jar > "$o/kafka.jar"')
    done = run("install", "kafka", ci=True)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "cache" / "theon").iterdir()
    assert (folder / "libs" / "kafka.jar").exists()
    _program(programs, "mvn", "exit 9")
    assert run("install", "kafka", ci=True).stderr == ""


def test_where_maven_fails_nothing_of_kafka_is_left(run: Run, programs: Path, tmp_path: Path):
    _maven(programs, "echo no network; exit 1")
    done = run("install", "kafka", ci=True)
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert list((tmp_path / "cache" / "theon").iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("begin",), ("status", "zookeeper")])
def test_wrong_use_names_what_there_is(run: Run, arguments: tuple[str, ...]):
    done = run(*arguments)
    assert done.returncode == 2
    assert "mariadb chromium psql redis kafka" in done.stderr


def test_it_is_a_program():
    assert os.access(SCRIPT, os.X_OK)
