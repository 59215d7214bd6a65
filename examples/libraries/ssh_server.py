"""An SSH server without authentication, for the example; `local_servers.py` starts it.

Usage: python examples/libraries/ssh_server.py FOLDER PORT
The server stores its key and a file `known_hosts` for clients in the folder.
"""

import asyncio
import sys
from pathlib import Path

import asyncssh
from asyncssh import SSHServerProcess


class OpenServer(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False  # no authentication is required


def answer(process: SSHServerProcess[str]) -> None:
    process.stdout.write(f"{process.get_extra_info('username')} ran {process.command}")
    process.exit(0)


async def main(folder: Path, port: int) -> None:
    key_file = folder / "host_key"
    if not key_file.exists():
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(key_file)
        public = key.export_public_key().decode()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    server = await asyncssh.listen(
        "127.0.0.1", port, server_host_keys=[key_file], server_factory=OpenServer, process_factory=answer
    )
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
