"""The test matrix. `nox` runs all sessions, `nox -s NAME` runs one, and `nox -l` lists them."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.error_on_missing_interpreters = False  # skips the session and reports it
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "tests", "lowest", "coverage", "libraries", "docs", "package"]

# pyenv's shims select a single version. This makes the other installed versions available, too.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
for folder in sorted(PYENV.glob("versions/3.*/bin")):
    os.environ["PATH"] += os.pathsep + str(folder)

# The tests start many processes. Without this, each one compiles the SDK again if Python may not write
# bytecode. In sessions that import few modules, compiling all of them would take longer.
os.environ.setdefault("UV_COMPILE_BYTECODE", "1")
COMPILE_ON_IMPORT = {"UV_COMPILE_BYTECODE": "0"}

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15"]
EXTRAS = ["none", "cli", "trio", "websocket"]  # other sessions install the developers' extras
SDKS = {"2": "mcp>=2,<3", "1": "mcp>=1.24,<2"}
PYTEST = ("pytest", "-q", "-n", os.environ.get("OWNERTASK_WORKERS", "4"))
# The searches in `tests/proof` that do not use the SDK. Most have a virtual clock and the same seeds in
# each session, so running them again would find nothing. The README's command searches with asyncio and
# trio, and the session with Python 3.13 with eager tasks. With mcp 1.x, only other searches run again.
SEARCHES = ["many_random", "many_sweep", "nested", "odd", "random", "signals", "threads"]
REAL_TIME = "test_no_spin or test_signals or test_threads"
# The sessions that measure coverage: the options for the tests that each one measures, and for the rest.
# Measured tests take longer. The searches run no branches that the other tests do not run, so they are
# not measured.
MEASURED = {
    "lowest": (["tests/mcp"], ["--ignore=tests/mcp"]),
    "tests-3.13(sdk='2')": (
        ["--ignore=tests/proof"],
        ["tests/proof", "-k", f"eager or {REAL_TIME}"],
    ),
}
# The requirements of each example in `examples/frameworks`: a framework and an SDK version that it works
# with. The lower bounds are the versions that were tested.
FRAMEWORKS = {
    "patched_mcp_use": ("mcp-use>=1.7.1,<1.8", "websockets", SDKS["1"]),
    "with_agno": ("agno>=3.1.10", SDKS["2"]),
    "with_autogen": ("autogen-ext>=0.7.5", "autogen-core>=0.7.5", SDKS["1"]),
    "with_fastmcp": ("fastmcp>=4.2.3", SDKS["2"]),
    "with_google_adk": ("google-adk>=2.13", SDKS["2"]),
    "with_langchain": ("langchain-mcp-adapters>=0.3.2", SDKS["1"]),
    "with_llama_index": ("llama-index-tools-mcp>=0.6", SDKS["2"]),
    "with_openai_agents": ("openai-agents>=0.24", SDKS["2"]),
    "with_pydantic_ai": ("pydantic-ai-slim[mcp]>=2.68", SDKS["2"]),
    "with_semantic_kernel": ("semantic-kernel[mcp]>=1.45", SDKS["1"]),
    "with_smolagents": ("smolagents>=1.26", "mcpadapt>=0.1.20", "websockets", SDKS["1"]),
    "with_strands": ("strands-agents>=1.62", SDKS["2"]),
}
# The libraries of `examples/libraries` and their types, in the versions that were tested.
LIBRARIES = [
    "aiomqtt>=2.5,<3",
    "asyncpg>=0.32,<0.33",
    "asyncpg-stubs>=0.32,<0.33",
    "asyncssh>=2.24,<3",
    "grpcio>=1.85,<2",
    "httpx>=0.28,<0.29",
    "psycopg[binary,pool]>=3.3,<4",
    "redis>=8.1,<9",
    "types-grpcio>=1.0.0.20260101,<2",
]
# The reference servers of the protocol, in the versions that were tested.
NPM_SERVERS = [
    f"@modelcontextprotocol/server-{name}@^2026.8.31"
    for name in ("everything", "filesystem", "memory", "sequential-thinking")
]
PYPI_SERVERS = [
    "mcp-server-fetch>=2026.10.24,<2027",
    "mcp-server-git>=2026.10.19,<2027",
    "mcp-server-time>=2026.10.19,<2027",
]
# The official conformance suite, and Node.js, since the suite requires a version that few systems have.
CONFORMANCE = ["@modelcontextprotocol/conformance@^0.2.0-alpha.12", "node@^22"]
# The libraries that `tests/comparison` tries, each with an SDK version that it works with.
COMPARED = {
    "fastmcp": ("fastmcp>=4.2.3,<5", SDKS["2"]),
    "google_adk": ("google-adk>=2.13,<3", SDKS["2"]),
    "mcp_pool": ("mcp-pool>=1,<2", "httpx>=0.28,<0.29", SDKS["1"]),
    "mcp_use": ("mcp-use>=1.7.1,<1.8", SDKS["1"]),
    "openai_agents": ("openai-agents>=0.24,<0.25", SDKS["2"]),
    "ownertask": (".", SDKS["2"]),
    "session_group-1": ("anyio>=4.14.2,<5", SDKS["1"]),
    "session_group-2": ("anyio>=4.14.2,<5", SDKS["2"]),
}
# Programs that start an example, in the versions that were tested.
LAUNCHERS = ["celery[sqlalchemy]>=5.7,<6", "streamlit>=1.67,<2"]


def run_tests(session: nox.Session, *options: str) -> None:
    """Runs the tests. In some sessions, also measures the coverage of some of them."""
    session.env["OWNERTASK_DEBUG"] = "0"  # see tests/conftest.py
    if session.name not in MEASURED or session.posargs:
        session.run(*PYTEST, *options, *session.posargs)
        return
    data_file = Path.cwd() / f".coverage.{session.name}"
    for old in data_file.parent.glob(f"{data_file.name}*"):
        old.unlink()
    measured, rest = MEASURED[session.name]
    command = ("coverage", "run", "-m", *PYTEST)
    session.run(*command, *options, *measured, env={"COVERAGE_FILE": str(data_file)})
    session.run(*PYTEST, *options, *rest)


@nox.session(python=PYTHONS)
@nox.parametrize("sdk", list(SDKS))
def tests(session: nox.Session, sdk: str) -> None:
    """Runs the tests."""
    session.install(".[test]", SDKS[sdk])
    if sdk == "1" and not session.posargs:
        ignored = (f"--ignore=tests/proof/test_{name}.py" for name in SEARCHES)
        run_tests(session, *ignored, "-k", "not test_sweep or session")
    else:
        run_tests(session)


@nox.session(python="3.11", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Runs the tests, except searches and examples, with the lowest version of each dependency.

    uvloop is not a dependency. The other sessions test with it.
    """
    session.install("--resolution", "lowest-direct", ".[test]")
    examples = ("--ignore=tests/test_docstring_examples.py", "--ignore=tests/test_examples.py")
    run_tests(session, *examples, "--ignore=tests/proof", "-k", "not uvloop")


