"""A gRPC server with one method, for the example; `local_servers.py` starts it.

Usage: python examples/libraries/grpc_server.py PORT
"""

import asyncio
import sys

import grpc
import grpc.aio


async def shout(request: bytes, _: object) -> bytes:
    return request.upper()


async def main(port: int) -> None:
    server = grpc.aio.server()
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Shout": grpc.unary_unary_rpc_method_handler(shout)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("examples.Echo", methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
