"""`fedlab …` and `python -m fedlab …`: where every command begins, those of `hub_server.py` too."""

from collections.abc import Sequence

from fedlab._interrupts import ended_by_ctrl_c


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    with ended_by_ctrl_c():
        from fedlab.cli import main as run
    run(arguments)


if __name__ == "__main__":
    main()
