"""Train, validate, test and predict: ``python train.py fit --config configs/demo.yaml``."""

from app.cli import main

if __name__ == "__main__":
    main()
