"""What exact match is too strict for: is it at least the right tool, and the right command of it?"""


def right_tool(expected: str, answer: str) -> float:
    """1 where the command begins with the same program."""
    return float(expected.split()[:1] == answer.split()[:1])


def right_beginning(expected: str, answer: str) -> float:
    """1 where program and subcommand are the same: git commit, docker run."""
    return float(expected.split()[:2] == answer.split()[:2])