@nox.session
def coverage(session: nox.Session) -> None:
    """Reports the coverage of both measured sessions together, because each has one line of the SDK."""
    missing = [name for name in MEASURED if not list(Path().glob(f".coverage.{name}*"))]
    if missing:
        session.skip(f"there is no data from {' and '.join(missing)}")
    session.install("coverage[toml]>=7.10", env=COMPILE_ON_IMPORT)
    session.run("coverage", "combine", "--keep", "-q")
    session.run("coverage", "report")


@nox.session(python="3.13")
def libraries(session: nox.Session) -> None:
    """Runs the examples for other libraries with real servers, and checks their types.

    If a server is not installed, its tests are skipped. Also runs the examples for Celery and Streamlit.
    """
    requirements = (".[test]", SDKS["2"], *LIBRARIES, *LAUNCHERS, "mypy>=2", "pyright>=1.1.400")
    session.install(*requirements, env=COMPILE_ON_IMPORT)
    session.run(*PYTEST, "tests/libraries", *session.posargs)
    session.run("pytest", "-q", "tests/test_examples.py", "-k", "celery or streamlit")
    session.run("mypy", *sorted(map(str, Path("examples/libraries").glob("*.py"))))
    session.run("pyright", "--project", "examples/libraries")


@nox.session
def lint(session: nox.Session) -> None:
    """Checks formatting, lint rules, wording and types, with mcp 2.x."""
    session.install(".[lint]", SDKS["2"], env=COMPILE_ON_IMPORT)
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("codespell")
    session.run("pytest", "-q", "tests/test_words.py")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "ownertask", "--ignoreexternal")


