"""Tests for parsing and writing messages, which must give what the SDK's own transports give."""

import json
from itertools import product

import pytest

from ownertask.mcp import _sdk

if _sdk.HAS_CLIENT:
    from mcp_types import jsonrpc_message_adapter

    parse = jsonrpc_message_adapter.validate_json
    OMITTED = {"exclude_unset": True}
else:
    from mcp.types import JSONRPCMessage

    parse = JSONRPCMessage.model_validate_json
    OMITTED = {"exclude_none": True}

LEFT_OUT = object()
FIELDS = {
    "jsonrpc": ["2.0", LEFT_OUT],
    "id": [1, "1", 1.0, True, LEFT_OUT],
    "method": ["a", 1, LEFT_OUT],
    "params": [{"a": [1e400, {"b": None}]}, [], LEFT_OUT],
    "result": [{"a": {"b": [0.1]}}, "a", LEFT_OUT],
    "error": [{"code": "5", "message": "a", "more": 1}, {"code": 1.5, "message": "a"}, LEFT_OUT],
}
TEXTS = [
    '{"jsonrpc": "2.0", "id": 1, "id": 2, "result": {"a": 1, "a": 2}}',
    '{"jsonrpc": "2.0", "id": 1, "result": {"a": NaN, "b": -Infinity, "c": 1e999}}',
    '{"jsonrpc": "2.0", "id": 1, "result": {"a": "\\ud83d\\ude00", "é": "\\u0000"}}',
    '{"jsonrpc": "2.0", "id": 1, "result": {"a": "\\ud83d"}}',
    '{"jsonrpc": "2.0", "id": 1, "result": {}',
    '\ufeff{"jsonrpc": "2.0", "id": 1, "result": {}}',
    '{"jsonrpc": "2.0", "id": 1, "result": ' + '{"a":' * 300 + "1" + "}" * 300 + "}",
    "[]",
    "1",
    "null",
    "",
    " ",
    "hello",
]


def outcome(parsed):
    if isinstance(parsed, Exception):
        return type(parsed), str(parsed)
    return type(parsed), repr(parsed), parsed.model_fields_set


def outcome_of_the_sdk(text):
    try:
        return outcome(parse(text))
    except ValueError as error:
        return outcome(error)


def our_outcome(text):
    item = _sdk.message_from_json(text)
    return outcome(item if isinstance(item, Exception) else item.message)


def test_each_combination_of_fields_is_parsed_as_the_sdk_does_it():
    for values in product(*FIELDS.values()):
        fields = zip(FIELDS, values, strict=True)
        text = json.dumps({name: value for name, value in fields if value is not LEFT_OUT})
        assert our_outcome(text) == outcome_of_the_sdk(text)


@pytest.mark.parametrize("text", TEXTS)
def test_special_texts_are_parsed_as_the_sdk_does_it(text):
    assert our_outcome(text) == outcome_of_the_sdk(text)
    encoded = text.encode()
    assert our_outcome(encoded) == outcome_of_the_sdk(encoded)


def test_bytes_that_are_not_utf_8_are_refused():
    assert isinstance(_sdk.message_from_json(b'{"jsonrpc": "2.0", "method": "\xff"}'), ValueError)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 1, "method": "é", "params": {"a": None, "b": ["\n\u2028"]}},
        {"method": "a"},
        {"id": "1", "result": {"a": {}}},
        {"id": 1, "error": {"code": 1, "message": "a", "data": None}},
    ],
)
def test_messages_are_written_as_the_sdk_does_it(fields):
    item = _sdk.message_from_json(json.dumps({"jsonrpc": "2.0", **fields}))
    written = item.message.model_dump_json(by_alias=True, **OMITTED)
    assert _sdk.message_to_utf8(item) == written.encode()
