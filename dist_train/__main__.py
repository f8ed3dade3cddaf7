"""`python -m dist_train CONFIG [a.b=c …]`, and what torchrun starts."""

import sys

from dist_train.errors import UserError, require_linux


def _main() -> int:
    try:
        require_linux()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    from dist_train.control.stop import StopFlag
    from dist_train.native_threads import settle_at_exit

    settle_at_exit()
    # Before the slow imports, so that a signal that comes meanwhile is kept.
    with StopFlag().handling_signals() as flag:
        from dist_train.worker import main

        return main(sys.argv[1:], flag)


if __name__ == "__main__":
    sys.exit(_main())
