"""Train, validate, test and predict: ``python train.py fit --config configs/demo.yaml``."""

import os
import signal


def end_quietly(*_: object) -> None:
    """Answer Ctrl+C by ending at once, without a traceback."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    # The imports take seconds, in which Ctrl+C would print a traceback. A program under nohup keeps ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_quietly)
    from app.cli.main import main

    main()
