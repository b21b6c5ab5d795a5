"""The checks of luthier verify: each does what a run does, with what a run uses, and compares."""
