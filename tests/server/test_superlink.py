"""What the SuperLink prints stays of a bounded length."""

from __future__ import annotations

from pathlib import Path

from cohortium.server.superlink import turn_log


def test_a_log_that_is_long_is_begun_anew_where_the_process_appends(tmp_path: Path) -> None:
    file = tmp_path / "superlink.log"
    with open(file, "ab", buffering=0) as process:
        process.write(b"one\n" * 5)
        turn_log(file, most=20)
        assert not list(tmp_path.glob("*.1"))
        turn_log(file, most=19)
        process.write(b"two\n")
    assert file.read_bytes() == b"two\n"
    assert (tmp_path / "superlink.log.1").read_bytes() == b"one\n" * 5
