"""The check of one server: opens its connections phase by phase, and reports what it finds."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from anyio import fail_after
from anyio.lowlevel import checkpoint
from mcp import ClientSession
from mcp.types import PaginatedRequestParams
from pydantic import BaseModel

from ..errors import ConnectionLostError, StopTimeoutError
from ..mcp import (
    SessionConnectionManager,
    SessionOptions,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
)
from ..state import ConnectionState
from .arguments import Arguments
from .connecting import reporting_connect
from .interrupts import Interrupts
from .masking import Mask
from .output import OutputError
from .phases import Phases
from .report import Report, ServerInfo, failure_from, stderr_of
from .summary import Progress
from .targets import Target

__all__ = ["ServerCheck"]

R = TypeVar("R")

ENDED: Final = {ConnectionState.NEW, ConnectionState.CLOSED, ConnectionState.FAILED}

SIGNAL_NAMES: Final = {-9: "SIGKILL", -15: "SIGTERM"}
"""The signals that a manager sends to a server that does not exit, as exit statuses."""

MAX_PAGES: Final = 1000
"""The maximum number of pages of a list. A list with more pages probably never ends."""


class ServerCheck:
    """The check of one server.

    Attributes:
        report: The findings so far.
    """

    def __init__(
        self,
        target: Target,
        arguments: Arguments,
        progress: Progress,
        mask: Mask,
        interrupts: Interrupts,
    ) -> None:
        self.report = Report(target.name, target.kind)
        self._transport = target.transport
        self._timeout = arguments.timeout
        self._repeat = arguments.repeat
        self._progress = progress
        self._mask = mask
        self._interrupts = interrupts
        self._capabilities: list[str] = []
        self._strays = 0
        self._phases = Phases(self._begun, self._ended)
        self._failed_phase: str | None = None
        options: SessionOptions = {**target.options, "message_handler": self._receive}
        self._manager = SessionConnectionManager(
            target.transport,
            initialize=self._initialize,
            name=target.name,
            start_timeout=arguments.timeout,
            **options,
        )
        if isinstance(target.transport, StreamableHttpConnectionManager | SseConnectionManager):
            reporting_connect(target.transport, self._connected)

    async def run(self, look: Callable[[], object]) -> None:
        """Opens and closes the connections, until one fails."""
        report = self.report
        while report.failure is None and report.connections < self._repeat:
            await checkpoint()  # the last connection may have been closed after a signal
            await self._open_once(look)
        if self._strays:
            notes = report.remarks if report.failure is None else report.failure.notes
            notes.append(_stray_note(self._strays, report.transport))

    async def _open_once(self, look: Callable[[], object]) -> None:
        error: BaseException | None = None
        try:
            self._phases.begin("spawn" if self.report.transport == "stdio" else "connect")
            session = await self._manager.start()
            look()
            self._phases.begin("list")
            await self._list(session)
            self._phases.begin("ping")
            await self._answered("ping", session.send_ping)
            look()
            self._phases.end()
        except OutputError:
            raise
        except Exception as raised:  # noqa: BLE001 - the report shows it
            error = raised
        finally:
            self._end_failed_phase()  # unless each phase ended
            with self._interrupts.cleanup():
                try:
                    await self._close()
                except StopTimeoutError as raised:
                    error = error or raised
                    self._fail(error)  # a cancelled check does not get further
            if isinstance(self._transport, StdioConnectionManager):
                self.report.stderr = stderr_of(self._transport.stderr_tail, self._mask)
        loss = self._manager.exception
        if loss is not None and (error is None or isinstance(loss, ConnectionLostError)):
            error = loss
        if error is None:
            self.report.connections += 1
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        phase = self._failed_phase or "close"
        self.report.failure = failure_from(error, phase, self.report.transport, self._mask)
        if phase == "spawn" and self._has_no_folder():
            self.report.failure.notes.append("the working directory is not an existing directory")

    def _has_no_folder(self) -> bool:
        """Returns whether the working directory is missing. A missing command raises the same error."""
        if not isinstance(self._transport, StdioConnectionManager):
            return False
        folder = self._transport.server_params.cwd
        return folder is not None and not Path(folder).is_dir()

    def _end_failed_phase(self) -> None:
        phase = self._phases.current
        if phase is None or phase == "close":
            self._phases.end()
            return
        self._failed_phase = phase
        self._phases.end("failed" if self._interrupts.received is None else "interrupted")

    async def _close(self) -> None:
        if self._manager.state in ENDED:
            return
        self._phases.begin("close")
        how = "forced"
        try:
            await self._manager.stop()
            how = ""
        except StopTimeoutError:
            how = "failed"
            raise
        finally:
            self._phases.end(how)
        if isinstance(self._transport, StdioConnectionManager):
            signal = SIGNAL_NAMES.get(self._transport.returncode or 0)
            if signal is not None and self._manager.exception is None:
                self._remark(
                    f"the server did not exit after its stdin was closed, and was ended with {signal}"
                )

    async def _initialize(self, session: ClientSession) -> None:
        if self._phases.current == "spawn" or self.report.transport == "ws":
            self._phases.begin("handshake")
        try:
            result = _dumped(await session.initialize())
        except BaseException:
            self._end_failed_phase()
            if self._failed_phase == "handshake":
                self._phases.begin("close")
            raise
        server = result["serverInfo"]
        self._capabilities = sorted(result["capabilities"])
        self.report.server = ServerInfo(
            self._mask(server["name"]),
            self._mask(server["version"]),
            self._mask(str(result["protocolVersion"])),
            [self._mask(capability) for capability in self._capabilities],
        )

    async def _list(self, session: ClientSession) -> None:
        report = self.report
        report.tools = await self._names("tools", "name", session.list_tools)
        report.resources = await self._names("resources", "uri", session.list_resources)
        report.prompts = await self._names("prompts", "name", session.list_prompts)

    async def _names(
        self, kind: str, key: str, request: Callable[..., Awaitable[BaseModel]]
    ) -> list[str]:
        if kind not in self._capabilities:
            return []
        names: list[str] = []
        cursor: str | None = None
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            parameters = None if cursor is None else PaginatedRequestParams(cursor=cursor)
            page = _dumped(await self._answered(f"{kind}/list", partial(request, params=parameters)))
            names += [self._mask(str(item[key])) for item in page[kind]]
            cursor = page.get("nextCursor")
            if cursor is None:
                return names
            if cursor in seen:
                raise ValueError(f"the list of {kind} never ends: a page refers to an earlier one")
            seen.add(cursor)
        raise ValueError(f"the list of {kind} has more than {MAX_PAGES} pages")

    async def _answered(self, method: str, request: Callable[[], Awaitable[R]]) -> R:
        try:
            with fail_after(self._timeout):
                return await request()
        except TimeoutError:
            raise TimeoutError(f"no response to {method} within {self._timeout:g} s") from None
        except Exception as error:
            error.add_note(f"the request was {method}")
            raise

    async def _receive(self, message: object) -> None:
        if isinstance(message, Exception):
            self._strays += 1

    def _connected(self) -> None:
        if self._phases.current == "connect":
            self._phases.begin("handshake")

    def _begun(self, phase: str) -> None:
        self._progress.begun(self.report, phase)

    def _ended(self, phase: str, seconds: float, how: str) -> None:
        durations = self.report.seconds.setdefault(phase, [])
        if not how or not durations:  # the duration of a failed phase is not comparable
            durations.append(seconds)
        self._progress.ended(self.report, phase, seconds, how)

    def _remark(self, text: str) -> None:
        if text not in self.report.remarks:
            self.report.remarks.append(text)


def _dumped(result: BaseModel) -> dict[str, Any]:
    """Returns a result with the protocol's field names. The names in the SDK depend on its version."""
    return result.model_dump(by_alias=True, mode="json", exclude_none=True)


def _stray_note(number: int, transport: str) -> str:
    text = "text on its stdout" if transport == "stdio" else "data"
    return (
        f"the server sent {text} that is not a message ({number} {'time' if number == 1 else 'times'})"
    )
