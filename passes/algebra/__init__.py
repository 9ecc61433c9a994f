from .simplify import SimplifyAlgebra as SimplifyAlgebra
