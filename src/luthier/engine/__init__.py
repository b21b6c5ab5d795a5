"""How a batch goes through a model fast and exactly."""

from luthier.engine.engine import Engine as Engine
