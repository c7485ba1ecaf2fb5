"""The `cohortium` command, one file per noun: parse, call one function, print.

May import every room.
Must never happen here: logic that a library user could not call.
"""
