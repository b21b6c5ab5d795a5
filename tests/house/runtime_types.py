"""How pytest checks the types of every call into luthier (see addopts in pyproject.toml): like mypy, an int may stand for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
