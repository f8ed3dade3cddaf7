"""`dist-train`, and `python -m launch`."""

import sys


def main() -> None:
    """The command's entry point. Ctrl-C while it is imported ends it as at any later time."""
    try:
        from .children import begin_fork_server, drop_fork_server

        begin_fork_server(sys.argv[1:])
        from .cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        run()
    finally:
        drop_fork_server()


if __name__ == "__main__":
    main()
