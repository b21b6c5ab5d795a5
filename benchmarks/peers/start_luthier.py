"""When `luthier train` starts its first micro-batch. The job's `rows` is a settings file here."""

import sys
from typing import Any

from protocol import Record, read_job


def main() -> None:
    job = read_job()
    record = Record(job)
    # The command line as a user has it; nothing is imported before it.
    from luthier import cli
    from luthier.engine import Engine

    plain = Engine.forward_backward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        record.begin_micro_batch()
        return plain(self, *args, **kwargs)

    Engine.forward_backward = watched  # type: ignore[method-assign]
    sys.argv = ["luthier", "train", job.rows]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
    record.answer()


if __name__ == "__main__":
    main()
