from .canonicalize import Canonicalize as Canonicalize
