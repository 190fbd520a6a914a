"""Train, validate, test and predict: ``python train.py fit --config configs/demo.yaml``."""

import os
import signal


def interrupted(*_: object) -> None:
    """End at once and quietly."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup has it ignored
        signal.signal(signal.SIGINT, interrupted)  # until the run begins: imports take seconds
    from app.cli.main import main

    main()
