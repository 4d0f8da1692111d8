"""scikit-learn estimators: an imputer and an embedder of incomplete tables.

    from rvi_fast.sklearn import RelayEmbedder, RelayImputer

Needs the extra: `pip install "rvi-fast[sklearn]"`.
"""

try:
    import sklearn.base  # noqa: F401
except ImportError as error:
    raise ImportError('needs scikit-learn: pip install "rvi-fast[sklearn]"') from error

from .embedder import RelayEmbedder
from .imputer import RelayImputer

__all__ = ["RelayEmbedder", "RelayImputer"]
