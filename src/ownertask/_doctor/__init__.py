"""The command line: `ownertask check` and `ownertask watch`.

This package uses only the public names of ownertask and of the SDK.
"""
