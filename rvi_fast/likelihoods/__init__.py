"""Laws of the data given what a decoder puts out.

| name | x | outputs of the decoder |
|---|---|---|
| "gaussian", `Gaussian` | numbers; uint8 pixels | means |
| "laplace", `Laplace` | numbers whose absolute errors count; uint8 pixels | medians |
| "student_t", `StudentT` | numbers with far entries | centres |
| "bernoulli", `Bernoulli` | 0 and 1 | logits |
| "categorical", `Categorical` | codes 0 to k - 1 | k logits for each column |
| "poisson", `Poisson` | counts | logarithms of rates |
| "negative_binomial", `NegativeBinomial` | counts that vary more | logarithms of rates |
| a list, `Mixed` | a law for each column | those of each column, one after the other |

`likelihood=` in `models.rvi`, `vad` and `vae` takes a name or an instance; `Likelihood` and
`Elementwise` are what a law of your own starts from.
"""

from .base import LAWS, Elementwise, Likelihood
from .bernoulli import Bernoulli
from .categorical import Categorical
from .counts import NegativeBinomial, Poisson
from .gaussian import Gaussian, GaussianLikelihood
from .laplace import Laplace
from .mixed import Mixed
from .named import make
from .student_t import StudentT

__all__ = [
    "LAWS",
    "Bernoulli",
    "Categorical",
    "Elementwise",
    "Gaussian",
    "GaussianLikelihood",
    "Laplace",
    "Likelihood",
    "Mixed",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "make",
]
