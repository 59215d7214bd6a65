"""What a client does in each scenario of the conformance suite, once it is connected."""

from mcp import types

VALUES = {
    "array": [],
    "boolean": True,
    "integer": 1,
    "null": None,
    "number": 1.5,
    "object": {},
    "string": "text",
}


def value_for(schema):
    """Returns the default value of a JSON schema, or a value of its type."""
    return schema.get("default", VALUES[schema.get("type", "string")])


async def answer_question(context, params):
    """Answers a server that asks the user, with the default values of the form."""
    schema = params.model_dump(by_alias=True)["requestedSchema"]
    content = {name: value_for(field) for name, field in schema["properties"].items()}
    return types.ElicitResult(action="accept", content=content)


def schema_of(tool):
    return tool.model_dump(by_alias=True)["inputSchema"]


async def call_tools(connection, context):
    """Lists the tools, and calls each one with arguments that its schema requires."""
    for tool in (await connection.list_tools()).tools:
        schema = schema_of(tool)
        fields = schema.get("properties", {})
        arguments = {name: value_for(fields[name]) for name in schema.get("required", [])}
        await connection.call_tool(tool.name, arguments)


async def make_given_calls(connection, context):
    """Makes the calls that the suite prescribes, of the tools that the client accepts."""
    names = {tool.name for tool in (await connection.list_tools()).tools}
    for call in context["toolCalls"]:
        if call["name"] in names:
            await connection.call_tool(call["name"], call["arguments"])


async def return_schema(connection, context):
    """Passes the schema of a tool back to the server, as it arrived."""
    tools = {tool.name: tool for tool in (await connection.list_tools()).tools}
    schema = schema_of(tools["json_schema_2020_12_tool"])
    await connection.call_tool("json_schema_echo", {"schema": schema})


async def list_tools(connection, context):
    """Lists the tools of a server that offers tools, but answers no call."""
    await connection.list_tools()


SPECIAL = {
    "http-custom-headers": make_given_calls,
    "json-schema-2020-12-preservation": return_schema,
    "json-schema-ref-no-deref": list_tools,
}


def scenario_for(name):
    return SPECIAL.get(name, call_tools)
