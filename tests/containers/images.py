"""Our image from the Dockerfile, of this commit and of one before, on base images of Debian's packages."""

import asyncio
import os
import shutil
from pathlib import Path

from tests.containers import FOLDER, HERE, ROOT
from tests.containers.machine import Machine, checked, release, sources

NAME = "evergrant:0.1.0"
_PYTHON = "evergrant-test/python"
_POSTGRES = "evergrant-test/postgres"
_OF_PYTHON = "python3,python3-pip,python3-venv,ca-certificates"
_OF_POSTGRES = "postgresql,netcat-openbsd,ca-certificates"
_OF_IMAGE = (
    "Dockerfile .dockerignore docker-compose.yml deploy requirements alembic.ini worker.py migrations "
    "evergrant_server workflows activities providers"
)
_LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=90000:90000")
# how this machine's pip reaches its index; read-only, and in no layer
_OF_PIP = ("/etc/pip.conf", "/etc/ssl/certs")


_BUILDAH = (
    *("buildah", "--root", str(FOLDER / "buildah"), "--runroot", "/run/buildah"),
    *("--storage-driver", "overlay"),
)


async def base_images(machine: Machine) -> None:
    """Make the base images of this Debian's packages, once."""
    await asyncio.gather(_rootfs(machine, "python", _OF_PYTHON), _rootfs(machine, "postgres", _OF_POSTGRES))


async def _rootfs(machine: Machine, name: str, packages: str) -> None:
    tar, folder = FOLDER / f"{name}.tar", FOLDER / f"{name}.root"
    if await asyncio.to_thread(tar.exists):
        return
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    options = (
        "--mode=root",
        "--variant=minbase",
        f"--include={packages}",
        '--aptopt=APT::Sandbox::User "root"',
    )
    made = (release(), str(folder), str(sources()))
    await machine.run("mmdebstrap", *options, *made, network=False, within_s=1200)
    _furnish(name, folder)
    part = f"{tar}.part"
    await machine.run("tar", "--create", f"--file={part}", f"--directory={folder}", ".")
    await asyncio.to_thread(os.rename, part, tar)
    await asyncio.to_thread(shutil.rmtree, folder)


def _furnish(name: str, folder: Path) -> None:
    """What the images that they stand in for have besides."""
    if name == "python":
        (folder / "usr/bin/python").symlink_to("python3")
        for mark in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        return
    shutil.copy(HERE / "postgres-entrypoint.sh", folder / "entrypoint.sh")
    (folder / "entrypoint.sh").chmod(0o755)
    for program in folder.glob("usr/lib/postgresql/*/bin/*"):
        (folder / "usr/local/bin" / program.name).symlink_to(Path("/") / program.relative_to(folder))


async def load_postgres(machine: Machine) -> None:
    """Import PostgreSQL's stand-in under the names that the compose file and its override want."""
    tar = str(FOLDER / "postgres.tar")
    changes = ("--change", 'ENTRYPOINT ["/entrypoint.sh"]', "--change", 'CMD ["postgres"]')
    await machine.run("docker", "import", *changes, tar, f"{_POSTGRES}:latest")
    await machine.run("docker", "tag", f"{_POSTGRES}:latest", "postgres:18")


async def build(machine: Machine, source: Path, archive: Path) -> int:
    """Build our image from a checkout's Dockerfile into an archive; returns its bytes."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    if _PYTHON not in await machine.run(*_BUILDAH, "images", "--format", "{{.Name}}"):
        container = (await machine.run(*_BUILDAH, "from", "scratch")).split()[-1]
        await machine.run(*_BUILDAH, "add", container, str(FOLDER / "python.tar"), "/")
        await machine.run(*_BUILDAH, "commit", "--rm", container, f"localhost/{_PYTHON}")
    epoch = checked(["git", "log", "-1", "--format=%ct", "HEAD"])
    how = ("--network", "host", "--isolation", "chroot", "--layers", "--pull=never", *_LIMITS, *_pip_mounts())
    arguments = (f"--build-arg=PYTHON=localhost/{_PYTHON}", f"--build-arg=SOURCE_DATE_EPOCH={epoch}")
    words = (*_BUILDAH, "build", *how, *arguments, "--format", "docker", "--tag", NAME, str(source))
    await machine.run(*words, network=False, env=environment, within_s=1800)
    await machine.run(*_BUILDAH, "push", NAME, f"docker-archive:{archive}:{NAME}")
    return (await asyncio.to_thread(archive.stat)).st_size


def _pip_mounts() -> list[str]:
    return [f"--volume={place}:{place}:ro" for place in _OF_PIP if Path(place).exists()]


def checkout(commit: str, folder: Path) -> None:
    """What a commit's image is built of, with today's list of that: once it left out what the Dockerfile
    copies."""
    folder.mkdir()
    files = f"git -C {ROOT} archive {commit} {_OF_IMAGE}"
    checked(["bash", "-euc", f"{files} | tar --extract --directory {folder}"])
    shutil.copy(ROOT / ".dockerignore", folder)