@nox.session
@nox.parametrize("sdk", list(SDKS))
def types(session: nox.Session, sdk: str) -> None:
    """Checks the types that users see. `tests/types/mcp_1` and `mcp_2` require mcp 1.x and 2.x."""
    session.install(".[lint]", SDKS[sdk], env=COMPILE_ON_IMPORT)
    folders = ("tests/types", f"tests/types/mcp_{sdk}")
    files = [str(file) for folder in folders for file in sorted(Path(folder).glob("*.py"))]
    session.run("mypy", *files)
    session.run("pyright", *files)


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the site in `site/` and tests it. `nox -s docs -- serve` serves it instead.

    Also builds the site with Zensical, the announced successor of mkdocs-material, in another folder.
    """
    session.install(".[docs,test]", SDKS["2"])
    mkdocs = ("mkdocs", *(session.posargs or ["build", "--strict", "--quiet"]))
    if not session.posargs:
        session.run("zensical", "build", "--strict")
        next_site = Path(session.create_tmp(), "zensical")
        shutil.rmtree(next_site, ignore_errors=True)
        shutil.move("site", next_site)
    session.run(*mkdocs, env={"NO_MKDOCS_2_WARNING": "1"})
    if not session.posargs:
        session.run("python", "tests/site/finish.py", "site")
        sites = {"OWNERTASK_SITE": str(Path("site").absolute()), "OWNERTASK_NEXT_SITE": str(next_site)}
        session.run(*PYTEST, "tests/site", env=sites)


@nox.session(venv_backend="uv")
@nox.parametrize("extra", EXTRAS)
def package(session: nox.Session, extra: str) -> None:
    """Builds the package, installs it with one extra, and tries it outside the repository."""
    with tempfile.TemporaryDirectory() as folder:
        session.run("uv", "build", "--quiet", f"--out-dir={folder}", external=True)
        (wheel,) = Path(folder).glob("*.whl")
        session.install(str(wheel) if extra == "none" else f"{wheel}[{extra}]", env=COMPILE_ON_IMPORT)
        session.run("python", "-W", "error", "-c", "import ownertask, ownertask.mcp")
        for file in ("quickstart.py", "server.py"):
            shutil.copy(Path("examples", file), folder)
        with session.chdir(folder):
            session.run("python", "quickstart.py", *(["trio"] if extra == "trio" else []))
            session.run("ownertask", "--version")
            session.run("ownertask", "check", "stdio", "--", "python", "server.py")
            if extra == "websocket":
                code = "import ownertask.mcp as o; print(o.WebSocketConnectionManager('ws://localhost'))"
                session.run("python", "-c", code)


@nox.session(python="3.12", venv_backend="uv")
@nox.parametrize("framework", list(FRAMEWORKS))
def frameworks(session: nox.Session, framework: str) -> None:
    """Kills and restarts a server that a framework uses. Each framework is installed separately."""
    session.install(".", *FRAMEWORKS[framework])
    session.run("python", f"examples/frameworks/{framework}.py")


@nox.session(python="3.13")
@nox.parametrize("sdk", list(SDKS))
def servers(session: nox.Session, sdk: str) -> None:
    """Starts, calls, kills and stops the reference servers of npm and PyPI. Requires Node.js and git.

    Without arguments, also writes the results for the site.
    """
    session.install(".[test]", "uv>=0.9", SDKS[sdk])
    folder = Path(session.create_tmp()).absolute()
    npm = ("install", f"--prefix={folder}/npm", "--no-audit", "--no-fund", "--silent")
    session.run("npm", *npm, *NPM_SERVERS, external=True)
    session.run("uv", "venv", "--quiet", "--clear", f"--python={session.python}", f"{folder}/venv")
    session.run("uv", "pip", "install", "--quiet", f"--python={folder}/venv", *PYPI_SERVERS)
    # Downloads what npx and uvx start. The tests run them without the network.
    caches = {"npm_config_cache": f"{folder}/npm-cache", "UV_CACHE_DIR": f"{folder}/uv-cache"}
    with session.chdir(folder):
        for spec in NPM_SERVERS:
            session.run("npx", "-y", f"--package={spec}", "-c", "true", env=caches, external=True)
        for spec in PYPI_SERVERS:
            script = spec.partition(">")[0]
            python = f"{session.bin}/python"
            uvx = ("uvx", "--quiet", f"--python={python}", f"--from={spec}", script, "--help")
            session.run(*uvx, env=caches, silent=True)
    (folder / "requirements.json").write_text(json.dumps(NPM_SERVERS + PYPI_SERVERS))
    env = {"OWNERTASK_REFERENCE_SERVERS": str(folder)}
    if not session.posargs:
        env["OWNERTASK_RESULTS"] = "tests/reference_servers/results.json"
    session.run(*PYTEST, "tests/reference_servers", *session.posargs, env=env)


@nox.session(python="3.12", venv_backend="uv")
@nox.parametrize("library", list(COMPARED))
def comparison(session: nox.Session, library: str) -> None:
    """Tries the same behaviors on each library. `-- NAME` tries one behavior."""
    session.install(*COMPARED[library], "trio>=0.32,<1")
    session.run("python", f"tests/comparison/with_{library.partition('-')[0]}.py", *session.posargs)


@nox.session
@nox.parametrize("sdk", list(SDKS))
def conformance(session: nox.Session, sdk: str) -> None:
    """Runs the official conformance suite with the SDK alone and with a connection manager.

    `-- TEXT` runs the scenarios whose names contain the text, and does not save the results.
    """
    session.install(".[trio]", SDKS[sdk])
    folder = session.create_tmp()
    install = ("npm", "install", "--no-audit", "--no-fund", f"--prefix={folder}")
    session.run(*install, *CONFORMANCE, external=True)
    session.run("python", "tests/conformance/run.py", folder, *session.posargs)


@nox.session(venv_backend="uv")
def benchmark(session: nox.Session) -> None:
    """Measures overhead and growth. This is not a test. `-- --help` lists the options."""
    session.install(".[test]", SDKS["2"])
    # mcp-use requires mcp 1.x, so it has a separate environment.
    other = str(Path(session.create_tmp(), "mcp_use"))
    session.run(
        "uv", "venv", "--quiet", "--clear", f"--python={session.bin}/python", other, external=True
    )
    requirements = (".[trio]", *FRAMEWORKS["patched_mcp_use"])
    session.run("uv", "pip", "install", "--quiet", f"--python={other}", *requirements, external=True)
    options = (f"--mcp-use={other}", *session.posargs)
    session.run("python", "tests/benchmarks/run.py", *options)


@nox.session
def proof(session: nox.Session) -> None:
    """Runs the long searches: pairs of interruptions, random steps, and threads, for minutes each."""
    session.install(".[test]", SDKS["2"])
    search = [f"tests/proof/test_{name}.py" for name in ("sweep", *SEARCHES)]
    options = ("-o", "faulthandler_timeout=600")  # a search takes longer than the usual timeout
    session.run(*PYTEST, *options, *search, env={"OWNERTASK_PROOF": "long"})


@nox.session
def mutants(session: nox.Session) -> None:
    """Seeds faults in a copy of the core, and checks that the search finds each one."""
    session.install(".[test]", SDKS["2"])
    session.run("python", "tests/proof/mutants.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Runs 2,000 cycles over stdio."""
    session.install(".[test]", SDKS["2"])
    options = ("-o", "faulthandler_timeout=0", "-n", "2")  # the run takes longer than that timeout
    session.run("pytest", *options, "tests/proof/test_soak.py", env={"OWNERTASK_PROOF": "soak"})
