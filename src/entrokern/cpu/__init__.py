from ..reference import run  # placeholder until the kernels land

__all__ = ["run"]
