"""The matrix: `nox` runs all of it, `nox -s NAME` one row, `nox -l` lists them."""

import os
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.error_on_missing_interpreters = False  # a missing one is reported, and skipped
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "tests", "lowest", "coverage", "docs", "package"]

# pyenv's shims run one version only; the others are beside them.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
for folder in sorted(PYENV.glob("versions/3.*/bin")):
    os.environ["PATH"] += os.pathsep + str(folder)

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
MERMAID = "mermaid@11.17.2"
MERMAID_SHA256 = "581ed7d74bd9048d0e3a91363927d72ef22942d7722546b27f7cc29e35390eb8"
SDKS = {"2": "mcp>=2,<3", "1": "mcp>=1.24,<2"}


def run_tests(session: nox.Session, *options: str) -> None:
    data_file = Path.cwd() / f".coverage.{session.name}"
    session.run(
        *("coverage", "run", "-m", "pytest", "-q", "-n", "4", *options, *session.posargs),
        env={"COVERAGE_FILE": str(data_file)},
    )


@nox.session(python=PYTHONS)
@nox.parametrize("sdk", list(SDKS))
def tests(session: nox.Session, sdk: str) -> None:
    session.install(".[test]", SDKS[sdk])
    # The examples are programs, which take their time. `.ci/run` has run them with mcp 2.x before, and
    # `lowest` runs them, too.
    runs_examples = session.python in {"3.13", "3.14"} and sdk == "1"
    run_tests(session, *([] if runs_examples else ["--ignore=tests/test_examples.py"]))


@nox.session(python="3.11", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The lowest declared version of everything that ownertask declares."""
    session.install("--resolution", "lowest-direct", ".[test]")
    run_tests(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """Of all the runs before, together: no single one has both lines of the SDK."""
    session.install("coverage[toml]>=7.10")
    session.run("coverage", "combine", "--keep", "-q")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint, and types, against mcp 2."""
    session.install(".[lint]", SDKS["2"])
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("codespell")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "ownertask", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into `site/`; `nox -s docs -- serve` serves it instead."""
    session.install(".[docs]", SDKS["2"])
    add_mermaid(session)
    mkdocs = ("mkdocs", *(session.posargs or ["build", "--strict", "--quiet"]))
    session.run(*mkdocs, env={"NO_MKDOCS_2_WARNING": "1"})


def add_mermaid(session: nox.Session) -> None:
    """What draws the diagrams, into the site, which asks no other host for anything; needs npm."""
    script = Path("docs/javascripts/mermaid.min.js")
    if script.exists() and sha256(script.read_bytes()).hexdigest() == MERMAID_SHA256:
        return
    if shutil.which("npm") is None:
        session.error("the site needs npm once, for what draws its diagrams")
    folder = Path(session.create_tmp())
    session.run("npm", "pack", "--silent", f"--pack-destination={folder}", MERMAID, external=True)
    (package,) = folder.glob("mermaid-*.tgz")
    with tarfile.open(package) as files:
        source = files.extractfile("package/dist/mermaid.min.js")
        assert source is not None
        script.parent.mkdir(exist_ok=True)
        content = source.read()
        if sha256(content).hexdigest() != MERMAID_SHA256:
            session.error(f"{MERMAID} is not what it was")
        script.write_bytes(content)


@nox.session
def package(session: nox.Session) -> None:
    """What is built can be installed, and imports."""
    session.install("build")
    folder = session.create_tmp()
    session.run("python", "-m", "build", "-q", "-o", folder)
    (wheel,) = Path(folder).glob("*.whl")
    session.install(str(wheel))
    session.run("python", "-W", "error", "-c", "import ownertask, ownertask.mcp")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Ratios, each from one run; not a test."""
    session.install(".[test]", SDKS["2"], env={"UV_COMPILE_BYTECODE": "1"})
    session.run("python", "tests/benchmarks/core.py", *session.posargs)
    session.run("python", "tests/benchmarks/websocket.py", *session.posargs)


@nox.session
def proof(session: nox.Session) -> None:
    """The long search: every scenario struck twice, and some hundred thousand random steps."""
    session.install(".[test]", SDKS["2"])
    search = ("tests/proof/test_sweep.py", "tests/proof/test_random.py")
    session.run("pytest", "-q", "-n", "4", *search, env={"OWNERTASK_PROOF": "long"})


@nox.session
def mutants(session: nox.Session) -> None:
    """Seeds faults into a copy of the core, and has the search look for each."""
    session.install(".[test]", SDKS["2"])
    session.run("python", "tests/proof/mutants.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """2,000 cycles over stdio."""
    session.install(".[test]", SDKS["2"])
    options = ("-o", "faulthandler_timeout=0", "-n", "2")  # which ends what takes longer than that
    session.run("pytest", *options, "tests/proof/test_soak.py", env={"OWNERTASK_PROOF": "soak"})
