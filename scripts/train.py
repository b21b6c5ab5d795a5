"""A run, for starters that want a script: accelerate launch scripts/train.py luthier.yaml, or torchrun scripts/train.py luthier.yaml."""

from luthier.launch.accelerate import main

if __name__ == "__main__":
    main()
